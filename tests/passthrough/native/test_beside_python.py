"""Random requests to the session in Python and to the compiled core: the answers are the same.

A failure names the seed, and the last requests with their bodies.
"""

import contextlib
import logging
import os
import resource
import stat
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest

from passthrough.linux import syscalls
from passthrough.options.choices import (
    Atime,
    CachePolicy,
    Locks,
    Sandbox,
    SessionKind,
    Squash,
    Submounts,
)
from passthrough.options.values import Range
from passthrough.session.abi import Init
from tests.support.tools.beside import OFFERED, Beside
from tests.support.tools.files import public_directory
from tests.support.tools.options import effective
from tests.support.tools.random_requests import ACL, CAPABILITY, Generator
from tests.support.tools.random_world import Ids

STEPS = 400
# PASSFS_BESIDE_SEEDS=100:200 runs others.
SEEDS = range(*map(int, os.environ.get("PASSFS_BESIDE_SEEDS", "0:2").split(":")))
USER, OTHER = 41_001, 41_003
GROUP = 41_002
CALLERS: list[Ids] = [(0, 0), (USER, GROUP), (USER, GROUP), (OTHER, GROUP), (OTHER, 7)]
MAP = (Range(0, 1_000_000, 1000), Range(USER, USER, 1))
GROUPS = (Range(0, 1_000_000, 1000), Range(GROUP, GROUP, 1), Range(7, 7, 1))
# As if RLIMIT_NOFILE were this, for variants with file handles: half of it for inodes.
FEW_DESCRIPTORS = 16
OLD = (1_000_000_000, 1_000_000_000)

VARIANTS: dict[str, dict[str, object]] = {
    "auto": {},
    "never": {"cache": CachePolicy.NEVER},
    "always": {"cache": CachePolicy.ALWAYS},
    "metadata": {"cache": CachePolicy.METADATA},
    "readonly": {"readonly": True},
    "sealed": {"seal_size": True, "allow_direct_io": False},
    "without xattr": {"xattr": False, "use_host_ino": True},
    "noatime": {"atime": Atime.NOATIME, "sandbox": Sandbox.NONE},
    "acl": {"posix_acl": True},
    "killpriv": {"killpriv_v2": True},
    "without killpriv": {"killpriv_v2": False},
    "writeback": {"writeback": True},
    "unopened": {"no_open": True, "no_opendir": True},
    "local locks": {"locks": Locks.LOCAL},
    "map": {"map_uid": MAP, "map_gid": GROUPS, "killpriv_v2": True},
    "map without killpriv": {"map_uid": MAP, "map_gid": GROUPS, "killpriv_v2": False},
    "map of groups": {"map_gid": GROUPS},
    "root": {"squash": Squash.ROOT},
    "root without killpriv": {"squash": Squash.ROOT, "killpriv_v2": False},
    "root with map": {"squash": Squash.ROOT, "map_uid": MAP, "map_gid": GROUPS, "anon_uid": USER},
    "all": {"squash": Squash.ALL, "anon_uid": USER, "anon_gid": GROUP},
    "all as libfuse": {
        "squash": Squash.ALL,
        "anon_uid": USER,
        "anon_gid": GROUP,
        "session": SessionKind.LIBFUSE,
    },
    "no listings": {"no_readdir": True, "dir_attr_timeout": 1.75, "negative_timeout": 0.1},
    "crossed": {"use_host_ino": True},
    "crossed as root": {"squash": Squash.ROOT},
    "hidden": {"submounts": Submounts.HIDE},
    "handles": {},
    "handles as root": {"squash": Squash.ROOT, "cache": CachePolicy.NEVER},
    "handles crossed": {"map_uid": MAP},
}


