"""Files with an owner that the volume's map lacks, tested through mounts by each session."""

import errno
import fcntl
import os
import stat
import struct
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import pytest

from passthrough.linux import syscalls
from passthrough.linux.privileges import AT_FDCWD
from tests.support.tools import host_calls
from tests.support.tools.callers import ROOT, Caller
from tests.support.tools.files import owner, public_directory
from tests.support.tools.mounted import Mounted, mounted

LIMIT_S = 30.0
HOST_UID, HOST_GID = 100_000, 200_000
MAP_UID, MAP_GID = f"0:{HOST_UID}:50000", f"0:{HOST_GID}:50000"
OVERFLOW = 65_534
GROUP = 4_294_967_294
"""The gid of an unmapped group beside a mapped user; every kernel shows it unchanged."""
FS_IOC_GETFLAGS, FS_IOC_SETFLAGS = 0x8008_6601, 0x4008_6602
NODUMP = 0x40

USER = Caller("user", 7, 8)
NOBODY = Caller("nobody", OVERFLOW, OVERFLOW)
CALLERS = [ROOT, USER, NOBODY]
every_caller = pytest.mark.parametrize("caller", CALLERS, ids=lambda caller: caller.name)

# Errors of the kernel, which may know the owner (inode_permission, may_delete, notify_change),
# and of the worker.
REFUSALS = {errno.EPERM, errno.EACCES, errno.EOVERFLOW}

WAYS = {
    "kernel, file handles": {"session": "kernel", "inode_file_handles": "mandatory"},
    "kernel": {"session": "kernel"},
    "kernel, passthrough off": {"session": "kernel", "passthrough": "off"},
    "libfuse": {"session": "libfuse"},
}


@pytest.fixture(params=list(WAYS.values()), ids=list(WAYS))
def way(request: pytest.FixtureRequest) -> dict[str, str]:
    """Return the options of one way to serve a volume after the other."""
    options: dict[str, str] = request.param
    return options


@contextmanager
def volume(way: dict[str, str], **options: str) -> Iterator[Mounted]:
    """Serve a directory of container root, with a map of users and groups."""
    maps = {"map_uid": MAP_UID, "map_gid": MAP_GID}
    with public_directory() as base:
        source = base / "source"
        source.mkdir()
        source.chmod(0o777)
        os.chown(source, HOST_UID, HOST_GID)
        service = mounted(base, {**maps, **way, **options})
        with service as served, served.limited(LIMIT_S):
            yield served


@pytest.fixture
def served(way: dict[str, str]) -> Iterator[Mounted]:
    with volume(way) as served:
        yield served


def put(path: Path, mode: int, uid: int = 0, gid: int = HOST_GID) -> Path:
    """Make a file on the host; the map lacks the default *uid*."""
    path.write_text("the host's")
    os.chown(path, uid, gid)
    path.chmod(mode)
    return path


def put_directory(path: Path, mode: int, uid: int = 0, gid: int = HOST_GID) -> Path:
    """Make a directory on the host, with a file in it that all may read and write."""
    path.mkdir()
    put(path / "inside", 0o666, uid, gid)
    os.chown(path, uid, gid)
    path.chmod(mode)
    return path


def read_all(path: Path) -> bytes:
    return path.read_bytes()


def set_flags(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY)
    try:
        fcntl.ioctl(fd, FS_IOC_SETFLAGS, struct.pack("=L", NODUMP))
    finally:
        os.close(fd)


def open_and_close(path: Path, flags: int) -> None:
    os.close(os.open(path, flags, 0o600))


def exchange(first: Path, second: Path) -> None:
    names = os.fsencode(first), os.fsencode(second)
    syscalls.renameat2(AT_FDCWD, names[0], AT_FDCWD, names[1], host_calls.RENAME_EXCHANGE)


Change = Callable[[Path], object]


CHANGES: dict[str, Change] = {
    "chmod": lambda path: path.chmod(0o4777),
    "chown to oneself": lambda path: os.chown(path, 0, 0),
    "chown of the user": lambda path: os.chown(path, 0, -1),
    "chown of the group": lambda path: os.chown(path, -1, 8),
    "chown to nobody": lambda path: os.chown(path, -1, -1),
    "utimes": lambda path: os.utime(path, (1, 1)),
    "touch": os.utime,
    "set attribute": lambda path: os.setxattr(path, "user.new", b"1"),
    "replace attribute": lambda path: os.setxattr(path, "user.there", b"2"),
    "remove attribute": lambda path: os.removexattr(path, "user.there"),
    "rename": lambda path: path.rename(path.with_name("elsewhere")),
    "replace": lambda path: path.with_name("another").rename(path),
    "exchange": lambda path: exchange(path, path.with_name("another")),
    "exchange from the other end": lambda path: exchange(path.with_name("another"), path),
}

