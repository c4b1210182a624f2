"""What holds for every operation of PassthroughFs, called as a session calls it, without a mount.

What a mount does with these operations is the matter of tests/posix; here it is what the kernel
never asks for, or hides: refusals, counts, descriptors, and files that others changed meanwhile.
The operations themselves follow in test_filesystem_names, _attributes and _files. Of all of them
holds, in the fixture `fs`, that lookups given back leave the root alone.
"""

import errno
import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from passthrough.core.filesystem import PassthroughFs
from passthrough.core.inodes import ROOT
from passthrough.identity.attributes import Changes
from passthrough.linux import fdpath, syscalls
from passthrough.options.choices import CachePolicy
from tests.support.tools.direct import CALLER, descriptors_below, fails, number_of
from tests.support.tools.options import effective

MISSING = 0x7FFF_0000  # an inode number that nobody was given


NAMING: dict[str, Callable[[PassthroughFs, int, bytes], object]] = {
    "lookup": lambda fs, parent, name: fs.lookup(parent, name),
    "mknod": lambda fs, parent, name: fs.mknod(parent, name, stat.S_IFREG | 0o600, 0, CALLER),
    "mkdir": lambda fs, parent, name: fs.mkdir(parent, name, 0o700, CALLER),
    "symlink": lambda fs, parent, name: fs.symlink(parent, name, b"target", CALLER),
    "link": lambda fs, parent, name: fs.link(number_of(fs, b"file"), parent, name),
    "unlink": lambda fs, parent, name: fs.unlink(parent, name),
    "rmdir": lambda fs, parent, name: fs.rmdir(parent, name),
    "rename from": lambda fs, parent, name: fs.rename(parent, name, ROOT, b"new", 0, CALLER),
    "rename to": lambda fs, parent, name: fs.rename(ROOT, b"file", parent, name, 0, CALLER),
    "create": lambda fs, parent, name: fs.create(parent, name, 0o600, os.O_RDWR, CALLER),
}
NUMBERED: dict[str, Callable[[PassthroughFs, int], object]] = {
    "getattr": lambda fs, number: fs.getattr(number),
    "setattr": lambda fs, number: fs.setattr(number, Changes(mode=0o600)),
    "readlink": lambda fs, number: fs.readlink(number),
    "access": lambda fs, number: fs.access(number, os.R_OK, CALLER),
    "open": lambda fs, number: fs.open(number, os.O_RDONLY),
    "opendir": lambda fs, number: fs.opendir(number),
    "link": lambda fs, number: fs.link(number, ROOT, b"new"),
    "getxattr": lambda fs, number: fs.getxattr(number, b"user.a"),
    "setxattr": lambda fs, number: fs.setxattr(number, b"user.a", b""),
    "listxattr": lambda fs, number: fs.listxattr(number, CALLER),
    "removexattr": lambda fs, number: fs.removexattr(number, b"user.a"),
}
HANDLED: dict[str, Callable[[PassthroughFs, int], object]] = {
    "read": lambda fs, handle: fs.read(handle, 0, 1),
    "write": lambda fs, handle: fs.write(handle, 0, b"x"),
    "flush": lambda fs, handle: fs.flush(handle),
    "fsync": lambda fs, handle: fs.fsync(handle, datasync=False),
    "release": lambda fs, handle: fs.release(handle),
    "readdir": lambda fs, handle: list(fs.readdirplus(handle, 0)),
    "fsyncdir": lambda fs, handle: fs.fsyncdir(handle, datasync=True),
    "releasedir": lambda fs, handle: fs.releasedir(handle),
    "truncate": lambda fs, handle: fs.setattr(number_of(fs, b"file"), Changes(size=0), handle),
}


