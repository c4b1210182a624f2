"""storage.py: the files that are deleted, and above all those that are not."""

import fcntl
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec
import pytest

from passthrough.linux import syscalls
from plugin.errors import StorageFailed, VolumeInUse
from plugin.volume import LONGEST_NAME, FileName, Record, VolumeName
from plugin.volumes.storage import Storage
from tests.support.tools.mounts import bound
from tests.support.tools.records import record

DATA = record("data")


@pytest.fixture
def storage(tmp_path: Path) -> Storage:
    storage = Storage(tmp_path / "passfs")
    storage.prepare()
    return storage


@pytest.fixture
def trash(storage: Storage) -> Path:
    return storage.path(DATA).parents[1] / "trash"


@pytest.fixture
def precious(tmp_path: Path) -> Path:
    """Make files outside, which must exist at the end of every test."""
    directory = tmp_path / "precious"
    directory.mkdir()
    (directory / "file").write_text("precious")
    return directory


def remove(storage: Storage) -> None:
    discard(storage)
    storage.purge()


def discard(storage: Storage) -> None:
    """Do all steps of a removal except the deletion."""
    storage.set_aside(DATA)
    storage.discard(DATA)


def test_a_new_directory_has_the_mode_of_docker_s_local_volumes(storage: Storage) -> None:
    umask = os.umask(0o077)
    try:
        storage.create(DATA)
    finally:
        os.umask(umask)
    assert storage.path(DATA).stat().st_mode & 0o7777 == 0o755
    assert storage.path(DATA).parent.stat().st_mode & 0o7777 == 0o700


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, (0o755, 0, 0)),
        ({"mode": 0o6711}, (0o6711, 0, 0)),
        ({"mode": 0o6711, "uid": 7}, (0o6711, 7, 0)),
        ({"gid": 8}, (0o755, 0, 8)),
        ({"mode": 0}, (0, 0, 0)),
    ],
)
def test_a_new_directory_has_the_requested_mode_and_owner(
    storage: Storage, given: dict[str, int], expected: tuple[int, int, int]
) -> None:
    storage.path(DATA).mkdir()
    os.chown(storage.path(DATA), 5, 5)  # left by a crash, of a volume with another owner

    storage.create(DATA, **given)

    made = storage.path(DATA).stat()
    assert (made.st_mode & 0o7777, made.st_uid, made.st_gid) == expected


def test_open_opens_the_volume_s_directory(storage: Storage) -> None:
    storage.create(DATA)
    fd = storage.open(DATA)
    try:
        assert os.path.samestat(os.fstat(fd), storage.path(DATA).stat())
    finally:
        os.close(fd)


def test_create_uses_an_empty_directory_left_by_a_crash(storage: Storage) -> None:
    storage.path(DATA).mkdir()
    storage.create(DATA)
    assert storage.path(DATA).stat().st_mode & 0o7777 == 0o755


def test_create_refuses_a_directory_with_files(storage: Storage) -> None:
    storage.path(DATA).mkdir()
    (storage.path(DATA) / "file").touch()
    with pytest.raises(StorageFailed, match="already exists and is not empty; move it away"):
        storage.create(DATA)
    assert (storage.path(DATA) / "file").exists()


def test_open_refuses_a_missing_directory_and_does_not_make_it(storage: Storage) -> None:
    with pytest.raises(StorageFailed, match=r"cannot use .*/volumes/data, .*: No such file"):
        storage.open(DATA)
    assert not storage.path(DATA).exists()


def test_a_symlink_in_place_of_the_directory_is_refused(storage: Storage, precious: Path) -> None:
    storage.path(DATA).symlink_to(precious)
    for use in (storage.open, storage.create):
        with pytest.raises(StorageFailed):
            use(DATA)


def test_set_aside_and_discard_move_the_directory_at_once(storage: Storage, trash: Path) -> None:
    fill(storage)
    storage.set_aside(DATA)
    assert not storage.path(DATA).exists()
    assert list(trash.iterdir()) == []
    storage.discard(DATA)
    assert contents(trash.parent) == [["file"]]


