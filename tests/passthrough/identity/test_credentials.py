import errno
import functools
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from passthrough.identity.credentials import (
    EXIT_IDENTITY_LOST,
    ActingAs,
    ClearingPrivileges,
    acting_as,
    keep_capabilities,
)
from passthrough.identity.idmap import HostId, HostIds
from passthrough.linux import syscalls

REPOSITORY = Path(__file__).resolve().parents[3]


def ids(uid: int, gid: int) -> HostIds:
    """Return the ids of a user and a group of the host."""
    return HostIds(HostId(uid), HostId(gid))


CALLER = ids(41_001, 41_002)
OTHER = ids(41_003, 41_004)
LIMIT_S = 30.0


@pytest.fixture
def directory(tmp_path: Path) -> Iterator[int]:
    """Yield the descriptor of a directory that all users may write to."""
    tmp_path.chmod(0o777)
    fd = os.open(tmp_path, os.O_PATH)
    yield fd
    os.close(fd)


def in_thread(function: Callable[[], object]) -> object:
    """Call *function* in a new thread, because securebits stay with their thread."""
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(function).result(LIMIT_S)


def owner(name: str, directory: int) -> HostIds:
    found = os.stat(name, dir_fd=directory, follow_symlinks=False)
    return ids(found.st_uid, found.st_gid)


def test_acting_as_root_switches_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    switched: list[int] = []
    monkeypatch.setattr(syscalls, "setfsuid", switched.append)
    monkeypatch.setattr(syscalls, "setfsgid", switched.append)

    with acting_as(ids(0, 0)):
        pass

    assert switched == []
    assert isinstance(acting_as(ids(0, CALLER.gid)), ActingAs)
    assert isinstance(acting_as(ids(CALLER.uid, 0)), ActingAs)


CREATIONS: dict[str, Callable[[str, int], object]] = {
    "mkdir": lambda name, fd: os.mkdir(name, dir_fd=fd),
    "mknod": lambda name, fd: os.mknod(name, dir_fd=fd),
    "symlink": lambda name, fd: os.symlink("target", name, dir_fd=fd),
    "create": lambda name, fd: os.close(os.open(name, os.O_CREAT | os.O_EXCL, dir_fd=fd)),
}


@pytest.mark.parametrize("kind", CREATIONS)
def test_new_files_belong_to_the_caller_inside_the_guard_and_to_root_after_it(
    kind: str, directory: int
) -> None:
    with ActingAs(CALLER):
        CREATIONS[kind]("theirs", directory)
    CREATIONS[kind]("ours", directory)

    assert owner("theirs", directory) == CALLER
    assert owner("ours", directory) == (0, 0)


def test_the_group_is_switched_first_and_restored_last(monkeypatch: pytest.MonkeyPatch) -> None:
    """A thread that has given up the user id 0 may lack the right to change its group."""
    calls: list[tuple[str, int]] = []
    current = {"setfsuid": 0, "setfsgid": 0}

    def recorded(name: str, number: int) -> int:
        calls.append((name, number))
        before, current[name] = current[name], number
        return before

    for name in current:
        monkeypatch.setattr(syscalls, name, functools.partial(recorded, name))
    with ActingAs(CALLER):
        pass

    switched = [("setfsgid", CALLER.gid), ("setfsuid", CALLER.uid)]
    assert calls == [*switched, ("setfsuid", 0), ("setfsgid", 0)]


def test_the_guard_passes_an_error_on_and_restores_the_ids(directory: int) -> None:
    os.mkdir("taken", dir_fd=directory)

    with pytest.raises(FileExistsError), ActingAs(CALLER):
        os.mkdir("taken", dir_fd=directory)

    os.mkdir("ours", dir_fd=directory)
    assert owner("ours", directory) == (0, 0)


@pytest.mark.parametrize("caller", [ids(0xFFFF_FFFF, 0), ids(0, 0xFFFF_FFFF)])
def test_a_caller_without_an_id_creates_no_file(caller: HostIds, directory: int) -> None:
    """setfsuid(-1) only returns the present id: root would create the file."""
    with pytest.raises(PermissionError) as refused, ActingAs(caller):
        os.mkdir("theirs", dir_fd=directory)

    assert refused.value.errno == errno.EPERM
    assert os.listdir(f"/proc/self/fd/{directory}") == []


def test_two_threads_act_with_different_ids_at_a_time(directory: int) -> None:
    """Both guards overlap, and each thread is root again while the other is inside its guard."""
    rounds = 100
    meeting = threading.Barrier(2, timeout=LIMIT_S)

    def act(caller: HostIds) -> None:
        for number in range(rounds):
            meeting.wait()
            with ActingAs(caller):
                meeting.wait()
                os.mkdir(f"{caller.uid}-{number}", dir_fd=directory)
            os.mkdir(f"root-{caller.uid}-{number}", dir_fd=directory)

    with ThreadPoolExecutor(2) as pool:
        for ended in [pool.submit(act, caller) for caller in (CALLER, OTHER)]:
            ended.result(LIMIT_S)

    for caller in (CALLER, OTHER):
        owners = {owner(f"{caller.uid}-{number}", directory) for number in range(rounds)}
        roots = {owner(f"root-{caller.uid}-{number}", directory) for number in range(rounds)}
        assert owners == {caller}
        assert roots == {(0, 0)}


