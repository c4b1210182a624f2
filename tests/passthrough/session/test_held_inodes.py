"""Inodes held by descriptor and by handle, as bytes: alike for callers, also where mounts lie."""

import errno
import os
import stat
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from passthrough.linux import syscalls
from passthrough.options.choices import InodeFileHandles, SessionKind, Submounts
from passthrough.session.abi import Opcode
from tests.support.fakes.kernel import Connect, Kernel, attributes, entry, listed, text
from tests.support.tools import abi, wire
from tests.support.tools.bodies import BODIES
from tests.support.tools.host_calls import RENAME_WHITEOUT
from tests.support.tools.mounts import MS_BIND
from tests.support.tools.options import effective

ATTR_SUBMOUNT = 1  # FUSE_ATTR_SUBMOUNT
COUNTED = 1 << 55
RECENT = 64
HANDLES = [InodeFileHandles.NEVER, InodeFileHandles.MANDATORY]


@pytest.fixture
def held(connect: Connect) -> Iterator[Callable[..., Kernel]]:
    """Connect with inode_file_handles; at the end all is forgotten, and nothing is left open."""
    kernels: list[tuple[Kernel, int]] = []

    def connect_(handles: InodeFileHandles, **options: object) -> Kernel:
        kernel = connect(
            effective(session=SessionKind.KERNEL, inode_file_handles=handles, **options)
        )
        kernels.append((kernel, open_descriptors()))
        return kernel

    yield connect_
    for kernel, before in kernels:
        kernel.forget_all()
        assert open_descriptors() <= before


@pytest.fixture
def bound() -> Iterator[list[Path]]:
    """List the mount points of a test; they are unmounted after the test."""
    targets: list[Path] = []
    yield targets
    for target in reversed(targets):
        syscalls.umount2(os.fsencode(target), syscalls.MNT_DETACH)


def open_descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


def succeeds(kernel: Kernel, opcode: int, body: bytes, nodeid: int = abi.ROOT_ID) -> bytes:
    reply = kernel.ask(opcode, body, nodeid)
    assert reply.error == 0, os.strerror(reply.error)
    return reply.body


def stat_of(kernel: Kernel, nodeid: int) -> dict[str, int]:
    return attributes(succeeds(kernel, Opcode.GETATTR, wire.GETATTR_IN.pack(0, 0), nodeid))


def find(kernel: Kernel, name: bytes, nodeid: int = abi.ROOT_ID) -> dict[str, int]:
    return entry(succeeds(kernel, Opcode.LOOKUP, text(name), nodeid))


@pytest.mark.parametrize("handles", HANDLES)
def test_requests_reach_the_file_however_it_is_held(
    held: Callable[..., Kernel], source: Path, handles: InodeFileHandles
) -> None:
    (source / "d").mkdir()
    (source / "d").chmod(0o777)
    (source / "d/file").write_bytes(b"content")
    (source / "d/link").symlink_to("target")
    kernel = held(handles)
    directory = kernel.lookup(b"d")
    file, link = (kernel.lookup(b"d", name) for name in (b"file", b"link"))

    succeeds(kernel, Opcode.SETXATTR, BODIES["SETXATTR"], file)
    second = succeeds(kernel, Opcode.LINK, wire.LINK_IN.pack(file) + text(b"second"), directory)
    succeeds(kernel, Opcode.MKDIR, BODIES["MKDIR"], directory)
    moved = wire.RENAME_IN.pack(abi.ROOT_ID) + text(b"file", b"moved")
    succeeds(kernel, Opcode.RENAME, moved, directory)
    created = succeeds(kernel, Opcode.CREATE, BODIES["CREATE"][:-5] + text(b"new"), directory)
    kernel.release(wire.OPEN_OUT.unpack_from(created, wire.ENTRY_OUT.size)[0])
    handle = kernel.open(file, os.O_RDONLY)

    assert entry(second)["nodeid"] == file
    read = wire.READ_IN.pack(handle, 0, 100, 0, 0, 0)
    assert succeeds(kernel, Opcode.READ, read, file) == b"content"
    assert succeeds(kernel, Opcode.READLINK, b"", link) == b"target"
    assert os.getxattr(source / "moved", "user.a") == b"value"
    assert stat_of(kernel, file)["nlink"] == 2
    kernel.release(handle)
    stream = wire.OPEN_OUT.unpack(succeeds(kernel, Opcode.OPENDIR, BODIES["OPENDIR"], directory))[0]
    listing = succeeds(
        kernel, Opcode.READDIRPLUS, wire.READ_IN.pack(stream, 0, 4096, 0, 0, 0), directory
    )
    succeeds(kernel, Opcode.RELEASEDIR, wire.RELEASE_IN.pack(stream, 0, 0, 0), directory)
    names = listed(listing, plus=True)
    assert set(names) == {b".", b"..", b"link", b"second", b"name", b"new"}
    assert names[b"second"][0] in {0, file}  # 0: the kernel was told of it a moment ago
    assert names[b"second"][1] == (source / "moved").stat().st_ino


