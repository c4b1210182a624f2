"""Privileges of programs on the host: each session refuses them with a map or squashing."""

import errno
import os
import shutil
import stat
import struct
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import NamedTuple

import pytest

from passthrough.linux import syscalls
from passthrough.linux.privileges import AT_FDCWD
from tests.support.tools import host_calls
from tests.support.tools.callers import ROOT, USER, Caller
from tests.support.tools.files import owner, public_directory, refused
from tests.support.tools.mounted import Mounted, mounted

LIMIT_S = 30.0
ANONYMOUS = 77
# A program with CAP_NET_RAW permitted and effective, struct vfs_cap_data of linux/capability.h.
CAPABILITY = "security.capability"
NET_RAW = struct.pack("<IIIII", 0x0200_0001, 1 << 13, 0, 0, 0)

SESSIONS = {
    "kernel": {"session": "kernel"},
    "kernel, passthrough off": {"session": "kernel", "passthrough": "off"},
    "libfuse": {"session": "libfuse"},
}
RESTRICTIONS = {
    "map": {"map_uid": "0:100000:50000", "map_gid": "0:200000:50000"},
    "map of users": {"map_uid": "0:100000:50000"},
    "map of groups": {"map_gid": "0:200000:50000"},
    "squash=root": {"squash": "root", "anon_uid": "77", "anon_gid": "77"},
    "squash=all": {"squash": "all", "anon_uid": "77", "anon_gid": "77"},
}


class Ground(NamedTuple):
    """A directory of container root, by its paths on the host and in the volume."""

    source: Path
    mountpoint: Path


@pytest.fixture(params=list(SESSIONS.values()), ids=list(SESSIONS), scope="module")
def session(request: pytest.FixtureRequest) -> dict[str, str]:
    """Return the options of one session after the other."""
    options: dict[str, str] = request.param
    return options


@contextmanager
def volume(options: dict[str, str]) -> Iterator[Mounted]:
    with public_directory() as base, mounted(base, options) as served:
        yield served


@contextmanager
def ground(served: Mounted, uid: int, gid: int) -> Iterator[Ground]:
    """Make a directory of the host's user *uid*, in which all users may create files."""
    source = Path(tempfile.mkdtemp(dir=served.source))
    source.chmod(0o777)
    os.chown(source, uid, gid)
    with served.limited(LIMIT_S):
        yield Ground(source, served.mountpoint / source.name)
    shutil.rmtree(source)


@pytest.fixture(params=list(RESTRICTIONS.values()), ids=list(RESTRICTIONS), scope="module")
def restricted_volume(
    request: pytest.FixtureRequest, session: dict[str, str]
) -> Iterator[tuple[Mounted, dict[str, str]]]:
    with volume({**session, **request.param}) as served:
        yield served, request.param


@pytest.fixture
def restricted(restricted_volume: tuple[Mounted, dict[str, str]]) -> Iterator[Ground]:
    """Return a directory in a volume with a map or squashing."""
    served, options = restricted_volume
    uid = 100_000 if "map_uid" in options else ANONYMOUS
    with ground(served, uid, 200_000 if "map_gid" in options else ANONYMOUS) as place:
        yield place


@pytest.fixture(scope="module")
def mapped_volume(session: dict[str, str]) -> Iterator[Mounted]:
    with volume({**session, **RESTRICTIONS["map"]}) as served:
        yield served


@pytest.fixture
def mapped(mapped_volume: Mounted) -> Iterator[Ground]:
    """Return a directory in a volume with a map."""
    with ground(mapped_volume, 100_000, 200_000) as place:
        yield place


def mode_of(path: Path) -> int:
    return stat.S_IMODE(path.lstat().st_mode)


def own_file(served: Ground, caller: Caller = ROOT, name: str = "file") -> Path:
    """Make a file as *caller*, through the volume."""
    path = served.mountpoint / name
    caller.run(lambda: bool(path.write_text("a program")))
    return path


@pytest.mark.parametrize(
    "name", [CAPABILITY, "security.other", "trusted.overlay.opaque", "trusted.any"]
)
def test_only_attributes_of_users_are_set_and_removed(restricted: Ground, name: str) -> None:
    path = own_file(restricted)
    beneath = restricted.source / "file"
    value = NET_RAW if name == CAPABILITY else b"1"

    refused(errno.EPERM, lambda: os.setxattr(path, name, value))
    assert os.listxattr(beneath) == []

    os.setxattr(beneath, name, value)
    if name != CAPABILITY:
        refused(errno.EPERM, lambda: os.removexattr(path, name))
        assert os.getxattr(beneath, name) == value
    os.setxattr(path, "user.any", b"1")
    os.removexattr(path, "user.any")


def test_trusted_attributes_of_the_host_are_not_shown_and_others_are(restricted: Ground) -> None:
    path = own_file(restricted)
    for name in ("trusted.any", "security.any", "user.any"):
        os.setxattr(restricted.source / "file", name, b"1")

    assert sorted(os.listxattr(path)) == ["security.any", "user.any"]
    refused(errno.ENODATA, lambda: os.getxattr(path, "trusted.any"))
    assert os.getxattr(path, "security.any") == os.getxattr(path, "user.any") == b"1"


