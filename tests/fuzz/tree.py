"""The whole tree below a directory as plain data, and the differences of two trees."""

import errno
import hashlib
import os
import shutil
import stat
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

from tests.fuzz.operations import attributes


class Node(NamedTuple):
    """One name in a tree."""

    inode: int
    mtime_ns: int
    attributes: tuple[object, ...]
    """Attributes that are equal on two file systems, operations.attributes."""
    content: bytes | str
    """The hash of a regular file, or the target of a symlink."""
    xattrs: tuple[tuple[str, bytes], ...]


Tree = dict[bytes, Node]


def read(directory: bytes) -> Tree:
    """Return path -> node for *directory* itself and all below it, as read by root."""
    before = os.open(".", os.O_PATH)
    try:
        os.chdir(directory)
        return {b".": _node(b".", os.lstat(b".")), **dict(_below(b""))}
    finally:
        os.fchdir(before)
        os.close(before)


def _below(prefix: bytes) -> Iterator[tuple[bytes, Node]]:
    """Walk the working directory by single names, so that no path grows too long."""
    for name in sorted(os.listdir(b".")):
        status = os.lstat(name)
        yield prefix + name, _node(name, status)
        if stat.S_ISDIR(status.st_mode):
            os.chdir(name)
            yield from _below(prefix + name + b"/")
            os.chdir(b"..")


def _node(name: bytes, status: os.stat_result) -> Node:
    names = sorted(_listxattr(name))
    xattrs = tuple((ascii(key), os.getxattr(name, key, follow_symlinks=False)) for key in names)
    content: bytes | str = ""
    if stat.S_ISLNK(status.st_mode):
        content = os.readlink(name)
    elif stat.S_ISREG(status.st_mode) and status.st_size:
        content = _digest(name)
    return Node(status.st_ino, status.st_mtime_ns, attributes(status), content, xattrs)


def _listxattr(name: bytes) -> list[str]:
    """Return the names, or none if the file system has no extended attributes: known.py."""
    try:
        return os.listxattr(name, follow_symlinks=False)
    except OSError as error:
        if error.errno != errno.ENOTSUP:
            raise
        return []


def _digest(name: bytes) -> str:
    with open(name, "rb", buffering=0) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def attributes_of(paths: Sequence[bytes]) -> dict[bytes, object]:
    """Return the attributes of each path without a listing, which would refresh caches."""
    found: dict[bytes, object] = {}
    for path in paths:
        try:
            found[path] = attributes(os.lstat(path))
        except OSError as error:
            found[path] = errno.errorcode[error.errno or 0]
    return found


def prepare(name: bytes) -> None:
    """Restore the attributes of the empty root directory, and make *name* in it for all users."""
    os.chown(b"/", 0, 0)
    os.chmod(b"/", 0o755)
    for attribute in _listxattr(b"/"):
        os.removexattr(b"/", attribute)
    os.mkdir(name)
    os.chmod(name, 0o777)


def empty(directory: bytes) -> None:
    """Remove all below *directory*."""
    with os.scandir(directory) as entries:
        for entry in list(entries):
            if entry.is_dir(follow_symlinks=False):
                shutil.rmtree(entry.path)
            else:
                os.unlink(entry.path)


def with_numbers_of_host(seen: Tree) -> Tree:
    """Return the tree with the host's inode numbers, without the bits that `use_host_ino` adds."""
    return {path: node._replace(inode=node.inode % (1 << 47)) for path, node in seen.items()}


def without_current_times(seen: Tree) -> Tree:
    """Return the tree without modification times, except those set explicitly.

    With write-back the mount's time is that of the write(2), and the host's may be that of the
    write-back, a little later.
    """
    return {path: node._replace(mtime_ns=0) for path, node in seen.items()}


def comparable(tree: Tree) -> dict[bytes, tuple[object, ...]]:
    """Return the parts of *tree* that are equal on another file system.

    The first path of a file stands for its inode number. The attributes have a modification time
    only if it was set explicitly.
    """
    first: dict[int, bytes] = {}
    return {
        path: (first.setdefault(node.inode, path), *node[2:]) for path, node in sorted(tree.items())
    }


def differences(one: dict[bytes, Node], other: dict[bytes, Node]) -> list[str]:
    """Return a line for each name that differs, inode numbers and times included."""
    return lines(one, other)


def differences_in_kind(one: Tree, other: Tree) -> list[str]:
    """Return a line for each name that differs between two file systems."""
    return lines(comparable(one), comparable(other))


def lines(one: Mapping[bytes, object], other: Mapping[bytes, object]) -> list[str]:
    """Return a line for each path with different values."""
    paths = sorted(one.keys() | other.keys())
    return [
        f"{path!r}: {one.get(path)} / {other.get(path)}"
        for path in paths
        if one.get(path) != other.get(path)
    ]
