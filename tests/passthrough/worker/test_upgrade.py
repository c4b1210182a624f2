"""predecessor.py, trial.py: another program goes on with the volume of a program that serves.

PASSFS_UPGRADES in the environment says how often under load.
"""

import contextlib
import fcntl
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import cast

import msgspec
import pytest

from passthrough.linux import syscalls
from passthrough.options.choices import Passthrough, Sandbox, SessionKind, Standby
from passthrough.options.table import Requested
from passthrough.worker import control, fuse_mount
from tests.support.fakes.keeper import LIMIT_S, Keeper, ended, on_mount, report_of
from tests.support.tools.inside import probe
from tests.support.tools.mounts import MS_BIND, MS_SHARED
from tests.support.tools.processes import lives, wait_until

pytestmark = pytest.mark.full

INSIDE = "tests.support.tools.inside"
STAGES = "tests.support.tools.stages"
ONE = pytest.mark.parametrize("sandbox", [Sandbox.NAMESPACE])
BEFORE_COMMIT = ("examine", "stop", "retire", "copy", "enter", "go_on", "is_kept")
TIMES = int(os.environ.get("PASSFS_UPGRADES", "4"))
# Appends records to one file, and renames and reads another, until its standard input ends.
LOAD = """
import os, select, sys
own = sys.argv[1]
done = 0
with open(f"log-{own}", "ab", buffering=0) as log:
    while not select.select([0], [], [], 0)[0]:
        log.write(b"%08d\\n" % done)
        text = b"%08d" % done * (1 + done % 9000)
        with open(f"new-{own}-{done}", "wb") as file:
            file.write(text)
        os.rename(f"new-{own}-{done}", f"renamed-{own}")
        assert open(f"renamed-{own}", "rb").read() == text, done
        assert os.stat(f"log-{own}").st_size == 9 * (done + 1), done
        assert sorted(os.listdir("dir")) == ["one", "two"], done
        done += 1
print(done)
"""
LOADS = 4


@pytest.fixture(params=[Sandbox.NAMESPACE, Sandbox.NONE])
def sandbox(request: pytest.FixtureRequest) -> Sandbox:
    found: Sandbox = request.param
    return found


@pytest.fixture
def keeper(sandbox: Sandbox, source: Path, mountpoint: Path, tmp_path: Path) -> Iterator[Keeper]:
    with serving(source, mountpoint, tmp_path, sandbox) as keeper:
        yield keeper


@contextlib.contextmanager
def serving(
    source: Path,
    mountpoint: Path,
    tmp_path: Path,
    sandbox: Sandbox = Sandbox.NAMESPACE,
    passthrough: Passthrough = Passthrough.OFF,
) -> Iterator[Keeper]:
    config = Requested(
        session=SessionKind.KERNEL,
        standby=Standby.ON,
        sandbox=sandbox,
        passthrough=passthrough,
    )
    (source / "file").write_text("below")
    (source / "dir").mkdir()
    (source / "dir/one").touch()
    (source / "dir/two").touch()
    keeper = Keeper(source, mountpoint, tmp_path / "stderr", config, INSIDE)
    keeper.serve()
    wait_until(lambda: len(keeper.state.guard_pids) == 2)
    try:
        yield keeper
    finally:
        keeper.close()


def processes(keeper: Keeper) -> set[int]:
    return {*keeper.state.guard_pids, keeper.state.worker_pid}


def upgrade(keeper: Keeper, module: str = INSIDE) -> Keeper:
    """Have another program go on, and wait until that serves and is complete."""
    before = processes(keeper)
    after = keeper.start_next(module)
    report = report_of(after.processes[0])
    assert report.serving, (report.error, after.log.read_text(), keeper.log.read_text())
    after.keep()
    wait_until(lambda: not any(map(lives, before)))
    wait_until(lambda: len(after.state.guard_pids) == 2)
    return after


def assert_serves(keeper: Keeper) -> None:
    assert on_mount("cat", f"{keeper.mountpoint}/file") == "below"
    on_mount("touch", f"{keeper.mountpoint}/new")


def undone(keeper: Keeper, after: Keeper) -> None:
    """Assert that the program before serves, and that the other one has ended."""
    assert_serves(keeper)
    wait_until(lambda: not any(map(lives, processes(after) - {0})))
    assert len(keeper.state.guard_pids) == 2


