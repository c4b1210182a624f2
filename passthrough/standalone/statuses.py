"""Runs a step of a command as mount(8) does: a message on standard error, and an exit status."""

import os
import sys
from collections.abc import Callable
from typing import Final

from passthrough.options.table import OptionError
from passthrough.standalone.background import ServiceError
from passthrough.standalone.unmounting import UnmountError

USAGE: Final = 1
"""Incorrect invocation or permissions, mount(8)."""
FAILURE: Final = 32
"""Mount failure, mount(8)."""


def attempt(program: str, step: Callable[[], int]) -> int:
    """Return the exit status of *step*, which only root may take, or that of its refusal."""
    if os.geteuid() != 0:
        return _say(program, "only root can mount and unmount", USAGE)
    try:
        return step()
    except OptionError as error:
        return _say(program, str(error), USAGE)
    except (OSError, ServiceError, UnmountError) as error:
        return refuse(program, error)
    except KeyboardInterrupt:  # of SIGINT or SIGTERM
        return _say(program, "interrupted", FAILURE)


def refuse(program: str, error: Exception) -> int:
    """Show an error that is no wrong use; return the exit status."""
    return _say(program, _sentence(error), FAILURE)


def warn(program: str, text: object) -> None:
    """Show a warning."""
    _say(program, f"warning: {text}", 0)


def tell(program: str, text: str) -> None:
    """Show what is done."""
    sys.stdout.write(_line(program, text))


def _sentence(error: Exception) -> str:
    if isinstance(error, OSError) and error.filename is not None:
        return f"{error.filename}: {error.strerror}"
    return str(error)


def _say(program: str, text: str, status: int) -> int:
    sys.stderr.write(_line(program, text))
    return status


def _line(program: str, text: str) -> str:
    """Return a line that any stream takes: bytes that are no UTF-8 are escaped."""
    return f"{program}: {text}\n".encode(errors="backslashreplace").decode()
