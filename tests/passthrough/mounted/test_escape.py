"""Attempts to reach files outside of the source, from a mount and with the host's help.

The worker runs as root over the files of all users, so it must never take a name for more than one
component of one directory. Nothing outside may be read or changed, even while the host exchanges
names.
"""

import contextlib
import errno
import os
import stat
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from passthrough.linux import syscalls
from passthrough.options.choices import SessionKind
from passthrough.options.table import Requested
from tests.support.fakes.keeper import Keeper, on_mount
from tests.support.tools import host_calls
from tests.support.tools.callers import ROOT
from tests.support.tools.files import noise
from tests.support.tools.inside import probe

SWAPS = 400
NULL_DEVICE = os.makedev(1, 3)
REFUSALS = {errno.ELOOP, errno.ENOENT, errno.ESTALE, errno.ENOTDIR, errno.EEXIST, errno.EINVAL}


class Outside:
    """A directory beside the source with a secret in it, which must not change."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.secret = path / "secret"
        path.mkdir()
        self.secret.write_bytes(b"secret")
        os.setxattr(self.secret, "user.mark", b"1")
        self.before = self._state()

    def _state(self) -> list[tuple[object, ...]]:
        found = []
        for path in (self.path, self.secret):
            at = path.stat()
            found.append(
                (at.st_mode, at.st_uid, at.st_gid, at.st_size, at.st_mtime_ns, at.st_nlink)
            )
        return [*found, (*os.listdir(self.path), *os.listxattr(self.secret))]

    def untouched(self) -> bool:
        return self.before == self._state() and self.secret.read_bytes() == b"secret"


@pytest.fixture
def outside(tmp_path: Path) -> Iterator[Outside]:
    outside = Outside(tmp_path / "outside")
    yield outside
    assert outside.untouched()


@pytest.fixture(params=[SessionKind.KERNEL, SessionKind.LIBFUSE])
def served(
    request: pytest.FixtureRequest, source: Path, mountpoint: Path, tmp_path: Path
) -> Iterator[Path]:
    """Mount the source, served by a worker that runs probes in its sandbox."""
    keeper = Keeper(
        *(source, mountpoint, tmp_path / "stderr"),
        config=Requested(session=request.param),
        module="tests.support.tools.inside",
    )
    keeper.serve()
    yield mountpoint
    assert keeper.processes[0].poll() is None
    assert keeper.told == []
    keeper.close()


@contextlib.contextmanager
def swapping(one: Path, two: Path) -> Iterator[None]:
    """Exchange two names on the host, again and again, until the block ends."""

    def swap() -> None:
        parent = os.open(one.parent, os.O_PATH)
        while True:
            syscalls.renameat2(
                *(parent, os.fsencode(one.name), parent, os.fsencode(two.name)),
                host_calls.RENAME_EXCHANGE,
            )

    with ROOT.start(swap):
        yield


def attempts(calls: list[Callable[[], object]]) -> None:
    """Make every call SWAPS times in a child process; each succeeds or fails with REFUSALS."""

    def run() -> None:
        for _ in range(SWAPS):
            for call in calls:
                try:
                    call()
                except OSError as error:
                    if error.errno not in REFUSALS:
                        raise

    ROOT.run(run)


def test_a_file_that_turns_into_a_symlink_is_never_followed(
    source: Path, served: Path, outside: Outside
) -> None:
    """The kernel has the name in its cache as a file, and the worker finds a symlink there."""
    (source / "file").write_bytes(b"inside")
    (source / "link").symlink_to(outside.secret)
    target = served / "file"

    def read() -> None:
        fd = os.open(target, os.O_RDWR | os.O_NOFOLLOW)
        try:
            assert os.pread(fd, 100, 0) in {b"inside", b"writte"}
            os.pwrite(fd, b"writte", 0)
            os.fchmod(fd, 0o600)
            os.utime(fd, ns=(1, 1))
        finally:
            os.close(fd)

    def create() -> None:
        os.close(os.open(target, os.O_CREAT | os.O_WRONLY | os.O_NOFOLLOW, 0o666))

    with swapping(source / "file", source / "link"):
        attempts(
            [
                read,
                create,
                lambda: os.setxattr(target, "trusted.mark", b"2", follow_symlinks=False),
                lambda: os.utime(target, ns=(5, 5), follow_symlinks=False),
                lambda: os.chown(target, 7, 7, follow_symlinks=False),
                lambda: os.link(target, served / "again", follow_symlinks=False),
                lambda: os.unlink(served / "again"),
            ]
        )


def test_a_directory_that_turns_into_a_symlink_is_never_entered(
    source: Path, served: Path, outside: Outside
) -> None:
    """The calls use the descriptor of a directory; its name may lead elsewhere by then."""
    (source / "directory").mkdir()
    (source / "link").symlink_to(outside.path)

    def within() -> None:
        parent = os.open(served / "directory", os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW)
        try:
            os.mkdir("d", dir_fd=parent)
            os.rmdir("d", dir_fd=parent)
            os.symlink("target", "s", dir_fd=parent)
            os.rename("s", "t", src_dir_fd=parent, dst_dir_fd=parent)
            os.unlink("t", dir_fd=parent)
            with pytest.raises(FileNotFoundError):
                os.open("secret", os.O_RDONLY, dir_fd=parent)
        finally:
            os.close(parent)

    with swapping(source / "directory", source / "link"):
        attempts([within])
    assert sorted(os.listdir(source)) == ["directory", "link"]


def test_changes_of_a_symlinks_attributes_do_not_reach_its_target(
    source: Path, served: Path, outside: Outside
) -> None:
    (source / "link").symlink_to(outside.secret)
    link = served / "link"

    def change() -> None:
        os.setxattr(link, "trusted.mark", b"2", follow_symlinks=False)
        os.chown(link, 7, 7, follow_symlinks=False)
        os.utime(link, ns=(5, 5), follow_symlinks=False)
        os.link(link, served / "again", follow_symlinks=False)

    ROOT.run(change)

    at = (source / "again").lstat()
    assert stat.S_ISLNK(at.st_mode)
    assert (at.st_uid, at.st_gid, at.st_mtime_ns, at.st_nlink) == (7, 7, 5, 2)


@pytest.mark.parametrize(
    "target", ["/etc/passwd", "/proc/self/root/etc/passwd", "../outside/secret"]
)
def test_the_worker_follows_no_symlink_at_all(
    source: Path, served: Path, outside: Outside, target: str
) -> None:
    """The caller's kernel follows symlinks, even those that stay inside the source."""
    assert outside.untouched()
    (source / "link").symlink_to(target)
    (source / "file").touch()
    (source / "inside").symlink_to("file")

    assert probe(served, "open", "/link") == "ELOOP"
    assert probe(served, "open", "/inside") == "ELOOP"
    assert on_mount("readlink", str(served / "link")) == f"{target}\n"