@pytest.mark.parametrize("removal", ["UNLINK", "RMDIR", "RENAME", "RENAME2", "whiteout"])
def test_a_file_removed_through_the_volume_keeps_its_number(
    held: Callable[..., Kernel], source: Path, removal: str
) -> None:
    """So that the next file, which the host would give it, has the host's number too."""
    (source / "old").mkdir() if removal == "RMDIR" else (source / "old").touch()
    (source / "other").touch()
    kernel = held(InodeFileHandles.MANDATORY)
    old = kernel.lookup(b"old")
    number = (source / "old").stat().st_ino
    body = {
        "RENAME": wire.RENAME_IN.pack(abi.ROOT_ID) + text(b"other", b"old"),
        "RENAME2": wire.RENAME2_IN.pack(abi.ROOT_ID, 0) + text(b"other", b"old"),
        "whiteout": wire.RENAME2_IN.pack(abi.ROOT_ID, RENAME_WHITEOUT) + text(b"other", b"old"),
    }.get(removal, text(b"old"))

    succeeds(kernel, Opcode["RENAME2" if removal == "whiteout" else removal], body)
    find_others(kernel, source)  # which takes the place of the descriptor that a lookup leaves

    assert stat_of(kernel, old)["nlink"] == 0
    assert stat_of(kernel, old)["ino"] == number
    for index in range(50):
        made = entry(succeeds(kernel, Opcode.MKNOD, BODIES["MKNOD"][:-5] + text(b"new%d" % index)))
        assert made["ino"] == (source / f"new{index}").stat().st_ino != number


def test_a_removal_that_fails_or_leaves_a_link_keeps_nothing_open(
    held: Callable[..., Kernel], source: Path
) -> None:
    (source / "full/inner").mkdir(parents=True)
    (source / "a").touch()
    os.link(source / "a", source / "b")
    kernel = held(InodeFileHandles.MANDATORY)
    for name in (b"full", b"a"):
        kernel.lookup(name)
    before = open_descriptors()

    assert kernel.ask(Opcode.RMDIR, text(b"full")).error == errno.ENOTEMPTY
    assert kernel.ask(Opcode.UNLINK, text(b"missing")).error == errno.ENOENT
    assert kernel.ask(Opcode.UNLINK, text(b"a")).error == 0

    assert open_descriptors() == before


def find_others(kernel: Kernel, source: Path) -> None:
    """Look up as many files as the core keeps open."""
    for index in range(RECENT):
        (source / f"other-{index}").touch()
        kernel.lookup(b"other-%d" % index)


def test_a_file_that_the_host_deletes_is_stale(held: Callable[..., Kernel], source: Path) -> None:
    (source / "file").touch()
    kernel = held(InodeFileHandles.MANDATORY)
    nodeid = kernel.lookup(b"file")
    (source / "file").unlink()
    find_others(kernel, source)

    for opcode in ("GETATTR", "OPEN", "GETXATTR", "LISTXATTR", "STATX", "READLINK", "ACCESS"):
        body = b"" if opcode == "READLINK" else BODIES.get(opcode, wire.GETATTR_IN.pack(0, 0))
        if opcode != "ACCESS":
            assert kernel.ask(Opcode[opcode], body, nodeid).error == errno.ESTALE, opcode
    kernel.forget_all()


def test_a_call_on_a_replaced_path_gets_at_most_one_estale(
    held: Callable[..., Kernel], source: Path
) -> None:
    """The kernel looks a path up once more after ESTALE, and returns a second one to the caller."""
    (source / "name").touch()
    kernel = held(InodeFileHandles.MANDATORY)
    old = kernel.lookup(b"name")
    (source / "name").unlink()
    find_others(kernel, source)
    assert kernel.ask(Opcode.OPEN, BODIES["OPEN"], old).error == errno.ESTALE
    (source / "name").write_bytes(b"content")
    new = kernel.lookup(b"name")
    (source / "name").unlink()

    handle = kernel.open(new, os.O_RDONLY)

    read = wire.READ_IN.pack(handle, 0, 100, 0, 0, 0)
    assert succeeds(kernel, Opcode.READ, read, new) == b"content"
    kernel.release(handle)
    kernel.forget_all()


