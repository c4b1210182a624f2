"""The log of a worker and its guards: lines on standard error, for which no process waits.

Standard error is a pipe, which holds 64 KiB while no plugin reads it. A guard that waited in
write(2) would make no successor, and a worker would serve no request. So lines for which there is
no room are lost, and the next line that is written says how many.
"""

import logging
import os
import select
import stat
from contextlib import suppress
from typing import Final

_STDERR: Final = 2
_LINE: Final = "%(levelname)s %(name)s: %(message)s"
# syslog(3)
_DAEMON: Final = 3 << 3
_NOTICE: Final = 5
_SEVERITIES: Final = {
    logging.DEBUG: 7,
    logging.INFO: 6,
    logging.WARNING: 4,
    logging.ERROR: 3,
    logging.CRITICAL: 2,
}


class Prefixed(logging.Formatter):
    """Lines for `logger --prio-prefix`: each begins with its priority, syslog(3), and a name."""

    def __init__(self, about: str) -> None:
        super().__init__("%(name)s: %(message)s")
        self._about = about.encode("unicode_escape", "surrogateescape").decode()

    def format(self, record: logging.LogRecord) -> str:
        """Return the lines of *record*: several of a traceback."""
        prefix = f"<{_DAEMON | _SEVERITIES.get(record.levelno, _NOTICE)}>{self._about}: "
        return "\n".join(prefix + line for line in super().format(record).split("\n"))


def handler(form: logging.Formatter | None = None) -> logging.Handler:
    """Return the handler of this process and its children, which waits for no room.

    A pipe gets an open file description of these processes' own: O_NONBLOCK belongs to that, and
    others may have the same.
    """
    if stat.S_ISFIFO(os.fstat(_STDERR).st_mode):
        with suppress(OSError):  # the lines are written one by one, if there is room, all the same
            fd = os.open(f"/proc/self/fd/{_STDERR}", os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC)
            os.dup2(fd, _STDERR, inheritable=False)
            os.close(fd)
    lines = _Lines()
    lines.setFormatter(form or logging.Formatter(_LINE))
    return lines


class _Lines(logging.Handler):
    """A handler that drops records for which there is no room."""

    def __init__(self) -> None:
        super().__init__()
        self._lost = 0
        self._cut = False

    def emit(self, record: logging.LogRecord) -> None:
        """Write a record, after the number of those that are lost."""
        text = self.format(record) + "\n"
        if self._lost:
            text = f"WARNING {__name__}: {self._lost} messages before this one are lost\n{text}"
        if self._cut:
            text = f"\n{text}"
        data = text.encode(errors="backslashreplace")
        written = _write(data)
        self._lost = 0 if written == len(data) else self._lost + 1
        self._cut = 0 < written < len(data) or (self._cut and not written)


def _write(data: bytes) -> int:
    """Write as much of *data* as there is room for; return how many bytes that was.

    Up to PIPE_BUF bytes are written to a pipe together or not at all, pipe(7).
    """
    poll = select.poll()
    poll.register(_STDERR, select.POLLOUT)
    try:
        return os.write(_STDERR, data) if poll.poll(0) else 0
    except OSError:  # no room after all, or no reader
        return 0
