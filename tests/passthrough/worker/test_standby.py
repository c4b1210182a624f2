"""standby.py: the guards of a worker, and the workers that follow one that dies."""

import contextlib
import os
import select
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from passthrough.core.clone import exchange
from passthrough.options.choices import Passthrough, Sandbox, SessionKind, Standby
from passthrough.options.table import Requested
from passthrough.session.abi import Opcode
from passthrough.worker import control, fuse_mount, standby
from passthrough.worker.control import End
from tests.passthrough.core.probe_journal import FIRST_AT, PLACE, SIZES
from tests.support.fakes.keeper import LIMIT_S, Keeper, ended, on_mount
from tests.support.fakes.kernel import message, text
from tests.support.tools import wire
from tests.support.tools.callers import ROOT
from tests.support.tools.inside import probe
from tests.support.tools.pids import threads_limited
from tests.support.tools.processes import descriptors, lives, wait_until

pytestmark = pytest.mark.full

INSIDE = "tests.support.tools.inside"
UNSETTLED = "tests.support.tools.unsettled"


@pytest.fixture(params=[Sandbox.NAMESPACE, Sandbox.NONE])
def keeper(
    request: pytest.FixtureRequest, source: Path, mountpoint: Path, tmp_path: Path
) -> Iterator[Keeper]:
    config = Requested(
        session=SessionKind.KERNEL,
        standby=Standby.ON,
        sandbox=request.param,
        passthrough=Passthrough.OFF,
    )
    (source / "file").write_text("below")
    keeper = Keeper(source, mountpoint, tmp_path / "stderr", config)
    keeper.serve()
    wait_until(lambda: len(keeper.state.guard_pids) == 2)
    yield keeper
    keeper.close()


def test_a_worker_follows_one_that_dies_right_after_its_report(
    source: Path, mountpoint: Path, tmp_path: Path
) -> None:
    """The keeper has read a report, and closed the pipe."""
    (source / "file").write_text("below")
    config = Requested(session=SessionKind.KERNEL, standby=Standby.ON)
    keeper = Keeper(source, mountpoint, tmp_path / "stderr", config, UNSETTLED)
    try:
        process = keeper.serve()
        assert process.stdout is not None
        process.stdout.close()
        wait_until(lambda: keeper.state.settled > 0 or keeper.state.ended > 0)
        assert on_mount("cat", f"{mountpoint}/file") == "below"
        assert [death.status for death in keeper.state.recent] == [signal.SIGKILL]
    finally:
        keeper.close()


def kill(pid: int, number: int = signal.SIGKILL) -> None:
    """Kill a process, and wait until it has ended."""
    fd = os.pidfd_open(pid)
    os.kill(pid, number)
    assert select.select([fd], [], [], LIMIT_S)[0]
    os.close(fd)


def kill_worker(keeper: Keeper, number: int = signal.SIGKILL) -> int:
    """Kill the worker, and wait until another one serves; return the killed process's id."""
    pid, deaths = keeper.state.worker_pid, keeper.state.deaths
    kill(pid, number)
    wait_until(lambda: keeper.state.worker_pid != pid and keeper.state.deaths > deaths)
    return pid


def kill_guard(keeper: Keeper, at: int) -> None:
    """Kill a guard, and wait until another one has its place."""
    pid = keeper.state.guard_pids[at]
    kill(pid)
    wait_until(lambda: pid not in keeper.state.guard_pids and len(keeper.state.guard_pids) == 2)


def assert_gone(keeper: Keeper) -> None:
    pids = [*keeper.state.guard_pids, keeper.state.worker_pid]
    assert keeper.processes[0].pid in pids
    wait_until(lambda: not any(map(lives, pids)))


def test_another_worker_follows_one_that_is_killed(keeper: Keeper, mountpoint: Path) -> None:
    guards = keeper.state.guard_pids
    before = time.time()

    killed = kill_worker(keeper)

    assert on_mount("cat", f"{mountpoint}/file") == "below"
    on_mount("touch", f"{mountpoint}/new")
    (death,) = keeper.state.recent
    assert (death.pid, death.status, death.opcode) == (killed, signal.SIGKILL, 0)
    assert before - 1 <= death.at <= time.time()
    assert keeper.state.guard_pids == guards
    assert keeper.processes[0].poll() is None
    wait_until(lambda: len(keeper.told) == 2)
    assert 0 < keeper.state.last_takeover_us < LIMIT_S * 1e6
    first, second = keeper.told
    assert first.endswith(f"worker {killed} was killed by SIGKILL")
    assert f"worker {keeper.state.worker_pid} took over after " in second


