"""storage.py: what is deleted, and above all what is not."""

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
    """Files outside, which must be there at the end of every test."""
    directory = tmp_path / "precious"
    directory.mkdir()
    (directory / "file").write_text("precious")
    return directory


def remove(storage: Storage) -> None:
    discard(storage)
    storage.purge()


def discard(storage: Storage) -> None:
    """All of a removal but for the deleting."""
    storage.set_aside(DATA)
    storage.discard(DATA)


def test_a_directory_is_made_as_docker_s_own_driver_makes_it(storage: Storage) -> None:
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
def test_a_directory_gets_the_mode_and_owner_asked_for(
    storage: Storage, given: dict[str, int], expected: tuple[int, int, int]
) -> None:
    storage.path(DATA).mkdir()
    os.chown(storage.path(DATA), 5, 5)  # left by a crash, of a volume that wanted something else

    storage.create(DATA, **given)

    made = storage.path(DATA).stat()
    assert (made.st_mode & 0o7777, made.st_uid, made.st_gid) == expected


def test_an_opened_directory_is_the_volume_s(storage: Storage) -> None:
    storage.create(DATA)
    fd = storage.open(DATA)
    try:
        assert os.path.samestat(os.fstat(fd), storage.path(DATA).stat())
    finally:
        os.close(fd)


def test_an_empty_directory_that_a_crash_has_left_is_taken(storage: Storage) -> None:
    storage.path(DATA).mkdir()
    storage.create(DATA)
    assert storage.path(DATA).stat().st_mode & 0o7777 == 0o755


def test_somebody_s_files_are_never_a_new_volume(storage: Storage) -> None:
    storage.path(DATA).mkdir()
    (storage.path(DATA) / "file").touch()
    with pytest.raises(StorageFailed, match="already exists and is not empty; move it away"):
        storage.create(DATA)
    assert (storage.path(DATA) / "file").exists()


def test_a_missing_directory_is_an_error_and_not_made_again(storage: Storage) -> None:
    with pytest.raises(StorageFailed, match=r"cannot use .*/volumes/data, .*: No such file"):
        storage.open(DATA)
    assert not storage.path(DATA).exists()


def test_a_symlink_in_place_of_the_directory_is_an_error(storage: Storage, precious: Path) -> None:
    storage.path(DATA).symlink_to(precious)
    for use in (storage.open, storage.create):
        with pytest.raises(StorageFailed):
            use(DATA)


def test_what_is_removed_is_out_of_the_way_at_once(storage: Storage, trash: Path) -> None:
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
    """What is in each directory that is no volume's any more, or may be none's soon."""
    return [
        sorted(file.name for file in entry.iterdir())
        for place in ("removed", "trash")
        for entry in (data_dir / place).iterdir()
    ]


def test_what_is_set_aside_can_be_restored(storage: Storage) -> None:
    fill(storage)
    storage.set_aside(DATA)
    storage.restore(DATA)
    assert (storage.path(DATA) / "file").exists()


def test_a_directory_that_is_gone_already_is_removed(storage: Storage) -> None:
    storage.set_aside(DATA)
    storage.restore(DATA)
    storage.set_aside(DATA)
    storage.discard(DATA)


def test_what_could_not_be_discarded_is_in_nobody_s_way(storage: Storage, trash: Path) -> None:
    fill(storage, "older")
    storage.set_aside(DATA)
    fill(storage)
    discard(storage)
    assert sorted(contents(trash.parent)) == [["file"], ["older"]]


@pytest.mark.logs("volume data: its removal was interrupted, and has been undone")
def test_a_volume_whose_removal_was_cut_off_gets_its_files_back(
    storage: Storage, trash: Path
) -> None:
    """Whole, though an earlier volume of that name is still being deleted."""
    fill(storage, "older")
    discard(storage)
    fill(storage)
    storage.set_aside(DATA)
    storage.settle([DATA])
    assert [path.name for path in storage.path(DATA).iterdir()] == ["file"]
    assert contents(trash.parent) == [["older"]]
    storage.settle([DATA])  # once more changes nothing
    assert (storage.path(DATA) / "file").exists()


def test_a_volume_that_the_registry_has_forgotten_is_deleted(storage: Storage, trash: Path) -> None:
    fill(storage)
    storage.set_aside(DATA)
    storage.settle([record("other")])
    assert not storage.path(DATA).exists()
    assert list((trash.parent / "removed").iterdir()) == []
    storage.purge()
    assert contents(trash.parent) == []