def fill(storage: Storage, file: str = "file") -> None:
    storage.create(DATA)
    (storage.path(DATA) / file).touch()


def contents(data_dir: Path) -> list[list[str]]:
    """List the files of each directory that is set aside or in the trash."""
    return [
        sorted(file.name for file in entry.iterdir())
        for place in ("removed", "trash")
        for entry in (data_dir / place).iterdir()
    ]


def test_a_directory_set_aside_can_be_restored(storage: Storage) -> None:
    fill(storage)
    storage.set_aside(DATA)
    storage.restore(DATA)
    assert (storage.path(DATA) / "file").exists()


def test_a_missing_directory_can_be_removed(storage: Storage) -> None:
    storage.set_aside(DATA)
    storage.restore(DATA)
    storage.set_aside(DATA)
    storage.discard(DATA)


def test_an_undiscarded_directory_does_not_block_the_next_of_its_name(
    storage: Storage, trash: Path
) -> None:
    fill(storage, "older")
    storage.set_aside(DATA)
    fill(storage)
    discard(storage)
    assert sorted(contents(trash.parent)) == [["file"], ["older"]]


@pytest.mark.logs("volume data: its removal was interrupted, and has been undone")
def test_settle_undoes_an_interrupted_removal(storage: Storage, trash: Path) -> None:
    """With all files, although an earlier volume of that name is not yet deleted."""
    fill(storage, "older")
    discard(storage)
    fill(storage)
    storage.set_aside(DATA)
    storage.settle([DATA])
    assert [path.name for path in storage.path(DATA).iterdir()] == ["file"]
    assert contents(trash.parent) == [["older"]]
    storage.settle([DATA])  # a second call changes nothing
    assert (storage.path(DATA) / "file").exists()


def test_settle_discards_the_files_of_a_forgotten_volume(storage: Storage, trash: Path) -> None:
    fill(storage)
    storage.set_aside(DATA)
    storage.settle([record("other")])
    assert not storage.path(DATA).exists()
    assert list((trash.parent / "removed").iterdir()) == []
    storage.purge()
    assert contents(trash.parent) == []


@pytest.mark.logs("cannot move .*/removed/data, which a killed plugin left: File exists")
def test_settle_keeps_the_present_files_of_a_volume(storage: Storage, trash: Path) -> None:
    """As if an administrator had put a copy in the place of the missing directory."""
    fill(storage, "set aside")
    storage.set_aside(DATA)
    fill(storage, "copy")
    storage.settle([DATA])
    storage.purge()
    assert [path.name for path in storage.path(DATA).iterdir()] == ["copy"]
    assert contents(trash.parent) == [["set aside"]]


@pytest.mark.logs("volume a/../data: its removal was interrupted, and has been undone")
def test_the_record_names_the_directory(storage: Storage) -> None:
    volume = msgspec.structs.replace(DATA, name=VolumeName("a/../data"), directory=FileName("@a"))
    storage.create(DATA)
    storage.create(volume)
    os.close(storage.open(volume))
    assert sorted(path.name for path in storage.path(DATA).parent.iterdir()) == ["@a", "data"]
    storage.set_aside(volume)
    storage.restore(volume)
    assert storage.path(volume).is_dir()
    storage.set_aside(volume)
    storage.settle([DATA, volume])
    assert storage.path(volume).is_dir()
    storage.set_aside(volume)
    storage.discard(volume)
    storage.purge()
    assert [path.name for path in storage.path(DATA).parent.iterdir()] == ["data"]


def test_the_longest_name_fits_in_every_step(storage: Storage, trash: Path) -> None:
    volume = record("x" * LONGEST_NAME)
    storage.create(volume)
    storage.set_aside(volume)
    storage.restore(volume)
    storage.set_aside(volume)
    storage.discard(volume)
    storage.purge()
    assert contents(trash.parent) == []