def test_another_program_goes_on(keeper: Keeper) -> None:
    killed = keeper.state.worker_pid
    os.kill(killed, signal.SIGKILL)
    wait_until(lambda: keeper.state.deaths == 1 and keeper.state.settled == 2)

    after = upgrade(keeper)

    assert_serves(after)
    assert [death.pid for death in after.state.recent] == [killed]
    assert (after.state.waits, keeper.state.ended) == (False, control.End.REPLACED)
    wait_until(lambda: after.told != [])
    (line,) = after.told
    assert "serves in place of another program, after " in line
    os.kill(after.state.worker_pid, signal.SIGKILL)
    wait_until(lambda: after.state.deaths == 2 and after.state.settled == 2)
    assert_serves(after)
    fuse_mount.unmount(after.mountpoint)
    assert ended(after.processes[0])[0] == 0


@pytest.mark.parametrize("passthrough", [Passthrough.OFF, Passthrough.AUTO])
def test_programs_follow_each_other_under_load(
    source: Path, mountpoint: Path, tmp_path: Path, sandbox: Sandbox, passthrough: Passthrough
) -> None:
    with serving(source, mountpoint, tmp_path, sandbox, passthrough) as first:
        keeper, counts = first, list[int]()
        with under_load(mountpoint) as results:
            for _ in range(TIMES):
                keeper = upgrade(keeper)
                counts.append(descriptors(keeper))
                time.sleep(0.05)
        for own, (status, done) in enumerate(results):
            assert status == 0
            lines = b"".join(b"%08d\n" % number for number in range(done))
            assert (source / f"log-{own}").read_bytes() == lines
        assert max(counts[1:]) <= counts[0] + 8 * LOADS, counts
        assert keeper.state.deaths == 0


@contextlib.contextmanager
def under_load(mountpoint: Path) -> Iterator[list[tuple[int, int]]]:
    """Run LOADS loads; then add the exit status and the rounds of each one to the result."""
    results = list[tuple[int, int]]()
    loads = [
        subprocess.Popen(
            [sys.executable, "-c", LOAD, str(own)], cwd=mountpoint, stdin=-1, stdout=-1
        )
        for own in range(LOADS)
    ]
    try:
        yield results
        for load in loads:
            out, _ = load.communicate(b"end", timeout=LIMIT_S)
            results.append((load.returncode, int(out or b"0")))
    finally:
        for load in loads:
            with load:
                load.kill()


def descriptors(keeper: Keeper) -> int:
    return len(os.listdir(f"/proc/{keeper.state.worker_pid}/fd"))


def test_all_that_is_open_goes_on(keeper: Keeper, source: Path) -> None:
    """An unlinked file, a working directory, a half-read listing, a lock and a wait for it."""
    for number in range(2000):
        (source / f"dir/{number}").touch()
    user = """
import fcntl, os, sys
os.chdir("dir")
fd = os.open("unlinked", os.O_RDWR | os.O_CREAT)
os.write(fd, b"kept")
os.unlink("unlinked")
locked = open("../file", "r+b")
fcntl.lockf(locked, fcntl.LOCK_EX)
listing = os.scandir(".")
names = [next(listing).name for _ in range(100)]
print("open", flush=True)
sys.stdin.readline()
names += [entry.name for entry in listing]
assert len(names) == len(set(names)) == 2002, len(names)
assert os.pread(fd, 10, 0) == b"kept"
os.write(fd, b"+")
assert os.fstat(fd).st_size == 5
os.stat("one")
print("unlocked", flush=True)
"""
    waiter = """
import fcntl
fcntl.lockf(open("file", "r+b"), fcntl.LOCK_EX)
print("got it", flush=True)
"""
    command = [sys.executable, "-c"]
    where = keeper.mountpoint
    with subprocess.Popen([*command, user], cwd=where, stdin=-1, stdout=-1) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"open\n"
        with subprocess.Popen([*command, waiter], cwd=where, stdout=-1) as waits:
            try:
                time.sleep(0.2)
                upgrade(keeper)
                assert waits.poll() is None
                with (source / "file").open("r+b") as file, pytest.raises(BlockingIOError):
                    fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                out, _ = holder.communicate(b"go on\n", timeout=LIMIT_S)
                assert out == b"unlocked\n"
                assert waits.communicate(timeout=LIMIT_S)[0] == b"got it\n"
            finally:
                holder.kill()
                waits.kill()


