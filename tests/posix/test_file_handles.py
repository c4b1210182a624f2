"""File handles of the mount, name_to_handle_at(2): none opens another file."""

import ctypes
import os
import struct
from pathlib import Path

import pytest

from passthrough.linux.privileges import AT_FDCWD
from tests.support.tools.files import outcome

MAX_HANDLE_SZ = 128
# An inode number is free after the worker has read FORGET, which one round may not wait for.
ROUNDS = 40

_libc = ctypes.CDLL(None, use_errno=True)


def handle_of(path: Path) -> bytes:
    """Return a struct file_handle. Raises: OSError as name_to_handle_at(2) reports it."""
    buffer = ctypes.create_string_buffer(8 + MAX_HANDLE_SZ)
    struct.pack_into("I", buffer, 0, MAX_HANDLE_SZ)
    mount = ctypes.byref(ctypes.c_int())
    if _libc.name_to_handle_at(AT_FDCWD, os.fsencode(path), buffer, mount, 0) != 0:
        raise OSError(ctypes.get_errno(), "name_to_handle_at")
    return buffer.raw


def content_of(handle: bytes, directory: Path) -> bytes:
    """Return the file's content. Raises: OSError as open_by_handle_at(2) reports it."""
    mount = os.open(directory, os.O_RDONLY)
    fd = _libc.open_by_handle_at(mount, handle, os.O_RDONLY)
    number = ctypes.get_errno()
    os.close(mount)
    if fd < 0:
        raise OSError(number, "open_by_handle_at")
    with os.fdopen(fd, "rb") as file:
        return file.read()


@pytest.mark.columns("control-ext4", "kernel-auto-ext4", "libfuse-auto-ext4")
def test_the_handle_of_a_removed_file_opens_no_other(directory: Path) -> None:
    """A file handle opens its own file or none (ESTALE): open_by_handle_at(2)."""
    found = set()
    for _ in range(ROUNDS):
        (directory / "removed").write_text("first")
        handle = outcome(handle_of, directory / "removed")
        (directory / "removed").unlink()
        if not isinstance(handle, bytes):
            found.add(handle)
            continue
        (directory / "made").write_text("second")
        found.add(outcome(content_of, handle, directory))
        (directory / "made").unlink()

    assert found in ({"ESTALE"}, {"ENOTSUP"})


@pytest.mark.columns("kernel-auto")
def test_the_mount_returns_no_file_handles(directory: Path) -> None:
    """With FUSE_NO_EXPORT_SUPPORT, which pyfuse3 does not set, the kernel returns EOPNOTSUPP."""
    (directory / "file").touch()

    assert outcome(handle_of, directory / "file") == "ENOTSUP"