def test_create_refuses_a_directory_that_differs_in_case_only(
    storage: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on ext4 with casefold, which keeps the case of the first name."""
    storage.create(DATA)
    mkdir, openat2 = os.mkdir, syscalls.openat2

    def mkdir_folding(name: str, *, mode: int, dir_fd: int) -> None:
        mkdir(name.casefold(), mode=mode, dir_fd=dir_fd)

    def openat2_folding(dir_fd: int, name: bytes, flags: int, resolve: int) -> int:
        return openat2(dir_fd, name.lower(), flags, resolve)

    monkeypatch.setattr(os, "mkdir", mkdir_folding)
    monkeypatch.setattr(syscalls, "openat2", openat2_folding)
    with pytest.raises(StorageFailed, match=r"/volumes/Data is the directory of another volume"):
        storage.create(record("Data"), mode=0o700)
    storage.create(DATA)  # again, as after a crash
    assert storage.path(DATA).stat().st_mode & 0o7777 == 0o755


def test_purge_deletes_files_of_every_kind(storage: Storage, trash: Path) -> None:
    storage.create(DATA)
    root = storage.path(DATA)
    (root / "a" / "b" / "c").mkdir(parents=True)
    (root / "a" / "file").write_text("x")
    os.mkfifo(root / "a" / "b" / "fifo")
    (root / "a" / "b" / "link").symlink_to("../..")
    (root / os.fsdecode(b"\xff\n")).touch()
    (root / "a").chmod(0)
    remove(storage)
    assert list(trash.iterdir()) == []


@pytest.mark.slow
def test_a_tree_of_any_depth_is_deleted(storage: Storage, trash: Path) -> None:
    """The recursion limit, PATH_MAX and the number of descriptors set no limit."""
    storage.create(DATA)
    fd = os.open(storage.path(DATA), os.O_RDONLY)
    for _ in range(3000):
        os.mkdir("d", dir_fd=fd)
        below = os.open("d", os.O_RDONLY, dir_fd=fd)
        os.close(fd)
        fd = below
    os.close(fd)
    remove(storage)
    assert list(trash.iterdir()) == []


def test_purge_keeps_the_targets_of_symlinks(storage: Storage, precious: Path) -> None:
    storage.create(DATA)
    (storage.path(DATA) / "directory").symlink_to(precious)
    (storage.path(DATA) / "file").symlink_to(precious / "file")
    remove(storage)
    assert (precious / "file").read_text() == "precious"


def test_set_aside_refuses_a_volume_with_a_mount_inside(storage: Storage, precious: Path) -> None:
    storage.create(DATA)
    with bound(precious, storage.path(DATA) / "a" / "mounted"):
        with pytest.raises(VolumeInUse, match=r"data/a/mounted is a mount point inside it"):
            storage.set_aside(DATA)
        assert (storage.path(DATA) / "a" / "mounted" / "file").exists()


def test_set_aside_finds_a_mount_behind_a_symlinked_data_directory(
    tmp_path: Path, precious: Path
) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    storage = Storage(tmp_path / "link")
    storage.prepare()
    storage.create(DATA)
    refusal = pytest.raises(VolumeInUse, match=r"link/volumes/data/mounted is a mount point")
    with bound(precious, storage.path(DATA) / "mounted"), refusal:
        storage.set_aside(DATA)


@pytest.mark.parametrize("use", [Storage.create, Storage.open])
def test_a_missing_data_directory_is_refused_with_the_reason(
    storage: Storage, use: Callable[[Storage, Record], object]
) -> None:
    storage.path(DATA).parent.rmdir()
    with pytest.raises(StorageFailed, match=r"cannot use .*/volumes/data, .*: No such file"):
        use(storage, DATA)


def test_a_full_disk_is_refused_with_the_reason(storage: Storage) -> None:
    volumes = storage.path(DATA).parent
    with small(volumes), pytest.raises(StorageFailed, match=r"cannot use .*: No space left on"):
        storage.create(DATA)


def test_a_directory_that_cannot_be_moved_is_refused_with_the_reason(storage: Storage) -> None:
    storage.create(DATA)
    storage.set_aside(DATA)
    storage.create(DATA)
    with pytest.raises(StorageFailed, match=r"cannot use .*/volumes/data, .*: File exists"):
        storage.restore(DATA)
    storage.discard(DATA)
    refusal = pytest.raises(StorageFailed, match=r"cannot use .*: Operation not permitted")
    with immutable(storage.path(DATA)), refusal:
        storage.set_aside(DATA)


@contextmanager
def small(directory: Path) -> Iterator[None]:
    """Mount a file system without an inode beside its root."""
    syscalls.mount(b"none", os.fsencode(directory), b"tmpfs", 0, b"nr_inodes=1")
    try:
        yield
    finally:
        syscalls.umount2(os.fsencode(directory), syscalls.MNT_DETACH)


def test_purge_deletes_a_file_that_took_the_place_of_a_directory(
    storage: Storage, trash: Path
) -> None:
    """A process of the host that has the directory open can replace it."""
    (trash / "file").touch()
    (trash / "link").symlink_to("/")
    storage.purge()
    assert list(trash.iterdir()) == []


@pytest.mark.parametrize("kind", ["file", "directory"])
def test_purge_ignores_files_that_another_process_deletes(
    storage: Storage, trash: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage.create(DATA)
    for number in range(5):
        (storage.path(DATA) / f"file{number}").touch()
        (storage.path(DATA) / f"directory{number}").mkdir()
    unlink, rename = os.unlink, os.rename
    done: list[str] = []

    def unlink_as_second(name: str, *, dir_fd: int) -> None:
        if kind == "file" and not done:
            unlink(name, dir_fd=dir_fd)
            done.append(name)
        unlink(name, dir_fd=dir_fd)

    def rename_as_second(old: str, new: str, *, src_dir_fd: int, dst_dir_fd: int) -> None:
        if kind == "directory" and not done:
            os.rmdir(old, dir_fd=src_dir_fd)
            done.append(old)
        rename(old, new, src_dir_fd=src_dir_fd, dst_dir_fd=dst_dir_fd)

    monkeypatch.setattr(os, "unlink", unlink_as_second)
    monkeypatch.setattr(os, "rename", rename_as_second)
    remove(storage)
    assert len(done) == 1
    assert list(trash.iterdir()) == []


@pytest.mark.logs("cannot delete all of .*/trash/.*: .*busy")
def test_purge_stops_at_a_mount_made_after_the_discard(
    storage: Storage, trash: Path, precious: Path
) -> None:
    storage.create(DATA)
    discard(storage)
    (discarded,) = trash.iterdir()
    with bound(precious, discarded / "a" / "mounted"):
        storage.purge()
        assert (precious / "file").read_text() == "precious"
    storage.purge()
    assert list(trash.iterdir()) == []
    assert (precious / "file").read_text() == "precious"


@pytest.mark.logs("cannot delete all of .*/trash/mounted: ")
def test_purge_does_not_enter_a_mount_in_the_trash(
    storage: Storage, trash: Path, precious: Path
) -> None:
    with bound(precious, trash / "mounted"):
        storage.purge()
        assert (precious / "file").read_text() == "precious"


@pytest.mark.logs("cannot delete all of .*/trash/[0-9a-f]+: Operation not permitted")
def test_purge_leaves_a_file_that_cannot_be_deleted_and_deletes_the_others(
    storage: Storage, trash: Path
) -> None:
    """Not even root can delete an immutable file, chattr(1)."""
    storage.create(DATA)
    (storage.path(DATA) / "stuck").mkdir()
    stuck = storage.path(DATA) / "stuck" / "file"
    stuck.touch()
    (storage.path(DATA) / "other").mkdir()
    with immutable(stuck):
        remove(storage)
        assert len(list(trash.iterdir())) == 1
    storage.purge()
    assert list(trash.iterdir()) == []


@contextmanager
def immutable(path: Path) -> Iterator[None]:
    """Make a file immutable, ioctl_iflags(2), and undo that even if the file has been moved."""
    get, put, flag = 0x80086601, 0x40086602, 0x10
    fd = os.open(path, os.O_RDONLY)
    flags = bytearray(8)
    fcntl.ioctl(fd, get, flags)
    flags[0] |= flag
    fcntl.ioctl(fd, put, bytes(flags))
    try:
        yield
    finally:
        flags[0] &= ~flag
        fcntl.ioctl(fd, put, bytes(flags))
        os.close(fd)
