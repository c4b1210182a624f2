"""plugin/storage.py: what is deleted, and above all what is not."""

import fcntl
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from passthrough import syscalls
from plugin.errors import StorageFailed, VolumeInUse
from plugin.storage import Storage
from plugin.volume import VolumeName
from tests.support.mounts import bound

NAME = VolumeName("data")


@pytest.fixture
def storage(tmp_path: Path) -> Storage:
    storage = Storage(tmp_path / "passfs")
    storage.prepare()
    return storage


@pytest.fixture
def trash(storage: Storage) -> Path:
    return storage.path(NAME).parents[1] / "trash"


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
    storage.set_aside(NAME)
    storage.discard(NAME)


def test_a_directory_is_made_as_docker_s_own_driver_makes_it(storage: Storage) -> None:
    umask = os.umask(0o077)
    try:
        storage.create(NAME)
    finally:
        os.umask(umask)
    assert storage.path(NAME).stat().st_mode & 0o7777 == 0o755
    assert storage.path(NAME).parent.stat().st_mode & 0o7777 == 0o700


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
    storage.path(NAME).mkdir()
    os.chown(storage.path(NAME), 5, 5)  # left by a crash, of a volume that wanted something else

    storage.create(NAME, **given)

    made = storage.path(NAME).stat()
    assert (made.st_mode & 0o7777, made.st_uid, made.st_gid) == expected


def test_an_opened_directory_is_the_volume_s(storage: Storage) -> None:
    storage.create(NAME)
    fd = storage.open(NAME)
    try:
        assert os.path.samestat(os.fstat(fd), storage.path(NAME).stat())
    finally:
        os.close(fd)


def test_an_empty_directory_that_a_crash_has_left_is_taken(storage: Storage) -> None:
    storage.path(NAME).mkdir()
    storage.create(NAME)
    assert storage.path(NAME).stat().st_mode & 0o7777 == 0o755


def test_somebody_s_files_are_never_a_new_volume(storage: Storage) -> None:
    storage.path(NAME).mkdir()
    (storage.path(NAME) / "file").touch()
    with pytest.raises(StorageFailed, match="already exists and is not empty; move it away"):
        storage.create(NAME)
    assert (storage.path(NAME) / "file").exists()


def test_a_missing_directory_is_an_error_and_not_made_again(storage: Storage) -> None:
    with pytest.raises(StorageFailed, match=r"cannot use .*/volumes/data, .*: No such file"):
        storage.open(NAME)
    assert not storage.path(NAME).exists()


def test_a_symlink_in_place_of_the_directory_is_an_error(storage: Storage, precious: Path) -> None:
    storage.path(NAME).symlink_to(precious)
    for use in (storage.open, storage.create):
        with pytest.raises(StorageFailed):
            use(NAME)


def test_what_is_removed_is_out_of_the_way_at_once(storage: Storage, trash: Path) -> None:
    fill(storage)
    storage.set_aside(NAME)
    assert not storage.path(NAME).exists()
    assert list(trash.iterdir()) == []
    storage.discard(NAME)
    assert contents(trash.parent) == [["file"]]


def fill(storage: Storage, file: str = "file") -> None:
    storage.create(NAME)
    (storage.path(NAME) / file).touch()


def contents(data_dir: Path) -> list[list[str]]:
    """What is in each directory that is no volume's any more, or may be none's soon."""
    return [
        sorted(file.name for file in entry.iterdir())
        for place in ("removed", "trash")
        for entry in (data_dir / place).iterdir()
    ]


def test_what_is_set_aside_can_be_restored(storage: Storage) -> None:
    fill(storage)
    storage.set_aside(NAME)
    storage.restore(NAME)
    assert (storage.path(NAME) / "file").exists()


def test_a_directory_that_is_gone_already_is_removed(storage: Storage) -> None:
    storage.set_aside(NAME)
    storage.restore(NAME)
    storage.set_aside(NAME)
    storage.discard(NAME)


def test_what_could_not_be_discarded_is_in_nobody_s_way(storage: Storage, trash: Path) -> None:
    fill(storage, "older")
    storage.set_aside(NAME)
    fill(storage)
    discard(storage)
    assert sorted(contents(trash.parent)) == [["file"], ["older"]]


@pytest.mark.logs("volume data: its removal was cut off; it is there again")
def test_a_volume_whose_removal_was_cut_off_gets_its_files_back(
    storage: Storage, trash: Path
) -> None:
    """Whole, though an earlier volume of that name is still being deleted."""
    fill(storage, "older")
    discard(storage)
    fill(storage)
    storage.set_aside(NAME)
    storage.settle([NAME])
    assert [path.name for path in storage.path(NAME).iterdir()] == ["file"]
    assert contents(trash.parent) == [["older"]]
    storage.settle([NAME])  # once more changes nothing
    assert (storage.path(NAME) / "file").exists()


