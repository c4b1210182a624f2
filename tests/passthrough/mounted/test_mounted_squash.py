"""squash=root and squash=all: the host decides as for a process of the anonymous user.

The oracle is a bare directory, used by that user. In the volume, a squashed caller must get the
same results and the same errors, and leave the same state on the host.
"""

import contextlib
import ctypes
import fcntl
import os
import shutil
import socket
import stat
import subprocess
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pytest

from passthrough.options.choices import SessionKind, Squash
from passthrough.options.table import Requested
from passthrough.worker import fuse_mount, process
from passthrough.worker.handover import Handover
from tests.support.fakes.keeper import LIMIT_S as END_LIMIT_S, Keeper
from tests.support.tools.callers import OTHER, Call, Caller, attempt, together
from tests.support.tools.files import owner, public_directory
from tests.support.tools.inside import probe
from tests.support.tools.mounted import Mounted, mounted
from tests.support.tools.mounts import options_at
from tests.support.tools.options import effective
from tests.support.tools.rights import (
    ANONYMOUS,
    DIRECTORIES,
    DIRECTORY_OPERATIONS,
    FILE_OPERATIONS,
    FILES,
    SCRIPT,
    STRANGER,
    Case,
    Operation,
    executing,
    left,
    listing,
    make,
    place,
    tried,
)

LIMIT_S = 120.0
MANY = 60
ANYBODY = Caller("anybody", ANONYMOUS, ANONYMOUS)
ROOT = Caller("root", 0, 0, groups=(0, 41_900))
USER = Caller("user", 41_001, 41_002, groups=(0, 41_900))

Outcome = tuple[object, dict[str, object]]
"""The result for the caller, and the state of the host afterwards."""

SESSIONS: Mapping[str, Mapping[str, str]] = {
    "kernel": {"session": "kernel"},
    "worker": {"session": "kernel", "passthrough": "off"},
    "handles": {"session": "kernel", "inode_file_handles": "mandatory"},
    "libfuse": {"session": "libfuse"},
}


@contextlib.contextmanager
def volume(options: Mapping[str, str]) -> Iterator[Mounted]:
    """Serve a directory that every user may enter."""
    with (
        public_directory() as base,
        mounted(base, options) as served,
        served.limited(LIMIT_S),
    ):
        yield served


def outcomes(
    where: Path, caller: Caller, cases: list[Case], operations: Mapping[str, Operation]
) -> dict[str, object]:
    """Run each operation on each case below *where* as *caller*; return the results."""

    def run() -> dict[str, object]:
        found: dict[str, object] = {}
        for number, case in enumerate(cases):
            for name, operation in operations.items():
                outcome = tried(where / place(number, name), case, operation)
                found[f"{case.name}: {name}"] = outcome
                os.chdir("/")
        return found

    return caller.run(run)


def compared(
    served: Mounted,
    caller: Caller,
    cases: list[Case],
    operations: Mapping[str, Operation],
    wanted_by: Caller = ANYBODY,
) -> dict[str, tuple[Outcome, Outcome]]:
    """Return where the volume differs from the bare directory: operation -> (bare, volume).

    The bare directory is used by *wanted_by*, the volume by *caller*.
    """
    # A new name each time, because the kernel may cache the names of the former for a second.
    run = f"run-{len(list(served.source.iterdir()))}"
    bare, source = served.source.parent / f"bare-{run}", served.source / run
    tops = {place(number, name): case for number, case in enumerate(cases) for name in operations}
    for directory in (bare, source):
        directory.mkdir(mode=0o755)
        for top, case in tops.items():
            make(directory / top, case)
    wanted = outcomes(bare, wanted_by, cases, operations)
    seen = outcomes(served.mountpoint / run, caller, cases, operations)
    states = {top: (left(bare / top), left(source / top)) for top in tops}
    pairs: dict[str, tuple[Outcome, Outcome]] = {}
    for number, case in enumerate(cases):
        for name in operations:
            key = f"{case.name}: {name}"
            before, after = states[place(number, name)]
            pairs[key] = (wanted[key], before), (seen[key], after)
    return {key: pair for key, pair in pairs.items() if pair[0] != pair[1]}


