"""Owners in the volume and on the host, through the operations and through a mount."""

import errno
import os
import stat
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from passthrough.core.filesystem import PassthroughFs
from passthrough.core.inodes import ROOT
from passthrough.core.squashed import filesystem_of
from passthrough.identity.attributes import Attributes, Changes, Entry
from passthrough.identity.idmap import Caller, ContainerId
from passthrough.linux import syscalls
from passthrough.options.choices import Squash
from passthrough.options.values import Range
from tests.support.tools.callers import MEMBER, TEAM_GID, USER, attempt
from tests.support.tools.direct import caller, fails, listing, number_of
from tests.support.tools.files import owner
from tests.support.tools.mounted import mounted
from tests.support.tools.options import effective

MAPPED = effective(map_uid=(Range(0, 100_000, 1000),), map_gid=(Range(0, 200_000, 1000),))
INSIDE, OUTSIDE = caller(7, 8), caller(7, 5000)
UNMAPPED, UNMAPPED_GROUP = 4_294_967_295, 4_294_967_294
LIMIT_S = 30.0

CREATING: dict[str, Callable[[PassthroughFs, Caller], object]] = {
    "mknod": lambda fs, user: fs.mknod(ROOT, b"new", stat.S_IFIFO | 0o600, 0, user),
    "mkdir": lambda fs, user: fs.mkdir(ROOT, b"new", 0o700, user),
    "symlink": lambda fs, user: fs.symlink(ROOT, b"new", b"target", user),
    "create": lambda fs, user: fs.create(ROOT, b"new", 0o600, os.O_RDWR, user),
}


@pytest.fixture
def mapping(source: Path) -> Iterator[PassthroughFs]:
    """Yield a volume that maps the ids 0 to 999; the top directory belongs to container root."""
    os.chown(source, 100_000, 200_000)
    fs = PassthroughFs(MAPPED, os.open(source, os.O_PATH))
    yield fs
    fs.close()


@pytest.mark.parametrize("create", CREATING.values(), ids=CREATING)
def test_a_new_file_belongs_to_the_callers_counterpart(
    mapping: PassthroughFs, source: Path, create: Callable[[PassthroughFs, Caller], object]
) -> None:
    create(mapping, INSIDE)

    assert owner(source / "new") == (100_007, 200_008)


@pytest.mark.logs("id 5000 is in no range of map_gid, so nothing is created for it")
@pytest.mark.parametrize("create", CREATING.values(), ids=CREATING)
def test_a_caller_without_a_counterpart_creates_no_file_and_is_logged_once(
    mapping: PassthroughFs,
    source: Path,
    create: Callable[[PassthroughFs, Caller], object],
    caplog: pytest.LogCaptureFixture,
) -> None:
    for _ in range(3):
        fails(errno.EPERM, lambda: create(mapping, OUTSIDE))

    assert os.listdir(source) == []
    assert len(caplog.records) == 1


@pytest.fixture
def files(source: Path) -> Path:
    """Create a file of a mapped owner, `known`, and a file of an unmapped owner, `stranger`."""
    (source / "known").touch()
    os.chown(source / "known", 100_007, 200_008)
    (source / "stranger").touch()
    os.chown(source / "stranger", 7, 200_008)
    return source


@pytest.mark.usefixtures("files")
def test_every_reply_has_the_mapped_owner(mapping: PassthroughFs) -> None:
    known = mapping.lookup(ROOT, b"known")
    replies: list[Entry | Attributes | None] = [
        known,
        mapping.getattr(known.inode_number),
        mapping.statx(known.inode_number)[0],
        mapping.setattr(known.inode_number, Changes(mode=0o600)),
        mapping.link(known.inode_number, ROOT, b"second"),
        listing(mapping)[b"known"],
        mapping.mkdir(ROOT, b"new", 0o700, INSIDE),
        mapping.mknod(ROOT, b"fifo", stat.S_IFIFO | 0o600, 0, INSIDE),
        mapping.symlink(ROOT, b"link", b"target", INSIDE),
        mapping.create(ROOT, b"created", 0o700, os.O_RDWR, INSIDE)[0],
        mapping.tmpfile(ROOT, 0o600, os.O_RDWR, INSIDE)[0],
    ]
    assert [reply and reply.owner for reply in replies] == [(7, 8)] * len(replies)


@pytest.mark.usefixtures("files")
def test_every_reply_has_the_invalid_id_for_an_unmapped_owner(
    mapping: PassthroughFs,
) -> None:
    stranger = mapping.lookup(ROOT, b"stranger")
    replies: list[Entry | Attributes | None] = [
        stranger,
        mapping.getattr(stranger.inode_number),
        mapping.statx(stranger.inode_number)[0],
        listing(mapping)[b"stranger"],
    ]
    assert [reply and reply.owner for reply in replies] == [(UNMAPPED, UNMAPPED)] * len(replies)