def test_a_volume_that_the_registry_has_forgotten_is_deleted(storage: Storage, trash: Path) -> None:
    fill(storage)
    storage.set_aside(NAME)
    storage.settle([VolumeName("other")])
    assert not storage.path(NAME).exists()
    assert list((trash.parent / "removed").iterdir()) == []
    storage.purge()
    assert contents(trash.parent) == []


@pytest.mark.logs("cannot move .*/removed/data, which a killed plugin has left: File exists")
def test_files_that_are_there_are_not_exchanged_for_those_set_aside(
    storage: Storage, trash: Path
) -> None:
    """As after an administrator has put a copy in the place of what was gone."""
    fill(storage, "set aside")
    storage.set_aside(NAME)
    fill(storage, "copy")
    storage.settle([NAME])
    storage.purge()
    assert [path.name for path in storage.path(NAME).iterdir()] == ["copy"]
    assert contents(trash.parent) == [["set aside"]]


@pytest.mark.parametrize("name", ["..", "a/../../b", "/etc", "a\nb", "x" * 300, "\u00e4"])
def test_every_name_has_a_directory_beside_the_others(storage: Storage, name: str) -> None:
    storage.create(VolumeName(name))
    os.close(storage.open(VolumeName(name)))
    made = storage.path(VolumeName(name))
    assert made.is_dir()
    assert made.parent == storage.path(NAME).parent
    assert list(made.parent.iterdir()) == [made]
    storage.set_aside(VolumeName(name))
    storage.discard(VolumeName(name))
    storage.purge()
    assert list(made.parent.iterdir()) == []


def test_purge_deletes_files_of_every_kind(storage: Storage, trash: Path) -> None:
    storage.create(NAME)
    root = storage.path(NAME)
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
    storage.create(NAME)
    fd = os.open(storage.path(NAME), os.O_RDONLY)
    for _ in range(3000):
        os.mkdir("d", dir_fd=fd)
        below = os.open("d", os.O_RDONLY, dir_fd=fd)
        os.close(fd)
        fd = below
    os.close(fd)
    remove(storage)
    assert list(trash.iterdir()) == []


def test_what_symlinks_point_to_stays(storage: Storage, precious: Path) -> None:
    storage.create(NAME)
    (storage.path(NAME) / "directory").symlink_to(precious)
    (storage.path(NAME) / "file").symlink_to(precious / "file")
    remove(storage)
    assert (precious / "file").read_text() == "precious"


def test_a_volume_with_a_mount_inside_is_not_discarded(storage: Storage, precious: Path) -> None:
    storage.create(NAME)
    with bound(precious, storage.path(NAME) / "a" / "mounted"):
        with pytest.raises(VolumeInUse, match=r"data/a/mounted is a mount point inside it"):
            storage.set_aside(NAME)
        assert (storage.path(NAME) / "a" / "mounted" / "file").exists()


def test_a_symlink_to_the_data_directory_hides_no_mount(tmp_path: Path, precious: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    storage = Storage(tmp_path / "link")
    storage.prepare()
    storage.create(NAME)
    refusal = pytest.raises(VolumeInUse, match=r"real/volumes/data/mounted is a mount point")
    with bound(precious, storage.path(NAME) / "mounted"), refusal:
        storage.set_aside(NAME)


@pytest.mark.parametrize("use", [Storage.create, Storage.open])
def test_a_data_directory_that_is_gone_is_told_in_a_sentence(
    storage: Storage, use: Callable[[Storage, VolumeName], object]
) -> None:
    storage.path(NAME).parent.rmdir()
    with pytest.raises(StorageFailed, match=r"cannot use .*/volumes/data, .*: No such file"):
        use(storage, NAME)


def test_a_full_disk_is_told_in_a_sentence(storage: Storage) -> None:
    volumes = storage.path(NAME).parent
    with small(volumes), pytest.raises(StorageFailed, match=r"cannot use .*: No space left on"):
        storage.create(NAME)


def test_what_cannot_be_moved_is_told_in_a_sentence(storage: Storage) -> None:
    storage.create(NAME)
    storage.set_aside(NAME)
    storage.create(NAME)
    with pytest.raises(StorageFailed, match=r"cannot use .*/volumes/data, .*: File exists"):
        storage.restore(NAME)
    storage.discard(NAME)
    refusal = pytest.raises(StorageFailed, match=r"cannot use .*: Operation not permitted")
    with immutable(storage.path(NAME)), refusal:
        storage.set_aside(NAME)


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
    storage.create(NAME)
    for number in range(5):
        (storage.path(NAME) / f"file{number}").touch()
        (storage.path(NAME) / f"directory{number}").mkdir()
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
    storage.create(NAME)
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
    storage.create(NAME)
    (storage.path(NAME) / "stuck").mkdir()
    stuck = storage.path(NAME) / "stuck" / "file"
    stuck.touch()
    (storage.path(NAME) / "other").mkdir()
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
