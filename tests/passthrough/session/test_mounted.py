"""Features that only the session `kernel` has, through a mount."""

import contextlib
import errno
import fcntl
import mmap
import os
import stat
import struct
import subprocess
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import pytest

from passthrough.linux import syscalls
from tests.support.tools.callers import USER, Caller
from tests.support.tools.disks import ext4
from tests.support.tools.files import noise, refused
from tests.support.tools.mounted import Mounted, mounted
from tests.support.tools.processes import wait_until

pytestmark = pytest.mark.full

LIMIT_S = 60.0
CALLERS = [Caller(f"caller-{number}", 42_000 + number, 43_000 + number) for number in range(4)]


@contextlib.contextmanager
def volume(base: Path, **options: str) -> Iterator[Mounted]:
    with mounted(base, {"session": "kernel"} | options) as served, served.limited(LIMIT_S):
        served.source.chmod(0o777)
        yield served


@pytest.mark.parametrize("options", [{"no_open": ""}, {"no_open": "", "no_opendir": ""}])
def test_no_open_files_are_read_written_and_released(base: Path, options: dict[str, str]) -> None:
    with volume(base, cache="always", **options) as served:
        for number in range(20):
            path = served.mountpoint / f"file-{number}"
            path.write_bytes(noise(100_000))
            with path.open("r+b") as file:
                file.seek(50_000)
                file.write(b"changed")
                os.fsync(file.fileno())
            path.write_bytes(b"short")  # truncates without an OPEN request
            with path.open("ab") as file:
                file.write(b" and more")
            assert path.read_bytes() == b"short and more"
            assert (served.source / path.name).read_bytes() == b"short and more"
        assert sorted(os.listdir(served.mountpoint)) == sorted(os.listdir(served.source))
        fd = os.open(served.mountpoint / "file-0", os.O_RDWR)
        (served.mountpoint / "file-0").unlink()
        assert os.pread(fd, 100, 0) == b"short and more"
        os.close(fd)


@pytest.mark.parametrize("handles", ["never", "mandatory"])
def test_no_open_serves_new_files_without_a_name_or_rights(base: Path, handles: str) -> None:
    with volume(base, cache="always", no_open="", inode_file_handles=handles) as served:
        (served.source / "old").write_bytes(b"old")
        assert (served.mountpoint / "old").read_bytes() == b"old"

        def written(flags: int) -> bytes:
            fd = os.open(
                served.mountpoint / ("" if flags & os.O_DIRECTORY else "new"), flags, 0o400
            )
            os.write(fd, b"text")
            os.fsync(fd)
            content = os.pread(fd, 10, 0)
            os.close(fd)
            return content

        for flags in (os.O_TMPFILE | os.O_RDWR, os.O_CREAT | os.O_EXCL | os.O_RDWR):
            assert CALLERS[0].run(partial(written, flags)) == b"text"
        assert (served.source / "new").read_bytes() == b"text"


def test_no_open_reads_files_of_a_read_only_volume(base: Path) -> None:
    with volume(base, cache="always", no_open="", ro="") as served:
        (served.source / "file").write_bytes(b"content")

        assert (served.mountpoint / "file").read_bytes() == b"content"


def test_no_opendir_lists_directories_whole(base: Path) -> None:
    with volume(base, no_opendir="") as served:
        directory = served.mountpoint / "directory"
        directory.mkdir()
        names = {f"name-{number}" for number in range(3000)}
        for name in names:
            (served.source / "directory" / name).touch()

        assert set(os.listdir(directory)) == names
        assert {entry.name for entry in os.scandir(directory) if entry.stat().st_size == 0} == names
        with os.scandir(directory) as first, os.scandir(directory) as second:
            taken = {next(first).name for _ in range(1500)}
            assert {entry.name for entry in second} == names
            assert taken | {entry.name for entry in first} == names
        fd = os.open(directory, os.O_RDONLY)
        os.fsync(fd)
        os.close(fd)


@pytest.mark.parametrize("killpriv", ["on", "off"])
def test_a_change_by_another_user_clears_suid_and_sgid_bits(base: Path, killpriv: str) -> None:
    """They stay if root makes the change, with CAP_FSETID."""
    with volume(base, killpriv_v2=killpriv) as served:
        path = served.mountpoint / "program"
        changes: dict[str, Callable[[], object]] = {
            "write": partial(path.write_bytes, b"changed"),
            "truncate": partial(os.truncate, path, 1),
            "append": partial(append, path),
        }
        for change in changes.values():
            for caller, left in ((USER, 0o777), (None, 0o6777)):
                (served.source / "program").write_bytes(b"content")
                path.chmod(0o6777)
                if caller is None:
                    change()
                else:
                    caller.run(change)
                assert stat.S_IMODE((served.source / "program").stat().st_mode) == left
                assert stat.S_IMODE(path.stat().st_mode) == left