def test_every_reply_has_a_valid_id_for_an_unmapped_group_of_a_mapped_user(
    mapping: PassthroughFs, source: Path
) -> None:
    """A new file in a setgid directory has the group of the directory."""
    (source / "shared").mkdir()
    os.chown(source / "shared", 100_007, 0)
    (source / "shared").chmod(0o2770)
    shared = number_of(mapping, b"shared")
    created = mapping.create(shared, b"created", 0o600, os.O_RDWR, INSIDE)[0]
    replies: list[Entry | Attributes | None] = [
        created,
        mapping.lookup(ROOT, b"shared"),
        mapping.getattr(shared),
        mapping.statx(shared)[0],
        mapping.setattr(created.inode_number, Changes(mode=0o640)),
        mapping.link(created.inode_number, shared, b"second"),
        listing(mapping)[b"shared"],
        mapping.mkdir(shared, b"dir", 0o700, INSIDE),
        mapping.mknod(shared, b"fifo", stat.S_IFIFO | 0o600, 0, INSIDE),
        mapping.symlink(shared, b"link", b"target", INSIDE),
        mapping.tmpfile(shared, 0o600, os.O_RDWR, INSIDE)[0],
    ]
    assert [reply and reply.owner for reply in replies] == [(7, UNMAPPED_GROUP)] * len(replies)


CHANGING: dict[str, Callable[[PassthroughFs, int], object]] = {
    "mode": lambda fs, file: fs.setattr(file, Changes(mode=0o600)),
    "owner": lambda fs, file: fs.setattr(file, Changes(uid=ContainerId(0), gid=ContainerId(0))),
    "nothing": lambda fs, file: fs.setattr(file, Changes(), clear_privileges=True),
    "size": lambda fs, file: fs.setattr(file, Changes(size=0)),
    "times": lambda fs, file: fs.setattr(file, Changes(mtime=(5, 6))),
    "setxattr": lambda fs, file: fs.setxattr(file, b"user.a", b"1"),
    "removexattr": lambda fs, file: fs.removexattr(file, b"user.b"),
    "link": lambda fs, file: fs.link(file, ROOT, b"new"),
    "rename": lambda fs, _: fs.rename(ROOT, b"stranger", ROOT, b"new", 0, INSIDE),
    "replace": lambda fs, _: fs.rename(ROOT, b"known", ROOT, b"stranger", 0, INSIDE),
    "exchange": lambda fs, _: fs.rename(
        *(ROOT, b"stranger", ROOT, b"known", syscalls.RENAME_EXCHANGE, INSIDE)
    ),
    "exchange, the other end": lambda fs, _: fs.rename(
        *(ROOT, b"known", ROOT, b"stranger", syscalls.RENAME_EXCHANGE, INSIDE)
    ),
    "unlink": lambda fs, _: fs.unlink(ROOT, b"stranger"),
}


@pytest.mark.parametrize("change", CHANGING.values(), ids=CHANGING)
def test_a_file_of_an_unmapped_owner_cannot_be_changed(
    mapping: PassthroughFs, files: Path, change: Callable[[PassthroughFs, int], object]
) -> None:
    os.setxattr(files / "stranger", "user.b", b"1")
    before = (files / "stranger").stat()
    number = number_of(mapping, b"stranger")

    fails(errno.EPERM, lambda: change(mapping, number))
    assert (files / "stranger").stat() == before
    assert sorted(os.listdir(files)) == ["known", "stranger"]
    assert os.listxattr(files / "stranger") == ["user.b"]


@pytest.mark.parametrize("create", CREATING.values(), ids=CREATING)
def test_no_file_can_be_created_in_a_directory_of_an_unmapped_owner(
    mapping: PassthroughFs, source: Path, create: Callable[[PassthroughFs, Caller], object]
) -> None:
    os.chown(source, 5, 200_000)

    fails(errno.EPERM, lambda: create(mapping, INSIDE))
    fails(errno.EPERM, lambda: mapping.tmpfile(ROOT, 0o600, os.O_RDWR, INSIDE))
    assert os.listdir(source) == []