def test_mounts_below_the_source_are_entered(
    source: Path, mountpoint: Path, tmp_path: Path, sandbox: Sandbox
) -> None:
    """One that no caller has looked up before, and one that is made later."""
    path = os.fsencode(source)
    syscalls.mount(path, path, b"", MS_BIND, b"")
    syscalls.mount(b"none", path, b"", MS_SHARED, b"")
    try:
        for name in ("disk", "later"):
            (source / name).mkdir()
        mount_tmpfs(source / "disk")
        with serving(source, mountpoint, tmp_path, sandbox) as keeper:
            upgrade(upgrade(keeper))
            assert on_mount("cat", f"{mountpoint}/disk/inside") == "disk"
            mount_tmpfs(source / "later")
            assert on_mount("cat", f"{mountpoint}/later/inside") == "later"
    finally:
        syscalls.umount2(path, syscalls.MNT_DETACH)


def mount_tmpfs(at: Path) -> None:
    syscalls.mount(b"none", os.fsencode(at), b"tmpfs", 0, b"")
    (at / "inside").write_text(at.name)


def test_the_next_program_is_confined_as_the_one_before(
    source: Path, mountpoint: Path, tmp_path: Path
) -> None:
    probes = ["mount", "clone_tree", "chroot", "by_handle", "new_process", "dumpable"]
    probes += ["unshare:131072", "open:/etc/passwd", "call:438 0 0 0", "call:308 0 0", "regain:19"]
    with serving(source, mountpoint, tmp_path) as keeper:
        before = [probe(mountpoint, *each.split(":")) for each in probes]
        tops = reached(mountpoint)
        after = upgrade(keeper)
        assert [probe(mountpoint, *each.split(":")) for each in probes] == before
        assert reached(mountpoint) == tops == {("dir", "file"), ()}
        for field in ("CapEff", "CapPrm", "CapBnd", "NoNewPrivs", "Seccomp"):
            values = {status(pid, field) for pid in processes(after)}
            assert len(values) == 1, (field, values)


def reached(mountpoint: Path) -> set[tuple[str, ...]]:
    """Return the names in each directory that leads no further up; () are links to descriptors."""
    found = cast("list[list[str]]", probe(mountpoint, "above"))
    return {() if all(map(str.isdecimal, names)) else tuple(names) for names in found}


def status(pid: int, field: str) -> str:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(line for line in lines if line.startswith(f"{field}:"))


# Failures