@dataclass(frozen=True, slots=True)
class Known:
    """A difference that docs/squash.md lists: its place, and the volume's answer."""

    operations: frozenset[str]
    seen: frozenset[object]
    sessions: frozenset[str] = frozenset(SESSIONS)
    callers: frozenset[tuple[str, str]] = frozenset({("all", "root"), ("all", "user")})
    cases: str = ""
    """The prefix of the names of the cases."""

    def explains(self, where: tuple[str, str, str], key: str, seen: object) -> bool:
        """Return whether this difference covers the operation *key* in the volume *where*."""
        session, *squashed = where
        case, _, operation = key.rpartition(": ")
        return (
            *(session in self.sessions, tuple(squashed) in self.callers),
            *(operation in self.operations, case.startswith(self.cases), seen in self.seen),
        ) == (True,) * 5


ALL_CALLERS = frozenset({("all", "root"), ("all", "user"), ("root", "root")})
LIBFUSE = frozenset({"libfuse"})
KNOWN = [
    # The kernel answers for root, with default_permissions.
    Known(
        frozenset({"access R_OK", "access W_OK", "access X_OK", "access all"}),
        frozenset({True}),
        callers=frozenset({("root", "root")}),
    ),
    Known(frozenset({"chdir"}), frozenset({None}), callers=frozenset({("root", "root")})),
    # Only the owner may link a file that is not plain, and the kernel knows another owner.
    Known(
        frozenset({"link"}),
        frozenset({"EPERM"}),
        callers=frozenset({("all", "user")}),
    ),
    # The volume does not show a sticky bit, and keeps it.
    Known(frozenset({"chmod", "chmod sgid"}), frozenset({None}), cases="sticky of"),
    # For callers that may change the content, the kernel removes file capabilities first.
    Known(
        frozenset({"remove capabilities"}),
        frozenset({None, "ENODATA"}),
        callers=frozenset({("all", "root"), ("root", "root")}),
    ),
    Known(
        frozenset({"truncate", "change no owner"}),
        frozenset({"EPERM"}),
        callers=ALL_CALLERS,
        cases="private file with capabilities",
    ),
    # Features that pyfuse3 lacks, docs/sessions.md.
    Known(frozenset({"get flags"}), frozenset({"ENOTTY"}), LIBFUSE, ALL_CALLERS),
    Known(frozenset({"make unnamed"}), frozenset({"EOPNOTSUPP", "ENOTSUP"}), LIBFUSE, ALL_CALLERS),
]
"""The differences that docs/squash.md lists; each one must occur."""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("session", "squash", "caller"),
    [
        pytest.param(session, squash, caller, id=f"{session}-{squash}-{caller.name}")
        for session, squash, caller in (
            *(("kernel", "all", USER), ("kernel", "all", ROOT), ("kernel", "root", ROOT)),
            *(("libfuse", "all", USER), ("libfuse", "root", ROOT)),
            *(("worker", "all", USER), ("handles", "root", ROOT)),
        )
    ],
)
def test_a_squashed_caller_may_do_what_the_anonymous_user_may(
    session: str, squash: str, caller: Caller
) -> None:
    where = (session, squash, caller.name)
    with volume({**SESSIONS[session], "squash": squash}) as served:
        different = compared(served, caller, FILES, FILE_OPERATIONS)
        different |= compared(served, caller, DIRECTORIES, DIRECTORY_OPERATIONS)
    used = {
        known
        for known in KNOWN
        for key, (_, (seen, _)) in different.items()
        if known.explains(where, key, seen)
    }

    assert {
        key: sides
        for key, sides in different.items()
        if not any(known.explains(where, key, sides[1][0]) for known in KNOWN)
    } == {}
    assert used == {
        known for known in KNOWN if session in known.sessions and where[1:] in known.callers
    }


NOBODY_ELSE = frozenset({("root", "user")})
OWN = [
    # The worker knows only the primary group, and not which user writes through a descriptor.
    Known(
        frozenset({"write", "ftruncate", "truncate", "open and cut", "open to read and cut"}),
        frozenset({None}),
        callers=NOBODY_ELSE,
        cases="file sgid of its",
    ),
    Known(
        frozenset({"chmod sgid"}), frozenset({None}), callers=NOBODY_ELSE, cases="file suid of its"
    ),
    Known(
        frozenset({"chmod sgid"}), frozenset({None}), callers=NOBODY_ELSE, cases="file sgid of its"
    ),
    # The kernel sends an equal request before a change of content, which needs the write right.
    Known(frozenset({"change no owner"}), frozenset({"EPERM"}), callers=NOBODY_ELSE),
    # Features that pyfuse3 lacks, docs/sessions.md.
    Known(frozenset({"get flags"}), frozenset({"ENOTTY"}), LIBFUSE, NOBODY_ELSE),
    Known(frozenset({"make unnamed"}), frozenset({"EOPNOTSUPP", "ENOTSUP"}), LIBFUSE, NOBODY_ELSE),
]
"""The differences for a user that is not squashed."""

