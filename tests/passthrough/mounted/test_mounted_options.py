"""Options that take effect in the kernel, tested through a mount."""

import errno
import mmap
import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import pytest

from passthrough.linux import syscalls
from tests.support.tools.files import noise, refused
from tests.support.tools.mounted import Mounted, mounted

LIMIT_S = 30.0
MS_REMOUNT = 32  # mount(2)
BLOCK_BYTES = 4096


# The options of every volume, unless a test sets others.
USUAL: dict[str, str] = {}


@pytest.fixture(params=["kernel", "libfuse"], autouse=True)
def session(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Serve by each session in turn."""
    monkeypatch.setitem(USUAL, "session", request.param)


@contextmanager
def volume(tmp_path: Path, **options: str) -> Iterator[Mounted]:
    with mounted(tmp_path, USUAL | options) as served, served.limited(LIMIT_S):
        yield served


@pytest.mark.parametrize(
    ("options", "kept"),
    [
        ({"negative_timeout": "1d"}, True),
        ({"cache": "always"}, True),
        ({"cache": "always", "negative_timeout": "0"}, False),
        ({"cache": "never"}, False),
    ],
)
def test_options_decide_if_negative_entries_are_kept(
    tmp_path: Path, options: dict[str, str], kept: bool
) -> None:
    with volume(tmp_path, **options) as served:
        seen = served.mountpoint / "name"
        assert not seen.exists()
        (served.source / "name").touch()

        assert seen.exists() is not kept
        # A creation through the volume finds the directory entry that the host has made.
        refused(errno.EEXIST, lambda: os.mkdir(seen))


def test_a_name_with_a_negative_entry_can_be_created(tmp_path: Path) -> None:
    with volume(tmp_path, negative_timeout="1d") as served:
        seen = served.mountpoint / "name"
        for make in (Path.touch, Path.mkdir, os.mkfifo):
            assert not os.path.lexists(seen)
            make(seen)
            assert os.path.lexists(seen)
            seen.rename(served.mountpoint / make.__name__)


def test_a_read_only_volume_stays_so_when_it_is_remounted(tmp_path: Path) -> None:
    with volume(tmp_path, ro="") as served:
        (served.source / "file").write_text("kept")
        refused(errno.EROFS, (served.mountpoint / "new").touch)

        syscalls.mount(b"none", os.fsencode(served.mountpoint), b"none", MS_REMOUNT, b"")

        changes: tuple[Callable[[Path], object], ...] = (
            Path.touch,
            Path.unlink,
            lambda path: path.write_text("changed"),
            lambda path: path.chmod(0o600),
        )
        for change in changes:
            refused(errno.EROFS, partial(change, served.mountpoint / "file"))
        assert (served.mountpoint / "file").read_text() == "kept"


def test_without_xattr_all_calls_fail_with_eopnotsupp(tmp_path: Path) -> None:
    with volume(tmp_path, xattr="off") as served:
        path = served.mountpoint / "file"
        path.touch()
        os.setxattr(served.source / "file", "user.a", b"1")
        for call in (
            lambda: os.getxattr(path, "user.a"),
            lambda: os.setxattr(path, "user.a", b"2"),
            lambda: os.removexattr(path, "user.a"),
            lambda: os.listxattr(path),
        ):
            refused(errno.EOPNOTSUPP, call)


def test_with_no_readdir_a_directory_lists_as_empty(tmp_path: Path) -> None:
    with volume(tmp_path, no_readdir="", ro="") as served:
        (served.source / "file").touch()

        assert os.listdir(served.mountpoint) == []
        assert (served.mountpoint / "file").exists()


@pytest.mark.parametrize(("options", "place"), [({}, 0), ({"use_host_ino": ""}, 1)])
def test_inode_numbers_are_the_hosts_or_made_from_them(
    tmp_path: Path, options: dict[str, str], place: int
) -> None:
    with volume(tmp_path, **options) as served:
        (served.source / "dir").mkdir()
        (served.source / "dir" / "file").touch()
        for path in ("", "dir", "dir/file"):
            expected = place << 47 | (served.source / path).stat().st_ino
            assert (served.mountpoint / path).stat().st_ino == expected
        listed = {entry.name: entry.inode() for entry in os.scandir(served.mountpoint)}
        assert listed == {"dir": (served.mountpoint / "dir").stat().st_ino}


def test_a_sealed_file_keeps_its_size(tmp_path: Path) -> None:
    with volume(tmp_path, seal_size="") as served:
        (served.source / "file").write_bytes(b"0123456789")
        path = served.mountpoint / "file"

        refused(errno.EPERM, lambda: os.truncate(path, 3))
        refused(errno.EPERM, lambda: path.write_bytes(b"new"))
        refused(errno.EPERM, lambda: (served.mountpoint / "new").write_bytes(b"x"))
        with path.open("ab", buffering=0) as file:
            refused(errno.EPERM, partial(file.write, b"more"))
        with path.open("r+b") as file:
            file.write(b"ab")
        assert (served.source / "file").read_bytes() == b"ab23456789"


def test_no_way_of_writing_makes_a_sealed_file_longer(tmp_path: Path) -> None:
    """The kernel turns calls that libfuse's binding lacks into writes, or refuses them."""
    with volume(tmp_path, seal_size="") as served:
        (served.source / "file").write_bytes(b"0123456789")
        (served.source / "longer").write_bytes(b"x" * 100)
        fd = os.open(served.mountpoint / "file", os.O_RDWR)
        longer = os.open(served.mountpoint / "longer", os.O_RDONLY)
        for call in (
            lambda: os.posix_fallocate(fd, 0, 100),
            lambda: os.copy_file_range(longer, fd, 100, 0, 0),
            lambda: os.sendfile(fd, longer, 0, 100),
            lambda: os.ftruncate(fd, 100),
            lambda: os.pwrite(fd, b"x", 10),
        ):
            with pytest.raises(OSError, match=r"not (permitted|supported)"):
                call()
        with mmap.mmap(fd, 10) as mapped:
            mapped[:3] = b"abc"
        os.close(fd)
        os.close(longer)

        assert (served.source / "file").read_bytes() == b"abc3456789"


@pytest.fixture(params=["/var/tmp", "/dev/shm"])
def disk(request: pytest.FixtureRequest) -> Iterator[Path]:
    """Return a directory on a disk, then one in memory: their rules for O_DIRECT differ."""
    with tempfile.TemporaryDirectory(dir=request.param) as directory:
        yield Path(directory)


def direct_calls(path: Path) -> list[object]:
    """Read and write with O_DIRECT; return the results and the names of the errors."""
    outcomes: list[object] = []

    def note(call: Callable[[], object]) -> None:
        try:
            outcomes.append(call())
        except OSError as error:
            outcomes.append(errno.errorcode[error.errno or 0])

    fd = os.open(path, os.O_CREAT | os.O_RDWR | os.O_DIRECT, 0o600)
    with mmap.mmap(-1, 4 * BLOCK_BYTES) as buffer, memoryview(buffer) as view:
        view[:] = noise(4 * BLOCK_BYTES)
        for offset, start, end in (
            (0, 0, 4 * BLOCK_BYTES),
            (BLOCK_BYTES, 0, BLOCK_BYTES),
            (0, 0, 100),
            (100, 0, BLOCK_BYTES),
            (5 * BLOCK_BYTES, BLOCK_BYTES, 3 * BLOCK_BYTES),
        ):
            with view[start:end] as part:
                note(partial(os.pwritev, fd, [part], offset))
                note(partial(os.preadv, fd, [part], offset))
                outcomes.append(bytes(part))
        note(lambda: os.preadv(fd, [view], 100 * BLOCK_BYTES))
    os.close(fd)
    outcomes.append(path.read_bytes())
    return outcomes


def test_o_direct_behaves_as_on_the_bare_directory(disk: Path) -> None:
    expected = direct_calls(disk / "bare")

    with volume(disk) as served:
        assert direct_calls(served.mountpoint / "file") == expected


def test_a_mapped_file_that_is_open_with_o_direct_is_written_to_its_very_end(disk: Path) -> None:
    with volume(disk) as served:
        path = served.mountpoint / "file"
        path.write_bytes(bytes(BLOCK_BYTES + 10))
        fd = os.open(path, os.O_RDWR | os.O_DIRECT)
        with mmap.mmap(fd, BLOCK_BYTES + 10) as mapped:
            mapped[:] = noise(BLOCK_BYTES + 10)
            mapped.flush()
        os.close(fd)

        assert (served.source / "file").read_bytes() == noise(BLOCK_BYTES + 10)


def test_without_direct_io_o_direct_changes_nothing(disk: Path) -> None:
    with volume(disk, allow_direct_io="off") as served:
        fd = os.open(served.mountpoint / "file", os.O_CREAT | os.O_RDWR | os.O_DIRECT)
        assert os.pwrite(fd, b"not aligned", 3) == 11
        assert os.pread(fd, 100, 3) == b"not aligned"
        os.close(fd)


def test_writeback_collects_writes_and_delivers_them(tmp_path: Path) -> None:
    with volume(tmp_path, writeback="") as served:
        path, beneath = served.mountpoint / "file", served.source / "file"
        with path.open("wb", buffering=0) as file:
            for part in range(1000):
                file.write(b"%09d\n" % part)
            collected = beneath.stat().st_size
            os.fsync(file.fileno())
            assert beneath.read_bytes() == b"".join(b"%09d\n" % part for part in range(1000))
        with path.open("ab", buffering=0) as file:  # write-only: the kernel must read a page first
            file.write(b"end")

        assert collected < 10_000
        assert beneath.read_bytes()[-6:] == b"99\nend"
        assert path.read_bytes() == beneath.read_bytes()


@pytest.mark.parametrize("other", [{"cache": "never"}, {"seal_size": ""}])
def test_writeback_is_off_beside_conflicting_options_and_the_log_says_so(
    tmp_path: Path, other: dict[str, str]
) -> None:
    with volume(tmp_path, writeback="", **other) as served:
        (served.source / "file").write_bytes(b"0123456789")
        with (served.mountpoint / "file").open("r+b", buffering=0) as file:
            file.write(b"ab")
            assert (served.source / "file").read_bytes() == b"ab23456789"

    (line,) = served.logged().splitlines()
    assert line.startswith("WARNING passthrough.worker.process: writeback is false: ")
