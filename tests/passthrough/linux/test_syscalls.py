import ctypes
import errno
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from passthrough.linux import mountinfo, syscalls

OPEN = os.O_PATH
PR_GET_SECUREBITS = 27


@pytest.fixture
def directory(tmp_path: Path) -> Iterator[int]:
    fd = os.open(tmp_path, os.O_PATH | os.O_DIRECTORY)
    yield fd
    os.close(fd)


@pytest.fixture
def target(tmp_path: Path) -> Iterator[bytes]:
    """Yield a directory to mount on, and unmount everything there."""
    (tmp_path / "target").mkdir()
    path = os.fsencode(tmp_path / "target")
    yield path
    for _ in mounts_at(path):
        syscalls.umount2(path, syscalls.MNT_DETACH)


def mounts_at(path: bytes) -> list[mountinfo.MountEntry]:
    return [mount for mount in mountinfo.read() if mount.target == path]


def test_mount_and_umount2(target: bytes) -> None:
    syscalls.mount(b"a name", target, b"tmpfs", syscalls.MS_NOSUID | syscalls.MS_RDONLY, b"size=4k")

    (mounted,) = mounts_at(target)
    assert (mounted.fstype, mounted.source) == ("tmpfs", b"a name")
    described = os.statvfs(target)
    assert described.f_flag & os.ST_NOSUID
    assert described.f_flag & os.ST_RDONLY
    assert described.f_blocks * described.f_frsize == 4096

    syscalls.umount2(target, syscalls.UMOUNT_NOFOLLOW)
    assert mounts_at(target) == []


def test_mount_fails_with_the_targets_name(tmp_path: Path) -> None:
    missing = os.fsencode(tmp_path / "missing")

    with pytest.raises(FileNotFoundError) as failed:
        syscalls.mount(b"none", missing, b"tmpfs", 0, b"")

    assert failed.value.filename == os.fsdecode(missing)


def test_umount2_of_a_directory_that_is_no_mount_point(target: bytes) -> None:
    with pytest.raises(OSError, match="Invalid argument") as failed:
        syscalls.umount2(target, syscalls.MNT_DETACH)

    assert failed.value.errno == errno.EINVAL
    assert failed.value.filename == os.fsdecode(target)


def test_umount2_does_not_follow_a_symlink(target: bytes, tmp_path: Path) -> None:
    syscalls.mount(b"none", target, b"tmpfs", 0, b"")
    (tmp_path / "link").symlink_to("target")

    with pytest.raises(OSError, match="Invalid argument"):
        syscalls.umount2(os.fsencode(tmp_path / "link"), syscalls.UMOUNT_NOFOLLOW)

    assert len(mounts_at(target)) == 1


def test_umount2_detaches_a_busy_mount_at_once(target: bytes) -> None:
    syscalls.mount(b"none", target, b"tmpfs", 0, b"")
    user = os.open(target, os.O_RDONLY)
    try:
        with pytest.raises(OSError, match="busy"):
            syscalls.umount2(target, 0)
        syscalls.umount2(target, syscalls.MNT_DETACH)
    finally:
        os.close(user)

    assert mounts_at(target) == []


@pytest.fixture
def tree(tmp_path: Path, target: bytes) -> None:
    """Create links that each violate a RESOLVE_* rule."""
    (tmp_path / "inside").mkdir()
    (tmp_path / "inside" / "file").touch()
    (tmp_path / "link").symlink_to("inside/file")
    (tmp_path / "absolute").symlink_to("/inside/file")
    (tmp_path / "outside").symlink_to("../..")
    (tmp_path / "magic").symlink_to("/proc/self/root")
    syscalls.mount(b"none", target, b"tmpfs", 0, b"")


@pytest.mark.usefixtures("tree")
@pytest.mark.parametrize(
    ("path", "resolve", "number"),
    [
        (b"inside/file", syscalls.RESOLVE_BENEATH | syscalls.RESOLVE_NO_SYMLINKS, 0),
        (b"link", syscalls.RESOLVE_BENEATH, 0),
        (b"link", syscalls.RESOLVE_NO_SYMLINKS, errno.ELOOP),
        (b"absolute", 0, errno.ENOENT),
        (b"absolute", syscalls.RESOLVE_IN_ROOT, 0),
        (b"absolute", syscalls.RESOLVE_BENEATH, errno.EXDEV),
        (b"outside", syscalls.RESOLVE_BENEATH, errno.EXDEV),
        (b"..", syscalls.RESOLVE_BENEATH, errno.EXDEV),
        (b"../inside/file", syscalls.RESOLVE_IN_ROOT, 0),
        (b"magic", 0, 0),
        (b"magic", syscalls.RESOLVE_NO_MAGICLINKS, errno.ELOOP),
        (b"target", 0, 0),
        (b"target", syscalls.RESOLVE_NO_XDEV, errno.EXDEV),
        (b"missing", 0, errno.ENOENT),
    ],
)
def test_openat2_resolves_by_its_rules(
    directory: int, path: bytes, resolve: int, number: int
) -> None:
    if number:
        with pytest.raises(OSError, match=r"\[Errno") as failed:
            syscalls.openat2(directory, path, OPEN, resolve)
        assert failed.value.errno == number
        assert failed.value.filename == os.fsdecode(path)
    else:
        os.close(syscalls.openat2(directory, path, OPEN, resolve))


