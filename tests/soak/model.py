"""The model of a directory that one process alone changes: it knows the expected tree.

No other process changes files below the directory, so each call has one right outcome, and so has
the whole tree at the end. The model has files with their content, and the names of each. Each
method is an operation that is drawn at random: it makes the call, and then changes the model.
"""

import contextlib
import errno
import hashlib
import os
import random
import shutil
import stat
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from tests.fuzz import calls
from tests.support.tools.callers import Caller

MOST_FILES = 200
MOST_DIRECTORIES = 24
MOST_HELD = 8
MOST_XATTRS = 4
LONGEST = 256 * 1024
BURST = 60
SIZES = (1, 100, 4_096, 5_000, 70_000, 140_000)
MODES = (0o600, 0o640, 0o644, 0o660, 0o666, 0o700, 0o755)
IDS = (0, 41_001, 41_011)
ABSENT = "absent"
FAR_PAST_NS = 1_000_000_000_000_000_000
REMEMBERED_STEPS = 30
SHOWN_BYTES = 8

Shown = tuple[object, ...]
"""The compared attributes and content of a name."""


class WrongError(AssertionError):
    """A result that a file system must not have."""


def expect(what: str, seen: object, right: object) -> None:
    """Raise WrongError if *seen* is not *right*."""
    if seen != right:
        raise WrongError(f"{what}: {_short(seen)}, expected {_short(right)}")


def _short(value: object) -> str:
    if isinstance(value, bytes) and len(value) > SHOWN_BYTES:
        digest = hashlib.sha256(value).hexdigest()[:12]
        return f"{len(value)} bytes, {digest}, {value[:SHOWN_BYTES]!r}.."
    return repr(value)


@contextlib.contextmanager
def opened(path: str, flags: int, mode: int = 0o600) -> Iterator[int]:
    """Open *path* for the length of a block."""
    fd = os.open(path, flags, mode)
    try:
        yield fd
    finally:
        os.close(fd)


@dataclass(slots=True, eq=False)
class File:
    """The expected state of a regular file."""

    mode: int
    uid: int
    gid: int
    content: bytearray = field(default_factory=bytearray)
    xattrs: dict[str, bytes] = field(default_factory=dict)
    names: set[str] = field(default_factory=set)

    def put(self, offset: int, data: bytes) -> None:
        """Put *data* at *offset*, after zeros if that is beyond the end."""
        self.content.extend(bytes(max(0, offset - len(self.content))))
        self.content[offset : offset + len(data)] = data

    def resize(self, size: int) -> None:
        """Truncate, or extend by zeros."""
        del self.content[size:]
        self.content.extend(bytes(size - len(self.content)))

    def status(self, links: int | None = None) -> Shown:
        """Return the expected attributes of stat(2)."""
        links = len(self.names) if links is None else links
        mode = oct(stat.S_IFREG | self.mode)
        return mode, links, self.uid, self.gid, len(self.content)


