import errno
import os
import select
import struct
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from passthrough.linux.mountinfo import FSTYPE
from passthrough.options.choices import Atime
from passthrough.options.effective import Effective
from passthrough.worker import fuse_mount
from tests.support.tools.mounts import mounts_at, options_at
from tests.support.tools.options import effective

LIMIT_S = 20.0
# enum fuse_opcode, linux/fuse.h; INIT is the first request on every mount.
FUSE_STATFS, FUSE_INIT = 17, 26
REQUEST_BYTES = 1 << 17  # more than the longest request


@contextmanager
def mounted(target: Path, config: Effective | None = None) -> Iterator[int]:
    """A mount without a worker; its descriptor is closed at the end."""
    fd = fuse_mount.mount(target, config or effective())
    try:
        yield fd
    finally:
        os.close(fd)


def test_the_descriptor_brings_init(mountpoint: Path) -> None:
    with mounted(mountpoint) as fd:
        assert next_request(fd) == FUSE_INIT
        assert not os.get_inheritable(fd)


def test_a_mount_has_its_type_and_its_source(mountpoint: Path) -> None:
    with mounted(mountpoint, effective(fsname="server:/data")):
        (mounted_there,) = mounts_at(mountpoint)

        assert (mounted_there.fstype, mounted_there.source) == ("fuse.passfs", b"server:/data")
        assert FSTYPE == "fuse.passfs"


@pytest.mark.parametrize(
    ("config", "present", "absent"),
    [
        (effective(), "rw nosuid nodev relatime allow_other default_permissions", "noexec"),
        (effective(readonly=True), "ro", "rw"),
        (effective(suid=True), "nodev", "nosuid"),
        (effective(dev=True), "nosuid", "nodev"),
        (effective(exec=False), "noexec", ""),
        (effective(atime=Atime.NOATIME), "noatime", "relatime"),
        (effective(atime=Atime.STRICTATIME), "", "noatime relatime"),
        (effective(diratime=False), "nodiratime relatime", ""),
        (effective(), "user_id=0 group_id=0", ""),
    ],
)
def test_the_config_becomes_mount_options(
    mountpoint: Path, config: Effective, present: str, absent: str
) -> None:
    with mounted(mountpoint, config):
        options = options_at(mountpoint)

        assert set(present.split()) <= options
        assert not set(absent.split()) & options


def test_unmount_detaches_the_mount(mountpoint: Path) -> None:
    with mounted(mountpoint):
        fuse_mount.unmount(mountpoint)

        assert mounts_at(mountpoint) == []
        mountpoint.rmdir()


def test_unmount_detaches_the_uppermost_mount(mountpoint: Path) -> None:
    with (
        mounted(mountpoint, effective(fsname="lower")),
        mounted(mountpoint, effective(fsname="upper")),
    ):
        fuse_mount.unmount(mountpoint)

        assert [m.source for m in mounts_at(mountpoint)] == [b"lower"]


@pytest.mark.parametrize("abort", [False, True])
def test_unmount_without_a_mount_is_einval(mountpoint: Path, *, abort: bool) -> None:
    with pytest.raises(OSError, match="Invalid argument") as failed:
        fuse_mount.unmount(mountpoint, abort=abort)

    assert failed.value.errno == errno.EINVAL
    assert failed.value.filename == str(mountpoint)


def test_unmount_does_not_follow_a_symlink(mountpoint: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(mountpoint)
    with mounted(mountpoint):
        with pytest.raises(OSError, match="Invalid argument"):
            fuse_mount.unmount(tmp_path / "link")

        assert len(mounts_at(mountpoint)) == 1


def test_abort_frees_a_waiting_caller(mountpoint: Path) -> None:
    """The worker has read the caller's request, and has ended without an answer."""
    with mounted(mountpoint) as fd:
        answer_init(fd)
        asking = ["stat", "--file-system", str(mountpoint)]
        with subprocess.Popen(asking, stderr=subprocess.PIPE, env={"LC_ALL": "C"}) as waiting:
            try:
                assert next_request(fd) == FUSE_STATFS
                fuse_mount.unmount(mountpoint, abort=True)
                _, said = waiting.communicate(timeout=LIMIT_S)
            finally:
                waiting.kill()

        assert mounts_at(mountpoint) == []
        assert waiting.returncode == 1
        assert os.strerror(errno.ECONNABORTED) in said.decode()
        with pytest.raises(OSError, match="No such device"):
            os.read(fd, REQUEST_BYTES)


def test_after_an_abort_requests_fail(mountpoint: Path) -> None:
    """They fail also through a directory of the mount that is still open."""
    with mounted(mountpoint) as fd:
        answer_init(fd)
        inside = os.open(mountpoint, os.O_PATH)
        try:
            fuse_mount.unmount(mountpoint, abort=True)
            with pytest.raises(OSError, match="not connected") as failed:
                os.statvfs(inside)
        finally:
            os.close(inside)

    assert failed.value.errno == errno.ENOTCONN


def next_request(fd: int) -> int:
    """Return the opcode of the kernel's next request."""
    assert select.select([fd], [], [], LIMIT_S)[0] == [fd]
    return int.from_bytes(os.read(fd, REQUEST_BYTES)[4:8], "little")


def answer_init(fd: int) -> None:
    """Answer INIT as a worker does, so that the kernel sends further requests."""
    assert select.select([fd], [], [], LIMIT_S)[0] == [fd]
    _, operation, unique = struct.unpack_from("=IIQ", os.read(fd, REQUEST_BYTES))
    assert operation == FUSE_INIT
    # struct fuse_out_header, then fuse_init_out: version 7.31, no feature, one page per write.
    answer = struct.pack("=IIIIHHII32x", 7, 31, 0, 0, 0, 0, 4096, 1)
    os.write(fd, struct.pack("=IiQ", 16 + len(answer), 0, unique) + answer)


def test_closing_the_last_descriptor_ends_the_connection(mountpoint: Path) -> None:
    with mounted(mountpoint):
        pass

    with pytest.raises(OSError, match="not connected") as failed:
        os.stat(mountpoint)
    assert failed.value.errno == errno.ENOTCONN


def test_a_duplicate_keeps_the_connection(mountpoint: Path) -> None:
    with mounted(mountpoint) as fd:
        duplicate = os.dup(fd)
    try:
        assert next_request(duplicate) == FUSE_INIT
    finally:
        fuse_mount.unmount(mountpoint, abort=True)
        os.close(duplicate)


def test_a_failed_mount_leaves_no_descriptor(tmp_path: Path) -> None:
    before = os.listdir("/proc/self/fd")

    with pytest.raises(FileNotFoundError) as failed:
        fuse_mount.mount(tmp_path / "missing", effective())

    assert failed.value.filename == str(tmp_path / "missing")
    assert os.listdir("/proc/self/fd") == before


def test_a_file_is_no_mount_point(tmp_path: Path) -> None:
    (tmp_path / "file").touch()

    with pytest.raises(NotADirectoryError):
        fuse_mount.mount(tmp_path / "file", effective())