@pytest.mark.parametrize("name", [b"", b".", b"..", b"a/b", b"/", b"../file", b"file/"])
@pytest.mark.parametrize("operation", NAMING.values(), ids=NAMING)
def test_a_name_is_one_component(
    fs: PassthroughFs,
    source: Path,
    operation: Callable[[PassthroughFs, int, bytes], object],
    name: bytes,
) -> None:
    """Whatever sends requests: no name leads out of its directory."""
    if operation is NAMING["lookup"] and name in {b".", b".."}:
        return  # which it finds; test_filesystem_names.py
    (source / "file").touch()

    fails(errno.EINVAL, lambda: operation(fs, ROOT, name))

    assert os.listdir(source) == ["file"]


@pytest.mark.parametrize("operation", NAMING.values(), ids=NAMING)
def test_a_parent_that_is_not_known_is_stale(
    fs: PassthroughFs, source: Path, operation: Callable[[PassthroughFs, int, bytes], object]
) -> None:
    (source / "file").touch()

    fails(errno.ESTALE, lambda: operation(fs, MISSING, b"name"))


@pytest.mark.parametrize("operation", NUMBERED.values(), ids=NUMBERED)
def test_an_inode_that_is_not_known_is_stale(
    fs: PassthroughFs, operation: Callable[[PassthroughFs, int], object]
) -> None:
    fails(errno.ESTALE, lambda: operation(fs, MISSING))


@pytest.mark.parametrize("operation", HANDLED.values(), ids=HANDLED)
def test_a_handle_that_is_not_known_is_a_bad_descriptor(
    fs: PassthroughFs, source: Path, operation: Callable[[PassthroughFs, int], object]
) -> None:
    (source / "file").touch()

    fails(errno.EBADF, lambda: operation(fs, 12_345))


MAKING: dict[str, Callable[[PassthroughFs], object]] = {
    "mknod": lambda fs: fs.mknod(ROOT, b"new", stat.S_IFREG | 0o600, 0, CALLER),
    "mkdir": lambda fs: fs.mkdir(ROOT, b"new", 0o700, CALLER),
    "symlink": lambda fs: fs.symlink(ROOT, b"new", b"target", CALLER),
    "create": lambda fs: fs.create(ROOT, b"new", 0o600, os.O_RDWR, CALLER),
    "link": lambda fs: fs.link(fs.lookup(ROOT, b"file").inode_number, ROOT, b"new"),
}


@pytest.mark.parametrize("at", ["opening", "looking at"])
@pytest.mark.parametrize("operation", MAKING.values(), ids=MAKING)
def test_what_was_made_but_cannot_be_reported_is_held_by_nothing(
    source: Path,
    operation: Callable[[PassthroughFs], object],
    at: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The kernel hears of an error and will give nothing back."""
    (source / "file").touch()
    fs = PassthroughFs(effective(), os.open(source, os.O_PATH))
    known = fs.lookup(ROOT, b"file").inode_number
    before = descriptors_below(source)
    count = [0]

    def failing(real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **keywords: Any) -> Any:
            if not (source / "new").is_symlink() and not (source / "new").exists():
                return real(*arguments, **keywords)
            count[0] += 1
            raise OSError(errno.ENFILE, "too many open files")

        return call

    with monkeypatch.context() as patch:
        if at == "opening":
            patch.setattr(syscalls, "open_same_mount", failing(syscalls.open_same_mount))
            patch.setattr(fdpath, "of", failing(fdpath.of))
        else:
            patch.setattr(os, "fstat", failing(os.fstat))
        fails(errno.ENFILE, lambda: operation(fs))

    fs.forget(known, 2 if operation is MAKING["link"] else 1)
    assert count == [1]
    assert len(fs.inodes) == 1
    assert len(fs.files) == 0
    assert len(descriptors_below(source)) == len(before) - 1
    fs.close()


def test_close_closes_everything(source: Path) -> None:
    (source / "file").touch()
    fs = PassthroughFs(effective(cache=CachePolicy.NEVER), os.open(source, os.O_PATH))
    fs.open(number_of(fs, b"file"), os.O_RDONLY)
    fs.opendir(ROOT)

    fs.close()

    assert (len(fs.inodes), len(fs.files), len(fs.directories)) == (0, 0, 0)
    assert descriptors_below(source) == set()
