"""The release of Linux, and the features that an administrator has enabled."""

import functools
import os
import re
from collections.abc import Sequence
from typing import Final

_OVER_IO_URING: Final = "/sys/module/fuse/parameters/enable_uring"
_POSSIBLE: Final = "/sys/devices/system/cpu/possible"


def linux_release() -> tuple[int, int]:
    """Return the first two numbers of the kernel's release, uname(2); zeros if it has none."""
    match = re.match(r"(\d+)\.(\d+)", os.uname().release)
    return (int(match[1]), int(match[2])) if match else (0, 0)


def io_uring_obstacle() -> str:
    """Return why new mounts cannot use FUSE over io_uring, or an empty text if they can."""
    try:
        with open(_OVER_IO_URING, "rb") as file:
            enabled = file.read().strip() == b"Y"
    except OSError as error:
        release = ".".join(map(str, linux_release()))
        return (
            f"Linux {release} has no FUSE over io_uring, which comes with 6.14"
            f" ({_OVER_IO_URING}: {error.strerror})"
        )
    return "" if enabled else f"no administrator has switched it on: {_OVER_IO_URING} is N"


@functools.cache
def possible_processors() -> Sequence[int]:
    """Return the numbers of all processors that the machine may ever have.

    The result is cached, because a sandboxed process does not see /sys.

    Raises:
        OSError: there is no /sys.
    """
    with open(_POSSIBLE, "rb") as file:
        last = file.read().strip().rpartition(b",")[2].rpartition(b"-")[2]
    return range(int(last) + 1)
