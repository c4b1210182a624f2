"""Extended attributes, xattr(7): set, got, listed, removed, and refused."""

import errno
import functools
import os
import struct
from pathlib import Path

import pytest

from tests.support.tools.callers import USER, Caller
from tests.support.tools.files import refused

LARGE_BYTES = 3_000  # all attributes of a file share one block of 4 KiB on ext4


@pytest.fixture
def file(directory: Path, caller: Caller) -> Path:
    """Return a file without attributes, the caller's own."""
    path = directory / "file"
    caller.run(path.touch)
    return path


@pytest.mark.parametrize("kind", ["file", "directory"])
def test_a_value_reads_back(directory: Path, beneath: Path, kind: str) -> None:
    """A value is any bytes, and is set on the host's file as well: setxattr(2), getxattr(2)."""
    path = directory / "name"
    path.touch() if kind == "file" else path.mkdir()
    for value in (b"text", b"", b"\0\xff\0", b"v" * LARGE_BYTES):
        os.setxattr(path, "user.name", value)

        assert os.getxattr(path, "user.name") == value
        assert os.getxattr(beneath / "name", "user.name") == value


def test_attributes_of_a_descriptor(file: Path) -> None:
    """An open file has its attributes, also after its name is removed: fsetxattr(2)."""
    with file.open("r+") as opened:
        file.unlink()
        os.setxattr(opened.fileno(), "user.name", b"value")

        assert os.getxattr(opened.fileno(), "user.name") == b"value"
        assert os.listxattr(opened.fileno()) == ["user.name"]


def test_names_are_listed(file: Path) -> None:
    """Each name is listed once, and no longer after its removal: listxattr(2)."""
    assert os.listxattr(file) == []
    names = [f"user.{number}" for number in range(20)]
    for name in names:
        os.setxattr(file, name, b"x")
    assert sorted(os.listxattr(file)) == sorted(names)

    for name in names:
        os.removexattr(file, name)
        assert name not in os.listxattr(file)
        refused(errno.ENODATA, functools.partial(os.getxattr, file, name))
    assert os.listxattr(file) == []


def test_an_absent_attribute(file: Path) -> None:
    """Reading and removing an absent attribute fail with ENODATA: getxattr(2)."""
    refused(errno.ENODATA, lambda: os.getxattr(file, "user.absent"))
    refused(errno.ENODATA, lambda: os.removexattr(file, "user.absent"))


def test_create_and_replace(file: Path) -> None:
    """XATTR_CREATE fails with EEXIST on an existing, XATTR_REPLACE with ENODATA on an absent name.

    See setxattr(2).
    """
    refused(errno.ENODATA, lambda: os.setxattr(file, "user.a", b"1", os.XATTR_REPLACE))
    assert os.listxattr(file) == []
    os.setxattr(file, "user.a", b"1", os.XATTR_CREATE)
    refused(errno.EEXIST, lambda: os.setxattr(file, "user.a", b"2", os.XATTR_CREATE))
    assert os.getxattr(file, "user.a") == b"1"
    os.setxattr(file, "user.a", b"3", os.XATTR_REPLACE)

    assert os.getxattr(file, "user.a") == b"3"


@pytest.mark.parametrize("size", [1, 127, 128, 129, 1_000])
def test_values_beyond_the_first_buffer(file: Path, size: int) -> None:
    """A value or a list larger than the first buffer is read completely: getxattr(2).

    Python passes 128 bytes, gets ERANGE for a longer value, and tries again, like most programs.
    """
    os.setxattr(file, "user.a", b"v" * size)
    name = "user." + "n" * min(size, 250)
    os.setxattr(file, name, b"")

    assert os.getxattr(file, "user.a") == b"v" * size
    assert sorted(os.listxattr(file)) == ["user.a", name]


@pytest.mark.parametrize(
    ("name", "number"),
    [
        ("user.", errno.EINVAL),
        ("nonsense.name", errno.EOPNOTSUPP),
        ("name", errno.EOPNOTSUPP),
        ("user." + "n" * 251, errno.ERANGE),
    ],
    ids=["empty", "unknown class", "no class", "too long"],
)
def test_bad_names(file: Path, name: str, number: int) -> None:
    """A name has a known class and up to 255 bytes: xattr(7)."""
    refused(number, lambda: os.setxattr(file, name, b"x"))
    assert os.listxattr(file) == []