@pytest.mark.parametrize("name", ["file", "directory"])
def test_a_change_of_file_flags_updates_the_change_time(base: Path, name: str) -> None:
    with volume(base, cache="always") as served:
        path = served.mountpoint / name
        (served.mountpoint / "file").touch()
        (served.mountpoint / "directory").mkdir()
        before = path.stat().st_ctime_ns
        subprocess.run(["chattr", "+d", path], check=True, timeout=LIMIT_S)

        assert before < path.stat().st_ctime_ns == (served.source / name).stat().st_ctime_ns


@pytest.mark.parametrize("killpriv", ["on", "off"])
@pytest.mark.parametrize("writeback", ["on", "off"])
def test_a_chown_that_changes_no_owner_clears_suid_and_sgid_bits(
    base: Path, killpriv: str, writeback: str
) -> None:
    with volume(base, killpriv_v2=killpriv, writeback=writeback) as served:
        path = served.mountpoint / "program"
        for uid, gid in ((-1, -1), (-1, 0), (0, -1)):
            path.touch()
            path.chmod(0o6777)
            os.chown(path, uid, gid)
            assert stat.S_IMODE((served.source / "program").stat().st_mode) == 0o777
            assert stat.S_IMODE(path.stat().st_mode) == 0o777


@pytest.mark.parametrize("killpriv", ["on", "off"])
def test_a_chown_by_another_user_keeps_suid_and_sgid_bits(base: Path, killpriv: str) -> None:
    with volume(base, killpriv_v2=killpriv) as served:
        path = served.mountpoint / "program"
        path.touch()
        path.chmod(0o6755)

        with contextlib.suppress(PermissionError):  # with killpriv_v2 the kernel does not check
            USER.run(partial(os.chown, path, -1, -1))

        assert stat.S_IMODE((served.source / "program").stat().st_mode) == 0o6755
        assert stat.S_IMODE(path.stat().st_mode) == 0o6755


def append(path: Path) -> None:
    with path.open("ab") as file:
        file.write(b"more")


# struct posix_acl_xattr_header and _entry, linux/posix_acl_xattr.h
def acl(*entries: tuple[int, int, int]) -> bytes:
    return struct.pack("<I", 2) + b"".join(struct.pack("<HHI", *entry) for entry in entries)


OWNER, NAMED_USER, GROUP, MASK, OTHER = 0x01, 0x02, 0x04, 0x10, 0x20
NO_ID = 0xFFFF_FFFF


def test_acls_are_honoured(base: Path) -> None:
    with volume(base, posix_acl="") as served:
        path = served.mountpoint / "secret"
        path.write_text("secret")
        path.chmod(0o600)
        refused(errno.EACCES, lambda: USER.run(path.read_text))

        value = acl(
            *((OWNER, 6, NO_ID), (NAMED_USER, 4, USER.uid), (GROUP, 0, NO_ID)),
            *((MASK, 4, NO_ID), (OTHER, 0, NO_ID)),
        )
        os.setxattr(path, "system.posix_acl_access", value)

        USER.run(path.read_text)
        refused(errno.EACCES, lambda: USER.run(partial(path.write_text, "changed")))
        assert os.getxattr(path, "system.posix_acl_access") == value
        assert "system.posix_acl_access" in os.listxattr(path)
        assert os.getxattr(served.source / "secret", "system.posix_acl_access") == value


def test_default_acls_take_the_place_of_the_umask(base: Path) -> None:
    """New files of every type get the same mode and ACL as on the bare directory."""
    default = acl(
        *((OWNER, 7, NO_ID), (NAMED_USER, 7, USER.uid), (GROUP, 5, NO_ID)),
        *((MASK, 7, NO_ID), (OTHER, 0, NO_ID)),
    )

    def made_in(top: Path) -> list[tuple[str, int, bytes]]:
        os.umask(0o027)
        for name in ("bare", "inherited"):
            (top / name).mkdir()
        os.setxattr(top / "inherited", "system.posix_acl_default", default)
        found = []
        for directory in (top / "bare", top / "inherited"):
            (directory / "file").touch()
            (directory / "dir").mkdir()
            os.mkfifo(directory / "fifo")
            for name in ("file", "dir", "fifo"):
                path = directory / name
                with contextlib.suppress(OSError):
                    found.append((name, 0, os.getxattr(path, "system.posix_acl_access")))
                found.append((name, path.stat().st_mode, b""))
        return found

    with volume(base, posix_acl="") as served:
        (base / "control").mkdir()
        umask = os.umask(0)
        try:
            assert made_in(served.mountpoint) == made_in(base / "control")
        finally:
            os.umask(umask)


def test_an_acl_set_by_a_user_outside_the_group_clears_the_sgid_bit(base: Path) -> None:
    with volume(base, posix_acl="") as served:
        path = served.mountpoint / "program"
        path.touch()
        os.chown(path, USER.uid, 4_711)
        path.chmod(0o2755)
        value = acl((OWNER, 7, NO_ID), (GROUP, 5, NO_ID), (OTHER, 5, NO_ID))

        USER.run(partial(os.setxattr, path, "system.posix_acl_access", value))

        assert stat.S_IMODE(path.stat().st_mode) == 0o755