def fill(source: Path) -> None:
    """Make a file of each kind, of several owners and modes."""
    os.chown(source, USER, GROUP)
    source.chmod(0o777)
    for name, owner, mode in (
        ("file", (USER, GROUP), 0o644),
        ("suid", (OTHER, GROUP), 0o6777),
        ("sgid", (OTHER, GROUP), 0o2666),
        ("private", (0, 0), 0o600),
        ("a", (1_000_000, 1_000_005), 0o640),
        ("team/inner", (OTHER, 7), 0o660),
        ("sticky/inner", (0, 7), 0o2755),
        ("dir/inner", (USER, GROUP), 0o4711),
        ("dir/a", (0, GROUP), 0o020),
    ):
        path = source / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(name.encode() * 1000)
        os.chown(path, *owner)
        path.chmod(mode)
    for name in ("empty", "dir/empty"):
        (source / name).mkdir()
    os.link(source / "file", source / "b")
    (source / "link").symlink_to("file")
    (source / "dangling").symlink_to("nowhere")
    os.mkfifo(source / "fifo", 0o666)
    os.mknod(source / "device", stat.S_IFCHR | 0o666, os.makedev(1, 3))
    os.mknod(source / "socket", stat.S_IFSOCK | 0o600)
    for name, owner, mode in (
        ("team", (0, GROUP), 0o2775),
        ("sticky", (0, 0), 0o1777),
        ("dir", (USER, GROUP), 0o750),
        ("dir/below", (OTHER, 7), 0o2777),
    ):
        path = source / name
        path.mkdir(exist_ok=True)
        os.chown(path, *owner)
        path.chmod(mode)
    os.setxattr(source / "file", b"user.a", b"value")
    os.setxattr(source / "file", b"trusted.t", b"secret")
    os.setxattr(source / "suid", b"security.capability", CAPABILITY)
    os.setxattr(source / "sgid", b"system.posix_acl_access", ACL)
    (source / "mount").mkdir()
    for path in (source, *source.rglob("*")):
        os.utime(path, OLD, follow_symlinks=False)


def state(source: Path) -> dict[str, tuple[object, ...]]:
    """Return all that a tree has, but for numbers and times of the host."""
    found: dict[str, tuple[object, ...]] = {}
    for path in sorted([source, *source.rglob("*")]):
        it = path.lstat()
        content: object = None
        if stat.S_ISREG(it.st_mode) and it.st_size < 1 << 20:
            content = path.read_bytes()
        elif stat.S_ISLNK(it.st_mode):
            content = path.readlink()
        xattrs = {}
        with contextlib.suppress(OSError):
            for name in os.listxattr(path, follow_symlinks=False):
                xattrs[name] = os.getxattr(path, name, follow_symlinks=False)
        fields = (it.st_mode, it.st_uid, it.st_gid, it.st_nlink, it.st_size, it.st_rdev)
        found[str(path.relative_to(source))] = (*fields, content, xattrs)
    return found


@contextlib.contextmanager
def mounted(sources: Iterable[Path]) -> Iterator[None]:
    """Mount a file system below each source, with files."""
    with contextlib.ExitStack() as stack:
        for source in sources:
            target = source / "mount"
            syscalls.mount(b"tmpfs", os.fsencode(target), b"tmpfs", 0, b"mode=0777")
            stack.callback(syscalls.umount2, os.fsencode(target), syscalls.MNT_DETACH)
            (target / "inner").write_bytes(b"inner" * 100)
            (target / "below").mkdir()
            os.chown(target / "below", OTHER, 7)
        yield


@pytest.fixture
def sources() -> Iterator[tuple[Path, Path]]:
    """Make two equal sources."""
    logging.disable(logging.ERROR)
    with public_directory() as one, public_directory() as two:
        found = (one / "source", two / "source")
        for source in found:
            source.mkdir()
            fill(source)
        yield found
    logging.disable(logging.NOTSET)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("variant", VARIANTS)
def test_both_answer_alike(
    sources: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch, variant: str, seed: int
) -> None:
    options = effective(**{"session": SessionKind.KERNEL, **VARIANTS[variant]})
    if "handles" in variant:
        limits = (FEW_DESCRIPTORS, FEW_DESCRIPTORS)
        monkeypatch.setattr(resource, "getrlimit", lambda _: limits)
    crossed = "crossed" in variant or "hidden" in variant
    with mounted(sources if crossed else ()):
        beside = Beside(sources, options, OFFERED & ~Init.OVER_IO_URING)
        generator = Generator(beside.world, seed, CALLERS, unopened=options.no_open)
        try:
            beside.run(generator, STEPS)
        finally:
            beside.close()
        one, two = map(state, sources)
    assert one == two