FILE_CHANGES: dict[str, Change] = {
    **CHANGES,
    "truncate": lambda path: os.truncate(path, 1),
    "write": lambda path: path.write_text("new"),
    "append": lambda path: open_and_close(path, os.O_WRONLY | os.O_APPEND),
    "open for both": lambda path: open_and_close(path, os.O_RDWR),
    "truncate on opening": lambda path: open_and_close(path, os.O_RDONLY | os.O_TRUNC),
    "link": lambda path: os.link(path, path.with_name("second")),
    "unlink": lambda path: path.unlink(),
    "flags": set_flags,
}

DIRECTORY_CHANGES: dict[str, Change] = {
    **CHANGES,
    "create": lambda path: open_and_close(path / "new", os.O_CREAT | os.O_WRONLY),
    "create without a name": lambda path: open_and_close(path, os.O_TMPFILE | os.O_WRONLY),
    "mkdir": lambda path: (path / "new").mkdir(),
    "mknod": lambda path: os.mkfifo(path / "new"),
    "symlink": lambda path: (path / "new").symlink_to("target"),
    "link into": lambda path: os.link(path.with_name("another"), path / "new"),
    "rename into": lambda path: path.with_name("another").rename(path / "new"),
    "rename out of": lambda path: (path / "inside").rename(path.with_name("new")),
    "unlink in": lambda path: (path / "inside").unlink(),
    "rmdir in": lambda path: (path / "empty").rmdir(),
    "flags": set_flags,
}


def state(top: Path) -> dict[str, tuple[object, ...]]:
    """Return attributes and contents of a directory of the host, in which any change shows."""
    found: dict[str, tuple[object, ...]] = {}
    for path in [top, *sorted(top.rglob("*"))]:
        status = path.lstat()
        names = os.listxattr(path, follow_symlinks=False)
        found[str(path.relative_to(top))] = (
            *(status.st_ino, oct(status.st_mode), status.st_nlink, status.st_uid, status.st_gid),
            *(status.st_mtime_ns, status.st_ctime_ns),
            [(name, os.getxattr(path, name)) for name in names],
            path.read_bytes() if stat.S_ISREG(status.st_mode) else b"",
        )
    return found


def attempts(caller: Caller, path: Path, changes: dict[str, Change]) -> dict[str, str]:
    """Try every change as *caller*; return the result of each change that was not refused."""
    return caller.run(partial(_outcomes, path, changes))


def _outcomes(path: Path, changes: dict[str, Change]) -> dict[str, str]:
    outcomes = {}
    for name, change in changes.items():
        try:
            change(path)
        except OSError as error:
            if error.errno not in REFUSALS and not _lacking(name, error):
                outcomes[name] = errno.errorcode[error.errno or 0]
        else:
            outcomes[name] = "allowed"
    return outcomes


def _lacking(name: str, error: OSError) -> bool:
    """Return whether *error* means that libfuse's binding lacks this request."""
    lacks = {"flags": errno.ENOTTY, "create without a name": errno.EOPNOTSUPP}
    return error.errno == lacks.get(name)


def furnish(source: Path, *, uid: int) -> None:
    """Make a file and a directory of *uid* with all rights, and a file of container root."""
    put(source / "file", 0o666, uid)
    os.setxattr(source / "file", "user.there", b"1")
    put_directory(source / "dir", 0o777, uid)
    os.setxattr(source / "dir", "user.there", b"1")
    (source / "dir" / "empty").mkdir()
    os.chown(source / "dir" / "empty", uid, HOST_GID)
    put(source / "another", 0o666, HOST_UID)


@every_caller
def test_a_private_file_of_an_unmapped_owner_is_read_by_no_caller(
    served: Mounted, caller: Caller
) -> None:
    put(served.source / "secret", 0o600)
    put(served.source / "of the group", 0o640, gid=0)
    put_directory(served.source / "closed", 0o700)

    for call in (
        partial(read_all, served.mountpoint / "secret"),
        partial(read_all, served.mountpoint / "of the group"),
        partial(os.listdir, served.mountpoint / "closed"),
        partial(os.stat, served.mountpoint / "closed" / "inside"),
    ):
        with pytest.raises(PermissionError) as refused:
            caller.run(call)
        assert refused.value.errno == errno.EACCES