def test_a_successor_that_gets_no_thread_is_followed_by_another_worker(
    keeper: Keeper, mountpoint: Path
) -> None:
    with threads_limited(keeper.processes[0].pid, 1):  # for the worker's first thread
        kill(keeper.state.worker_pid)
        wait_until(lambda: keeper.state.deaths > 1)

    assert on_mount("cat", f"{mountpoint}/file") == "below"
    assert not keeper.state.ended
    assert "cannot take over" in keeper.log.read_text()


def test_a_request_that_the_kernel_has_ended_is_not_served(
    keeper: Keeper, source: Path, mountpoint: Path
) -> None:
    """A thread that dies inside of read(2) may leave a number, and the caller has got EIO."""
    body = wire.MKDIR_IN.pack(0o700, 0) + text(b"never")
    request = message(Opcode.MKDIR, body, unique=1 << 40)
    with requests_of(keeper.state.worker_pid) as memory:
        for place in (1, 2):  # both readers wait for requests
            os.pwrite(memory, request, FIRST_AT + place * PLACE + SIZES[1])

        kill_worker(keeper)
    on_mount("cat", f"{mountpoint}/file")
    kill_worker(keeper)
    on_mount("cat", f"{mountpoint}/file")

    assert sorted(os.listdir(source)) == ["file"]


@contextlib.contextmanager
def requests_of(pid: int) -> Iterator[int]:
    """Return a descriptor of the memory of a worker's requests."""
    memory = "/memfd:passfs-requests (deleted)"
    found = next(fd for fd, target in descriptors(pid).items() if target == memory)
    fd = os.open(f"/proc/{pid}/fd/{found}", os.O_RDWR)
    try:
        yield fd
    finally:
        os.close(fd)


def test_a_successor_does_not_wait_for_room_in_the_log(
    source: Path, mountpoint: Path, tmp_path: Path
) -> None:
    """Between two plugins, no process reads the pipe."""
    log = tmp_path / "stderr"
    os.mkfifo(log)
    pipe = os.open(log, os.O_RDWR | os.O_NONBLOCK)
    config = Requested(session=SessionKind.KERNEL, standby=Standby.ON)
    keeper = Keeper(source, mountpoint, log, config)
    try:
        keeper.serve()
        wait_until(lambda: len(keeper.state.guard_pids) == 2)
        fill(pipe)
        for _ in range(2):
            kill_worker(keeper)
            kill_guard(keeper, 0)
        on_mount("touch", f"{mountpoint}/new")
        drain(pipe)
        kill_worker(keeper)
        text = ""
        while " was killed by SIGKILL\n" not in text:
            assert select.select([pipe], [], [], LIMIT_S)[0]
            text += os.read(pipe, select.PIPE_BUF).decode()
    finally:
        keeper.close()
        os.close(pipe)

    # The worker before may tell of its start first.
    before, _, _ = text.partition(" was killed by SIGKILL\n")
    assert "messages before this one are lost\n" in before


def fill(pipe: int) -> None:
    """Write to a pipe until it has no room for one more byte."""
    for data in (bytes(select.PIPE_BUF), b"\n"):
        with contextlib.suppress(BlockingIOError):
            while True:
                os.write(pipe, data)


def drain(pipe: int) -> None:
    """Read all that a pipe has."""
    with contextlib.suppress(BlockingIOError):
        while True:
            os.read(pipe, select.PIPE_BUF)


def test_an_open_file_and_a_working_directory_outlive_workers(
    keeper: Keeper, mountpoint: Path
) -> None:
    on_mount("mkdir", f"{mountpoint}/dir")
    script = f"exec 3<>{mountpoint}/file; cd {mountpoint}/dir; echo open; read line; cat <&3; ls .."
    with subprocess.Popen(["sh", "-c", script], stdin=-1, stdout=-1) as user:
        try:
            assert user.stdout is not None
            assert user.stdout.readline() == b"open\n"
            for _ in range(3):
                kill_worker(keeper)
            out, _ = user.communicate(b"go on\n", timeout=LIMIT_S)
        finally:
            user.kill()

    assert out == b"belowdir\nfile\n"
    assert keeper.state.deaths == 3