LEFT_ALONE = [ANYBODY, Caller("member", ANONYMOUS, 41_050, groups=(ANONYMOUS, 41_051))]


@pytest.mark.slow
@pytest.mark.parametrize("caller", LEFT_ALONE, ids=lambda caller: caller.name)
@pytest.mark.parametrize("session", ["kernel", "libfuse", "handles"])
def test_a_user_that_squashing_leaves_alone_may_do_what_it_may_on_the_host(
    session: str, caller: Caller
) -> None:
    """That includes its supplementary groups, which the worker does not know."""
    with volume({**SESSIONS[session], "squash": "root"}) as served:
        different = compared(served, caller, FILES, FILE_OPERATIONS, caller)
        different |= compared(served, caller, DIRECTORIES, DIRECTORY_OPERATIONS, caller)

    assert {
        key: sides
        for key, sides in different.items()
        if not any(known.explains((session, "root", "user"), key, sides[1][0]) for known in OWN)
    } == {}


def keeping_capabilities(uid: int, gid: int) -> None:
    """Become another user, and keep the capabilities that pass all checks, capabilities(7)."""
    libc = ctypes.CDLL(None, use_errno=True)
    kept = 1 << 0 | 1 << 1 | 1 << 2 | 1 << 3 | 1 << 4  # CAP_CHOWN to CAP_FSETID
    assert libc.prctl(8, 1, 0, 0, 0) == 0  # PR_SET_KEEPCAPS
    os.setgroups([])
    os.setresgid(gid, gid, gid)
    os.setresuid(uid, uid, uid)
    header, data = (ctypes.c_uint32 * 2)(0x2008_0522, 0), (ctypes.c_uint32 * 6)(kept, kept)
    assert libc.capset(header, data) == 0


CAPABLE: Mapping[str, Operation] = {
    "read": lambda top: (top / "private").read_bytes(),
    "write": lambda top: (top / "private").write_bytes(b"changed"),
    "cut": lambda top: os.truncate(top / "private", 0),
    "chmod": lambda top: (top / "private").chmod(0o666),
    "take": lambda top: os.chown(top / "private", USER.uid, -1),
    "take for its group": lambda top: os.chown(top / "private", -1, USER.gid),
    "times": lambda top: os.utime(top / "private", (1, 2)),
    "attribute": lambda top: os.setxattr(top / "private", "user.new", b"value"),
    "link": lambda top: os.link(top / "private", top / "free" / "linked"),
    "list": lambda top: listing(top / "directory"),
    "look up": lambda top: (top / "directory" / "file").lstat(),
    "create": lambda top: (top / "directory" / "new").touch(),
    "unlink": lambda top: (top / "directory" / "file").unlink(),
    "unlink of the top": lambda top: (top / "private").unlink(),
    "rename": lambda top: os.rename(top / "private", top / "free" / "renamed"),
    "unlink in a sticky directory": lambda top: (top / "sticky" / "file").unlink(),
    "bits of a program": lambda top: os.chown(top / "program", -1, -1),
    "file of root's group": lambda top: (top / "of the group").read_bytes(),
}


def test_root_with_another_id_passes_no_check_by_its_capabilities(by: Mapping[str, str]) -> None:
    """Root passes the checks of the kernel, so only the host can refuse."""
    with volume({**by, "squash": "root", "suid": "true"}) as served:
        source = served.source
        for name, mode in (("directory", 0o700), ("sticky", 0o1777), ("free", 0o777)):
            (source / name).mkdir()
            (source / name / "file").write_bytes(b"content")
            (source / name).chmod(mode)
        for name, mode in (("private", 0o600), ("program", 0o4755), ("of the group", 0o640)):
            (source / name).write_bytes(b"content")
            (source / name).chmod(mode)
        before = left(source)

        def run() -> dict[str, str]:
            found = {}
            for name, operation in CAPABLE.items():
                try:
                    found[name] = f"allowed: {operation(served.mountpoint)}"
                except PermissionError:
                    found[name] = "refused"
            return found

        with Call(run, lambda: keeping_capabilities(USER.uid, USER.gid)) as call:
            assert call.result(LIMIT_S) == dict.fromkeys(CAPABLE, "refused")
        assert left(source) == before