@every_caller
def test_all_users_read_files_of_an_unmapped_owner_as_the_mode_says(
    served: Mounted, caller: Caller
) -> None:
    put(served.source / "file", 0o644)
    put_directory(served.source / "dir", 0o755)
    os.setxattr(served.source / "file", "user.there", b"1")
    (served.source / "program").write_bytes(Path("/bin/true").read_bytes())
    (served.source / "program").chmod(0o711)
    (served.source / "link").symlink_to("file")
    top = served.mountpoint

    assert caller.run((top / "file").read_text) == "the host's"
    assert caller.run((top / "link").read_text) == "the host's"
    assert caller.run(lambda: sorted(os.listdir(top / "dir"))) == ["inside"]
    assert caller.run((top / "dir" / "inside").read_text) == "the host's"
    assert caller.run(lambda: os.getxattr(top / "file", "user.there")) == b"1"
    assert caller.run(lambda: subprocess.call([top / "program"])) == 0


@every_caller
@pytest.mark.parametrize(
    ("name", "changes"), [("file", FILE_CHANGES), ("dir", DIRECTORY_CHANGES)], ids=["file", "dir"]
)
def test_no_caller_changes_files_of_an_unmapped_owner(
    served: Mounted, caller: Caller, name: str, changes: dict[str, Change]
) -> None:
    """The mode does not matter, as on an idmapped mount."""
    furnish(served.source, uid=0)
    before = state(served.source)

    assert attempts(caller, served.mountpoint / name, changes) == {}
    assert state(served.source) == before


@pytest.mark.parametrize(
    ("name", "changes"), [("file", FILE_CHANGES), ("dir", DIRECTORY_CHANGES)], ids=["file", "dir"]
)
def test_a_kernel_that_knows_an_older_owner_changes_nothing_either(
    way: dict[str, str], name: str, changes: dict[str, Change]
) -> None:
    """The worker checks the current owner of the file."""
    with volume(way, cache="always") as served:
        furnish(served.source, uid=HOST_UID)
        for path in list(served.mountpoint.rglob("*")):
            path.lstat()  # after the listing, which invalidates a directory's access time
        for path in [served.source / name, *(served.source / name).rglob("*")]:
            os.chown(path, 0, HOST_GID)
        assert owner(served.mountpoint / name) == (0, 0)
        before = state(served.source)

        assert attempts(ROOT, served.mountpoint / name, changes) == {}
        assert state(served.source) == before


def test_a_kernel_that_knows_an_older_owner_reads_nothing_private(way: dict[str, str]) -> None:
    with volume(way, cache="always") as served:
        for path in (
            put(served.source / "secret", 0o600, HOST_UID),
            put_directory(served.source / "closed", 0o700, HOST_UID),
        ):
            (served.mountpoint / path.name).stat()
            os.chown(path, 0, HOST_GID)

        for call in (
            (served.mountpoint / "secret").read_bytes,
            partial(os.listdir, served.mountpoint / "closed"),
        ):
            with pytest.raises(PermissionError) as refused:
                ROOT.run(call)
            assert refused.value.errno == errno.EACCES


MAKING: dict[str, Callable[[Path], object]] = {
    "create": lambda path: open_and_close(path, os.O_CREAT | os.O_WRONLY),
    "mknod": lambda path: os.mknod(path, stat.S_IFREG | 0o600),
    "fifo": os.mkfifo,
    "mkdir": os.mkdir,
    "symlink": lambda path: os.symlink("target", path),
    "link": lambda path: os.link(path.with_name("first"), path),
}


@pytest.mark.parametrize("make", MAKING.values(), ids=MAKING)
def test_every_reply_tells_an_unmapped_group_apart(
    way: dict[str, str], make: Callable[[Path], object]
) -> None:
    """With cache=always, the kernel shows the attributes in the reply to the creation."""
    with volume(way, cache="always") as served:
        shared = put_directory(served.source / "shared", 0o2777, HOST_UID, gid=0)
        (shared / "inside").rename(shared / "first")
        os.chown(shared / "first", HOST_UID + USER.uid, 0)
        there = served.mountpoint / "shared"
        USER.run(lambda: make(there / "new") and None)

        assert owner(shared / "new") == (HOST_UID + USER.uid, 0)
        assert owner(there / "new") == (USER.uid, GROUP)
        assert owner(there / "first") == (USER.uid, GROUP)


def test_a_listing_shows_owners_as_a_lookup_does(way: dict[str, str]) -> None:
    with volume(way, cache="always") as served:
        put(served.source / "user", 0o644)
        put(served.source / "group", 0o644, HOST_UID, gid=0)
        put(served.source / "both", 0o644, gid=0)
        put(served.source / "neither", 0o644, HOST_UID + 1, HOST_GID + 2)

        seen = {entry.name: entry.stat() for entry in os.scandir(served.mountpoint)}

        assert {name: (found.st_uid, found.st_gid) for name, found in seen.items()} == {
            "user": (OVERFLOW, OVERFLOW),
            "group": (0, GROUP),
            "both": (OVERFLOW, OVERFLOW),
            "neither": (1, 2),
        }


