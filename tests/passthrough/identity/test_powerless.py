"""The guard `Powerless`: entry, exit, and switches that cannot be undone."""

import errno
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from passthrough.core.inodes import ROOT
from passthrough.core.squashed import SquashedFs, filesystem_of
from passthrough.identity import powerless
from passthrough.identity.credentials import (
    EXIT_IDENTITY_LOST,
    ActingAs,
    ClearingPrivileges,
    Without,
    acting_as,
    drop_groups,
    keep_capabilities,
)
from passthrough.identity.idmap import HostId, HostIds
from passthrough.identity.powerless import Powerless, as_itself
from passthrough.linux import syscalls
from passthrough.options.choices import Squash
from tests.support.tools.callers import Call
from tests.support.tools.direct import caller
from tests.support.tools.options import effective

LIMIT_S = 30.0
ANONYMOUS = HostIds(HostId(41_001), HostId(41_002))
OTHER = HostIds(HostId(41_003), HostId(41_004))
NO_ID = 0xFFFF_FFFF


def in_thread(function: Callable[[], object]) -> object:
    """Call *function* in a thread that keeps its capabilities, as in a worker."""

    def run() -> object:
        keep_capabilities()
        return function()

    with ThreadPoolExecutor(1) as pool:
        return pool.submit(run).result(LIMIT_S)


def identity() -> tuple[int, int, bool]:
    """Return the file system ids of this thread, and whether it has capabilities."""
    lines = Path("/proc/thread-self/status").read_text().splitlines()
    fields = dict(line.split(":\t", 1) for line in lines if ":\t" in line)
    return (
        int(fields["Uid"].split()[3]),
        int(fields["Gid"].split()[3]),
        int(fields["CapEff"], 16) != 0,
    )


ITSELF = (0, 0, True)
ANOTHER = (*ANONYMOUS, False)


def test_the_thread_has_other_ids_and_no_capabilities_inside_the_guard_only() -> None:
    def run() -> list[tuple[int, int, bool]]:
        with Powerless(ANONYMOUS):
            inside = identity()
        return [inside, identity()]

    assert in_thread(run) == [ANOTHER, ITSELF]


def test_only_one_thread_has_the_supplementary_groups_and_inside_the_guard_only() -> None:
    given = (HostId(41_007), HostId(41_008))

    def run() -> list[list[int]]:
        before = os.getgroups()
        with Powerless(ANONYMOUS, given):
            inside = os.getgroups()
            with as_itself():
                between, kept = os.getgroups(), powerless.groups()
            again, known = os.getgroups(), powerless.groups()
        assert (kept, known, powerless.groups()) == ((), given, ())
        with ThreadPoolExecutor(1) as pool:
            other = pool.submit(os.getgroups).result(LIMIT_S)
        return [before, inside, between, again, os.getgroups(), other]

    with Call(lambda: in_thread(run), drop_groups) as call:
        assert call.result(LIMIT_S) == [[], [*given], [], [*given], [], []]


def test_other_threads_keep_their_ids() -> None:
    inside, seen = threading.Event(), threading.Event()

    def act() -> None:
        with Powerless(ANONYMOUS):
            inside.set()
            seen.wait(LIMIT_S)

    with ThreadPoolExecutor(1) as pool:
        acting = pool.submit(lambda: in_thread(act))
        assert inside.wait(LIMIT_S)
        assert identity() == ITSELF
        seen.set()
        acting.result(LIMIT_S)


def test_an_error_inside_the_guard_ends_it() -> None:
    def run() -> tuple[int, int, bool]:
        with pytest.raises(ZeroDivisionError), Powerless(ANONYMOUS):
            raise ZeroDivisionError
        return identity()

    assert in_thread(run) == ITSELF


def test_as_itself_restores_the_workers_ids_inside_the_guard() -> None:
    def run() -> list[tuple[int, int, bool]]:
        with as_itself():
            outside = identity()
        with Powerless(ANONYMOUS):
            with as_itself():
                between = identity()
            with pytest.raises(ZeroDivisionError), as_itself():
                raise ZeroDivisionError
            return [outside, between, identity()]

    assert in_thread(run) == [ITSELF, ITSELF, ANOTHER]


@pytest.mark.parametrize(
    "guard",
    [
        ClearingPrivileges,
        lambda: ClearingPrivileges(7),
        lambda: Without(syscalls.CAP_FSETID),
        lambda: acting_as(ANONYMOUS),
    ],
)
@pytest.mark.parametrize("used_before", [False, True])
def test_guards_inside_the_guard_neither_restore_nor_lose_capabilities(
    guard: Callable[[], ClearingPrivileges], used_before: bool
) -> None:
    def run() -> list[tuple[int, int, bool]]:
        if used_before:
            with guard():
                pass
        with Powerless(ANONYMOUS):
            with guard():
                inside = identity()
            after = identity()
        with guard():
            pass
        return [inside, after, identity()]

    assert in_thread(run) == [ANOTHER, ANOTHER, ITSELF]