def test_a_user_that_the_map_lacks_reads_public_files_and_makes_none(
    by: Mapping[str, str],
) -> None:
    maps = {"map_uid": "0:100000:1000", "map_gid": "0:100000:1000"}
    unmapped, member = Caller("unmapped", 5_000, 5_000), Caller("member", 5, 5_000)
    with volume({**by, **maps, "squash": "root"}) as served:
        source, seen = served.source / "free", served.mountpoint / "free"
        source.mkdir()
        os.chown(source, 100_005, 100_005)
        source.chmod(0o777)
        for name, mode in (("public", 0o644), ("private", 0o600)):
            (source / name).write_bytes(b"content")
            os.chown(source / name, 100_005, 100_005)
            (source / name).chmod(mode)

        assert {
            (caller.name, name): attempt(caller, (seen / name).read_bytes)
            for caller in (unmapped, member)
            for name in ("public", "private")
        } == {
            ("unmapped", "public"): "allowed",
            ("unmapped", "private"): "EACCES",
            ("member", "public"): "allowed",
            ("member", "private"): "allowed",
        }
        for caller in (unmapped, member):
            assert attempt(caller, (seen / "new").touch) == "EPERM"
            assert attempt(caller, (seen / "new").mkdir) == "EPERM"


def test_groups_that_the_worker_does_not_know_give_a_file_no_sgid_bit(
    by: Mapping[str, str],
) -> None:
    """With CAP_FSETID, the kernel would set the bit even for a group that the caller is not in."""
    with volume({**by, "squash": "root"}) as served:
        team, seen = served.source / "team", served.mountpoint / "team"
        team.mkdir()
        os.chown(team, USER.uid, STRANGER)
        team.chmod(0o2770)

        def make_programs() -> None:
            os.close(os.open(seen / "created", os.O_CREAT | os.O_WRONLY, 0o2755))
            os.mknod(seen / "node", stat.S_IFREG | 0o2755)
            (seen / "changed").touch()
            (seen / "changed").chmod(0o2755)

        with Call(make_programs, lambda: keeping_capabilities(USER.uid, USER.gid)) as call:
            call.result(LIMIT_S)

        assert {path.name: oct(path.stat().st_mode & 0o7777) for path in team.iterdir()} == (
            dict.fromkeys(("created", "node", "changed"), oct(0o755))
        )


@pytest.fixture(params=["kernel", "libfuse", "handles"])
def by(request: pytest.FixtureRequest) -> Mapping[str, str]:
    """Return the options of one session after the other."""
    options: Mapping[str, str] = SESSIONS[request.param]
    return options


PRIVATE: Mapping[str, Operation] = {
    "read": lambda path: (path / "inside" / "file").read_bytes(),
    "write": lambda path: (path / "inside" / "file").write_bytes(b"changed"),
    "create": lambda path: (path / "inside" / "new").touch(),
    "make directory": lambda path: (path / "inside" / "new").mkdir(),
    "make link": lambda path: (path / "inside" / "new").symlink_to("target"),
    "list": lambda path: listing(path / "inside"),
    "unlink": lambda path: (path / "inside" / "file").unlink(),
    "rename": lambda path: os.rename(path / "inside" / "file", path.parent / "taken"),
    "rename into": lambda path: os.rename(path.parent / "free", path / "inside" / "file"),
    "link": lambda path: os.link(path / "inside" / "file", path.parent / "linked"),
    "attribute": lambda path: os.getxattr(path / "inside" / "file", "user.test"),
    "set attribute": lambda path: os.setxattr(path / "inside" / "file", "user.test", b"new"),
    "execute": lambda path: executing(path / "inside" / "file"),
}