CONTENT_CHANGES: dict[str, Callable[[Path], object]] = {
    "write": lambda path: _with_fd(path, lambda fd: os.write(fd, b"x")),
    "append": lambda path: _with_fd(path, lambda fd: os.write(fd, b"x"), os.O_APPEND),
    "truncate": lambda path: os.truncate(path, 1),
    "truncate on opening": lambda path: path.write_bytes(b""),
    "fallocate": lambda path: _with_fd(path, lambda fd: os.posix_fallocate(fd, 0, 8192)),
    "copy": lambda path: _with_fd(path, lambda fd: _copy(path.with_name("other"), fd)),
}


def bool_of(change: Callable[[Path], object], path: Path) -> bool:
    """Call *change*, whose own result cannot be pickled."""
    return change(path) is not None


def _with_fd(path: Path, call: Callable[[int], object], flags: int = 0) -> None:
    fd = os.open(path, os.O_RDWR | flags)
    try:
        call(fd)
    finally:
        os.close(fd)


def _copy(path: Path, to: int) -> None:
    with path.open("rb") as file:
        os.copy_file_range(file.fileno(), to, 5)


@pytest.mark.parametrize("caller", [ROOT, USER], ids=["root", "user"])
@pytest.mark.parametrize("change", CONTENT_CHANGES.values(), ids=CONTENT_CHANGES)
def test_the_kernel_takes_file_capabilities_away_when_content_changes(
    restricted: Ground, change: Callable[[Path], object], caller: Caller
) -> None:
    path = own_file(restricted, caller)
    own_file(restricted, caller, "other")
    (restricted.source / "file").chmod(0o666)
    os.setxattr(restricted.source / "file", CAPABILITY, NET_RAW)

    caller.run(lambda: change(path) and None)
    assert os.listxattr(restricted.source / "file") == []


def test_file_capabilities_go_with_a_change_of_owner(mapped: Ground) -> None:
    path = own_file(mapped, USER)
    os.setxattr(mapped.source / "file", CAPABILITY, NET_RAW)
    ROOT.run(partial(os.chown, path, 5, 5))

    assert owner(mapped.source / "file") == (100_005, 200_005)
    assert os.listxattr(mapped.source / "file") == []


@pytest.mark.parametrize("kind", [stat.S_IFCHR, stat.S_IFBLK], ids=["character", "block"])
@pytest.mark.parametrize("number", [0, os.makedev(1, 3)], ids=["whiteout", "null"])
def test_no_device_node_is_made(restricted: Ground, kind: int, number: int) -> None:
    refused(errno.EPERM, lambda: os.mknod(restricted.mountpoint / "node", kind | 0o666, number))

    assert os.listdir(restricted.source) == []


def test_no_whiteout_is_left_by_a_rename(restricted: Ground) -> None:
    path = os.fsencode(own_file(restricted))
    flags = host_calls.RENAME_WHITEOUT
    refused(errno.EPERM, lambda: syscalls.renameat2(AT_FDCWD, path, AT_FDCWD, path + b"2", flags))

    assert os.listdir(restricted.source) == ["file"]


def test_other_special_files_are_made(restricted: Ground) -> None:
    for kind in (stat.S_IFIFO, stat.S_IFSOCK, stat.S_IFREG):
        os.mknod(restricted.mountpoint / f"{kind:o}", kind | 0o600)

    assert len(os.listdir(restricted.source)) == 3


@pytest.mark.parametrize("mode", [0o4755, 0o2755, 0o6755, 0o4711])
def test_no_caller_gives_suid_or_sgid_to_a_file_of_another_owner(
    restricted: Ground, mode: int
) -> None:
    path = own_file(restricted, USER)
    other = restricted.source / "other"
    other.touch()
    os.chown(other, 100_005, 200_000)
    other.chmod(0o644)
    beneath = restricted.source / "file"
    os.chown(beneath, 100_006, 200_006)
    beneath.chmod(0o644)

    for name in (path, path.with_name("other")):
        with pytest.raises(PermissionError):
            ROOT.run(partial(name.chmod, mode))
    assert (mode_of(beneath), mode_of(other)) == (0o644, 0o644)


def give_bits(caller: Caller, ground: Ground) -> None:
    path = own_file(ground, caller)
    for mode in (0o4755, 0o2755, 0o6755):
        caller.run(partial(path.chmod, mode))
        assert mode_of(ground.source / "file") == mode


def test_an_owner_gives_suid_and_sgid_to_a_file_of_its_own(restricted: Ground) -> None:
    give_bits(ROOT, restricted)


def test_a_user_gives_suid_and_sgid_to_a_file_of_its_own(mapped: Ground) -> None:
    give_bits(USER, mapped)


def test_container_root_changes_other_bits_of_other_owners_files(mapped: Ground) -> None:
    path = own_file(mapped, USER)
    USER.run(partial(path.chmod, 0o4755))
    ROOT.run(partial(path.chmod, 0o700))

    assert mode_of(mapped.source / "file") == 0o700