def test_the_longest_name(file: Path) -> None:
    """A name of 255 bytes is kept: xattr(7)."""
    name = "user." + "n" * 250
    os.setxattr(file, name, b"x")

    assert os.listxattr(file) == [name]


def test_names_are_bytes(file: Path) -> None:
    """A name may be bytes that are no UTF-8, and is listed unchanged: xattr(7)."""
    os.setxattr(file, b"user.\xff\xfe", b"value")

    assert os.listxattr(file) == [os.fsdecode(b"user.\xff\xfe")]
    assert os.getxattr(file, b"user.\xff\xfe") == b"value"


def test_a_value_that_is_too_large(file: Path) -> None:
    """A value beyond 64 KiB is refused with E2BIG: xattr(7)."""
    refused(errno.E2BIG, lambda: os.setxattr(file, "user.a", bytes(65_537)))


@pytest.mark.parametrize("kind", ["symlink", "fifo"])
def test_refused_on_special_files(directory: Path, kind: str) -> None:
    """Setting a user attribute on a special file fails with EPERM: xattr(7)."""
    path = directory / "name"
    path.symlink_to("target") if kind == "symlink" else os.mkfifo(path)
    (directory / "target").touch()

    refused(errno.EPERM, lambda: os.setxattr(path, "user.a", b"x", follow_symlinks=False))
    assert os.listxattr(directory / "target") == []


def test_a_symlink_is_followed(directory: Path) -> None:
    """Setxattr on a symlink sets the attribute of its target: setxattr(2)."""
    (directory / "target").touch()
    (directory / "link").symlink_to("target")
    os.setxattr(directory / "link", "user.a", b"x")

    assert os.getxattr(directory / "target", "user.a") == b"x"


def test_attributes_follow_the_file(file: Path) -> None:
    """Attributes belong to the file, and all its names show them: rename(2), link(2)."""
    os.setxattr(file, "user.a", b"x")
    file.with_name("second").hardlink_to(file)
    file.rename(file.with_name("new"))

    assert os.getxattr(file.with_name("second"), "user.a") == b"x"
    assert os.getxattr(file.with_name("new"), "user.a") == b"x"


def test_another_process_sees_a_change(file: Path, caller: Caller) -> None:
    """A process reads the attributes that another one has set: xattr(7)."""
    caller.run(lambda: os.setxattr(file, "user.a", b"first"))
    assert os.getxattr(file, "user.a") == b"first"
    caller.run(lambda: os.setxattr(file, "user.a", b"second and longer"))
    assert os.getxattr(file, "user.a") == b"second and longer"
    caller.run(lambda: os.removexattr(file, "user.a"))
    refused(errno.ENODATA, lambda: os.getxattr(file, "user.a"))


@pytest.mark.privileged
def test_trusted_attributes(file: Path) -> None:
    """Only a privileged caller can set, read and list trusted attributes: xattr(7)."""
    os.setxattr(file, "trusted.a", b"x")
    assert os.getxattr(file, "trusted.a") == b"x"
    assert "trusted.a" in os.listxattr(file)

    refused(errno.ENODATA, lambda: USER.run(lambda: os.getxattr(file, "trusted.a")))
    refused(errno.EPERM, lambda: USER.run(lambda: os.setxattr(file, "trusted.b", b"x")))
    assert USER.run(lambda: os.listxattr(file)) == []


@pytest.mark.privileged
def test_file_capabilities(file: Path) -> None:
    """A program keeps its capabilities until its content changes: capabilities(7)."""
    value = struct.pack("<5I", 0x02000001, 1 << 10, 0, 0, 0)  # cap_net_bind_service=ep
    file.write_bytes(b"program")
    os.setxattr(file, "security.capability", value)
    assert os.getxattr(file, "security.capability") == value
    file.write_bytes(b"another")

    refused(errno.ENODATA, lambda: os.getxattr(file, "security.capability"))
