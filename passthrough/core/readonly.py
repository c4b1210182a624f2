"""Read-only volumes: what changes something is refused, whatever the mount's flags say by now."""

import errno
import functools
from collections.abc import Callable
from typing import Concatenate, ParamSpec, Protocol, TypeVar

from passthrough.linux.errors import os_error
from passthrough.options.effective import Effective


class Configured(Protocol):
    """Whose operations these are."""

    config: Effective


S = TypeVar("S", bound=Configured)
P = ParamSpec("P")
R = TypeVar("R")


def changing(operation: Callable[Concatenate[S, P], R]) -> Callable[Concatenate[S, P], R]:
    """Refuse *operation* on a read-only volume, also if somebody has remounted it writable.

    Raises:
        OSError: EROFS.
    """

    @functools.wraps(operation)
    def checked(self: S, /, *args: P.args, **kwargs: P.kwargs) -> R:
        if self.config.readonly:
            raise os_error(errno.EROFS)
        return operation(self, *args, **kwargs)

    return checked
