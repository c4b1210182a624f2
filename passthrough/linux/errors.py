"""OSErrors that operations raise without a failed system call."""

import os


def os_error(number: int) -> OSError:
    """Return an OSError with errno *number* and the text of strerror(3)."""
    return OSError(number, os.strerror(number))