def test_names_that_other_users_have_looked_up_give_no_access(by: Mapping[str, str]) -> None:
    """The kernel has them cached, and root passes its checks, so the host checks the whole path.

    Below the private directory, everything is open to all users.
    """
    with volume({**by, "squash": "root", "cache": "always"}) as served:
        private = served.source / "private"
        (private / "inside").mkdir(parents=True)
        (private / "inside" / "file").write_bytes(SCRIPT)
        os.setxattr(private / "inside" / "file", "user.test", b"value")
        (served.source / "free").write_bytes(b"")
        for path in (served.source, private / "inside", private / "inside" / "file"):
            path.chmod(0o777)
        os.chown(private, USER.uid, USER.gid)
        private.chmod(0o700)
        before = left(served.source)
        seen = served.mountpoint / "private"
        USER.run(partial(listing, seen / "inside"))
        USER.run((seen / "inside" / "file").read_bytes)

        assert {name: attempt(ROOT, partial(call, seen)) for name, call in PRIVATE.items()} == (
            dict.fromkeys(PRIVATE, "EACCES")
        )
        assert left(served.source) == before
        assert attempt(USER, (seen / "inside" / "file").read_bytes) == "allowed"


def test_reachable_files_of_many_kinds_stay_reachable(by: Mapping[str, str]) -> None:
    """The files are renamed, unlinked while open, hard-linked, deep in the tree, or symlinks."""

    def use(top: Path) -> list[object]:
        (top / "a" / "b").mkdir(parents=True)
        (top / "a" / "b" / "file").write_bytes(b"content")
        (top / "a").rename(top / "moved")
        file = top / "moved" / "b" / "file"
        os.link(file, top / "second")
        file.unlink()
        (top / "link").symlink_to("moved")
        fd = os.open(top / "second", os.O_RDWR)
        os.rename(top / "second", top / "link" / "third")
        os.fchmod(fd, 0o600)
        os.unlink(top / "moved" / "third")
        os.fchmod(fd, 0o640)
        os.setxattr(fd, "user.test", b"value")
        os.close(fd)
        return [os.readlink(top / "link"), listing(top / "link" / "b"), listing(top)]

    with volume({**by, "squash": "root"}) as served:
        served.source.chmod(0o777)
        found = ROOT.run(partial(use, served.mountpoint))

    assert found == ["moved", [], ["link", "moved"]]


def test_group_0_is_squashed_as_well(by: Mapping[str, str]) -> None:
    """exports(5) does the same. Such a caller has no supplementary groups on the host."""
    member = Caller("member of root's group", USER.uid, 0)
    with volume({**by, "squash": "root"}) as served:
        served.source.chmod(0o777)
        (served.source / "of the group").write_bytes(b"secret")
        (served.source / "of the group").chmod(0o660)

        assert attempt(member, (served.mountpoint / "of the group").read_bytes) == ("EACCES")
        member.run((served.mountpoint / "own").touch)
        assert owner(served.source / "own") == (USER.uid, ANONYMOUS)
        assert attempt(member, lambda: (served.mountpoint / "own").write_bytes(b"x")) == "allowed"


def test_users_that_are_not_squashed_keep_their_groups(by: Mapping[str, str]) -> None:
    member = Caller("member", USER.uid, USER.gid, groups=(STRANGER,))
    with volume({**by, "squash": "root"}) as served:
        team = served.source / "team"
        team.mkdir()
        os.chown(team, 0, STRANGER)
        team.chmod(0o2770)
        member.run((served.mountpoint / "team" / "new").touch)

        assert owner(team / "new") == (USER.uid, STRANGER)
        assert attempt(ROOT, lambda: listing(served.mountpoint / "team")) == "EACCES"