def test_a_thread_inside_the_guard_cannot_act_with_other_ids() -> None:
    def run() -> tuple[int, int, bool]:
        with Powerless(ANONYMOUS):
            with pytest.raises(RuntimeError, match="41001"), Powerless(OTHER):
                pass
            with pytest.raises(RuntimeError, match="41001"):
                acting_as(OTHER)
            return identity()

    assert in_thread(run) == ANOTHER


def test_outside_of_the_guard_acting_as_switches_the_ids() -> None:
    assert isinstance(acting_as(OTHER), ActingAs)


@pytest.mark.logs("does not let this process act as 41001:41002")
def test_a_switch_that_the_kernel_ignores_is_an_error(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(syscalls, "setfsuid", lambda _: 0)

    def run() -> tuple[int, int, bool]:
        with pytest.raises(OSError, match=r".") as caught, Powerless(ANONYMOUS):
            pass
        assert caught.value.errno == errno.EIO
        assert powerless.ids() is None
        return identity()

    assert in_thread(run) == ITSELF


def test_the_guard_refuses_invalid_ids() -> None:
    def run() -> tuple[int, int, bool]:
        for ids in (HostIds(HostId(NO_ID), HostId(5)), HostIds(HostId(5), HostId(NO_ID))):
            with pytest.raises(PermissionError), Powerless(ids):
                pass
        return identity()

    assert in_thread(run) == ITSELF


UNDOING = """
import os, sys
from passthrough.identity import credentials, powerless
from passthrough.linux import privileges, syscalls
from passthrough.identity.idmap import HostIds
credentials.keep_capabilities()
how = sys.argv[1]
guard = powerless.Powerless(HostIds(41001, 41002))
guard.__enter__()
real = syscalls.setfsuid
def failing(*_):
    raise OSError(1, "not permitted")
if how == "uid":
    syscalls.setfsuid = lambda uid: real(uid if uid == 0xFFFFFFFF else 41001)
elif how == "capabilities":
    privileges.EffectiveCapabilities.restore = failing
elif how == "other":
    syscalls.setfsgid = lambda _: 41003
elif how == "again":
    real_drop = privileges.EffectiveCapabilities.drop
    privileges.EffectiveCapabilities.drop = failing
    with powerless.as_itself():
        pass
guard.__exit__()
print("alive")
"""


@pytest.mark.parametrize("how", ["uid", "capabilities", "other", "again"])
def test_a_switch_that_cannot_be_undone_ends_the_process(how: str) -> None:
    ended = subprocess.run(
        [sys.executable, "-c", UNDOING, how], check=False, capture_output=True, timeout=LIMIT_S
    )

    assert (ended.returncode, ended.stdout) == (EXIT_IDENTITY_LOST, b"")
    assert b"the process ends" in ended.stderr


def test_supplementary_groups_are_dropped() -> None:
    def run() -> list[int]:
        os.setgroups([7, 8])
        drop_groups()
        return os.getgroups()

    with Call(run, lambda: None) as call:
        assert call.result(LIMIT_S) == []


def test_supplementary_groups_that_cannot_be_dropped_are_an_error() -> None:
    def run() -> str:
        os.setgroups([7, 8])
        os.setresuid(41_001, 41_001, 41_001)
        with pytest.raises(PermissionError) as caught:
            drop_groups()
        return str(caught.value.strerror)

    with Call(run, lambda: None) as call:
        assert "option 'squash'" in call.result(LIMIT_S)


def test_an_operation_without_a_caller_is_refused(source: Path) -> None:
    fs = filesystem_of(effective(squash=Squash.ROOT), os.open(source, os.O_PATH))
    try:
        with pytest.raises(RuntimeError, match="who asks"):
            fs.mkdir(ROOT, b"new", 0o700, caller(0, 0))
        with fs.asked_by(caller(5, 5)):
            pass
        with pytest.raises(RuntimeError, match="who asks"):
            fs.lookup(ROOT, b"new")
        with pytest.raises(OSError, match=os.strerror(errno.EBADF)):
            fs.unopened(ROOT)
        with pytest.raises(OSError, match=os.strerror(errno.EBADF)):
            fs.unopened_stream(ROOT)
    finally:
        fs.close()

    assert list(source.iterdir()) == []


def test_a_volume_without_squash_is_refused_by_squashed_fs(source: Path) -> None:
    fd = os.open(source, os.O_PATH)
    try:
        with pytest.raises(ValueError, match="squash=none is not for SquashedFs"):
            SquashedFs(effective(), fd)
    finally:
        os.close(fd)
