"""The OSError that an operation raises on its own account, as the kernel would word it."""

import os


def os_error(number: int) -> OSError:
    """An error with errno *number* and its usual text."""
    return OSError(number, os.strerror(number))
