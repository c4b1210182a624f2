"""The operations on what is open: files and directories."""

import errno
import os
import socket
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from passthrough.core.filesystem import PassthroughFs
from passthrough.core.inodes import ROOT
from passthrough.identity.attributes import Changes
from passthrough.options.choices import Atime, Sandbox
from tests.support.tools.direct import CALLER, caller, descriptor_of, fails, listing, number_of
from tests.support.tools.options import effective


@pytest.fixture
def specials(source: Path) -> Iterator[None]:
    """One of each kind that must not be opened for real."""
    os.mkfifo(source / "fifo")
    os.mknod(source / "device", stat.S_IFCHR | 0o666, os.makedev(1, 3))
    (source / "link").symlink_to("file")
    (source / "file").write_bytes(b"kept")
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(source / "socket"))
    (source / "dir").mkdir()
    yield
    listener.close()


@pytest.mark.usefixtures("specials")
@pytest.mark.parametrize("name", [b"fifo", b"device", b"link", b"socket"])
def test_only_files_and_directories_are_ever_opened(fs: PassthroughFs, name: bytes) -> None:
    """A device or fifo here would be the host's (CVE-2020-35517); a fifo would wait for ever."""
    number = number_of(fs, name)

    fails(errno.EBADF, lambda: fs.open(number, os.O_RDONLY))
    fails(errno.EBADF, lambda: fs.opendir(number))
    fails(errno.EBADF, lambda: fs.setattr(number, Changes(size=0)))


@pytest.mark.usefixtures("specials")
def test_a_directory_is_no_file_and_the_other_way_round(fs: PassthroughFs) -> None:
    fails(errno.EBADF, lambda: fs.open(number_of(fs, b"dir"), os.O_RDONLY))
    fails(errno.EBADF, lambda: fs.opendir(number_of(fs, b"file")))


@pytest.mark.usefixtures("specials")
def test_a_file_replaced_by_a_device_is_not_opened(fs: PassthroughFs, source: Path) -> None:
    """What is opened is the inode that was looked up, whatever has its name by now."""
    number = number_of(fs, b"file")
    (source / "file").rename(source / "other")
    (source / "device").rename(source / "file")

    handle = fs.open(number, os.O_RDONLY)

    assert fs.read(handle, 0, 10) == b"kept"
    fs.release(handle)


def test_a_file_without_a_name_is_opened_again_only_while_it_is_open(
    fs: PassthroughFs, source: Path
) -> None:
    """ESTALE makes the kernel look up what the name leads to now; /proc/PID/fd leads here."""
    (source / "file").write_bytes(b"kept")
    number = number_of(fs, b"file")
    first = fs.open(number, os.O_RDONLY)
    (source / "file").unlink()

    second = fs.open(number, os.O_RDONLY)
    assert fs.read(second, 0, 10) == b"kept"

    fs.release(first)
    fs.release(second)
    fails(errno.ESTALE, lambda: fs.open(number, os.O_RDONLY))


@pytest.mark.parametrize(
    "flags",
    [os.O_CREAT | os.O_EXCL, os.O_NOFOLLOW, os.O_NOCTTY],
    ids=["O_CREAT|O_EXCL", "O_NOFOLLOW", "O_NOCTTY"],
)
def test_flags_for_the_callers_kernel_do_not_reach_the_host(
    fs: PassthroughFs, source: Path, flags: int
) -> None:
    (source / "file").write_bytes(b"kept")

    handle = fs.open(number_of(fs, b"file"), os.O_RDWR | flags)

    assert fs.read(handle, 1, 2) == b"ep"
    fs.release(handle)


def test_descriptors_are_not_inherited(fs: PassthroughFs, source: Path) -> None:
    (source / "file").touch()
    number = number_of(fs, b"file")
    _, created = fs.create(ROOT, b"new", 0o600, os.O_RDWR, CALLER)
    opened, directory = fs.open(number, os.O_RDONLY), fs.opendir(ROOT)

    fds = [fs.files[created].fd, fs.files[opened].fd, fs.directories[directory].fd]
    fds.append(descriptor_of(fs.inodes[number]))

    assert [os.get_inheritable(fd) for fd in fds] == [False] * 4
    fs.release(created)
    fs.release(opened)
    fs.releasedir(directory)


@pytest.mark.parametrize(("atime", "expected"), [(Atime.NOATIME, True), (Atime.RELATIME, False)])
def test_noatime_without_a_sandbox_leaves_the_hosts_access_times_alone(
    source: Path, atime: Atime, expected: bool
) -> None:
    (source / "file").touch()
    config = effective(atime=atime, sandbox=Sandbox.NONE)
    fs = PassthroughFs(config, os.open(source, os.O_PATH))
    try:
        handles = [
            fs.files[fs.open(number_of(fs, b"file"), os.O_RDONLY)].fd,
            fs.files[fs.create(ROOT, b"new", 0o600, os.O_RDWR, caller(0, 0))[1]].fd,
            fs.directories[fs.opendir(ROOT)].fd,
        ]
        assert [has_noatime(fd) for fd in handles] == [expected] * 3
    finally:
        fs.close()


