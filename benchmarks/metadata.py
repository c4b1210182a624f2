"""Lines: names and attributes of many small files in one directory.

Preparations go through the mount, too: rclone and sshfs keep names and attributes longer than the
kernel does, and do not see what changes behind them.
"""

import os
import shutil
from collections.abc import Iterator

from benchmarks.lines import Line, Site, cold, warm

_FILES = 1000
_CONTENT = b"0123456789abcdef" * 64
_DIRECTORY = "files"


def _names(at: Site, prefix: str = "f") -> Iterator[str]:
    """Return the paths of the files through the mount."""
    return (f"{at.mount}/{_DIRECTORY}/{prefix}{n:05}" for n in range(at.scaled(_FILES)))


def _empty(at: Site) -> None:
    shutil.rmtree(f"{at.mount}/{_DIRECTORY}", ignore_errors=True)
    os.mkdir(f"{at.mount}/{_DIRECTORY}")
    at.drop()


def _files(at: Site) -> None:
    """Make the files, unless they exist."""
    os.makedirs(f"{at.mount}/{_DIRECTORY}", exist_ok=True)
    for n in range(at.scaled(_FILES)):
        try:
            flags = os.O_CREAT | os.O_EXCL | os.O_WRONLY
            fd = os.open(f"{at.mount}/{_DIRECTORY}/f{n:05}", flags, 0o644)
        except FileExistsError:
            continue
        os.write(fd, _CONTENT)
        os.close(fd)


def _new_files(at: Site) -> None:
    """Make the files anew: the kernel knows their names and attributes."""
    _empty(at)
    _create(at)


def _create(at: Site) -> int:
    for path in _names(at):
        fd = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644)
        os.write(fd, _CONTENT)
        os.close(fd)
    return at.scaled(_FILES)


def _stat(at: Site) -> int:
    for path in _names(at):
        os.stat(path)
    return at.scaled(_FILES)


def _read(at: Site) -> int:
    for path in _names(at):
        fd = os.open(path, os.O_RDONLY)
        os.read(fd, 4096)
        os.close(fd)
    return at.scaled(_FILES)


def _scan(at: Site) -> int:
    count = 0
    with os.scandir(f"{at.mount}/{_DIRECTORY}") as entries:
        for entry in entries:
            entry.stat(follow_symlinks=False)
            count += 1
    return count


def _rename(at: Site) -> int:
    for old, new in zip(_names(at), _names(at, "g"), strict=True):
        os.rename(old, new)
    return at.scaled(_FILES)


def _unlink(at: Site) -> int:
    for path in _names(at):
        os.unlink(path)
    return at.scaled(_FILES)


LINES = (
    Line("create+write+close", "metadata", "file", _empty, _create),
    Line("stat cold", "metadata", "file", cold(_files), _stat),
    Line("stat warm", "metadata", "file", warm(_files, _stat), _stat),
    Line("open+read+close cold", "metadata", "file", cold(_files), _read),
    Line("open+read+close warm", "metadata", "file", warm(_files, _read), _read),
    Line("scan cold", "metadata", "file", cold(_files), _scan),
    Line("scan warm", "metadata", "file", warm(_files, _scan), _scan),
    Line("rename", "metadata", "file", _new_files, _rename),
    Line("unlink", "metadata", "file", _new_files, _unlink),
)
