"""A storm of creates, renames, links and unlinks by two users, each call with a certain outcome.

The users work in the same directories. Each has names of its own, so that no call of the other user
changes its outcome. Each call is made on the mount and then on the twin directory: its outcome,
error or attributes, must be the same.
"""

import errno
import os
import stat
from collections.abc import Callable, Mapping, Sequence
from functools import partial

from passthrough.linux import syscalls
from tests.fuzz import calls, tree
from tests.fuzz.operations import attributes
from tests.soak.model import WrongError
from tests.standby.load import Load, Task
from tests.support.tools.callers import Caller
from tests.support.tools.files import outcome

SHARED = ("d0", "d1", "d2")
NAMES = 6
MOST_HELD = 4

_WEIGHTS: Mapping[str, int] = {
    **dict.fromkeys(("create", "create_or_open", "unlink", "rename"), 6),
    **dict.fromkeys(("mkdir", "rmdir", "link", "symlink", "mknod"), 4),
    **dict.fromkeys(("exchange", "whiteout", "rename_if_free", "tmpfile"), 3),
    **dict.fromkeys(("status", "append", "hold", "truncate"), 3),
}


def rename(old: str, new: str, flags: int) -> None:
    """Rename with flags of renameat2(2)."""
    syscalls.renameat2(-1, os.fsencode(old), -1, os.fsencode(new), flags)


def mkdir(path: str) -> None:
    """Make a directory."""
    os.mkdir(path, 0o755)


def unlink(path: str) -> None:
    """Remove a name."""
    os.unlink(path)


class Storm(Load):
    """Two processes of each user."""

    def prepare(self) -> None:
        """Make the directories in which both users work."""
        for name in SHARED:
            for side in {self.place.beneath, self.place.twin}:
                (side / name).mkdir()
                (side / name).chmod(0o777)

    def tasks(self) -> Sequence[tuple[Caller, Callable[[], Task]]]:
        """Return the processes."""
        return [(self.caller(n), partial(_Process, self, n)) for n in range(4)]

    def wrong(self, results: Sequence[object]) -> list[str]:
        """Compare the three trees."""
        del results
        seen, beneath = self.read()
        twin = tree.read(bytes(self.place.twin))
        found = [f"mount / source: {line}" for line in tree.differences(seen, beneath)]
        return found + [f"mount / twin: {e}" for e in tree.differences_in_kind(seen, twin)]