class Model:
    """The model of one process's directory, which is its working directory."""

    def __init__(self, caller: Caller, rng: random.Random) -> None:
        self.caller = caller
        self.rng = rng
        self.files: dict[str, File] = {}
        self.links: dict[str, str] = {}
        self.directories = {"": 0o700}
        self.held: list[tuple[int, File]] = []
        self.steps: deque[str] = deque(maxlen=REMEMBERED_STEPS)
        self._count = 0

    # Files and names to choose from.

    def free(self, kind: str) -> str:
        """Return a path with a name that was never used, in a random directory."""
        self._count += 1
        return os.path.join(self.directory(), f"{kind}{self._count}")

    def directory(self) -> str:
        """Return a random directory; the path of the working directory is empty."""
        return self.rng.choice(list(self.directories))

    def path(self) -> str:
        """Return the path of a random file; make one if there is none."""
        if not self.files:
            self.create()
        return self.rng.choice(list(self.files))

    def remember(self, *words: object) -> None:
        """Remember the next step, for the report of an error."""
        self.steps.append(" ".join(map(str, words)))

    def below(self, directory: str) -> set[str]:
        """Return the expected names in *directory*."""
        names = self.files.keys() | self.links.keys() | self.directories.keys() - {""}
        found = {name for name in names if os.path.dirname(name) == directory}
        return {os.path.basename(name) for name in found}

    def data(self) -> bytes:
        return self.rng.randbytes(self.rng.randint(1, self.rng.choice(SIZES)))

    def offset(self, file: File) -> int:
        """Return an offset within the file or up to 5,000 bytes beyond its end."""
        return self.rng.randint(0, min(len(file.content) + 5_000, LONGEST))

    @contextlib.contextmanager
    def any_open(self, flags: int) -> Iterator[tuple[int, File]]:
        """Yield a descriptor and its file, perhaps a held file without a name."""
        if self.held and self.rng.random() < 0.3:
            fd, file = self.rng.choice(self.held)
            self.remember("  held", fd, sorted(file.names))
            yield fd, file
        else:
            path = self.path()
            self.remember("  of", path)
            with opened(path, flags) as fd:
                yield fd, self.files[path]

    def check(self, what: str, status: os.stat_result, file: File) -> None:
        """Compare the result of stat(2) with the expected one."""
        seen = (oct(status.st_mode), status.st_nlink, status.st_uid, status.st_gid, status.st_size)
        expect(f"stat of {what}", seen, file.status())

    # Names.

    def create(self) -> None:
        path, mode = self.free("f"), self.rng.choice(MODES)
        self.remember("create", path, oct(mode))
        with opened(path, os.O_CREAT | os.O_EXCL | os.O_RDWR, mode) as fd:
            file = File(mode, self.caller.uid, self.caller.gid, names={path})
            self.check(path, os.fstat(fd), file)
            data = self.data()
            expect(f"written to {path}", os.write(fd, data), len(data))
            file.put(0, data)
        self.files[path] = file

    def unlink(self) -> None:
        path = self.path()
        self.remember("unlink", path)
        os.unlink(path)
        self.files.pop(path).names.discard(path)

    def link(self) -> None:
        path, other = self.path(), self.free("h")
        self.remember("link", path, other)
        os.link(path, other)
        self.files[other] = self.files[path]
        self.files[other].names.add(other)

    def rename(self) -> None:
        path = self.path()
        other = self.path() if self.rng.random() < 0.4 else self.free("r")
        self.remember("rename", path, other)
        os.rename(path, other)
        file, replaced = self.files[path], self.files.get(other)
        if file is replaced:  # two names of one file: nothing happens, rename(2)
            return
        if replaced:
            replaced.names.discard(other)
        del self.files[path]
        self.files[other] = file
        file.names ^= {path, other}

    def exchange(self) -> None:
        path, other = self.path(), self.path()
        self.remember("exchange", path, other)
        calls.renameat2(os.fsencode(path), os.fsencode(other), calls.RENAME_EXCHANGE)
        one, two = self.files[path], self.files[other]
        if one is not two:
            one.names ^= {path, other}
            two.names ^= {path, other}
            self.files[path], self.files[other] = two, one

    def symlink(self) -> None:
        path, target = self.free("s"), self.free("anything")
        self.remember("symlink", target, path)
        os.symlink(target, path)
        expect(f"target of {path}", os.readlink(path), target)
        self.links[path] = target
        if len(self.links) > MOST_FILES // 4:
            gone = self.rng.choice(list(self.links))
            expect(f"target of {gone}", os.readlink(gone), self.links.pop(gone))
            os.unlink(gone)

    def mkdir(self) -> None:
        if len(self.directories) >= MOST_DIRECTORIES:
            self.rmdir()
            return
        path = self.free("d")
        self.remember("mkdir", path)
        os.mkdir(path, 0o750)
        status = os.lstat(path)
        expect(
            f"owner of {path}", (status.st_uid, status.st_gid), (self.caller.uid, self.caller.gid)
        )
        self.directories[path] = 0o750

    def rmdir(self) -> None:
        path = self.directory()
        if not path:
            return
        self.remember("rmdir", path)
        if self.below(path):
            self.refused(errno.ENOTEMPTY, lambda: os.rmdir(path))
        else:
            os.rmdir(path)
            del self.directories[path]

    def move_directory(self) -> None:
        path, target = self.directory(), self.directory()
        if not path or f"{target}/".startswith(f"{path}/"):
            return
        self._count += 1
        other = os.path.join(target, f"m{self._count}")
        self.remember("move", path, other)
        os.rename(path, other)
        self.directories = {_moved(n, path, other): m for n, m in self.directories.items()}
        self.links = {_moved(n, path, other): t for n, t in self.links.items()}
        self.files = {_moved(n, path, other): file for n, file in self.files.items()}
        for file in set(self.files.values()):
            file.names = {_moved(name, path, other) for name in file.names}

    def listing(self) -> None:
        path = self.directory()
        self.remember("list", path)
        expect(f"names in {path!r}", set(os.listdir(path or ".")), self.below(path))

    def burst(self) -> None:
        """Make many files and remove them, so that the worker must forget them again."""
        path = self.free("b")
        self.remember("burst", path)
        os.mkdir(path, 0o700)
        names = {f"{number}" for number in range(BURST)}
        for name in names:
            with opened(f"{path}/{name}", os.O_CREAT | os.O_EXCL | os.O_WRONLY) as fd:
                os.write(fd, name.encode())
        with os.scandir(path) as entries:
            status = {entry.name: entry.stat() for entry in entries}
        seen = {name: (each.st_uid, each.st_gid, each.st_size) for name, each in status.items()}
        ids = (self.caller.uid, self.caller.gid)
        expect(f"files in {path}", seen, {name: (*ids, len(name)) for name in names})
        shutil.rmtree(path)

    def refused(self, number: int, call: Callable[[], object]) -> None:
        """Check that *call* fails with the error *number*."""
        try:
            call()
        except OSError as error:
            code = errno.errorcode[error.errno or 0]
            expect(f"refusal of {error.filename!r}", code, errno.errorcode[number])
        else:
            expect("outcome", "done", errno.errorcode[number])

    def refusals(self) -> None:
        path = self.path()
        self.remember("refusals", path)
        exclusive = os.O_CREAT | os.O_EXCL | os.O_WRONLY
        self.refused(errno.EEXIST, lambda: os.open(path, exclusive))
        self.refused(errno.EEXIST, lambda: os.mkdir(path))
        self.refused(errno.ENOENT, lambda: os.unlink(ABSENT))
        self.refused(errno.ENOTDIR, lambda: os.rmdir(path))
        self.refused(errno.ENOTDIR, lambda: os.open(path, os.O_DIRECTORY))
        if self.caller.uid:
            self.refused(errno.EPERM, lambda: os.chown(path, 0, 0))
            self.refused(errno.EACCES, lambda: os.listdir("../root"))
            self.refused(errno.EACCES, lambda: os.open("../root/new", exclusive))

    # Attributes.

    def chmod(self) -> None:
        path, mode = self.path(), self.rng.choice(MODES)
        self.remember("chmod", path, oct(mode))
        os.chmod(path, mode)
        self.files[path].mode = mode

    def chown(self) -> None:
        """Change owner and group as root, and the group as a user, to one of its own groups."""
        path = self.path()
        file = self.files[path]
        if self.caller.uid:
            file.gid = self.rng.choice((self.caller.gid, *self.caller.groups))
            uid = -1
        else:
            uid, file.gid = self.rng.choice(IDS), self.rng.choice(IDS)
            file.uid = uid
        self.remember("chown", path, uid, file.gid)
        os.chown(path, uid, file.gid)

    def utime(self) -> None:
        path, time_ns = self.path(), FAR_PAST_NS + self.rng.randrange(10**9)
        self.remember("utime", path, time_ns)
        os.utime(path, ns=(time_ns, time_ns))
        expect(f"time of {path}", os.stat(path).st_mtime_ns, time_ns)

    def status(self) -> None:
        path = self.path()
        self.remember("stat", path)
        self.check(path, os.lstat(path), self.files[path])

    def set_xattr(self) -> None:
        path, name = self.path(), f"user.{self.rng.randrange(MOST_XATTRS)}"
        file, value = self.files[path], self.rng.randbytes(self.rng.randint(0, 200))
        self.remember("set", path, name)
        os.setxattr(path, name, value)
        file.xattrs[name] = value
        self.xattrs_are(path, file)

    def remove_xattr(self) -> None:
        path = self.path()
        file = self.files[path]
        if not file.xattrs:
            return
        name = self.rng.choice(list(file.xattrs))
        self.remember("remove", path, name)
        os.removexattr(path, name)
        del file.xattrs[name]
        self.xattrs_are(path, file)

    def xattrs_are(self, path: str, file: File) -> None:
        """Compare all attributes in the class `user`."""
        names = [name for name in os.listxattr(path) if name.startswith("user.")]
        seen = {name: os.getxattr(path, name) for name in names}
        expect(f"attributes of {path}", seen, file.xattrs)

    # The whole tree.

    def expected(self) -> dict[str, Shown]:
        """Return name -> type and mode, links, owner, size, content, extended attributes."""
        found: dict[str, Shown] = {}
        for path, file in self.files.items():
            content = hashlib.sha256(file.content).hexdigest() if file.content else ""
            found[path] = (*file.status(), content, tuple(sorted(file.xattrs.items())))
        ids = (self.caller.uid, self.caller.gid)
        for path, mode in self.directories.items():
            found[path or "."] = oct(stat.S_IFDIR | mode), *ids
        for path, target in self.links.items():
            found[path] = oct(stat.S_IFLNK | 0o777), 1, *ids, len(target), os.fsencode(target), ()
        return found

    def end(self) -> None:
        """Check all held files a last time, and close them."""
        for fd, file in self.held:
            expect("content of a held file", os.pread(fd, LONGEST * 2, 0), bytes(file.content))
            os.close(fd)
        self.held.clear()


def _moved(name: str, old: str, new: str) -> str:
    return new + name[len(old) :] if name == old or name.startswith(f"{old}/") else name