@pytest.mark.logs("cannot move .*/removed/data, which a killed plugin left: File exists")
def test_files_that_are_there_are_not_exchanged_for_those_set_aside(
    storage: Storage, trash: Path
) -> None:
    """As after an administrator has put a copy in the place of what was gone."""
    fill(storage, "set aside")
    storage.set_aside(DATA)
    fill(storage, "copy")
    storage.settle([DATA])
    storage.purge()
    assert [path.name for path in storage.path(DATA).iterdir()] == ["copy"]
    assert contents(trash.parent) == [["set aside"]]


@pytest.mark.logs("volume a/../data: its removal was interrupted, and has been undone")
def test_the_record_says_the_directory(storage: Storage) -> None:
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


def test_the_longest_name_fits_into_every_place(storage: Storage, trash: Path) -> None:
    volume = record("x" * LONGEST_NAME)
    storage.create(volume)
    storage.set_aside(volume)
    storage.restore(volume)
    storage.set_aside(volume)
    storage.discard(volume)
    storage.purge()
    assert contents(trash.parent) == []


def test_two_volumes_never_share_a_directory_where_case_is_ignored(
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


def test_a_tree_of_any_depth_is_deleted(storage: Storage, trash: Path) -> None:
    """Neither the recursion limit, nor PATH_MAX, nor the number of descriptors matters."""
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


def test_what_symlinks_point_to_stays(storage: Storage, precious: Path) -> None:
    storage.create(DATA)
    (storage.path(DATA) / "directory").symlink_to(precious)
    (storage.path(DATA) / "file").symlink_to(precious / "file")
    remove(storage)
    assert (precious / "file").read_text() == "precious"


def test_a_volume_with_a_mount_inside_is_not_discarded(storage: Storage, precious: Path) -> None:
    storage.create(DATA)
    with bound(precious, storage.path(DATA) / "a" / "mounted"):
        with pytest.raises(VolumeInUse, match=r"data/a/mounted is a mount point inside it"):
            storage.set_aside(DATA)
        assert (storage.path(DATA) / "a" / "mounted" / "file").exists()


def test_a_symlink_to_the_data_directory_hides_no_mount(tmp_path: Path, precious: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    storage = Storage(tmp_path / "link")
    storage.prepare()
    storage.create(DATA)
    refusal = pytest.raises(VolumeInUse, match=r"link/volumes/data/mounted is a mount point")
    with bound(precious, storage.path(DATA) / "mounted"), refusal:
        storage.set_aside(DATA)


@pytest.mark.parametrize("use", [Storage.create, Storage.open])
def test_a_data_directory_that_is_gone_is_told_in_a_sentence(
    storage: Storage, use: Callable[[Storage, Record], object]
) -> None:
    storage.path(DATA).parent.rmdir()
    with pytest.raises(StorageFailed, match=r"cannot use .*/volumes/data, .*: No such file"):
        use(storage, DATA)


def test_a_full_disk_is_told_in_a_sentence(storage: Storage) -> None:
    volumes = storage.path(DATA).parent
    with small(volumes), pytest.raises(StorageFailed, match=r"cannot use .*: No space left on"):
        storage.create(DATA)


def test_what_cannot_be_moved_is_told_in_a_sentence(storage: Storage) -> None:
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
    """A file system that has room for nothing but its root."""
    syscalls.mount(b"none", os.fsencode(directory), b"tmpfs", 0, b"nr_inodes=1")
    try:
        yield
    finally:
        syscalls.umount2(os.fsencode(directory), syscalls.MNT_DETACH)


@pytest.mark.parametrize("kind", ["file", "directory"])
def test_what_its_last_user_deletes_meanwhile_is_gone(
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
def test_a_mount_that_comes_after_the_discard_stops_the_purge(
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
def test_a_mount_in_the_trash_itself_is_not_entered(
    storage: Storage, trash: Path, precious: Path
) -> None:
    with bound(precious, trash / "mounted"):
        storage.purge()
        assert (precious / "file").read_text() == "precious"


@pytest.mark.logs("cannot delete all of .*/trash/[0-9a-f]+: Operation not permitted")
def test_what_cannot_be_deleted_stays_and_the_rest_goes(storage: Storage, trash: Path) -> None:
    """An immutable file, chattr(1), is refused to root as well."""
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
    """Make a file immutable, ioctl_iflags(2), wherever it has been moved to by the end."""
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