@pytest.mark.parametrize("at", [0, 1])
def test_a_guard_that_ends_is_replaced(keeper: Keeper, mountpoint: Path, at: int) -> None:
    """If it is the first, the second takes its place."""
    guards, worker = keeper.state.guard_pids, keeper.state.worker_pid

    kill_guard(keeper, at)

    assert guards[1 - at] in keeper.state.guard_pids
    assert keeper.state.worker_pid == worker
    kill_worker(keeper)
    assert on_mount("cat", f"{mountpoint}/file") == "below"
    assert f"guard {guards[at]} has ended; another one follows" in keeper.log.read_text()


def test_guards_and_workers_follow_each_other_for_long(keeper: Keeper, mountpoint: Path) -> None:
    for number in range(6):
        kill_guard(keeper, number % 2)
        kill_worker(keeper)

    assert on_mount("cat", f"{mountpoint}/file") == "below"
    assert keeper.state.deaths == 6
    fuse_mount.unmount(mountpoint)
    pids = [*keeper.state.guard_pids, keeper.state.worker_pid]
    wait_until(lambda: not any(map(lives, pids)))


def test_a_worker_serves_on_without_guards(keeper: Keeper, mountpoint: Path) -> None:
    guards, worker = keeper.state.guard_pids, keeper.state.worker_pid
    for pid in guards:
        os.kill(pid, signal.SIGSTOP)
    for pid in guards:
        kill(pid)

    assert on_mount("cat", f"{mountpoint}/file") == "below"
    assert keeper.state.worker_pid == worker
    fuse_mount.unmount(mountpoint)
    wait_until(lambda: not lives(worker))
    assert keeper.state.ended is End.ORDERLY


def test_first_guard_and_worker_may_die_at_once(keeper: Keeper, mountpoint: Path) -> None:
    guards, worker = keeper.state.guard_pids, keeper.state.worker_pid
    os.kill(guards[0], signal.SIGSTOP)
    kill(worker)
    kill(guards[0])

    wait_until(lambda: keeper.state.worker_pid != worker)
    assert on_mount("cat", f"{mountpoint}/file") == "below"
    assert keeper.state.recent[-1].pid == worker
    wait_until(lambda: guards[0] not in keeper.state.guard_pids)
    wait_until(lambda: len(keeper.state.guard_pids) == 2)


ENDS: dict[str, Callable[[Keeper], object]] = {
    "SIGTERM to the first guard": lambda keeper: os.kill(keeper.state.guard_pids[0], 15),
    "SIGTERM to the second guard": lambda keeper: os.kill(keeper.state.guard_pids[1], 15),
    "SIGTERM to the worker": lambda keeper: os.kill(keeper.state.worker_pid, 15),
    "SIGINT": lambda keeper: os.kill(keeper.processes[0].pid, signal.SIGINT),
    "the keeper's end": lambda keeper: keeper.processes[0].stdin.close(),  # type: ignore[union-attr]
    "an unmount": lambda keeper: fuse_mount.unmount(keeper.mountpoint),
    "an abort": lambda keeper: fuse_mount.unmount(keeper.mountpoint, abort=True),
}


@pytest.mark.parametrize("dies_before", [False, True])
@pytest.mark.parametrize("end", ENDS.values(), ids=ENDS)
def test_all_processes_end_with_status_0(
    keeper: Keeper, end: Callable[[Keeper], object], *, dies_before: bool
) -> None:
    """The exit status is 0, there is one report, and the log has nothing more."""
    if dies_before:
        kill_worker(keeper)
        on_mount("ls", str(keeper.mountpoint))

    end(keeper)

    assert ended(keeper.processes[0]) == (0, b"")
    assert_gone(keeper)
    assert (keeper.state.ended, keeper.state.end_status) == (End.ORDERLY, 0)
    assert len(keeper.told) == 2 * dies_before


@pytest.mark.parametrize(
    ("crash", "status", "text"),
    [
        ("fault", signal.SIGSEGV, "was killed by SIGSEGV"),
        ("end", 77 << 8, "ended with status 77"),
    ],
)
@pytest.mark.parametrize("sandbox", Sandbox)
def test_a_request_that_crashes_two_workers_is_refused(
    *,
    source: Path,
    mountpoint: Path,
    tmp_path: Path,
    sandbox: Sandbox,
    crash: str,
    status: int,
    text: str,
) -> None:
    config = Requested(session=SessionKind.KERNEL, standby=Standby.ON, sandbox=sandbox)
    (source / "file").write_text("below")
    keeper = Keeper(source, mountpoint, tmp_path / "stderr", config, INSIDE)
    try:
        keeper.serve()
        with pytest.raises(OSError, match="Input/output error"):
            probe(mountpoint, crash)
        state = keeper.state
        content = on_mount("cat", f"{mountpoint}/file")
    finally:
        keeper.close()

    found = [(death.status, death.opcode, death.nodeid) for death in state.recent]
    assert found == [(status, Opcode.GETXATTR, 1)] * 2
    assert content == "below"
    assert keeper.log.read_text().count(f"{text} in getxattr of inode 1\n") == 2


