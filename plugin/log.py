"""Where log lines go: to standard output up to INFO, to standard error from WARNING on.

dockerd logs what a managed plugin writes to its standard error as errors, so that an ordinary line
there would alarm somebody. Lines carry no time of their own: dockerd and journald both stamp them.
"""

import logging
import sys

LINE = "%(levelname)s %(name)s: %(message)s"


def _below_warning(record: logging.LogRecord) -> bool:
    return record.levelno < logging.WARNING


def configure(level: int) -> None:
    """Send the records of all loggers from *level* on to the process's two streams."""
    ordinary = logging.StreamHandler(sys.stdout)
    ordinary.addFilter(_below_warning)
    urgent = logging.StreamHandler(sys.stderr)
    urgent.setLevel(logging.WARNING)
    logging.basicConfig(level=level, format=LINE, handlers=[ordinary, urgent], force=True)
