"""Lines: contents of one large file, and appending to a small one.

The calls use one buffer made beforehand. So the measured time has one system call from Python
beside the file system's work: about a quarter of a microsecond for each.
"""

import contextlib
import mmap
import os
import random
from collections.abc import Iterator

from benchmarks.lines import Line, Site, cold, warm

_MIB = 1 << 20
_PAGE = 4096
_FILE_MIB = 64
_RANDOM = 8192
_APPENDS = 4096
_PIECE = b"0123456789abcdef" * 16


def _size(at: Site) -> int:
    return at.scaled(_FILE_MIB) * _MIB


def _no_large(at: Site) -> None:
    with contextlib.suppress(FileNotFoundError):
        os.unlink(f"{at.mount}/large")
    at.drop()


def _large(at: Site) -> None:
    """Make the large file, unless it exists."""
    with contextlib.suppress(FileNotFoundError):
        if os.stat(f"{at.mount}/large").st_size == _size(at):
            return
    with open(f"{at.mount}/large", "wb") as file:
        file.writelines(os.urandom(_MIB) for _ in range(_size(at) // _MIB))


@contextlib.contextmanager
def _opened(at: Site, flags: int, name: str = "large") -> Iterator[int]:
    fd = os.open(f"{at.mount}/{name}", flags, 0o644)
    try:
        yield fd
    finally:
        os.close(fd)


def _write(at: Site) -> int:
    block = bytes(_MIB)
    with _opened(at, os.O_CREAT | os.O_EXCL | os.O_WRONLY) as fd:
        for _ in range(_size(at) // _MIB):
            os.write(fd, block)
    return _size(at) // _MIB


def _read(at: Site) -> int:
    buffers = [bytearray(_MIB)]
    with _opened(at, os.O_RDONLY) as fd:
        while os.readv(fd, buffers):
            pass
    return _size(at) // _MIB


def _offsets(at: Site) -> list[int]:
    """Return page-aligned offsets, the same ones in each run."""
    pages = random.Random(1)  # noqa: S311 - reproducible, not secret
    return [pages.randrange(_size(at) // _PAGE) * _PAGE for _ in range(at.scaled(_RANDOM))]


def _random_read(at: Site) -> int:
    buffers = [bytearray(_PAGE)]
    offsets = _offsets(at)
    with _opened(at, os.O_RDONLY) as fd:
        for offset in offsets:
            os.preadv(fd, buffers, offset)
    return len(offsets)


def _random_write(at: Site) -> int:
    buffers = [bytes(_PAGE)]
    offsets = _offsets(at)
    with _opened(at, os.O_WRONLY) as fd:
        for offset in offsets:
            os.pwritev(fd, buffers, offset)
    return len(offsets)


def _no_log(at: Site) -> None:
    with contextlib.suppress(FileNotFoundError):
        os.unlink(f"{at.mount}/log")
    at.drop()


def _append(at: Site) -> int:
    with _opened(at, os.O_CREAT | os.O_WRONLY | os.O_APPEND, "log") as fd:
        for _ in range(at.scaled(_APPENDS)):
            os.write(fd, _PIECE)
    return at.scaled(_APPENDS)


def _map_read(at: Site) -> int:
    with _opened(at, os.O_RDONLY) as fd, mmap.mmap(fd, 0, prot=mmap.PROT_READ) as mapped:
        for offset in range(0, len(mapped), _PAGE):
            mapped[offset]
    return _size(at) // _MIB


def _map_write(at: Site) -> int:
    with _opened(at, os.O_RDWR) as fd, mmap.mmap(fd, 0) as mapped:
        for offset in range(0, len(mapped), _PAGE):
            mapped[offset] = 1
        mapped.flush()
    return _size(at) // _MIB


LINES = (
    Line("sequential write", "data", "MiB", _no_large, _write),
    Line("sequential read cold", "data", "MiB", cold(_large), _read),
    Line("sequential read warm", "data", "MiB", warm(_large, _read), _read),
    Line("random read cold", "data", "4 KiB", cold(_large), _random_read),
    Line("random read warm", "data", "4 KiB", warm(_large, _read), _random_read),
    Line("random write", "data", "4 KiB", cold(_large), _random_write),
    Line("append", "data", "256 bytes", _no_log, _append),
    Line("mmap read cold", "data", "MiB", cold(_large), _map_read),
    Line("mmap write", "data", "MiB", cold(_large), _map_write),
)