class _Process:
    def __init__(self, load: Storm, number: int) -> None:
        self.steps = load.steps(number)
        self._sides = (str(load.place.seen), str(load.place.twin))
        self._number = number
        weights = {**_WEIGHTS, "whiteout": _WEIGHTS["whiteout"] * load.place.whiteouts}
        self._operations, self._weights = list(weights), list(weights.values())
        self._held: list[tuple[int, int]] = []

    def _path(self) -> str:
        """Return a random path with a name of this process."""
        rng = self.steps.rng
        own = f"p{self._number}"
        inner = f"{own}.{rng.randrange(NAMES)}/" if rng.random() < 0.2 else ""
        return f"{rng.choice(SHARED)}/{inner}{own}.{rng.randrange(NAMES)}"

    def step(self) -> None:
        """Make one call, or a few, on both sides."""
        (name,) = self.steps.rng.choices(self._operations, self._weights)
        getattr(self, name)()

    def end(self) -> None:
        """Close all files that are held open."""
        while self._held:
            self._let_go()

    def _both(self, call: Callable[..., object], *paths: str, more: Sequence[object] = ()) -> None:
        """Make *call* on both sides with *paths*; the outcomes must be equal."""
        words = [f"{len(word)} bytes" if isinstance(word, bytes) else word for word in more]
        self.steps.note(call.__name__, *paths, *words)
        seen, twin = (
            outcome(call, *(os.path.join(side, path) for path in paths), *more)
            for side in self._sides
        )
        if seen != twin:
            raise WrongError(f"{call.__name__} {paths} {words}: {seen}, expected {twin}")

    def create(self) -> None:
        flags = os.O_CREAT | os.O_EXCL | os.O_WRONLY
        self._both(_open_and_write, self._path(), more=(flags, self.steps.rng.randbytes(50)))

    def create_or_open(self) -> None:
        flags = os.O_CREAT | os.O_WRONLY | self.steps.rng.choice((0, os.O_TRUNC))
        self._both(_open_and_write, self._path(), more=(flags, self.steps.rng.randbytes(500)))

    def append(self) -> None:
        flags = os.O_WRONLY | os.O_APPEND
        self._both(_open_and_write, self._path(), more=(flags, self.steps.rng.randbytes(20)))

    def unlink(self) -> None:
        self._both(unlink, self._path())

    def mkdir(self) -> None:
        self._both(mkdir, self._path())

    def rmdir(self) -> None:
        self._both(os.rmdir, self._path())

    def rename(self) -> None:
        self._both(rename, self._path(), self._path(), more=(0,))

    def exchange(self) -> None:
        self._both(rename, self._path(), self._path(), more=(calls.RENAME_EXCHANGE,))

    def whiteout(self) -> None:
        self._both(rename, self._path(), self._path(), more=(calls.RENAME_WHITEOUT,))

    def rename_if_free(self) -> None:
        self._both(rename, self._path(), self._path(), more=(calls.RENAME_NOREPLACE,))

    def link(self) -> None:
        self._both(_link, self._path(), self._path())

    def symlink(self) -> None:
        self._both(_symlink, self._path(), more=(f"target{self.steps.rng.randrange(9)}",))

    def mknod(self) -> None:
        kind = self.steps.rng.choice((stat.S_IFIFO, stat.S_IFREG, stat.S_IFSOCK))
        self._both(os.mknod, self._path(), more=(kind | 0o640,))

    def tmpfile(self) -> None:
        self._both(_link_unnamed, self._path(), more=(self.steps.rng.randbytes(30),))

    def truncate(self) -> None:
        self._both(os.truncate, self._path(), more=(self.steps.rng.randrange(9_000),))

    def status(self) -> None:
        self._both(_status, self._path())

    def hold(self) -> None:
        """Keep a file open on both sides, while its names may change."""
        if len(self._held) >= MOST_HELD:
            self._let_go()
        path = self._path()
        self.steps.note("hold", path)
        seen, twin = (outcome(_open_file, os.path.join(side, path)) for side in self._sides)
        if isinstance(seen, int) and isinstance(twin, int):
            self._held.append((seen, twin))
        elif seen != twin:
            raise WrongError(f"open {path}: {seen}, expected {twin}")

    def _let_go(self) -> None:
        """Write to a file that is held open, compare it, and close it."""
        pair = self._held.pop(self.steps.rng.randrange(len(self._held)))
        offset = self.steps.rng.randrange(3_000)
        self.steps.note("write to a held file", *pair, offset)
        found = []
        for fd in pair:
            os.pwrite(fd, b"held", offset)
            status = os.fstat(fd)
            found.append((status.st_nlink, status.st_size, os.pread(fd, 10_000, 0)))
            os.close(fd)
        if found[0] != found[1]:
            raise WrongError(f"a held file: {found[0]}, expected {found[1]}")


def _open_and_write(path: str, flags: int, data: bytes) -> tuple[object, ...]:
    """Open *path*, write, and return its attributes; only a regular file is opened."""
    if not _is_free_or_regular(path):
        return ("another type",)
    fd = os.open(path, flags, 0o644)
    try:
        return os.write(fd, data), attributes(os.fstat(fd))
    finally:
        os.close(fd)


def _open_file(path: str) -> int | str:
    return os.open(path, os.O_RDWR) if _is_free_or_regular(path) else "another type"


def _is_free_or_regular(path: str) -> bool:
    """Return False for a path that open(2) may wait for, or that leads elsewhere."""
    try:
        return stat.S_ISREG(os.lstat(path).st_mode)
    except OSError as error:
        if error.errno != errno.ENOENT:
            raise
        return True


def _link(old: str, new: str) -> None:
    os.link(old, new, follow_symlinks=False)


def _symlink(path: str, target: str) -> None:
    os.symlink(target, path)


def _link_unnamed(path: str, data: bytes) -> tuple[object, ...]:
    """Make a file without a name, write, and give it the name *path*."""
    fd = os.open(os.path.dirname(path), os.O_TMPFILE | os.O_RDWR, 0o640)
    try:
        os.write(fd, data)
        # Python calls linkat(2), which follows the link in /proc, only with a directory.
        os.link(f"/proc/self/fd/{fd}", path, src_dir_fd=fd)
        return attributes(os.fstat(fd))
    finally:
        os.close(fd)


def _status(path: str) -> tuple[object, ...]:
    return attributes(os.lstat(path))
