import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from passthrough.linux import mountinfo, syscalls
from passthrough.linux.mountinfo import MountEntry
from tests.support.tools.mounts import MS_BIND, MS_PRIVATE

LINES = {
    "no optional field": (
        "22 1 254:16 / / rw,relatime - ext4 /dev/vda rw,discard",
        MountEntry(22, 1, os.makedev(254, 16), b"/", b"/", "ext4", b"/dev/vda"),
    ),
    "several optional fields": (
        "36 35 98:0 /mnt1 /mnt2 rw,noatime shared:1 master:7 propagate_from:2 - ext3 /dev/root rw",
        MountEntry(36, 35, os.makedev(98, 0), b"/mnt1", b"/mnt2", "ext3", b"/dev/root", True),
    ),
    "escaped": (
        r"40 22 0:50 /a\040b /m\011t\012n\134\043x rw unbindable - fuse.passfs a\040b rw,user_id=0",
        MountEntry(40, 22, os.makedev(0, 50), b"/a b", b"/m\tt\nn\\#x", "fuse.passfs", b"a b"),
    ),
    "bytes of no encoding": (
        "41 22 0:51 / /\udcff rw - tmpfs none rw",
        MountEntry(41, 22, os.makedev(0, 51), b"/", b"/\xff", "tmpfs", b"none"),
    ),
    "no source": (
        "42 22 0:52 / /m rw - tmpfs  rw",
        MountEntry(42, 22, os.makedev(0, 52), b"/", b"/m", "tmpfs", b""),
    ),
    "a name space, not a directory": (
        "43 22 0:4 net:[4026532281] /run/netns/a rw shared:2 - nsfs nsfs rw",
        MountEntry(
            43,
            22,
            os.makedev(0, 4),
            b"net:[4026532281]",
            b"/run/netns/a",
            "nsfs",
            b"nsfs",
            follows=True,
        ),
    ),
    "a slave": (
        "45 22 0:53 / /m rw,relatime master:3 - tmpfs none rw",
        MountEntry(45, 22, os.makedev(0, 53), b"/", b"/m", "tmpfs", b"none", True),
    ),
    "a large minor number": (
        "44 22 0:1048575 / /m rw - tmpfs none rw",
        MountEntry(44, 22, os.makedev(0, 1_048_575), b"/", b"/m", "tmpfs", b"none"),
    ),
}


@pytest.mark.parametrize(("line", "mount"), LINES.values(), ids=LINES)
def test_a_line(tmp_path: Path, line: str, mount: MountEntry) -> None:
    (tmp_path / "mountinfo").write_bytes(os.fsencode(line) + b"\n")

    assert mountinfo.read(str(tmp_path / "mountinfo")) == [mount]


class Tree:
    """Directories and mounts below one directory; unmounts in reverse order."""

    def __init__(self, top: Path) -> None:
        self.top = top
        self.targets: list[bytes] = []
        self.fds: list[int] = []

    def directory(self, name: str) -> Path:
        path = self.top / name
        path.mkdir(parents=True, exist_ok=True)
        return path

    def bind(self, source: str, target: str) -> None:
        self._mount(os.fsencode(self.directory(source)), target, b"", MS_BIND)

    def tmpfs(self, target: str) -> None:
        self._mount(b"a tmpfs", target, b"tmpfs", 0)

    def fd(self, name: str) -> int:
        self.fds.append(os.open(self.top / name, os.O_PATH))
        return self.fds[-1]

    def contains(self, outer: str, inner: str) -> bool:
        return mountinfo.contains(mountinfo.read(), self.fd(outer), self.fd(inner))

    def close(self) -> None:
        for fd in self.fds:
            os.close(fd)
        for target in reversed(self.targets):
            syscalls.umount2(target, syscalls.MNT_DETACH)

    def _mount(self, source: bytes, target: str, fstype: bytes, flags: int) -> None:
        path = os.fsencode(self.directory(target))
        syscalls.mount(source, path, fstype, flags, b"")
        self.targets.append(path)
        # Otherwise a bind mount of a directory above would copy the mounts below it.
        syscalls.mount(b"", path, b"", MS_PRIVATE, b"")


@pytest.fixture
def tree(tmp_path: Path) -> Iterator[Tree]:
    tree = Tree(tmp_path)
    yield tree
    tree.close()


def test_read_returns_the_uppermost_mount_last(tree: Tree) -> None:
    tree.tmpfs("sp ace\\")
    tree.bind("source", "sp ace\\")

    lower, upper = (m for m in mountinfo.read() if m.target == bytes(tree.top / "sp ace\\"))

    assert (lower.fstype, lower.source, lower.root) == ("tmpfs", b"a tmpfs", b"/")
    assert upper.source != lower.source
    assert upper.root.endswith(b"/source")
    assert upper.device == (tree.top / "source").stat().st_dev
    assert upper.parent_id == lower.mount_id


def test_of_is_the_mount_that_a_descriptor_lies_on(tree: Tree) -> None:
    tree.tmpfs("mount")
    tree.directory("mount/below")
    mounts = mountinfo.read()

    for name in ("mount", "mount/below"):
        assert mountinfo.of(mounts, tree.fd(name)).target == bytes(tree.top / "mount")
    assert mountinfo.of(mounts, tree.fd(".")).source != b"a tmpfs"