def test_a_program_with_another_layout_is_refused(
    keeper: Keeper, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = processes(keeper)
    monkeypatch.setenv("VERSION", "1000")

    after = keeper.start_next(STAGES)

    report = report_of(after.processes[0])
    assert (report.serving, report.error) == (False, "its memory is of version 1, not 1000")
    assert ended(after.processes[0])[0] == 1
    assert processes(keeper) == before
    undone(keeper, after)


@ONE
def test_without_the_capability_it_is_refused(keeper: Keeper) -> None:
    """A unit file of before has none."""
    before = processes(keeper)

    after = keeper.start_next(within=["setpriv", "--bounding-set", "-sys_ptrace"])

    report = report_of(after.processes[0])
    assert not report.serving
    assert report.error.startswith("this process may not take its descriptors: CAP_SYS_PTRACE")
    assert processes(keeper) == before
    undone(keeper, after)


@ONE
def test_with_other_features_it_is_refused(keeper: Keeper) -> None:
    """INIT is answered once."""
    keeper.config = msgspec.structs.replace(keeper.config, writeback=True)

    after = keeper.start_next()

    report = report_of(after.processes[0])
    assert not report.serving
    assert report.error == "INIT has agreed otherwise on WRITEBACK_CACHE"
    undone(keeper, after)


@ONE
@pytest.mark.parametrize("stage", BEFORE_COMMIT)
def test_if_it_is_killed_before_the_commit_the_other_goes_on(
    keeper: Keeper, monkeypatch: pytest.MonkeyPatch, stage: str
) -> None:
    monkeypatch.setenv("STAGE", stage)
    after = keeper.start_next(STAGES)
    assert after.processes[0].wait(LIMIT_S) == -signal.SIGKILL

    if worker := after.state.worker_pid:
        wait_until(lambda: not lives(worker))
    os.killpg(keeper.group, signal.SIGCONT)

    undone(keeper, after)


@ONE
@pytest.mark.parametrize("stage", ["commit", "dismiss"])
def test_if_it_is_killed_after_the_commit_it_goes_on(
    keeper: Keeper, monkeypatch: pytest.MonkeyPatch, stage: str
) -> None:
    monkeypatch.setenv("STAGE", stage)
    after = keeper.start_next(STAGES)
    assert report_of(after.processes[0]).serving

    after.keep()

    assert after.processes[0].wait(LIMIT_S) == -signal.SIGKILL
    os.killpg(keeper.group, signal.SIGCONT)
    wait_until(lambda: not any(map(lives, processes(keeper))))
    assert_serves(after)
    wait_until(lambda: is_whole(after))
    worker = after.state.worker_pid
    os.kill(worker, signal.SIGKILL)
    wait_until(lambda: after.state.worker_pid != worker and is_whole(after))
    assert_serves(after)


def is_whole(keeper: Keeper) -> bool:
    """Return whether guards and worker live, and the worker serves."""
    state = keeper.state
    pids = {*state.guard_pids, state.worker_pid}
    return len(pids) == 3 and all(map(lives, pids)) and state.settled == state.generation


ENDS: dict[str, Callable[[Keeper], object]] = {
    "the keeper's end": lambda after: after.processes[0].stdin.close(),  # type: ignore[union-attr]
    "no decision": lambda _: None,
    "SIGTERM": lambda after: after.processes[0].terminate(),
    "the worker's death": lambda after: os.kill(after.state.worker_pid, signal.SIGKILL),
}


@ONE
@pytest.mark.parametrize("end", ENDS.values(), ids=ENDS)
def test_it_lets_the_other_go_on(keeper: Keeper, end: Callable[[Keeper], object]) -> None:
    after = keeper.start_next()
    assert report_of(after.processes[0]).serving
    assert after.state.waits

    end(after)

    assert ended(after.processes[0])[0] == 1
    undone(keeper, after)


@ONE
def test_held_guards_make_no_worker(keeper: Keeper) -> None:
    """A service manager may continue processes that are stopped."""
    after = keeper.start_next()
    assert report_of(after.processes[0]).serving

    os.killpg(keeper.group, signal.SIGCONT)
    time.sleep(0.3)

    assert processes(keeper) - {*keeper.state.guard_pids} == {keeper.state.worker_pid}
    assert not lives(keeper.state.worker_pid)
    after.keep()
    wait_until(lambda: not any(map(lives, processes(keeper))))
    assert_serves(after)


@ONE
def test_it_serves_if_the_other_dies_on_trial(keeper: Keeper) -> None:
    after = keeper.start_next()
    assert report_of(after.processes[0]).serving

    os.killpg(keeper.group, signal.SIGKILL)
    wait_until(lambda: not any(map(lives, processes(keeper))))
    after.keep()

    assert_serves(after)


@ONE
def test_an_unmount_on_trial_ends_all(keeper: Keeper) -> None:
    after = keeper.start_next()
    assert report_of(after.processes[0]).serving
    fuse_mount.unmount(keeper.mountpoint)

    after.processes[0].stdin.close()  # type: ignore[union-attr]

    assert ended(keeper.processes[0])[0] == 0


@ONE
@pytest.mark.parametrize("at", [0, 1])
def test_one_guard_is_enough(keeper: Keeper, at: int) -> None:
    pid = keeper.state.guard_pids[at]
    os.kill(pid, signal.SIGKILL)

    after = upgrade(keeper)

    assert_serves(after)


@ONE
def test_without_guards_it_is_refused(keeper: Keeper) -> None:
    for pid in keeper.state.guard_pids:
        os.kill(pid, signal.SIGSTOP)
    for pid in keeper.state.guard_pids:
        os.kill(pid, signal.SIGKILL)

    after = keeper.start_next()

    report = report_of(after.processes[0])
    assert (report.serving, report.error) == (False, "none of its guards lives")
    assert_serves(keeper)


def test_a_worker_that_retires_is_no_death(keeper: Keeper) -> None:
    worker = keeper.state.worker_pid

    os.kill(worker, signal.SIGUSR1)

    wait_until(lambda: keeper.state.worker_pid != worker and keeper.state.settled == 2)
    assert keeper.state.deaths == 0
    assert_serves(keeper)
