"""Which Linux this is."""

import os
import re


def linux_release() -> tuple[int, int]:
    """The first two numbers of the running kernel's release, uname(2); noughts if it has none."""
    match = re.match(r"(\d+)\.(\d+)", os.uname().release)
    return (int(match[1]), int(match[2])) if match else (0, 0)
