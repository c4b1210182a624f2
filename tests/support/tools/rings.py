"""FUSE over io_uring, switched on for the length of a test."""

import contextlib
import fcntl
import os
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

WITHOUT = "PASSFS_TESTS_WITHOUT_IO_URING"
PARAMETER = Path("/sys/module/fuse/parameters/enable_uring")


@contextlib.contextmanager
def switched_on() -> Iterator[None]:
    """Switch FUSE over io_uring on for the length of the block, and then restore the setting.

    A mount made in the block keeps io_uring. Another test run on the machine waits for its turn.
    """
    if os.environ.get(WITHOUT):
        pytest.skip(f"{WITHOUT} is set")
    try:
        with PARAMETER.open("r+") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            before = file.read()
            PARAMETER.write_text("Y\n")
            try:
                yield
            finally:
                PARAMETER.write_text(before)
    except OSError as error:
        if error.filename != str(PARAMETER):
            raise
        pytest.fail(f"no FUSE over io_uring here, which {WITHOUT}=1 accepts: {error}")


def switched_for(options: Mapping[str, str]) -> contextlib.AbstractContextManager[None]:
    """Switch FUSE over io_uring on if *options* of a mount have transport=io_uring."""
    wanted = options.get("transport") == "io_uring"
    return switched_on() if wanted else contextlib.nullcontext()


def rings(pid: int) -> int:
    """Return the number of rings of a worker: each is mapped twice, and has no descriptor."""
    return Path(f"/proc/{pid}/maps").read_text().count("anon_inode:[io_uring]") // 2
