"""Random requests to the session in Python and to the compiled core: the answers are the same.

A failure names the seed, and the last requests with their bodies.
"""

import logging
import os
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from passthrough.options.choices import Atime, CachePolicy, Locks, SessionKind, Squash, Submounts
from passthrough.options.values import Range
from passthrough.session.abi import Init
from tests.support.tools.beside import OFFERED, Beside, state
from tests.support.tools.files import public_directory
from tests.support.tools.options import effective
from tests.support.tools.random_requests import ACL, CAPABILITY, Generator, Ids

STEPS = 400
USER, OTHER = 41_001, 41_003
GROUP = 41_002
CALLERS: list[Ids] = [(0, 0), (USER, GROUP), (USER, GROUP), (OTHER, GROUP), (OTHER, 7)]
MAP = (Range(0, 1_000_000, 1000), Range(USER, USER, 1))
GROUPS = (Range(0, 1_000_000, 1000), Range(GROUP, GROUP, 1), Range(7, 7, 1))
OLD = (1_000_000_000, 1_000_000_000)

VARIANTS: dict[str, dict[str, object]] = {
    "auto": {},
    "never": {"cache": CachePolicy.NEVER},
    "always": {"cache": CachePolicy.ALWAYS},
    "metadata": {"cache": CachePolicy.METADATA},
    "readonly": {"readonly": True},
    "sealed": {"seal_size": True, "allow_direct_io": False},
    "without xattr": {"xattr": False, "atime": Atime.NOATIME, "use_host_ino": True},
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
        "squash": Squash.ALL, "anon_uid": USER, "anon_gid": GROUP, "session": SessionKind.LIBFUSE,
    },
    "hidden": {"submounts": Submounts.HIDE},
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
    os.link(source / "file", source / "b")
    (source / "link").symlink_to("file")
    (source / "dangling").symlink_to("nowhere")
    os.mkfifo(source / "fifo", 0o666)
    os.mknod(source / "device", stat.S_IFCHR | 0o666, os.makedev(1, 3))
    os.mknod(source / "socket", stat.S_IFSOCK | 0o600)
    for name, owner, mode in (
        ("team", (0, GROUP), 0o2775), ("sticky", (0, 0), 0o1777), ("dir", (USER, GROUP), 0o750),
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
    for path in (source, *source.rglob("*")):
        os.utime(path, OLD, follow_symlinks=False)


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


@pytest.mark.parametrize("seed", range(int(os.environ.get("BESIDE_SEEDS", "3"))))
@pytest.mark.parametrize("variant", VARIANTS)
def test_both_answer_alike(sources: tuple[Path, Path], variant: str, seed: int) -> None:
    options = effective(**{"session": SessionKind.KERNEL, **VARIANTS[variant]})
    offered = OFFERED & ~Init.OVER_IO_URING
    beside = Beside(sources, options, offered)
    generator = Generator(beside.world, seed, CALLERS, unopened=options.no_open)
    try:
        beside.run(generator, STEPS)
    finally:
        beside.close()
    one, two = map(state, sources)
    assert one == two