@pytest.mark.parametrize(
    ("mode", "flags", "opens"),
    [
        (0o664, os.O_RDONLY, True),
        (0o660, os.O_RDONLY, False),
        (0o666, os.O_WRONLY, False),
        (0o666, os.O_RDWR, False),
        (0o666, os.O_RDONLY | os.O_TRUNC, False),
        (0o711, os.O_RDONLY, False),
        (0o711, os.O_RDONLY | 0x20, True),  # execve(2)
    ],
)
def test_a_file_of_an_unmapped_owner_opens_only_as_its_mode_lets_others_read(
    mapping: PassthroughFs, files: Path, mode: int, flags: int, opens: bool
) -> None:
    (files / "stranger").chmod(mode)
    number = number_of(mapping, b"stranger")

    if opens:
        mapping.open(number, flags)
    else:
        fails(errno.EACCES, lambda: mapping.open(number, flags))


def test_a_file_of_an_unmapped_owner_without_an_open_can_be_read_and_not_written(
    mapping: PassthroughFs, files: Path
) -> None:
    (files / "stranger").write_text("kept")
    handle = mapping.unopened(number_of(mapping, b"stranger"))

    assert mapping.read(handle, 0, 10) == b"kept"
    fails(errno.EBADF, lambda: mapping.write(handle, 0, b"x"))


@pytest.mark.usefixtures("files")
def test_access_to_a_file_of_an_unmapped_owner_is_that_of_others_without_writing(
    mapping: PassthroughFs, source: Path
) -> None:
    (source / "stranger").chmod(0o666)
    number = number_of(mapping, b"stranger")
    for user in (caller(0, 0), caller(UNMAPPED, UNMAPPED), INSIDE):
        assert mapping.access(number, os.R_OK, user)
        assert not mapping.access(number, os.W_OK, user)
        assert not mapping.access(number, os.X_OK, user)


def test_a_file_without_a_name_gets_no_sgid_of_its_directorys_group(
    mapping: PassthroughFs, source: Path
) -> None:
    (source / "shared").mkdir()
    os.chown(source / "shared", 100_007, 0)
    (source / "shared").chmod(0o2770)
    entry, _ = mapping.tmpfile(number_of(mapping, b"shared"), 0o6750, os.O_RDWR, INSIDE)

    assert entry.stat.st_mode & 0o7777 == 0o4750