@pytest.mark.usefixtures("tree")
def test_openat2_in_root_finds_a_file_below(directory: int, tmp_path: Path) -> None:
    fd = syscalls.openat2(directory, b"/inside/file", OPEN, syscalls.RESOLVE_IN_ROOT)
    try:
        assert os.fstat(fd) == (tmp_path / "inside/file").stat()
        assert not os.get_inheritable(fd)
    finally:
        os.close(fd)


def test_mount_id_is_that_of_mountinfo(directory: int) -> None:
    lines = Path(f"/proc/self/fdinfo/{directory}").read_text().splitlines()
    (expected,) = (line.split()[1] for line in lines if line.startswith("mnt_id:"))

    assert syscalls.mount_id(directory) == int(expected)
    with pytest.raises(OSError, match="Bad file descriptor"):
        syscalls.mount_id(-1)


@pytest.fixture
def two_files(tmp_path: Path) -> tuple[Path, Path]:
    one, other = tmp_path / "one", tmp_path / "other"
    one.write_text("one")
    other.write_text("other")
    return one, other


def test_renameat2_noreplace(directory: int, two_files: tuple[Path, Path]) -> None:
    with pytest.raises(FileExistsError):
        syscalls.renameat2(directory, b"one", directory, b"other", syscalls.RENAME_NOREPLACE)
    syscalls.renameat2(directory, b"one", directory, b"new", syscalls.RENAME_NOREPLACE)

    one, other = two_files
    assert not one.exists()
    assert other.read_text() == "other"
    assert one.with_name("new").read_text() == "one"


@pytest.mark.parametrize(
    ("name", "flags", "number"),
    [
        (b"missing", 0, errno.ENOENT),
        (b"one", 1 << 31, errno.EINVAL),
    ],
)
@pytest.mark.usefixtures("two_files")
def test_renameat2_fails(directory: int, name: bytes, flags: int, number: int) -> None:
    with pytest.raises(OSError, match=r"\[Errno") as failed:
        syscalls.renameat2(directory, name, directory, b"new", flags)

    assert failed.value.errno == number
    assert failed.value.filename == os.fsdecode(name)


def test_securebits_are_set_for_the_thread() -> None:
    def bits() -> int:
        syscalls.set_securebits(syscalls.SECBIT_NO_SETUID_FIXUP)
        return int(ctypes.CDLL(None).prctl(PR_GET_SECUREBITS, 0, 0, 0, 0))

    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(bits).result(10) == syscalls.SECBIT_NO_SETUID_FIXUP
    assert ctypes.CDLL(None).prctl(PR_GET_SECUREBITS, 0, 0, 0, 0) == 0


def test_securebits_that_do_not_exist_are_refused() -> None:
    with pytest.raises(PermissionError):
        syscalls.set_securebits(1 << 20)


def test_a_file_handle_names_one_file_until_its_end(tmp_path: Path) -> None:
    """By any link, after a rename, and not the next file with the inode number."""
    (tmp_path / "a").touch()
    os.link(tmp_path / "a", tmp_path / "b")
    fds = [os.open(tmp_path / name, os.O_PATH) for name in ("a", "b")]
    directory = os.open(tmp_path, os.O_RDONLY)

    names = [syscalls.name_to_handle_at(fd) for fd in fds]
    (tmp_path / "a").rename(tmp_path / "c")
    found = syscalls.open_by_handle_at(directory, names[0][1], os.O_PATH)

    assert names[0] == names[1] == (syscalls.mount_id(directory), names[0][1])
    assert os.fstat(found).st_ino == (tmp_path / "c").stat().st_ino
    assert not os.get_inheritable(found)
    for fd in (*fds, found):
        os.close(fd)
    (tmp_path / "b").unlink()
    (tmp_path / "c").unlink()
    with pytest.raises(OSError, match="Stale"):
        syscalls.open_by_handle_at(directory, names[0][1], os.O_PATH)
    os.close(directory)


def test_a_file_system_without_file_handles_fails() -> None:
    fd = os.open("/proc/version", os.O_PATH)
    with pytest.raises(OSError, match="not supported"):
        syscalls.name_to_handle_at(fd)
    os.close(fd)


def test_the_mount_id_is_that_of_the_mount_table(tmp_path: Path) -> None:
    for path in (tmp_path, Path("/proc")):
        fd = os.open(path, os.O_PATH)
        assert syscalls.mount_id(fd) == mountinfo.of(mountinfo.read(), fd).mount_id
        os.close(fd)
    with pytest.raises(OSError, match="Bad file"):
        syscalls.mount_id(-1)