@pytest.mark.parametrize("link", ["/proc/self/root", "/proc/1/root", "/proc/self/cwd", "/"])
def test_the_worker_follows_no_magic_link_of_proc(source: Path, served: Path, link: str) -> None:
    (source / "magic").symlink_to(link)

    assert probe(served, "open", "/magic/etc/passwd") == "ELOOP"
    assert on_mount("ls", str(source)) == "magic\n"


@pytest.mark.parametrize("start", ["", "/", "/a/b/"])
def test_dot_dot_stops_at_the_source(source: Path, served: Path, start: str) -> None:
    (source / "a" / "b").mkdir(parents=True)

    assert probe(served, "open", f"{start}{'../' * 40}etc/passwd") == "ENOENT"
    assert probe(served, "open", f"{start}{'../' * 40}proc/1/root/etc/passwd") == "ENOENT"


def test_a_device_node_opens_for_no_caller(source: Path, served: Path) -> None:
    os.mknod(source / "host made", stat.S_IFCHR | 0o666, NULL_DEVICE)
    ROOT.run(lambda: os.mknod(served / "made", stat.S_IFCHR | 0o666, NULL_DEVICE))

    for name in ("host made", "made"):
        assert (source / name).stat().st_rdev == NULL_DEVICE
        assert probe(served, "open", f"/{name}") == "EACCES"
        with pytest.raises(PermissionError):
            ROOT.run(lambda name=name: os.open(served / name, os.O_RDWR))  # type: ignore[misc]


def test_a_planted_proc_is_not_mistaken_for_the_kernels(
    source: Path, served: Path, outside: Outside
) -> None:
    """Users of the volume may make /proc/self/fd at the top, which is the worker's root."""
    links = source / "proc" / "self" / "fd"
    links.mkdir(parents=True)
    for number in range(64):
        (links / str(number)).symlink_to(outside.secret)
        (source / str(number)).symlink_to(outside.secret)
    (source / "file").write_bytes(noise(10))
    target = served / "file"

    def change() -> None:
        os.chmod(target, 0o640)
        os.chown(target, 7, 8)
        os.utime(target, ns=(5, 5))
        os.setxattr(target, "user.own", b"2")
        os.link(target, served / "again")
        assert os.listxattr(target) == ["user.own"]
        os.truncate(target, 5)
        assert target.read_bytes() == noise(10)[:5]
        (served / "new").write_bytes(b"new")

    ROOT.run(change)

    at = (source / "file").stat()
    assert (stat.S_IMODE(at.st_mode), at.st_uid, at.st_gid) == (0o640, 7, 8)
    assert (at.st_size, at.st_nlink) == (5, 2)
    assert (source / "new").read_bytes() == b"new"


def test_a_directory_that_the_host_moves_out_gives_no_way_up(
    source: Path, served: Path, tmp_path: Path, outside: Outside
) -> None:
    """A process with the directory open keeps it, as on any file system, but not its new parent."""
    (source / "directory" / "below").mkdir(parents=True)
    (tmp_path / "elsewhere").mkdir()

    def stay() -> tuple[list[str], list[str]]:
        os.chdir(served / "directory" / "below")
        (source / "directory").rename(tmp_path / "elsewhere" / "directory")
        (Path("made")).touch()
        tops = probe(served, "above")
        return os.listdir("."), [name for top in tops for name in top]  # type: ignore[attr-defined]

    listed, tops = ROOT.run(stay)

    assert listed == ["made"]
    assert [name for name in tops if not name.isdigit()] == []
    assert outside.untouched()