def test_of_distinguishes_two_paths_of_one_directory(tree: Tree) -> None:
    tree.bind("source", "bound")
    mounts = mountinfo.read()

    assert mountinfo.of(mounts, tree.fd("bound")).target == bytes(tree.top / "bound")
    assert mountinfo.of(mounts, tree.fd("source")).target != bytes(tree.top / "bound")


def test_of_a_covered_directory_is_the_mount_below(tree: Tree) -> None:
    tree.directory("mount")
    before = tree.fd("mount")
    tree.tmpfs("mount")

    assert mountinfo.of(mountinfo.read(), before).source != b"a tmpfs"


def test_of_a_detached_mount_is_unknown(tree: Tree) -> None:
    tree.tmpfs("mount")
    fd = tree.fd("mount")
    syscalls.umount2(tree.targets.pop(), syscalls.MNT_DETACH)

    with pytest.raises(LookupError):
        mountinfo.of(mountinfo.read(), fd)


def test_of_a_closed_descriptor_fails() -> None:
    fd = os.open("/", os.O_PATH)
    os.close(fd)

    with pytest.raises(FileNotFoundError):
        mountinfo.of(mountinfo.read(), fd)


@pytest.mark.parametrize(
    ("outer", "inner", "expected"),
    [
        ("a", "a", True),
        ("a", "a/b", True),
        ("a/b", "a", False),
        ("a", "ab", False),
        (".", "a/b", True),
        # bound -> a: two paths of one directory
        ("bound", "a", True),
        ("bound", "a/b", True),
        ("a", "bound/b", True),
        ("a/b", "bound", False),
        ("bound/b", "a/b", True),
        # over/inner -> a/b: the tree of `over` contains a/b
        ("over", "a/b", True),
        ("over", "a", False),
        ("over", "a/b/c", True),
        ("over/inner", "a/b/c", True),
        # tmp: another file system below `.`; a bind mount shows one of its directories in `holder`
        ("tmp", "tmp/x", True),
        (".", "tmp/x", True),
        ("tmp", "a", False),
        ("holder", "tmp/x", True),
        ("holder", "tmp/x/y", True),
        ("holder", "tmp", False),
        ("holder/bound", "tmp/x/y", True),
    ],
)
def test_contains_sees_through_bind_mounts(
    tree: Tree, outer: str, inner: str, *, expected: bool
) -> None:
    for name in ("a/b/c", "ab", "over", "holder"):
        tree.directory(name)
    tree.tmpfs("tmp")
    tree.directory("tmp/x/y")
    tree.bind("a", "bound")
    tree.bind("a/b", "over/inner")
    tree.bind("tmp/x", "holder/bound")

    assert tree.contains(outer, inner) is expected


def test_contains_compares_positions_in_the_file_system_not_paths(tree: Tree) -> None:
    """A directory below a mount still lies in its parent directory."""
    tree.directory("a/b")
    covered = tree.fd("a/b")
    tree.tmpfs("a/b")

    assert mountinfo.contains(mountinfo.read(), tree.fd("a"), covered)
    assert not mountinfo.contains(mountinfo.read(), tree.fd("a/b"), tree.fd("a"))


@pytest.mark.parametrize(
    ("path", "ancestor", "expected"),
    [
        (b"/a", b"/a", True),
        (b"/a/b", b"/a", True),
        (b"/ab", b"/a", False),
        (b"/a", b"/a/b", False),
        (b"/a", b"/", True),
        (b"/", b"/", True),
        (b"/", b"/a", False),
    ],
)
def test_is_below(path: bytes, ancestor: bytes, *, expected: bool) -> None:
    assert mountinfo.is_below(path, ancestor) is expected


TABLE = """\
1 1 0:1 / / rw - rootfs rootfs rw
20 1 8:1 / / rw - ext4 /dev/sda rw
21 20 8:2 / /srv rw - ext4 /dev/sdb rw
22 21 8:3 /inner /srv/disk rw - ext4 /dev/sdc rw
23 22 8:4 / /srv/disk rw - ext4 /dev/sdd rw
24 20 8:5 / /a rw - ext4 /dev/sde rw
25 99 8:6 / /a/b rw - ext4 /dev/sdf rw
"""


@pytest.mark.parametrize(
    ("path", "device", "inner"),
    [
        (b"/", (8, 1), b"/"),
        (b"/srv", (8, 2), b"/"),
        (b"/srvother", (8, 1), b"/srvother"),
        (b"/srv/x/y", (8, 2), b"/x/y"),
        (b"/srv/disk/x", (8, 4), b"/x"),
        (b"/a/b", (8, 5), b"/b"),  # another mount hides the mount point
    ],
)
def test_the_place_of_a_path(
    tmp_path: Path, path: bytes, device: tuple[int, int], inner: bytes
) -> None:
    (tmp_path / "table").write_text(TABLE)
    table = mountinfo.read(str(tmp_path / "table"))
    assert mountinfo.place(table, path) == (os.makedev(*device), inner)


def test_the_place_of_a_path_is_that_of_the_opened_directory(tmp_path: Path) -> None:
    table = mountinfo.read()
    fd = os.open(tmp_path, os.O_PATH)
    try:
        assert mountinfo.place(table, bytes(tmp_path)) == mountinfo.position(table, fd)
    finally:
        os.close(fd)
