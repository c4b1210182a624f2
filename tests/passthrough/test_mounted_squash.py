"""squash=root and squash=all: the host decides, as for a process of the anonymous user.

The oracle is a bare directory, used by that user. In the volume a caller that squashing takes must
be allowed and refused the same, and leave the same behind on the host.
"""

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.support.callers import Caller
from tests.support.mounted import Mounted, mounted
from tests.support.rights import (
    ANONYMOUS,
    DIRECTORIES,
    DIRECTORY_OPERATIONS,
    FILE_OPERATIONS,
    FILES,
    Case,
    Operation,
    left,
    make,
    place,
    tried,
)

LIMIT_S = 120.0
ANYBODY = Caller("anybody", ANONYMOUS, ANONYMOUS)
ROOT = Caller("root", 0, 0, groups=(0, 41_900))
USER = Caller("user", 41_001, 41_002, groups=(0, 41_900))

Outcome = tuple[object, dict[str, object]]
"""What a caller sees, and what the host has afterwards."""

SESSIONS: Mapping[str, Mapping[str, str]] = {
    "kernel": {"session": "kernel"},
    "worker": {"session": "kernel", "passthrough": "off"},
    "handles": {"session": "kernel", "inode_file_handles": "mandatory"},
    "libfuse": {"session": "libfuse"},
}


@contextlib.contextmanager
def volume(options: Mapping[str, str]) -> Iterator[Mounted]:
    """Serve a directory that other users reach, unlike pytest's own."""
    base = Path(tempfile.mkdtemp(prefix="passfs-squash-"))
    base.chmod(0o755)
    try:
        with mounted(base, options) as served, served.limited(LIMIT_S):
            yield served
    finally:
        shutil.rmtree(base)


def outcomes(
    where: Path, caller: Caller, cases: list[Case], operations: Mapping[str, Operation]
) -> dict[str, object]:
    """Return what comes of each operation on each case below *where*, as *caller*."""

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
    served: Mounted, caller: Caller, cases: list[Case], operations: Mapping[str, Operation]
) -> dict[str, tuple[Outcome, Outcome]]:
    """Return where the volume differs from the bare directory: operation -> (bare, volume)."""
    bare = served.source.parent / "bare"
    bare.mkdir()
    tops = {place(number, name): case for number, case in enumerate(cases) for name in operations}
    for top, case in tops.items():
        make(bare / top, case)
        make(served.source / top, case)
    wanted = outcomes(bare, ANYBODY, cases, operations)
    seen = outcomes(served.mountpoint, caller, cases, operations)
    states = {top: (left(bare / top), left(served.source / top)) for top in tops}
    pairs: dict[str, tuple[Outcome, Outcome]] = {}
    for number, case in enumerate(cases):
        for name in operations:
            key = f"{case.name}: {name}"
            before, after = states[place(number, name)]
            pairs[key] = (wanted[key], before), (seen[key], after)
    return {key: pair for key, pair in pairs.items() if pair[0] != pair[1]}


@dataclass(frozen=True, slots=True)
class Known:
    """A difference that docs/squash.md names: where it is, and what the volume says."""

    operations: frozenset[str]
    seen: frozenset[object]
    sessions: frozenset[str] = frozenset(SESSIONS)
    callers: frozenset[tuple[str, str]] = frozenset({("all", "root"), ("all", "user")})
    cases: str = ""
    """What the names of the cases begin with."""

    def explains(self, where: tuple[str, str, str], key: str, seen: object) -> bool:
        """Return whether this is the difference *key* in the volume *where*."""
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
    # The kernel lets the owner alone link what is no plain file, and knows another owner.
    Known(
        frozenset({"link"}),
        frozenset({"EPERM"}),
        callers=frozenset({("all", "user")}),
    ),
    # A sticky bit is not shown, and stays.
    Known(frozenset({"chmod", "chmod sgid"}), frozenset({None}), cases="sticky of"),
    # What pyfuse3 cannot express: docs/sessions.md.
    Known(frozenset({"get flags"}), frozenset({"ENOTTY"}), LIBFUSE, ALL_CALLERS),
    Known(frozenset({"make unnamed"}), frozenset({"EOPNOTSUPP", "ENOTSUP"}), LIBFUSE, ALL_CALLERS),
    Known(frozenset({"times now"}), frozenset({"EPERM"}), LIBFUSE, ALL_CALLERS),
    Known(frozenset({"list", "list with types"}), frozenset({"EACCES"}), LIBFUSE, ALL_CALLERS),
]


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
        shutil.rmtree(served.source.parent / "bare")
        for left_over in served.source.iterdir():
            shutil.rmtree(left_over)
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