@pytest.mark.slow
def test_a_worker_that_crashes_again_and_again_is_given_up(keeper: Keeper) -> None:
    for _ in range(9):
        kill_worker(keeper, signal.SIGSEGV)
    kill(keeper.state.worker_pid, signal.SIGSEGV)

    assert ended(keeper.processes[0])[0] == 1
    assert_gone(keeper)
    assert (keeper.state.ended, keeper.state.end_status) == (End.GIVEN_UP, 1)
    assert "the worker has died 10 times within 60 s by its own fault" in keeper.log.read_text()


def test_kills_from_outside_never_end_the_service(keeper: Keeper, mountpoint: Path) -> None:
    for _ in range(12):
        kill_worker(keeper)

    assert on_mount("cat", f"{mountpoint}/file") == "below"
    assert keeper.state.ended is End.NONE


def test_no_process_descriptor_is_open_when_descriptors_are_noted() -> None:
    """If a noted number is closed and given out again, it is never found lost."""

    def noted() -> list[tuple[int, int]]:
        page = control.Page.private()
        found = []

        def ready() -> None:
            found.append(page.guard(0))
            raise InterruptedError

        with contextlib.suppress(InterruptedError):
            standby.run(page, lambda _: 0, ready)
        return found

    assert ROOT.run(noted) == [(0, control.NO_FD)]


def test_descriptors_stay_until_a_fresh_worker_serves(monkeypatch: pytest.MonkeyPatch) -> None:
    """A fresh worker closes descriptors that it cannot account for: guards open none meanwhile."""

    def settled() -> list[bool]:
        page = control.Page.private()
        guard = standby._Guard(page)
        monkeypatch.setattr(standby, "clone", os.getpid)  # a process that claims nothing by itself
        page.worker_pid = os.getpid()
        found = []
        for generation in (1, 2):
            exchange(page.memory, control.WORD_AT, page.word, page.word + 1)
            page.settle(generation, 0)
            found.append(guard._is_settled())
            guard._worker = 0
            guard._worker_lives()
            guard._make_worker()
            found.append(guard._is_settled())
        return found

    assert ROOT.run(settled) == [True, False, True, False]


def test_a_worker_of_the_guard_that_died_is_not_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    """Otherwise two would serve, and one that ends closes the descriptors of both."""

    def made() -> tuple[bool, int, int]:
        page = control.Page.private()
        guard = standby._Guard(page)
        monkeypatch.setattr(standby, "clone", lambda: 1 / 0)
        page.worker_pid = os.getpid()
        exchange(page.memory, control.WORD_AT, page.word, page.word + 1)
        dead = not guard._worker_lives()
        page.add_death(control.Death(1.0, 1.0, os.getpid(), signal.SIGKILL, 0, 0))
        exchange(page.memory, control.WORD_AT, page.word, page.word + 1)  # the worker comes
        return dead and guard._make_worker(), guard._worker, page.state().deaths

    assert ROOT.run(made) == (True, 0, 1)


def test_a_worker_that_dies_before_it_notes_its_id_has_died(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def die(*_: object) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    def reaped() -> bool:
        page = control.Page.private()
        guard = standby._Guard(page)
        monkeypatch.setattr(control.Page, "worker_pid", property(lambda _: 0, die))
        guard._worker_lives()
        if not guard._make_worker():
            guard.claim()
        worker = guard._worker
        os.waitid(os.P_PID, worker, os.WEXITED | os.WNOWAIT)
        guard._reap()
        gone = guard._gone
        return gone is not None and (gone.pid, gone.status) == (worker, signal.SIGKILL)

    assert ROOT.run(reaped)


def test_a_guard_has_one_thread_and_waits(keeper: Keeper) -> None:
    for pid in keeper.state.guard_pids:
        assert len(os.listdir(f"/proc/{pid}/task")) == 1
        assert Path(f"/proc/{pid}/comm").read_text() == "passfs-guard\n"