def test_acls_are_refused_without_posix_acl(base: Path) -> None:
    with volume(base, posix_acl="false") as served:
        value = acl((OWNER, 7, NO_ID), (GROUP, 5, NO_ID), (OTHER, 5, NO_ID))
        refused(
            errno.EOPNOTSUPP,
            lambda: os.setxattr(served.mountpoint, "system.posix_acl_access", value),
        )


def test_concurrent_callers_keep_their_own_ids(base: Path) -> None:
    """Several threads create files for several users: each file belongs to its creator."""

    def create(top: Path, caller: Caller) -> None:
        os.umask(caller.uid % 8)
        for number in range(150):
            (top / f"{caller.name}-{number}").touch()
            (top / f"{caller.name}-{number}-dir").mkdir()
            os.symlink("x", top / f"{caller.name}-{number}-link")

    with volume(base, posix_acl="") as served, contextlib.ExitStack() as stack:
        (served.source / "fifo").touch()
        threads = [
            threading.Thread(target=caller.run, args=(partial(create, served.mountpoint, caller),))
            for caller in CALLERS
        ]
        for thread in threads:
            thread.start()
            stack.callback(thread.join)
        stack.close()

        for caller in CALLERS:
            for path in served.source.glob(f"{caller.name}-*"):
                found = path.lstat()
                assert (found.st_uid, found.st_gid) == (caller.uid, caller.gid)
                if stat.S_ISREG(found.st_mode):
                    assert stat.S_IMODE(found.st_mode) == 0o666 & ~(caller.uid % 8)


@pytest.fixture
def submount(base: Path) -> Iterator[Path]:
    path = base / "source" / "below"
    yield path
    with contextlib.suppress(OSError):
        syscalls.umount2(os.fsencode(path), syscalls.MNT_DETACH)


def test_a_mount_below_the_source_is_another_file_system(base: Path, submount: Path) -> None:
    with volume(base, sandbox="none") as served:
        submount.mkdir()
        syscalls.mount(b"none", os.fsencode(submount), b"tmpfs", 0, b"size=1M")
        (submount / "file").write_text("on the other")
        (served.source / "beside").write_text("on this one")
        below = served.mountpoint / "below"

        assert (below / "file").read_text() == "on the other"
        refused(errno.EXDEV, lambda: os.rename(below / "file", served.mountpoint / "file"))
        assert os.statvfs(below).f_blocks == os.statvfs(submount).f_blocks
        assert os.listdir(below) == ["file"]


def test_flags_set_by_fcntl_reach_the_host(base: Path) -> None:
    with volume(base) as served:
        path, beneath = served.mountpoint / "file", served.source / "file"
        fd = os.open(path, os.O_CREAT | os.O_RDWR)
        os.write(fd, b"begin ")
        with beneath.open("ab") as file:
            file.write(b"host ")
        fcntl.fcntl(fd, fcntl.F_SETFL, os.O_APPEND)
        os.write(fd, b"end")
        assert beneath.read_bytes() == b"begin host end"

        fcntl.fcntl(fd, fcntl.F_SETFL, 0)
        os.pwrite(fd, b"BEGIN", 0)
        assert beneath.read_bytes() == b"BEGIN host end"

        fcntl.fcntl(fd, fcntl.F_SETFL, os.O_DIRECT)
        with mmap.mmap(-1, mmap.PAGESIZE) as page:
            page.write(noise(mmap.PAGESIZE))
            assert os.pwritev(fd, [page], 0) == mmap.PAGESIZE
            assert os.preadv(fd, [page], 0) == mmap.PAGESIZE
        assert beneath.read_bytes() == noise(mmap.PAGESIZE)
        os.close(fd)


def test_surplus_threads_leave(base: Path) -> None:
    """No request of a caller wakes them. In memory, fsync(2) would hold up no thread."""
    with ext4(base), volume(base) as served:
        tasks = Path(f"/proc/{served.worker_pid}/task")
        rest = 1 + min(2, len(os.sched_getaffinity(0)))  # the main thread, and readers
        paths = [served.mountpoint / str(number) for number in range(8)]
        enough = threading.Event()
        with ThreadPoolExecutor(len(paths)) as pool:
            writers = [pool.submit(_write_and_sync, path, enough) for path in paths]
            try:
                wait_until(lambda: len(os.listdir(tasks)) > rest, LIMIT_S / 2)
            finally:
                enough.set()
            for writer in writers:
                writer.result()
        wait_until(lambda: len(os.listdir(tasks)) == rest, LIMIT_S / 2)


def _write_and_sync(path: Path, enough: threading.Event) -> None:
    with path.open("wb", buffering=0) as file:
        while not enough.is_set():
            os.pwrite(file.fileno(), noise(100_000), 0)
            os.fsync(file.fileno())
