"""POSIX ACLs without any option: sessions and sources with and without them, acl(5)."""

import os
import struct
import subprocess
from pathlib import Path

import pytest

from tests.support.tools import callers
from tests.support.tools.files import outcome

ACCESS, DEFAULT = "system.posix_acl_access", "system.posix_acl_default"
USER_OBJ, USER, GROUP_OBJ, MASK, OTHER = 0x01, 0x02, 0x04, 0x10, 0x20  # linux/posix_acl.h
NO_ID = 0xFFFFFFFF
VERSION = 2
ENTRIES = ((USER_OBJ, 7, NO_ID), (USER, 5, 1000), (GROUP_OBJ, 5, NO_ID), (MASK, 5, NO_ID))
ACL = struct.pack("<I", VERSION) + b"".join(
    struct.pack("<HHI", *entry) for entry in (*ENTRIES, (OTHER, 0, NO_ID))
)


@pytest.mark.columns("control-ext4", "kernel-auto-ext4")
def test_a_copy_keeps_acls(directory: Path, beneath: Path) -> None:
    """A copy has the ACLs of files, and the default ACLs of directories: cp(1), -a."""
    (beneath / "from").mkdir()
    (beneath / "from/file").touch()
    os.setxattr(beneath / "from", DEFAULT, ACL)
    os.setxattr(beneath / "from/file", ACCESS, ACL)
    done = subprocess.run(
        ["cp", "-a", beneath / "from", directory / "to"],
        check=False,
        capture_output=True,
        timeout=60,
    )

    assert (done.returncode, done.stderr) == (0, b"")
    assert os.getxattr(beneath / "to", DEFAULT) == ACL
    assert os.getxattr(beneath / "to/file", ACCESS) == ACL


@pytest.mark.columns("kernel-auto-mapped", "libfuse-auto-ext4")
def test_acls_are_refused_with_a_map_or_libfuse(directory: Path) -> None:
    """Setting an ACL fails with EOPNOTSUPP under a map of users, and with libfuse.

    With a map the ids in an ACL would name other users. libfuse cannot pass default ACLs on.
    """
    (directory / "file").touch()

    assert outcome(os.setxattr, directory / "file", ACCESS, ACL) == "ENOTSUP"


@pytest.mark.columns("control-without-acls", "kernel-auto-without-acls")
def test_access_by_modes_where_the_source_has_no_acls(directory: Path) -> None:
    """The mode alone decides if the file system has no ACLs, as ramfs, vfat and NFSv4: acl(5)."""
    others = directory / "others"
    others.mkdir(mode=0o775)
    (others / "readable").write_text("content")
    (others / "readable").chmod(0o664)
    (others / "secret").touch(mode=0o660)

    def use() -> tuple[object, ...]:
        return (
            outcome((others / "readable").read_text),
            outcome((others / "readable").write_text, "other"),
            outcome((others / "secret").read_text),
            outcome(lambda: sorted(os.listdir(others))),
        )

    assert callers.USER.run(use) == ("content", "EACCES", "EACCES", ["readable", "secret"])
    assert outcome(os.setxattr, others / "readable", ACCESS, ACL) == "ENOTSUP"