def has_noatime(fd: int) -> bool:
    lines = Path(f"/proc/self/fdinfo/{fd}").read_text().splitlines()
    (flags,) = (line.split()[1] for line in lines if line.startswith("flags:"))
    return bool(int(flags, 8) & os.O_NOATIME)


@pytest.mark.parametrize(("datasync", "call"), [(True, "fdatasync"), (False, "fsync")])
def test_syncing_reaches_the_hosts_call(
    fs: PassthroughFs,
    source: Path,
    datasync: bool,
    call: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Whether bytes are on the platter cannot be seen; that the host was asked for them can."""
    (source / "file").touch()
    file, directory = fs.open(number_of(fs, b"file"), os.O_RDWR), fs.opendir(ROOT)
    expected = [(call, fs.files[file].fd), (call, fs.directories[directory].fd)]
    asked: list[tuple[str, int]] = []
    for name in ("fsync", "fdatasync"):
        monkeypatch.setattr(os, name, lambda fd, name=name: asked.append((name, fd)))

    fs.fsync(file, datasync=datasync)
    fs.fsyncdir(directory, datasync=datasync)

    assert asked == expected
    fs.release(file)
    fs.releasedir(directory)


def test_flush_reports_what_the_host_reports_on_close(
    fs: PassthroughFs, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """NFS and quotas speak up on close(2), and the caller's own is the only one that it sees."""
    (source / "file").touch()
    handle = fs.open(number_of(fs, b"file"), os.O_RDWR)
    ours, real = fs.files[handle].fd, os.close
    closed: list[int] = []

    def close(fd: int) -> None:
        real(fd)
        closed.append(fd)
        raise OSError(errno.EDQUOT, "no room on the server")

    with monkeypatch.context() as patch:
        patch.setattr(os, "close", close)
        fails(errno.EDQUOT, lambda: fs.flush(handle))

    assert closed not in ([], [ours])
    assert fs.write(handle, 0, b"x") == 1
    fs.release(handle)


def test_a_listing_has_an_entry_for_each_name_and_none_for_the_dots(
    fs: PassthroughFs, source: Path
) -> None:
    (source / "file").write_bytes(b"12345")
    (source / "dir").mkdir()
    (source / "link").symlink_to("nowhere")

    names = listing(fs)

    assert set(names) == {b".", b"..", b"file", b"dir", b"link"}
    assert names[b"."] is None
    assert names[b".."] is None
    for name in ("file", "dir", "link"):
        entry = names[name.encode()]
        assert entry is not None
        assert entry.stat == (source / name).lstat()


def test_the_dots_of_the_root_are_the_root(fs: PassthroughFs, source: Path) -> None:
    """What lies above the source is nobody's business."""
    (source / "dir").mkdir()
    handles = {name: fs.opendir(number_of(fs, *name)) for name in ((), (b"dir",))}

    dots = {
        name: {r.name: r.number for r, _ in fs.readdirplus(handle, 0) if r.name in {b".", b".."}}
        for name, handle in handles.items()
    }

    root, directory = source.stat().st_ino, (source / "dir").stat().st_ino
    assert dots == {(): {b".": root, b"..": root}, (b"dir",): {b".": directory, b"..": root}}
    for handle in handles.values():
        fs.releasedir(handle)


def test_a_name_that_vanishes_while_it_is_listed_is_left_out(
    fs: PassthroughFs, source: Path
) -> None:
    for number in range(5):
        (source / str(number)).touch()
    handle = fs.opendir(ROOT)
    stream = fs.readdirplus(handle, 0)
    listed = [next(stream)[0].name]  # the host's list is in the buffer now
    left = sorted(set(os.listdir(source)) - {os.fsdecode(listed[0])})

    (source / left[-1]).unlink()
    listed += [record.name for record, _ in stream]

    assert set(listed) == {b".", b"..", *map(os.fsencode, os.listdir(source))}
    fs.releasedir(handle)


def test_an_entry_counts_when_it_is_taken_not_when_it_is_read(
    fs: PassthroughFs, source: Path
) -> None:
    """The session stops at the entry that does not fit: what lies behind it is not counted."""
    for number in range(5):
        (source / str(number)).touch()
    handle = fs.opendir(ROOT)
    taken = 0

    for _, entry in fs.readdirplus(handle, 0):
        taken += entry is not None
        if taken == 2:
            break

    assert len(fs.inodes) == 1 + 2
    fs.releasedir(handle)


@pytest.mark.parametrize(("clear", "mode"), [(True, 0o777), (False, 0o6777)])
def test_truncation_on_opening_clears_suid_and_sgid_when_told_to(
    fs: PassthroughFs, source: Path, clear: bool, mode: int
) -> None:
    (source / "file").touch()
    (source / "file").chmod(0o6777)
    number = number_of(fs, b"file")

    fs.release(fs.open(number, os.O_WRONLY | os.O_TRUNC, clear_privileges=clear))

    assert stat.S_IMODE(fs.getattr(number).stat.st_mode) == mode
