"""The plugin's log: INFO and below on standard output, WARNING and above on standard error.

dockerd logs a managed plugin's standard error as errors, where an ordinary line would raise a false
alarm. Lines have no timestamp: dockerd and journald add their own.
"""

import logging
import sys

from plugin.errors import printable

LINE = "%(levelname)s %(name)s: %(message)s"


class OneLine(logging.Formatter):
    """A formatter that writes each message on one line; a traceback follows on lines of its own.

    Unprintable characters are escaped. A volume may have any name, and a name with a newline must
    not forge a line of the log.
    """

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 - logging's name
        """Return the line of *record*."""
        return printable(super().formatMessage(record))


def _below_warning(record: logging.LogRecord) -> bool:
    return record.levelno < logging.WARNING


def configure(level: int) -> None:
    """Send the records of all loggers from *level* on to the process's two streams."""
    ordinary = logging.StreamHandler(sys.stdout)
    ordinary.addFilter(_below_warning)
    urgent = logging.StreamHandler(sys.stderr)
    urgent.setLevel(logging.WARNING)
    for handler in (ordinary, urgent):
        handler.setFormatter(OneLine(LINE))
    logging.basicConfig(level=level, handlers=[ordinary, urgent], force=True)