def test_data_are_accessed_as_the_user_that_opened_the_file(by: Mapping[str, str]) -> None:
    with volume({**by, "squash": "root"}) as served:
        directory = served.source / "directory"
        directory.mkdir()
        private = directory / "private"
        private.write_bytes(b"content")
        for path, mode in ((directory, 0o700), (private, 0o600)):
            os.chown(path, USER.uid, USER.gid)
            path.chmod(mode)
        ours, theirs = socket.socketpair()

        def hand_over() -> None:
            fd = os.open(served.mountpoint / "directory" / "private", os.O_RDWR)
            socket.send_fds(theirs, [b"x"], [fd])

        USER.run(hand_over)
        _, (fd,), _, _ = socket.recv_fds(ours, 1, 1)
        for end in (ours, theirs):
            end.close()
        try:
            assert os.pread(fd, 7, 0) == b"content"
            assert os.pwrite(fd, b"changed", 0) == len(b"changed")
            os.ftruncate(fd, 4)
            os.fsync(fd)
            fcntl.lockf(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            with pytest.raises(PermissionError):
                os.fchmod(fd, 0o666)
            with pytest.raises(PermissionError):
                os.open(f"/proc/self/fd/{fd}", os.O_RDONLY)
        finally:
            os.close(fd)
        assert private.read_bytes() == b"chan"


def test_the_worker_has_no_supplementary_groups(by: Mapping[str, str]) -> None:
    """Otherwise each squashed caller would have those of the process that starts the worker."""

    def read() -> str:
        with volume({**by, "squash": "all"}) as served:
            (served.source / "file").write_bytes(b"secret")
            os.chown(served.source / "file", 0, STRANGER)
            (served.source / "file").chmod(0o640)
            return attempt(USER, (served.mountpoint / "file").read_bytes)

    with Call(read, lambda: os.setgroups([STRANGER])) as call:
        assert call.result(LIMIT_S) == "EACCES"


@pytest.mark.parametrize(
    "options",
    [
        {"atime": "noatime"},
        {"atime": "noatime", "sandbox": "none"},
        {"writeback": "true"},
        {"cache": "never"},
    ],
    ids=str,
)
def test_flags_that_options_add_to_an_open_take_no_right_from_the_caller(
    by: Mapping[str, str], options: Mapping[str, str]
) -> None:
    """Only the owner may use O_NOATIME, and writeback reads from files opened for writing."""
    with volume({**by, **options, "squash": "all"}) as served:
        for name, mode in (("read", 0o444), ("written", 0o222)):
            (served.source / name).write_bytes(b"content")
            (served.source / name).chmod(mode)
        os.utime(served.source / "read", (1, 2))

        def use() -> bytes:
            fd = os.open(served.mountpoint / "written", os.O_WRONLY)
            os.pwrite(fd, b"N", 3)
            os.fsync(fd)
            os.close(fd)
            return (served.mountpoint / "read").read_bytes()

        assert USER.run(use) == b"content"
        assert (served.source / "written").read_bytes() == b"conNent"
        assert (served.source / "read").stat().st_atime == 1 or "atime" not in options
        assert attempt(USER, (served.mountpoint / "written").read_bytes) == "EACCES"
        assert attempt(USER, lambda: (served.mountpoint / "read").write_bytes(b"")) == "EACCES"


def test_programs_need_only_the_right_to_execute(by: Mapping[str, str]) -> None:
    """It must be the anonymous user's; the kernel only checks that some user has it."""
    with volume({**by, "squash": "all"}) as served:
        for name, mode in (("for all", 0o711), ("for its owner", 0o744), ("by an ACL", 0o744)):
            shutil.copy("/bin/true", served.source / name)
            (served.source / name).chmod(mode)
        entry = f"u:{ANONYMOUS}:x"
        command = ["setfacl", "-m", entry, str(served.source / "by an ACL")]
        subprocess.run(command, check=True, timeout=LIMIT_S)

        assert {
            name: attempt(USER, lambda name=name: executing(served.mountpoint / name))  # type: ignore[misc]
            for name in ("for all", "for its owner", "by an ACL")
        } == {"for all": "allowed", "for its owner": "EACCES", "by an ACL": "allowed"}


@pytest.mark.parametrize("squash", ["none", "root", "all"])
def test_the_kernel_checks_permissions_except_with_squash_all(
    by: Mapping[str, str], squash: str
) -> None:
    with volume({**by, "squash": squash}) as served:
        assert ("default_permissions" in options_at(served.mountpoint)) is (squash != "all")


def test_a_sticky_bit_holds_on_the_host_and_is_not_shown(by: Mapping[str, str]) -> None:
    """The kernel knows other ids of the callers, so it would refuse them their own files."""
    with volume({**by, "squash": "all"}) as served:
        seen, beneath = served.mountpoint / "sticky", served.source / "sticky"
        beneath.mkdir()
        beneath.chmod(0o1777)
        (beneath / "of root").touch()
        USER.run((seen / "own").touch)

        assert (seen.stat().st_mode & 0o7777, beneath.stat().st_mode & 0o7777) == (0o777, 0o1777)
        assert attempt(USER, (seen / "of root").unlink) == "EPERM"
        assert attempt(OTHER, (seen / "own").unlink) == "allowed"
        USER.run((seen / "made").mkdir)
        USER.run(lambda: (seen / "made").chmod(0o1777))
        USER.run(lambda: (seen / "made").chmod(0o755))
        assert (beneath / "made").stat().st_mode & 0o7777 == 0o1755


@pytest.mark.parametrize("squash", ["root", "all"])
def test_no_caller_opens_a_device_node(by: Mapping[str, str], squash: str) -> None:
    """The kernel opens it by itself, and asks for no right of the anonymous user."""
    with volume({**by, "squash": squash, "dev": "true"}) as served:
        os.mknod(served.source / "null", stat.S_IFCHR | 0o600, os.makedev(1, 3))

        assert attempt(ROOT, (served.mountpoint / "null").read_bytes) == "EACCES"
        assert "dev is false: with squash or owner the host must check each open" in served.logged()


def test_a_fifo_opens_for_each_caller_that_reaches_it(by: Mapping[str, str]) -> None:
    with volume({**by, "squash": "all"}) as served:
        (served.source / "private").mkdir(mode=0o700)
        for fifo in ("fifo", "private/fifo"):
            os.mkfifo(served.source / fifo, 0o600)

        def use(fifo: str) -> None:
            os.close(os.open(served.mountpoint / fifo, os.O_RDWR))

        assert attempt(USER, partial(use, "fifo")) == "allowed"
        assert attempt(USER, partial(use, "private/fifo")) == "EACCES"


def test_callers_at_once_do_not_mix(by: Mapping[str, str]) -> None:
    """Each thread of the worker acts as one caller after the other."""
    member = Caller("member", USER.uid, 0)
    callers = {"root": ROOT, "user": USER, "other": OTHER, "member": member}
    expected = {
        "root": (ANONYMOUS, ANONYMOUS),
        "user": (USER.uid, USER.gid),
        "other": (OTHER.uid, OTHER.gid),
        "member": (USER.uid, ANONYMOUS),
    }

    def work(top: Path, name: str) -> set[tuple[int, int]]:
        for number in range(MANY):
            (top / f"{name} {number}").write_bytes(b"content")
            (top / f"{name} {number}").chmod(0o600)
        return {owner(top / f"{name} {number}") for number in range(MANY)}

    with volume({**by, "squash": "root"}) as served:
        served.source.chmod(0o777)
        top = served.mountpoint
        found = together(caller.start(partial(work, top, name)) for name, caller in callers.items())

        assert dict(zip(callers, found, strict=True)) == {
            name: {ids} for name, ids in expected.items()
        }
        assert served.process.poll() is None


def test_a_mount_on_which_the_kernel_checks_as_well_gives_no_more(tmp_path: Path) -> None:
    """The mount lacks squash=all, as if another program had made it; the worker still checks."""
    source, target = tmp_path / "source", tmp_path / "mount"
    for directory in (source, target):
        directory.mkdir()
    (source / "secret").write_bytes(b"secret")
    (source / "secret").chmod(0o600)
    (source / "known").write_bytes(b"known")
    fuse_fd = fuse_mount.mount(target, effective())
    try:
        with serving(Requested(squash=Squash.ALL), source, fuse_fd):
            assert "default_permissions" in options_at(target)
            assert attempt(ROOT, (target / "secret").read_bytes) == "EACCES"
            assert attempt(ROOT, (target / "known").read_bytes) == "allowed"
    finally:
        os.close(fuse_fd)
        fuse_mount.unmount(target, abort=True)


@contextlib.contextmanager
def serving(config: Requested, source: Path, fuse_fd: int) -> Iterator[None]:
    """Serve *source* on an existing mount, in a child process."""
    ready, told = os.pipe()

    def serve() -> None:
        given = Handover(
            volume="volume",
            config=config,
            fuse_fd=os.dup(fuse_fd),
            source_fd=os.open(source, os.O_PATH | os.O_DIRECTORY),
        )
        os.close(fuse_fd)
        process.serve(given, lambda _: os.write(told, b"!"))

    with Call(serve, lambda: None):
        os.close(told)
        assert os.read(ready, 1) == b"!"
        os.close(ready)
        yield


def test_no_thread_is_started_with_the_ids_of_a_caller(
    source: Path, mountpoint: Path, tmp_path: Path
) -> None:
    """Such a thread could not become the worker again, and the session would end."""
    source.chmod(0o777)
    keeper = Keeper(
        *(source, mountpoint, tmp_path / "stderr"),
        config=Requested(session=SessionKind.KERNEL, squash=Squash.ALL),
        module="tests.support.tools.inside",
    )
    worker = keeper.serve()
    try:
        probe(mountpoint, "block")
        probe(mountpoint, "block")
        fuse_mount.unmount(mountpoint)
        assert worker.wait(END_LIMIT_S) == 0, keeper.log.read_text()
    finally:
        keeper.close()
