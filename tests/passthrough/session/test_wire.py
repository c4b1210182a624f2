"""The structures against their sizes in C, and replies against what goes into them."""

import errno
import os
from pathlib import Path
from struct import Struct

import pytest

from passthrough.identity.attributes import Attributes, Entry
from passthrough.identity.idmap import ContainerId, ContainerIds
from passthrough.session import wire
from passthrough.session.abi import Opcode
from tests.support.fakes.kernel import attributes, entry
from tests.support.tools.direct import fails

# sizeof() of each structure of linux/fuse.h.
SIZES = {
    "IN_HEADER": 40,
    "OUT_HEADER": 16,
    "INIT_IN": 64,
    "INIT_OUT": 64,
    "FORGET_IN": 8,
    "FORGET_ONE": 16,
    "BATCH_FORGET_IN": 8,
    "GETATTR_IN": 16,
    "SETATTR_IN": 88,
    "MKNOD_IN": 16,
    "MKDIR_IN": 8,
    "RENAME_IN": 8,
    "RENAME2_IN": 16,
    "LINK_IN": 8,
    "OPEN_IN": 8,
    "CREATE_IN": 16,
    "RELEASE_IN": 24,
    "FLUSH_IN": 24,
    "READ_IN": 40,
    "WRITE_IN": 40,
    "FSYNC_IN": 16,
    "SETXATTR_IN": 16,
    "GETXATTR_IN": 8,
    "ACCESS_IN": 8,
    "INTERRUPT_IN": 8,
    "LK_IN": 48,
    "BMAP_IN": 16,
    "IOCTL_IN": 32,
    "POLL_IN": 24,
    "FALLOCATE_IN": 32,
    "LSEEK_IN": 24,
    "COPY_FILE_RANGE_IN": 56,
    "SETUPMAPPING_IN": 40,
    "REMOVEMAPPING_IN": 4,
    "SYNCFS_IN": 8,
    "STATX_IN": 24,
    "NOTIFY_RETRIEVE_IN": 40,
    "EXTENSION": 8,
    "GROUPS": 4,
    "ENTRY_OUT": 128,
    "ATTR_OUT": 104,
    "OPEN_OUT": 16,
    "WRITE_OUT": 8,
    "STATFS_OUT": 80,
    "GETXATTR_OUT": 8,
    "LK_OUT": 24,
    "BMAP_OUT": 8,
    "IOCTL_OUT": 16,
    "POLL_OUT": 8,
    "LSEEK_OUT": 8,
    "COPY_FILE_RANGE_OUT": 8,
    "STATX_OUT": 288,
    "DIRENT": 24,
    "NOTIFY_INVAL_INODE_OUT": 24,
    "NOTIFY_INVAL_ENTRY_OUT": 16,
    "NOTIFY_DELETE_OUT": 24,
    "NOTIFY_POLL_WAKEUP_OUT": 8,
    "NOTIFY_STORE_OUT": 24,
    "NOTIFY_RETRIEVE_OUT": 32,
    "NOTIFY_PRUNE_OUT": 16,
    "BACKING_MAP": 16,
    "BACKING_ID": 4,
}


def test_each_structure_has_its_size_in_c() -> None:
    found = {name: layout.size for name, layout in vars(wire).items() if isinstance(layout, Struct)}

    assert found == SIZES


def test_what_a_request_begins_with_is_said_for_every_opcode_that_has_something() -> None:
    bare = {
        *("LOOKUP", "READLINK", "SYMLINK", "UNLINK", "RMDIR", "STATFS", "REMOVEXATTR", "DESTROY"),
    }

    assert {opcode.name for opcode in Opcode if opcode not in wire.FIXED} == bare


@pytest.fixture
def status(tmp_path: Path) -> os.stat_result:
    """What stat says of a file whose fields all differ."""
    path = tmp_path / "file"
    path.write_bytes(b"x" * 5000)
    path.chmod(0o6751)
    os.link(path, tmp_path / "second")
    os.chown(path, 4_000_000_000, 41_002)
    path.chmod(0o6751)
    os.utime(path, ns=(1_234_567_890_123_456_789, -1_500_000_001))
    return path.stat()


@pytest.mark.parametrize("owner", [None, ContainerIds(ContainerId(7), ContainerId(8))])
def test_an_entry_carries_what_stat_says(
    status: os.stat_result, owner: ContainerIds | None
) -> None:
    found = entry(wire.entry(Entry(77, status, (1.5, 86_400.0), owner, submount=True)))

    assert found["nodeid"] == found["ino"] == 77
    assert (found["entry_valid"], found["entry_valid_nsec"]) == (1, 500_000_000)
    assert (found["attr_valid"], found["attr_valid_nsec"]) == (86_400, 0)
    assert (found["atime"], found["atimensec"]) == (1_234_567_890, 123_456_789)
    assert (found["mtime"], found["mtimensec"]) == (-2, 499_999_999)
    assert found["ctime"] * 10**9 + found["ctimensec"] == status.st_ctime_ns
    uid, gid = owner or (4_000_000_000, 41_002)
    assert (found["uid"], found["gid"], found["mode"]) == (uid, gid, 0o106751)
    assert (found["size"], found["nlink"], found["flags"]) == (5000, 2, 1)
    assert (found["blocks"], found["blksize"]) == (status.st_blocks, status.st_blksize)


def test_attributes_are_those_of_an_entry(status: os.stat_result) -> None:
    found = attributes(wire.attributes(Attributes(5, status, 0.25)))
    same = entry(wire.entry(Entry(5, status, (0, 0.25))))

    assert found == {name: same[name] for name in found}
    assert found["attr_valid_nsec"] == 250_000_000


@pytest.mark.parametrize("device", [os.makedev(1, 3), os.makedev(4095, 0xFFFFF), 0])
def test_a_device_number_travels_as_the_kernel_packs_it(
    device: int, status: os.stat_result
) -> None:
    fields = dict(zip(range(len(status)), status, strict=True))
    names = {name: getattr(status, name) for name in dir(status) if name.startswith("st_")}
    special = os.stat_result(fields.values(), names | {"st_rdev": device})
    major, minor = os.major(device), os.minor(device)

    rdev = entry(wire.entry(Entry(5, special, (0, 0))))["rdev"]

    assert rdev == minor & 0xFF | major << 8 | (minor & ~0xFF) << 12


def test_an_absent_name_is_an_entry_without_inode() -> None:
    found = entry(wire.absent(2.0))

    assert found.pop("entry_valid") == 2
    assert set(found.values()) == {0}


@pytest.mark.parametrize(("name", "size"), [(b"1234567", 32), (b"12345678", 32), (b"9" * 9, 40)])
def test_a_name_in_a_listing_is_padded_to_whole_words(name: bytes, size: int) -> None:
    packed = wire.dirent(5, 6, 4, name)

    assert len(packed) == size
    assert packed[wire.DIRENT.size :].rstrip(b"\0") == name


def test_a_value_is_given_as_far_as_it_is_asked_for() -> None:
    assert wire.sized(b"value", 0) == wire.GETXATTR_OUT.pack(5)
    assert wire.sized(b"value", 5) == b"value"
    fails(errno.ERANGE, lambda: wire.sized(b"value", 4))
