"""Where log lines go: to standard output up to INFO, to standard error from WARNING on.

dockerd logs what a managed plugin writes to its standard error as errors, so that an ordinary line
there would alarm somebody. Lines carry no time of their own: dockerd and journald both stamp them.
"""

import logging
import sys

LINE = "%(levelname)s %(name)s: %(message)s"


class OneLine(logging.Formatter):
    """Keeps a message to its line; a traceback follows in lines of its own.

    Whatever cannot be printed is escaped: a volume may be called anything, and nobody is to write
    lines of our log by the name of a volume.
    """

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 - logging's name
        """The line of *record*."""
        line = super().formatMessage(record)
        return "".join(one if one.isprintable() else repr(one)[1:-1] for one in line)


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
