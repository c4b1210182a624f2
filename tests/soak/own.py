"""What one process has for itself: it knows what must be there, and notices what is not.

Nobody else changes anything below its directory, so every call has one right outcome, and at the
end the whole tree has. The model is plain: files with their content, and the names that lead to
them. Each method is an operation that is drawn at random; it does the call, and then the same to
the model.
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
NOBODYS = "nobody's"
FAR_PAST_NS = 1_000_000_000_000_000_000
REMEMBERED_STEPS = 30
SHOWN_BYTES = 8

Shown = tuple[object, ...]
"""What a name leads to, as far as it is foreseen."""


class WrongError(AssertionError):
    """The mount did something else than a file system does."""


def expect(what: str, seen: object, right: object) -> None:
    """Raise WrongError if *seen* is not what is *right*."""
    if seen != right:
        raise WrongError(f"{what}: {_short(seen)} where it should be {_short(right)}")


def _short(value: object) -> str:
    if isinstance(value, bytes) and len(value) > SHOWN_BYTES:
        digest = hashlib.sha256(value).hexdigest()[:12]
        return f"{len(value)} bytes, {digest}, {value[:SHOWN_BYTES]!r}.."
    return repr(value)


@contextlib.contextmanager
def opened(path: str, flags: int, mode: int = 0o600) -> Iterator[int]:
    """Have *path* open for the block."""
    fd = os.open(path, flags, mode)
    try:
        yield fd
    finally:
        os.close(fd)


@dataclass(slots=True, eq=False)
class File:
    """A regular file as it must be."""

    mode: int
    uid: int
    gid: int
    content: bytearray = field(default_factory=bytearray)
    xattrs: dict[str, bytes] = field(default_factory=dict)
    names: set[str] = field(default_factory=set)

    def put(self, offset: int, data: bytes) -> None:
        """Have *data* at *offset*; what was never written before it is zeros."""
        self.content.extend(bytes(max(0, offset - len(self.content))))
        self.content[offset : offset + len(data)] = data

    def resize(self, size: int) -> None:
        """Cut off, or add zeros."""
        del self.content[size:]
        self.content.extend(bytes(size - len(self.content)))

    def status(self, links: int | None = None) -> Shown:
        """What stat(2) must say of it."""
        links = len(self.names) if links is None else links
        mode = oct(stat.S_IFREG | self.mode)
        return mode, links, self.uid, self.gid, len(self.content)


class Own:
    """The model of one process's directory, which is its working directory."""

    def __init__(self, who: Caller, chance: random.Random) -> None:
        self.who = who
        self.chance = chance
        self.files: dict[str, File] = {}
        self.links: dict[str, str] = {}
        self.directories = {"": 0o700}
        self.held: list[tuple[int, File]] = []
        self.steps: deque[str] = deque(maxlen=REMEMBERED_STEPS)
        self._count = 0

    # What there is.

    def free(self, kind: str) -> str:
        """A name that was never used before, somewhere."""
        self._count += 1
        return os.path.join(self.directory(), f"{kind}{self._count}")

    def directory(self) -> str:
        """Any directory; of the own one, the path is empty."""
        return self.chance.choice(list(self.directories))

    def path(self) -> str:
        """The name of any file; one is made if there is none."""
        if not self.files:
            self.create()
        return self.chance.choice(list(self.files))

    def note(self, *words: object) -> None:
        """Remember what is about to be done, to be told if it goes wrong."""
        self.steps.append(" ".join(map(str, words)))

    def below(self, directory: str) -> set[str]:
        """The names that *directory* must list."""
        names = self.files.keys() | self.links.keys() | self.directories.keys() - {""}
        found = {name for name in names if os.path.dirname(name) == directory}
        return {os.path.basename(name) for name in found}

    def data(self) -> bytes:
        return self.chance.randbytes(self.chance.randint(1, self.chance.choice(SIZES)))

    def offset(self, file: File) -> int:
        """Where to write: within the file or a little beyond its end."""
        return self.chance.randint(0, min(len(file.content) + 5_000, LONGEST))

    @contextlib.contextmanager
    def some(self, flags: int) -> Iterator[tuple[int, File]]:
        """A file with a descriptor of it, which may have been open for long, and have no name."""
        if self.held and self.chance.random() < 0.3:
            fd, file = self.chance.choice(self.held)
            self.note("  held", fd, sorted(file.names))
            yield fd, file
        else:
            path = self.path()
            self.note("  of", path)
            with opened(path, flags) as fd:
                yield fd, self.files[path]

    def check(self, what: str, status: os.stat_result, file: File) -> None:
        """Compare what stat(2) says with what it must say."""
        seen = (oct(status.st_mode), status.st_nlink, status.st_uid, status.st_gid, status.st_size)
        expect(f"stat of {what}", seen, file.status())

    # Names.

    def create(self) -> None:
        path, mode = self.free("f"), self.chance.choice(MODES)
        self.note("create", path, oct(mode))
        with opened(path, os.O_CREAT | os.O_EXCL | os.O_RDWR, mode) as fd:
            file = File(mode, self.who.uid, self.who.gid, names={path})
            self.check(path, os.fstat(fd), file)
            data = self.data()
            expect(f"written to {path}", os.write(fd, data), len(data))
            file.put(0, data)
        self.files[path] = file

    def unlink(self) -> None:
        path = self.path()
        self.note("unlink", path)
        os.unlink(path)
        self.files.pop(path).names.discard(path)

    def link(self) -> None:
        path, other = self.path(), self.free("h")
        self.note("link", path, other)
        os.link(path, other)
        self.files[other] = self.files[path]
        self.files[other].names.add(other)

    def rename(self) -> None:
        path = self.path()
        other = self.path() if self.chance.random() < 0.4 else self.free("r")
        self.note("rename", path, other)
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
        self.note("exchange", path, other)
        calls.renameat2(os.fsencode(path), os.fsencode(other), calls.RENAME_EXCHANGE)
        one, two = self.files[path], self.files[other]
        if one is not two:
            one.names ^= {path, other}
            two.names ^= {path, other}
            self.files[path], self.files[other] = two, one

    def symlink(self) -> None:
        path, target = self.free("s"), self.free("anything")
        self.note("symlink", target, path)
        os.symlink(target, path)
        expect(f"target of {path}", os.readlink(path), target)
        self.links[path] = target
        if len(self.links) > MOST_FILES // 4:
            gone = self.chance.choice(list(self.links))
            expect(f"target of {gone}", os.readlink(gone), self.links.pop(gone))
            os.unlink(gone)

    def mkdir(self) -> None:
        if len(self.directories) >= MOST_DIRECTORIES:
            self.rmdir()
            return
        path = self.free("d")
        self.note("mkdir", path)
        os.mkdir(path, 0o750)
        status = os.lstat(path)
        expect(f"owner of {path}", (status.st_uid, status.st_gid), (self.who.uid, self.who.gid))
        self.directories[path] = 0o750

    def rmdir(self) -> None:
        path = self.directory()
        if not path:
            return
        self.note("rmdir", path)
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
        self.note("move", path, other)
        os.rename(path, other)
        self.directories = {_moved(n, path, other): m for n, m in self.directories.items()}
        self.links = {_moved(n, path, other): t for n, t in self.links.items()}
        self.files = {_moved(n, path, other): file for n, file in self.files.items()}
        for file in set(self.files.values()):
            file.names = {_moved(name, path, other) for name in file.names}

    def listing(self) -> None:
        path = self.directory()
        self.note("list", path)
        expect(f"names in {path!r}", set(os.listdir(path or ".")), self.below(path))

    def burst(self) -> None:
        """Many names at once, all removed again: what is remembered of them has to go."""
        path = self.free("b")
        self.note("burst", path)
        os.mkdir(path, 0o700)
        names = {f"{number}" for number in range(BURST)}
        for name in names:
            with opened(f"{path}/{name}", os.O_CREAT | os.O_EXCL | os.O_WRONLY) as fd:
                os.write(fd, name.encode())
        with os.scandir(path) as entries:
            status = {entry.name: entry.stat() for entry in entries}
        seen = {name: (each.st_uid, each.st_gid, each.st_size) for name, each in status.items()}
        who = (self.who.uid, self.who.gid)
        expect(f"files in {path}", seen, {name: (*who, len(name)) for name in names})
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
        self.note("refusals", path)
        exclusive = os.O_CREAT | os.O_EXCL | os.O_WRONLY
        self.refused(errno.EEXIST, lambda: os.open(path, exclusive))
        self.refused(errno.EEXIST, lambda: os.mkdir(path))
        self.refused(errno.ENOENT, lambda: os.unlink(NOBODYS))
        self.refused(errno.ENOTDIR, lambda: os.rmdir(path))
        self.refused(errno.ENOTDIR, lambda: os.open(path, os.O_DIRECTORY))
        if self.who.uid:
            self.refused(errno.EPERM, lambda: os.chown(path, 0, 0))
            self.refused(errno.EACCES, lambda: os.listdir("../root"))
            self.refused(errno.EACCES, lambda: os.open("../root/new", exclusive))

    # Attributes.

    def chmod(self) -> None:
        path, mode = self.path(), self.chance.choice(MODES)
        self.note("chmod", path, oct(mode))
        os.chmod(path, mode)
        self.files[path].mode = mode

    def chown(self) -> None:
        """Give away what root has; others may choose among their groups."""
        path = self.path()
        file = self.files[path]
        if self.who.uid:
            file.gid = self.chance.choice((self.who.gid, *self.who.groups))
            uid = -1
        else:
            uid, file.gid = self.chance.choice(IDS), self.chance.choice(IDS)
            file.uid = uid
        self.note("chown", path, uid, file.gid)
        os.chown(path, uid, file.gid)

    def utime(self) -> None:
        path, time_ns = self.path(), FAR_PAST_NS + self.chance.randrange(10**9)
        self.note("utime", path, time_ns)
        os.utime(path, ns=(time_ns, time_ns))
        expect(f"time of {path}", os.stat(path).st_mtime_ns, time_ns)

    def status(self) -> None:
        path = self.path()
        self.note("stat", path)
        self.check(path, os.lstat(path), self.files[path])

    def set_xattr(self) -> None:
        path, name = self.path(), f"user.{self.chance.randrange(MOST_XATTRS)}"
        file, value = self.files[path], self.chance.randbytes(self.chance.randint(0, 200))
        self.note("set", path, name)
        os.setxattr(path, name, value)
        file.xattrs[name] = value
        self.xattrs_are(path, file)

    def remove_xattr(self) -> None:
        path = self.path()
        file = self.files[path]
        if not file.xattrs:
            return
        name = self.chance.choice(list(file.xattrs))
        self.note("remove", path, name)
        os.removexattr(path, name)
        del file.xattrs[name]
        self.xattrs_are(path, file)

    def xattrs_are(self, path: str, file: File) -> None:
        """Compare all that are the user's own."""
        names = [name for name in os.listxattr(path) if name.startswith("user.")]
        seen = {name: os.getxattr(path, name) for name in names}
        expect(f"attributes of {path}", seen, file.xattrs)

    # The whole.

    def foreseen(self) -> dict[str, Shown]:
        """What each name must lead to: kind and mode, links, owner, size, content, attributes."""
        found: dict[str, Shown] = {}
        for path, file in self.files.items():
            content = hashlib.sha256(file.content).hexdigest() if file.content else ""
            found[path] = (*file.status(), content, tuple(sorted(file.xattrs.items())))
        who = (self.who.uid, self.who.gid)
        for path, mode in self.directories.items():
            found[path or "."] = oct(stat.S_IFDIR | mode), *who
        for path, target in self.links.items():
            found[path] = oct(stat.S_IFLNK | 0o777), 1, *who, len(target), os.fsencode(target), ()
        return found

    def end(self) -> None:
        """Read what is still open a last time, and close it."""
        for fd, file in self.held:
            expect("content of a held file", os.pread(fd, LONGEST * 2, 0), bytes(file.content))
            os.close(fd)
        self.held.clear()


def _moved(name: str, old: str, new: str) -> str:
    return new + name[len(old) :] if name == old or name.startswith(f"{old}/") else name