def test_a_file_gets_no_suid_bit_if_its_owner_changes_before_chmod(
    mapping: PassthroughFs, files: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The host compares the owner under the inode's lock."""
    number = number_of(mapping, b"known")
    chmod = os.chmod

    with ThreadPoolExecutor(1) as pool:
        pool.submit(os.getpid).result()  # starts the other thread as root

        def given_away_before(path: bytes, mode: int) -> None:
            pool.submit(os.chown, files / "known", 100_008, -1).result()
            chmod(path, mode)

        monkeypatch.setattr(os, "chmod", given_away_before)
        fails(errno.EPERM, lambda: mapping.setattr(number, Changes(mode=0o4700), caller=INSIDE))

    assert owner(files / "known") == (100_008, 200_008)
    assert (files / "known").stat().st_mode & 0o7000 == 0


def test_only_the_owner_sets_suid_and_sgid_bits(mapping: PassthroughFs, files: Path) -> None:
    number = number_of(mapping, b"known")
    for user in (None, caller(0, 0), caller(1, 8)):
        fails(
            errno.EPERM,
            lambda user=user: mapping.setattr(number, Changes(mode=0o4700), caller=user),  # type: ignore[misc]
        )
    mapping.setattr(number, Changes(mode=0o6700), caller=INSIDE)

    assert (files / "known").stat().st_mode & 0o7777 == 0o6700


NOT_CREATING: dict[str, Callable[[PassthroughFs, int], object]] = {
    "write": lambda fs, file: fs.write(fs.open(file, os.O_RDWR), 0, b"x"),
    "append": lambda fs, file: fs.write(fs.open(file, os.O_WRONLY | os.O_APPEND), 0, b"x"),
    "read": lambda fs, file: fs.read(fs.open(file, os.O_RDONLY), 0, 1),
    "truncate on opening": lambda fs, file: fs.open(file, os.O_RDWR | os.O_TRUNC),
    "flush": lambda fs, file: fs.flush(fs.open(file, os.O_RDWR)),
    "fsync": lambda fs, file: fs.fsync(fs.open(file, os.O_RDWR), datasync=False),
    "setattr": lambda fs, file: fs.setattr(
        file, Changes(0o600, ContainerId(1), ContainerId(2), 3, (5, 6), (5, 6))
    ),
    "setxattr": lambda fs, file: fs.setxattr(file, b"user.a", b"1"),
    "link": lambda fs, file: fs.link(file, ROOT, b"new"),
    "rename": lambda fs, _: fs.rename(ROOT, b"known", ROOT, b"new", 0, INSIDE),
    "unlink": lambda fs, _: fs.unlink(ROOT, b"known"),
    "listing": lambda fs, _: listing(fs),
    "access": lambda fs, file: fs.access(file, os.R_OK, INSIDE),
}


@pytest.mark.usefixtures("files")
@pytest.mark.parametrize("operation", NOT_CREATING.values(), ids=NOT_CREATING)
def test_operations_that_create_no_file_act_as_root(
    mapping: PassthroughFs,
    operation: Callable[[PassthroughFs, int], object],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Pages that the kernel writes back later have no caller."""
    number = number_of(mapping, b"known")
    monkeypatch.delattr(syscalls, "setfsuid")
    monkeypatch.delattr(syscalls, "setfsgid")

    operation(mapping, number)


@pytest.mark.usefixtures("files")
def test_access_compares_the_ids_of_the_container(mapping: PassthroughFs) -> None:
    number = number_of(mapping, b"known")
    mapping.setattr(number, Changes(mode=0o600))

    assert mapping.access(number, os.R_OK, INSIDE)
    assert not mapping.access(number, os.R_OK, caller(100_007, 200_008))


def test_chown_maps_the_ids_to_the_host(mapping: PassthroughFs, files: Path) -> None:
    number = number_of(mapping, b"known")

    assert mapping.setattr(number, Changes(uid=ContainerId(1))).owner == (1, 8)
    assert owner(files / "known") == (100_001, 200_008)
    mapping.setattr(number, Changes(gid=ContainerId(2)))
    assert owner(files / "known") == (100_001, 200_002)


@pytest.mark.logs("id 5000 is in no range of map_uid")
@pytest.mark.logs("id 5000 is in no range of map_gid")
def test_chown_to_an_id_without_a_counterpart_is_refused(
    mapping: PassthroughFs, files: Path
) -> None:
    number = number_of(mapping, b"known")
    for changes in (
        Changes(uid=ContainerId(5000)),
        Changes(gid=ContainerId(5000)),
        Changes(uid=ContainerId(1), gid=ContainerId(5000)),
    ):
        fails(errno.EPERM, lambda changes=changes: mapping.setattr(number, changes))  # type: ignore[misc]

    assert owner(files / "known") == (100_007, 200_008)


@pytest.mark.parametrize(
    ("squash", "user", "expected"),
    [
        (Squash.ROOT, caller(0, 0), (70, 80)),
        (Squash.ROOT, caller(0, 5), (70, 5)),
        (Squash.ROOT, caller(5, 0), (5, 80)),
        (Squash.ROOT, caller(5, 5), (5, 5)),
        (Squash.ALL, caller(5, 5), (70, 80)),
    ],
)
def test_squashed_callers_create_and_chown_as_the_anonymous_ids(
    source: Path, squash: Squash, user: Caller, expected: tuple[int, int]
) -> None:
    (source / "given").touch()
    os.chown(source / "given", expected[0], 9)
    config = effective(squash=squash, anon_uid=70, anon_gid=80)
    fs = filesystem_of(config, os.open(source, os.O_PATH))
    try:
        with fs.asked_by(user):
            fs.mkdir(ROOT, b"new", 0o700, user)
            fs.setattr(number_of(fs, b"given"), Changes(uid=user.uid, gid=user.gid))
    finally:
        fs.close()

    assert owner(source / "new") == owner(source / "given") == expected


def test_without_a_map_owners_are_those_of_the_host(fs: PassthroughFs, source: Path) -> None:
    (source / "file").touch()

    assert fs.lookup(ROOT, b"file").owner is None


def test_users_of_a_mounted_volume_see_their_own_ids(base: Path) -> None:
    """The kernel checks permissions by these ids, groups included."""
    options = {"map_uid": "0:100000:50000", "map_gid": "0:200000:50000+60000:60000:1"}
    (base / "source").mkdir()
    os.chown(base / "source", 100_000, 200_000)
    with mounted(base, options) as served, served.limited(LIMIT_S):
        team = served.mountpoint / "team"
        team.mkdir()
        os.chown(team, 0, TEAM_GID)
        team.chmod(0o2770)

        MEMBER.run(lambda: bool((team / "file").write_text("mine")))
        MEMBER.run(lambda: (team / "file").chmod(0o600))

        assert owner(served.mountpoint) == (0, 0)
        assert owner(team / "file") == (MEMBER.uid, TEAM_GID)
        assert owner(served.source / "team" / "file") == (
            100_000 + MEMBER.uid,
            200_000 + TEAM_GID,
        )
        assert MEMBER.run((team / "file").read_text) == "mine"
        assert attempt(USER, lambda: os.listdir(team)) == "EACCES"
