"""The workloads of `passfs bench`: calls on files in one directory, made by this process.

Each workload makes the files that it needs, outside of the measured time, and removes its own files
by name. So nothing is deleted that another program has put into the directory.

Containers may change the directory meanwhile, and replace its files. So all calls are relative to
a descriptor of the directory, follow no link and wait for no FIFO. The mount of the descriptor has
no devices (bench.py). A file that is opened again to be changed has to be the one made before.
"""

import errno
import os
import random
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Final, NamedTuple

_FILES: Final = 500
_CONTENT: Final = b"\0" * 1024
_PIECE: Final = b"\0" * 256
_PAGE: Final = 4096
_MIB: Final = 1 << 20
_LARGE_MIB: Final = 64
_LARGE: Final = "large"


class Site(NamedTuple):
    """The directory in which a workload runs."""

    directory: int
    """A descriptor of the directory, by the way that is measured."""
    bare: int
    """One of the same directory of the host, not through the volume."""
    size: float
    """The factor for the numbers of files and bytes."""
    made: dict[str, int]
    """The inode number of each file that is opened again to be changed."""

    def files(self, prefix: str = "f") -> list[str]:
        """Return the names of the small files."""
        return [f"{prefix}{number:04}" for number in range(max(1, int(_FILES * self.size)))]

    @property
    def mib(self) -> int:
        """The length of the large file in MiB."""
        return max(1, int(_LARGE_MIB * self.size))


class Workload(NamedTuple):
    """Calls to measure."""

    name: str
    unit: str
    """The unit of the result, such as file or MiB."""
    prepare: Callable[[Site], None]
    run: Callable[[Site], int]
    """Make the calls, and return how many units they did."""


def measured(workload: Workload, at: Site) -> float:
    """Return the time of a unit of *workload* in the new directory of *at*, in seconds.

    Raises:
        OSError: a call is refused.
    """
    workload.prepare(at)
    began = time.perf_counter()
    units = workload.run(at)
    took = time.perf_counter() - began
    if not units:  # no_readdir
        raise FileNotFoundError(errno.ENOENT, "the files are not listed")
    return took / units


def clear(at: Site) -> None:
    """Remove the files of all workloads, through the volume if it lets them go.

    If another program has put a directory in place of a file, that directory stays.
    """
    for name in (*at.files(), *at.files("g"), _LARGE):
        try:
            os.unlink(name, dir_fd=at.directory)
        except OSError:
            with suppress(OSError):
                os.unlink(name, dir_fd=at.bare)


def _nothing(_: Site) -> None:
    """Make nothing: the workload begins with an empty directory."""


def _files(directory: int, names: Sequence[str]) -> None:
    for name in names:
        with _opened(directory, name, os.O_CREAT | os.O_EXCL | os.O_WRONLY) as fd:
            os.write(fd, _CONTENT)


def _unknown(at: Site) -> None:
    """Make the files on the host, so that the volume does not know their names."""
    _files(at.bare, at.files())


def _known(at: Site) -> None:
    _files(at.directory, at.files())


def _large(at: Site) -> None:
    with _opened(at.directory, _LARGE, os.O_CREAT | os.O_EXCL | os.O_WRONLY) as fd:
        at.made[_LARGE] = os.fstat(fd).st_ino
        block = os.urandom(_MIB)
        for _ in range(at.mib):
            os.write(fd, block)


def _create(at: Site) -> int:
    _files(at.directory, at.files())
    return len(at.files())


def _stat(at: Site) -> int:
    for name in at.files():
        os.stat(name, dir_fd=at.directory, follow_symlinks=False)
    return len(at.files())


def _read_files(at: Site) -> int:
    for name in at.files():
        with _opened(at.directory, name, os.O_RDONLY) as fd:
            os.read(fd, _PAGE)
    return len(at.files())


def _list(at: Site) -> int:
    with (
        _opened(at.directory, ".", os.O_RDONLY | os.O_DIRECTORY) as fd,
        os.scandir(fd) as entries,
    ):
        return len([entry.stat(follow_symlinks=False) for entry in entries])


def _rename(at: Site) -> int:
    for old, new in zip(at.files(), at.files("g"), strict=True):
        os.rename(old, new, src_dir_fd=at.directory, dst_dir_fd=at.directory)
    return len(at.files())


def _unlink(at: Site) -> int:
    for name in at.files():
        os.unlink(name, dir_fd=at.directory)
    return len(at.files())


def _write(at: Site) -> int:
    _large(at)
    return at.mib


def _read(at: Site) -> int:
    buffers = [bytearray(_MIB)]
    with _opened(at.directory, _LARGE, os.O_RDONLY) as fd:
        while os.readv(fd, buffers):
            pass
    return at.mib


def _random_read(at: Site) -> int:
    buffers = [bytearray(_PAGE)]
    with _opened(at.directory, _LARGE, os.O_RDONLY) as fd:
        for offset in _offsets(at):
            os.preadv(fd, buffers, offset)
    return len(_offsets(at))


def _random_write(at: Site) -> int:
    with _opened(at.directory, _LARGE, os.O_WRONLY) as fd:
        if os.fstat(fd).st_ino != at.made[_LARGE]:
            raise FileExistsError(errno.EEXIST, "another program has replaced the file")
        for offset in _offsets(at):
            os.pwrite(fd, bytes(_PAGE), offset)
    return len(_offsets(at))


def _append(at: Site) -> int:
    with _opened(
        at.directory, at.files()[0], os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_APPEND
    ) as fd:
        for _ in range(8 * len(at.files())):
            os.write(fd, _PIECE)
    return 8 * len(at.files())


def _offsets(at: Site) -> list[int]:
    """Return the offsets of pages, the same ones at each call."""
    chance = random.Random(1)  # noqa: S311 - reproducible, not secret
    pages = at.mib * _MIB // _PAGE
    return [chance.randrange(pages) * _PAGE for _ in range(8 * len(at.files()))]


@contextmanager
def _opened(directory: int, name: str, flags: int) -> Iterator[int]:
    flags |= os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    fd = os.open(name, flags, 0o600, dir_fd=directory)
    try:
        yield fd
    finally:
        os.close(fd)


WORKLOADS: Final = (
    Workload("create, write 1 KiB, close", "file", _nothing, _create),
    Workload("stat, for the first time", "file", _unknown, _stat),
    Workload("stat, names that are known", "file", _known, _stat),
    Workload("open, read, close", "file", _known, _read_files),
    Workload("list with attributes", "file", _known, _list),
    Workload("rename", "file", _known, _rename),
    Workload("unlink", "file", _known, _unlink),
    Workload("append 256 bytes", "call", _nothing, _append),
    Workload("write in a row", "MiB", _nothing, _write),
    Workload("read in a row", "MiB", _large, _read),
    Workload("read 4 KiB at random", "call", _large, _random_read),
    Workload("write 4 KiB at random", "call", _large, _random_write),
)