@pytest.mark.parametrize("keeping", [True, False])
def test_with_kept_capabilities_the_host_does_not_check_again(
    keeping: bool, directory: int
) -> None:
    """The directory belongs to root alone: the kernel has checked the caller for the mount."""
    os.fchmod(opened := os.open(f"/proc/self/fd/{directory}", os.O_RDONLY), 0o700)
    os.close(opened)

    def create() -> str:
        if keeping:
            keep_capabilities()
        try:
            with ActingAs(CALLER):
                os.mkdir("theirs", dir_fd=directory)
        except PermissionError:
            return "refused"
        return "created"

    assert in_thread(create) == ("created" if keeping else "refused")
    if keeping:
        assert owner("theirs", directory) == CALLER


def test_keeping_capabilities_needs_cap_setpcap() -> None:
    code = "from passthrough.identity.credentials import *; keep_capabilities()"

    ended = python_without("setpcap", code)

    assert ended.returncode == 1
    assert "PermissionError: [Errno 1]" in ended.stderr


@pytest.mark.parametrize(("capability", "acted_as"), [("setuid", "0:41002"), ("setgid", "41001:0")])
def test_a_failed_switch_ends_the_process(capability: str, acted_as: str) -> None:
    """Otherwise the owner of the next new file would be unknown."""
    code = (
        "from passthrough.identity.credentials import *\n"
        f"with ActingAs(({CALLER.uid}, {CALLER.gid})): print('acted', flush=True)\n"
        "print('went on', flush=True)\n"
    )

    ended = python_without(capability, code)

    assert ended.returncode == EXIT_IDENTITY_LOST
    assert ended.stdout == "acted\n"
    assert f"acted as {acted_as} in place of {CALLER.uid}:{CALLER.gid}" in ended.stderr


def test_a_failed_restore_ends_the_process() -> None:
    """The first guard cannot restore the ids, so that the second cannot switch."""
    code = (
        "import os\n"
        "from passthrough.identity.credentials import *\n"
        "os.setresgid(7, 7, 7)\n"
        "os.setresuid(7, 7, 7)\n"
        "with ActingAs((7, 7)): pass\n"
        "with ActingAs((8, 8)): pass\n"
        "print('went on')\n"
    )

    ended = python_without("sys_boot", code)

    assert (ended.returncode, ended.stdout) == (EXIT_IDENTITY_LOST, "")


def test_a_write_clears_privileges_inside_the_guard_only(tmp_path: Path) -> None:
    """As without CAP_FSETID, inode(7); the guard restores the capability, also on error."""
    program = tmp_path / "program"
    program.write_text("old")

    def mode_after_truncation() -> int:
        program.chmod(0o6777)
        os.close(os.open(program, os.O_WRONLY | os.O_TRUNC))
        return program.stat().st_mode & 0o7777

    with ClearingPrivileges():
        assert mode_after_truncation() == 0o777
    assert mode_after_truncation() == 0o6777
    with pytest.raises(KeyError), ClearingPrivileges():
        raise KeyError
    assert mode_after_truncation() == 0o6777


def python_without(capability: str, code: str) -> subprocess.CompletedProcess[str]:
    """Run *code* as root without one capability."""
    return subprocess.run(
        ["setpriv", "--bounding-set", f"-{capability}", sys.executable, "-c", code],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
        check=False,
    )


LOSING = """
import sys
from passthrough.identity import credentials
from passthrough.linux import syscalls
how = sys.argv[1]
guard = credentials.ClearingPrivileges(7)
guard.__enter__()
real = syscalls.setfsgid
def failing(*_, **__):
    raise OSError(1, "not permitted")
if how == "group":
    syscalls.setfsgid = lambda gid: real(gid if gid == 0xFFFFFFFF else 7)
elif how == "capabilities":
    syscalls.CapabilitySwitch.set = failing
guard.__exit__()
print("alive")
"""


@pytest.mark.parametrize("how", ["group", "capabilities"])
def test_a_group_or_capability_that_cannot_be_restored_ends_the_process(how: str) -> None:
    """Otherwise the next file of root would have another group."""
    ended = subprocess.run(
        [sys.executable, "-c", LOSING, how],
        cwd=REPOSITORY,
        check=False,
        capture_output=True,
        timeout=LIMIT_S,
    )

    assert (ended.returncode, ended.stdout) == (EXIT_IDENTITY_LOST, b"")
    assert b"the process ends" in ended.stderr


def test_a_guard_that_fails_on_entry_keeps_the_group(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def failing(*_: object, **__: object) -> None:
        raise OSError(errno.EPERM, os.strerror(errno.EPERM))

    monkeypatch.setattr(syscalls.CapabilitySwitch, "set", failing)

    def run() -> int:
        with pytest.raises(OSError, match=os.strerror(errno.EPERM)), ClearingPrivileges(7):
            pass
        return syscalls.setfsgid(0xFFFF_FFFF)

    assert in_thread(run) == 0