GROUPS = {"mapped group": 200_005, "unmapped group": 0}
every_group = pytest.mark.parametrize("group", GROUPS.values(), ids=GROUPS)

MAKING: dict[str, Callable[[Path], object]] = {
    "create": lambda path: os.close(os.open(path, os.O_CREAT | os.O_WRONLY, 0o6775)),
    "mknod": lambda path: os.mknod(path, stat.S_IFREG | 0o6775),
}


@every_group
@pytest.mark.parametrize("make", MAKING.values(), ids=MAKING)
def test_no_program_gets_sgid_of_a_group_that_its_directory_passes_on(
    mapped: Ground, group: int, make: Callable[[Path], object]
) -> None:
    """The kernel lets container root do so, because it has CAP_FSETID there."""
    shared = mapped.source / "shared"
    shared.mkdir()
    os.chown(shared, 100_000, group)
    shared.chmod(0o2775)
    path = mapped.mountpoint / "shared" / "program"

    ROOT.run(lambda: make(path) and None, umask=0)
    assert owner(shared / "program") == (100_000, group)
    assert mode_of(shared / "program") == 0o4775
    ROOT.run(partial(path.chmod, 0o2775))
    assert mode_of(shared / "program") == 0o775


@every_group
def test_an_own_directory_passes_on_only_a_group_that_the_map_has(
    mapped: Ground, group: int
) -> None:
    path = mapped.mountpoint / "shared"
    ROOT.run(path.mkdir)
    os.chown(mapped.source / "shared", -1, group)
    ROOT.run(partial(path.chmod, 0o2775))

    assert mode_of(mapped.source / "shared") == (0o2775 if group else 0o775)


def test_a_directory_of_another_owner_keeps_the_sgid_bit_and_gets_none(mapped: Ground) -> None:
    path = mapped.mountpoint / "dir"
    USER.run(path.mkdir)
    with pytest.raises(PermissionError):
        ROOT.run(partial(path.chmod, 0o2770))
    USER.run(partial(path.chmod, 0o2755))
    ROOT.run(partial(path.chmod, 0o2770))

    assert mode_of(mapped.source / "dir") == 0o2770


@pytest.mark.parametrize("change", CONTENT_CHANGES.values(), ids=CONTENT_CHANGES)
def test_container_root_takes_suid_and_sgid_away_when_it_changes_content(
    mapped: Ground, change: Callable[[Path], object]
) -> None:
    """Its user on the host has no privilege, and a write of such a user clears the bits."""
    path = own_file(mapped, USER)
    own_file(mapped, USER, "other")
    USER.run(partial(path.chmod, 0o6755))

    ROOT.run(lambda: change(path) and None)
    assert mode_of(mapped.source / "file") == 0o755


@pytest.mark.parametrize("change", ["write", "truncate", "fallocate"])
def test_container_root_takes_bits_away_that_came_after_it_had_opened_the_file(
    mapped: Ground, change: str
) -> None:
    """If the file is passed through, the kernel sends no request for the change."""
    path = own_file(mapped, USER)
    calls: dict[str, Callable[[int], object]] = {
        "write": lambda fd: os.write(fd, b"x"),
        "truncate": lambda fd: os.ftruncate(fd, 1),
        "fallocate": lambda fd: os.posix_fallocate(fd, 0, 8192),
    }
    fd = os.open(path, os.O_RDWR)
    try:
        USER.run(partial(path.chmod, 0o6755))
        calls[change](fd)
    finally:
        os.close(fd)

    assert mode_of(mapped.source / "file") == 0o755


def test_the_kernel_knows_that_container_root_has_taken_bits_away(
    session: dict[str, str],
) -> None:
    options = {**session, **RESTRICTIONS["map"], "cache": "always"}
    with volume(options) as served, ground(served, 100_000, 200_000) as place:
        for name, change in CONTENT_CHANGES.items():
            path = own_file(place, USER, name)
            own_file(place, USER, "other")
            USER.run(partial(path.chmod, 0o6755))
            assert mode_of(path) == 0o6755
            ROOT.run(partial(bool_of, change, path))
            assert (name, mode_of(path)) == (name, 0o755)


def test_without_a_map_root_has_the_powers_of_the_hosts_root(session: dict[str, str]) -> None:
    with volume(session) as served, ground(served, 0, 0) as place:
        path = own_file(place, USER)
        beneath = place.source / "file"
        ROOT.run(partial(path.chmod, 0o6755))
        ROOT.run(partial(os.setxattr, path, CAPABILITY, NET_RAW))
        ROOT.run(partial(os.setxattr, path, "trusted.any", b"1"))
        ROOT.run(partial(os.mknod, place.mountpoint / "null", stat.S_IFCHR, os.makedev(1, 3)))

        assert mode_of(beneath) == 0o6755
        assert sorted(os.listxattr(beneath)) == [CAPABILITY, "trusted.any"]
        assert stat.S_ISCHR((place.source / "null").stat().st_mode)