OWNERS_RIGHTS: dict[str, Change] = {
    "chmod": lambda path: path.chmod(0o640),
    "write": lambda path: path.write_text("new"),
    "truncate": lambda path: os.truncate(path, 1),
    "utimes": lambda path: os.utime(path, (1, 1)),
    "set attribute": lambda path: os.setxattr(path, "user.new", b"1"),
    "remove attribute": lambda path: os.removexattr(path, "user.new"),
    "chgrp": lambda path: os.chown(path, -1, 8),
    "link": lambda path: os.link(path, path.with_name("second")),
    "rename": lambda path: path.rename(path.with_name("moved")),
    "unlink": lambda path: path.with_name("moved").unlink(),
}


def test_a_mapped_owner_with_an_unmapped_group_keeps_all_rights(served: Mounted) -> None:
    put(served.source / "file", 0o600, HOST_UID + USER.uid, gid=0)

    USER.run(
        lambda: [change(served.mountpoint / "file") for change in OWNERS_RIGHTS.values()] and 0
    )

    assert owner(served.source / "second") == (HOST_UID + USER.uid, HOST_GID + USER.gid)
    assert not (served.source / "file").exists()


def test_an_unmapped_group_gives_no_caller_its_rights(served: Mounted) -> None:
    put(served.source / "file", 0o660, HOST_UID + 1, gid=0)
    put(served.source / "nobody's", 0o660, HOST_UID + 1, gid=OVERFLOW)
    for caller in (USER, NOBODY, Caller("of group 0", 7, 0)):
        for name in ("file", "nobody's"):
            with pytest.raises(PermissionError):
                caller.run((served.mountpoint / name).read_text)


@pytest.mark.parametrize(
    ("options", "shown"),
    [
        ({"map_gid": "none"}, (OVERFLOW, OVERFLOW)),
        ({"map_uid": "none"}, (0, GROUP)),
    ],
    ids=["users alone", "groups alone"],
)
def test_a_map_of_one_kind_lacks_owners_of_that_kind_alone(
    way: dict[str, str], options: dict[str, str], shown: tuple[int, int]
) -> None:
    with volume(way, **options) as served:
        put(served.source / "file", 0o600, gid=0)

        assert owner(served.mountpoint / "file") == shown
        if shown[0] == OVERFLOW:
            assert attempts(ROOT, served.mountpoint / "file", {"chown": CHANGES["chmod"]}) == {}
        else:
            ROOT.run(lambda: bool((served.mountpoint / "file").write_text("root's own")))


@pytest.mark.parametrize(("squash", "shown"), [("root", (0, 0)), ("all", (77, 88))])
def test_a_squashed_caller_owns_its_files_even_if_the_map_lacks_the_anonymous_user(
    way: dict[str, str], squash: str, shown: tuple[int, int]
) -> None:
    with volume(way, squash=squash, anon_uid="77", anon_gid="88") as served:
        path = served.mountpoint / "file"
        ROOT.run(lambda: bool(path.write_text("mine")))
        assert owner(served.source / "file") == (77, 88)
        assert owner(path) == shown

        ROOT.run(lambda: path.chmod(0o600))
        ROOT.run(lambda: str(path.rename(path.with_name("moved"))))
        ROOT.run(path.with_name("moved").unlink)


@pytest.mark.parametrize(("readonly", "lines"), [("false", 1), ("true", 0)])
def test_the_log_says_that_the_top_belongs_to_an_unmapped_owner(
    tmp_path: Path, way: dict[str, str], readonly: str, lines: int
) -> None:
    """Users only see EACCES, which does not explain the cause."""
    options = {**way, "map_uid": MAP_UID, "readonly": readonly}
    with mounted(tmp_path, options) as served:
        logged = served.logged().splitlines()

    assert len(logged) == lines
    for line in logged:
        assert line == (
            "WARNING passthrough.worker.process: the top directory belongs to the host's user 0,"
            " which is in no range of map_uid: no caller can create or remove anything in it;"
            " chown it on the host"
        )


def test_a_volume_takes_nothing_if_its_top_belongs_to_an_unmapped_owner(served: Mounted) -> None:
    os.chown(served.source, 0, 0)
    before = state(served.source)

    for caller in CALLERS:
        with pytest.raises(PermissionError):
            caller.run((served.mountpoint / "new").touch)
    with pytest.raises(PermissionError):
        ROOT.run(partial(os.chown, served.mountpoint, 0, 0))
    assert state(served.source) == before
