"""Owners between a volume's users and the host, through the operations and through a mount."""

import errno
import os
import stat
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from passthrough import syscalls
from passthrough.attributes import Attributes, Changes, Entry
from passthrough.config import Config, Squash
from passthrough.filesystem import PassthroughFs
from passthrough.idmap import Caller, ContainerId
from passthrough.inodes import ROOT
from passthrough.values import Range
from tests.support.callers import MEMBER, TEAM_GID, USER, attempt
from tests.support.direct import caller, fails, listing, number_of
from tests.support.files import owner
from tests.support.mounted import mounted

MAPPED = Config(map_uid=(Range(0, 100_000, 1000),), map_gid=(Range(0, 200_000, 1000),))
INSIDE, OUTSIDE = caller(7, 8), caller(7, 5000)
OVERFLOW = 65_534
LIMIT_S = 30.0

CREATING: dict[str, Callable[[PassthroughFs, Caller], object]] = {
    "mknod": lambda fs, who: fs.mknod(ROOT, b"new", stat.S_IFIFO | 0o600, 0, who),
    "mkdir": lambda fs, who: fs.mkdir(ROOT, b"new", 0o700, who),
    "symlink": lambda fs, who: fs.symlink(ROOT, b"new", b"target", who),
    "create": lambda fs, who: fs.create(ROOT, b"new", 0o600, os.O_RDWR, who),
}


@pytest.fixture
def mapping(source: Path) -> Iterator[PassthroughFs]:
    """A volume whose ids from 0 to 999 are others on the host."""
    fs = PassthroughFs(MAPPED, os.open(source, os.O_PATH))
    yield fs
    fs.close()


@pytest.mark.parametrize("create", CREATING.values(), ids=CREATING)
def test_what_is_created_belongs_to_the_callers_counterpart(
    mapping: PassthroughFs, source: Path, create: Callable[[PassthroughFs, Caller], object]
) -> None:
    create(mapping, INSIDE)

    assert owner(source / "new") == (100_007, 200_008)


@pytest.mark.logs("id 5000 is in no range of map_gid, so nothing is created for it")
@pytest.mark.parametrize("create", CREATING.values(), ids=CREATING)
def test_who_has_no_counterpart_creates_nothing_and_that_is_said_once(
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
    """A file of somebody's whom the volume knows, and one of a stranger's."""
    (source / "known").touch()
    os.chown(source / "known", 100_007, 200_008)
    (source / "stranger").touch()
    os.chown(source / "stranger", 7, 200_008)
    return source


@pytest.mark.usefixtures("files")
def test_every_reply_shows_the_owner_that_the_volume_knows(mapping: PassthroughFs) -> None:
    known = mapping.lookup(ROOT, b"known")
    replies: list[Entry | Attributes | None] = [
        known,
        mapping.getattr(known.inode_number),
        mapping.setattr(known.inode_number, Changes(mode=0o600)),
        mapping.link(known.inode_number, ROOT, b"second"),
        listing(mapping)[b"known"],
        mapping.mkdir(ROOT, b"new", 0o700, INSIDE),
        mapping.create(ROOT, b"created", 0o700, os.O_RDWR, INSIDE)[0],
    ]
    assert [reply and reply.owner for reply in replies] == [(7, 8)] * len(replies)
    assert mapping.lookup(ROOT, b"stranger").owner == (OVERFLOW, 8)


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
def test_what_creates_nothing_acts_as_nobody_else(
    mapping: PassthroughFs,
    operation: Callable[[PassthroughFs, int], object],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Pages that the kernel writes back later have no caller, and quotas and checks are not his."""
    number = number_of(mapping, b"known")
    monkeypatch.delattr(syscalls, "setfsuid")
    monkeypatch.delattr(syscalls, "setfsgid")

    operation(mapping, number)


@pytest.mark.usefixtures("files")
def test_access_compares_what_is_shown(mapping: PassthroughFs) -> None:
    number = number_of(mapping, b"known")
    mapping.setattr(number, Changes(mode=0o600))

    assert mapping.access(number, os.R_OK, INSIDE)
    assert not mapping.access(number, os.R_OK, caller(100_007, 200_008))


def test_chown_is_translated(mapping: PassthroughFs, files: Path) -> None:
    number = number_of(mapping, b"known")

    assert mapping.setattr(number, Changes(uid=ContainerId(1))).owner == (1, 8)
    assert owner(files / "known") == (100_001, 200_008)
    mapping.setattr(number, Changes(gid=ContainerId(2)))
    assert owner(files / "known") == (100_001, 200_002)


@pytest.mark.logs("id 5000 is in no range of map_uid")
@pytest.mark.logs("id 5000 is in no range of map_gid")
def test_a_file_cannot_be_given_to_who_has_no_counterpart(
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
    ("squash", "who", "expected"),
    [
        (Squash.ROOT, caller(0, 0), (70, 80)),
        (Squash.ROOT, caller(0, 5), (70, 5)),
        (Squash.ROOT, caller(5, 5), (5, 5)),
        (Squash.ALL, caller(5, 5), (70, 80)),
    ],
)
def test_squashed_callers_create_and_give_as_the_anonymous_ones(
    source: Path, squash: Squash, who: Caller, expected: tuple[int, int]
) -> None:
    (source / "given").touch()
    os.chown(source / "given", 9, 9)
    fs = PassthroughFs(Config(squash=squash, anon_uid=70, anon_gid=80), os.open(source, os.O_PATH))
    try:
        fs.mkdir(ROOT, b"new", 0o700, who)
        fs.setattr(number_of(fs, b"given"), Changes(uid=who.uid, gid=who.gid))
    finally:
        fs.close()

    assert owner(source / "new") == owner(source / "given") == expected


def test_without_a_map_owners_are_those_of_the_host(fs: PassthroughFs, source: Path) -> None:
    (source / "file").touch()

    assert fs.lookup(ROOT, b"file").owner is None


@pytest.fixture
def place() -> Iterator[Path]:
    """A directory that other users reach, unlike pytest's own."""
    with tempfile.TemporaryDirectory() as directory:
        Path(directory).chmod(0o755)
        yield Path(directory)


def test_users_of_a_mounted_volume_see_their_own_ids(place: Path) -> None:
    """Its kernel decides by them: the owner may, others may not, and groups work."""
    options = {"map_uid": "0:100000:50000", "map_gid": "0:200000:50000+60000:60000:1"}
    with mounted(place, options) as served, served.limited(LIMIT_S):
        os.chown(served.source, 100_000, 200_000)
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