@pytest.mark.usefixtures("on_ext4")
def test_a_file_with_a_reused_number_is_another_inode(
    held: Callable[..., Kernel], source: Path
) -> None:
    """The host gives the number again at once, while the kernel still knows the old inode."""
    (source / "old").touch()
    number = (source / "old").stat().st_ino
    kernel = held(InodeFileHandles.MANDATORY)
    old = find(kernel, b"old")
    find_others(kernel, source)
    (source / "old").unlink()
    name = created_with(source, number)

    new = find(kernel, name)

    assert old["ino"] == number
    assert new["nodeid"] != old["nodeid"]
    assert new["ino"] == COUNTED | 1
    assert find(kernel, name)["nodeid"] == new["nodeid"]
    assert not kernel.knows(old["nodeid"])
    kernel.forget_all()
    assert find(kernel, name)["ino"] == number


def created_with(source: Path, number: int) -> bytes:
    for index in range(100_000):
        path = source / f"new{index}"
        path.touch()
        if path.stat().st_ino == number:
            return os.fsencode(path.name)
    pytest.fail(f"the file system of {source} gives no inode number twice")


@pytest.mark.parametrize("handles", HANDLES)
def test_bind_mounts_of_one_file_system_stay_apart(
    held: Callable[..., Kernel], source: Path, bound: list[Path], handles: InodeFileHandles
) -> None:
    """Also those that come while the kernel knows both places already."""
    (source / "a").mkdir()
    (source / "a/file").touch()
    (source / "b").mkdir()
    kernel = held(handles)
    file, _ = kernel.lookup(b"a", b"file"), kernel.lookup(b"b")
    syscalls.mount(os.fsencode(source / "a"), os.fsencode(source / "b"), b"", MS_BIND, b"")
    bound.append(source / "b")

    mount = find(kernel, b"b")
    inside = find(kernel, b"file", mount["nodeid"])

    assert inside["nodeid"] != file == kernel.lookup(b"a", b"file")
    assert inside["ino"] == 1 << 47 | (source / "a/file").stat().st_ino
    assert find(kernel, b"b")["nodeid"] == mount["nodeid"]
    assert find(kernel, b".", mount["nodeid"])["nodeid"] == mount["nodeid"]
    assert find(kernel, b"..", mount["nodeid"])["nodeid"] == abi.ROOT_ID
    kernel.forget_all()
    syscalls.umount2(os.fsencode(bound.pop()), 0)


@pytest.mark.parametrize("handles", HANDLES)
def test_a_volume_that_hides_mounts_shows_an_empty_directory(
    held: Callable[..., Kernel], source: Path, bound: list[Path], handles: InodeFileHandles
) -> None:
    (source / "b").mkdir()
    (source / "file").touch()
    for what, where in ((source, source / "b"), (Path("/dev/null"), source / "file")):
        syscalls.mount(os.fsencode(what), os.fsencode(where), b"", MS_BIND, b"")
        bound.append(where)
    kernel = held(handles, submounts=Submounts.HIDE)

    hidden = find(kernel, b"b")

    assert stat.S_ISDIR(hidden["mode"])
    assert not hidden["flags"] & ATTR_SUBMOUNT
    assert kernel.ask(Opcode.LOOKUP, text(b"file")).error == errno.EXDEV
    assert kernel.ask(Opcode.MKDIR, BODIES["MKDIR"], hidden["nodeid"]).error == errno.EROFS
    inside = kernel.ask(Opcode.LOOKUP, text(b"file"), hidden["nodeid"])
    assert inside.error == 0
    assert entry(inside.body)["nodeid"] == 0


@pytest.mark.parametrize("handles", HANDLES)
def test_files_for_callers_without_an_open_end_with_their_inode(
    held: Callable[..., Kernel], source: Path, handles: InodeFileHandles
) -> None:
    (source / "file").write_bytes(b"content")
    (source / "d").mkdir()
    kernel = held(handles, no_open=True, no_opendir=True)
    before = open_descriptors()
    file, directory = kernel.lookup(b"file"), kernel.lookup(b"d")
    read = wire.READ_IN.pack(0, 0, 100, 0, 0, 0)
    assert succeeds(kernel, Opcode.READ, read, file) == b"content"
    assert set(listed(succeeds(kernel, Opcode.READDIR, read, directory))) == {b".", b".."}
    assert open_descriptors() >= before + 2
    kernel.forget_all()
    assert open_descriptors() == before
