"""spawner.py and passthrough/worker/forkserver.py: the start and the end of workers."""

import errno
import os
import signal
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
import trio

from passthrough.options.choices import SessionKind
from plugin.mounting import spawner
from plugin.mounting.process import UNKNOWN_RETURNCODE, ForkedProcess
from plugin.mounting.spawner import spawning
from tests.support.fakes.worker import command
from tests.support.tools.processes import children, descriptors, workers

AT_ONCE = 50


@pytest.fixture
def fds() -> Iterator[tuple[int, int]]:
    opened = os.open("/dev/null", os.O_RDWR), os.open("/", os.O_PATH)
    yield opened
    for fd in opened:
        os.close(fd)


async def close(process: ForkedProcess) -> None:
    for stream in (process.stdin, process.stdout, process.stderr):
        await stream.aclose()
    process.close()


async def end(process: ForkedProcess) -> None:
    process.kill()
    await process.wait()
    await close(process)


def name(pid: int) -> str:
    return Path(f"/proc/{pid}/comm").read_text().rstrip("\n")


@contextmanager
def process_behind(pid: int) -> Iterator[int]:
    pid_fd = os.pidfd_open(pid)
    try:
        yield pid_fd
    finally:
        os.close(pid_fd)


def reap(pid: int) -> None:
    with suppress(ChildProcessError):  # init may have inherited and reaped it
        os.waitpid(pid, 0)


async def wait_until_asleep(process: ForkedProcess) -> None:
    """Wait until a worker of the manner "sleep" has arranged its descriptors."""
    assert await process.stdout.receive_some() == b"asleep\n"


async def test_a_worker_has_the_passed_descriptors_and_no_others(fds: tuple[int, int]) -> None:
    async with spawning(command("sleep")) as start:
        others = [await start("other", SessionKind.KERNEL, fds) for _ in range(3)]
        process = await start("data", SessionKind.KERNEL, fds)
        await wait_until_asleep(process)
        links = descriptors(process.pid)
        assert sorted(links) == [0, 1, 2, *process.passed_fds]
        assert [links[number] for number in process.passed_fds] == ["/dev/null", "/"]
        assert len({links[number] for number in (0, 1, 2)}) == 3
        for each in (process, *others):
            await end(each)


async def test_ps_shows_a_worker_by_the_name_of_its_volume(fds: tuple[int, int]) -> None:
    async with spawning(command("sleep")) as start:
        process = await start("a-volume-of-some-length", SessionKind.KERNEL, fds)
        await wait_until_asleep(process)
        assert name(process.pid) == "passfs:a-volume"
        assert os.getsid(process.pid) == process.pid, "a signal of the terminal would reach it"
        await end(process)


@pytest.mark.parametrize(
    ("number", "returncode"), [(signal.SIGKILL, -9), (signal.SIGTERM, -15), (40, -40)]
)
async def test_the_return_code_names_the_signal(
    fds: tuple[int, int], number: int, returncode: int
) -> None:
    async with spawning(command("sleep")) as start:
        process = await start("data", SessionKind.KERNEL, fds)
        os.kill(process.pid, number)
        await process.wait()
        assert process.returncode == returncode
        process.kill()  # without effect after the end
        await close(process)


async def test_a_worker_writes_the_traceback_of_an_exception(fds: tuple[int, int]) -> None:
    async with spawning(command("bug")) as start:
        process = await start("data", SessionKind.KERNEL, fds)
        await process.wait()
        written = await process.stderr.receive_some()
        assert process.returncode == 1
        assert b"Traceback" in written
        assert b"ZeroDivisionError" in written
        await close(process)


async def test_many_workers_start_concurrently(fds: tuple[int, int]) -> None:
    started: list[ForkedProcess] = []

    async with spawning(command("sleep")) as start:

        async def begin(number: int) -> None:
            started.append(await start(f"v{number}", SessionKind.KERNEL, fds))

        async with trio.open_nursery() as nursery:
            for number in range(AT_ONCE):
                nursery.start_soon(begin, number)
        assert {process.pid for process in started} == workers()
        assert len(workers()) == AT_ONCE
        for process in started:
            await end(process)


async def test_a_failed_fork_is_an_error(fds: tuple[int, int]) -> None:
    async with spawning(command("no fork")) as start:
        with pytest.raises(OSError, match="Resource temporarily unavailable") as refusal:
            await start("data", SessionKind.KERNEL, fds)
        assert refusal.value.errno == errno.EAGAIN


async def test_a_worker_without_a_process_descriptor_is_killed(fds: tuple[int, int]) -> None:
    """The fork server could not reap such a worker."""
    async with spawning(command("no pidfd")) as start:
        with pytest.raises(OSError, match="Too many open files") as refusal:
            await start("data", SessionKind.KERNEL, fds)
        assert refusal.value.errno == errno.EMFILE
        assert workers() == set()


@pytest.mark.logs("^plugin.mounting.spawner: a worker is not started: too many open files")
@pytest.mark.parametrize("room", [0, 3])
async def test_a_fork_server_with_too_many_open_files_starts_no_worker_and_lives_on(
    fds: tuple[int, int], room: int
) -> None:
    """If only some descriptors arrive, a worker would use the wrong ones."""
    async with spawning(command("few descriptors", str(room))) as start:
        (server,) = children()
        for _ in range(2):
            with pytest.raises(OSError, match="Connection reset"):
                await start("data", SessionKind.KERNEL, fds)
        assert children() == {server}


@pytest.mark.logs("^plugin.mounting.spawner: the fork server ended with -9; the next mount begins")
async def test_workers_outlive_their_fork_server(fds: tuple[int, int]) -> None:
    """The next start begins another fork server."""
    async with spawning(command("sleep")) as start:
        first = await start("first", SessionKind.KERNEL, fds)
        (server,) = children()
        os.kill(server, signal.SIGKILL)
        while server in children():
            await trio.lowlevel.checkpoint()
        second = await start("second", SessionKind.KERNEL, fds)
        await wait_until_asleep(first)
        await wait_until_asleep(second)
        assert first.pid in children(), "the nearest subreaper inherits an orphan"

        await end(second)
        await end(first)
        assert first.returncode == UNKNOWN_RETURNCODE
        reap(first.pid)


async def test_a_cancelled_start_leaves_no_worker(fds: tuple[int, int]) -> None:
    """The fork server is stopped, so that the start waits."""
    async with spawning(command("serve")) as start:
        (server,) = children()
        os.kill(server, signal.SIGSTOP)
        with trio.move_on_after(0.05) as waiting:
            await start("data", SessionKind.KERNEL, fds)
        assert waiting.cancelled_caught
        os.kill(server, signal.SIGCONT)
        later = await start("later", SessionKind.KERNEL, fds)
        while workers() != {later.pid}:
            await trio.lowlevel.checkpoint()
        await end(later)


STOPPED = (
    "^plugin.mounting.spawner: the fork server (has started no worker for 4 s, and is killed"
    "|ended with -9; the next mount begins another)$"
)


@pytest.mark.logs(STOPPED)
async def test_a_stopped_fork_server_is_replaced(
    fds: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its successor starts all pending workers; earlier workers go on."""
    started: list[ForkedProcess] = []
    async with spawning(command("sleep")) as start:
        earlier = await start("earlier", SessionKind.KERNEL, fds)
        # As long as its successor may need, to load all modules, on a busy machine.
        monkeypatch.setattr(spawner, "START_TIMEOUT_S", 4.0)
        (server,) = children(os.getpid())

        async def begin(number: int) -> None:
            started.append(await start(f"v{number}", SessionKind.KERNEL, fds))

        with process_behind(server) as stopped:
            signal.pidfd_send_signal(stopped, signal.SIGSTOP)
            async with trio.open_nursery() as nursery:
                for number in range(5):
                    nursery.start_soon(begin, number)
            await trio.lowlevel.wait_readable(stopped)
        assert len(started) == 5
        await wait_until_asleep(earlier)
        assert workers() == {process.pid for process in started}, "of the new fork server"
        for process in (*started, earlier):
            await end(process)
        assert earlier.returncode == UNKNOWN_RETURNCODE
        reap(earlier.pid)


async def test_a_slow_fork_server_that_answers_is_not_replaced(
    fds: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each answer extends the deadline of all pending starts."""
    async with spawning(command("slow start", "0.2")) as start, trio.open_nursery() as nursery:
        await end(await start("first", SessionKind.KERNEL, fds))  # its modules are loaded
        (server,) = children(os.getpid())
        monkeypatch.setattr(spawner, "START_TIMEOUT_S", 1.0)

        async def begin(number: int) -> None:
            await end(await start(f"v{number}", SessionKind.KERNEL, fds))
            assert server in children(os.getpid())

        for number in range(8):
            nursery.start_soon(begin, number)


async def test_the_fork_server_ends_with_the_plugin() -> None:
    async with spawning():
        (server,) = children()
    assert not Path(f"/proc/{server}").exists()  # noqa: ASYNC240 - not a real file


async def test_a_plugin_with_too_many_open_files_gets_an_error() -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    streams = [trio.lowlevel.FdStream(os.open("/dev/null", os.O_RDWR)) for _ in range(3)]
    process = ForkedProcess(trio.socket.from_stdlib_socket(ours), *streams)
    theirs.send(b"42")  # without a descriptor: the kernel drops it if there are too many
    with pytest.raises(OSError, match="Too many open files"):
        await process.wait_until_forked()
    process.close()
    await close(process)
    theirs.close()


@pytest.mark.logs("^plugin.mounting.spawner: the fork server ended with 3; the next mount begins")
async def test_a_fork_server_that_cannot_start_is_an_error(fds: tuple[int, int]) -> None:
    async with spawning((sys.executable, "-c", "import sys; sys.exit(3)")) as start:
        for _ in range(3):
            with pytest.raises(ConnectionError):
                await start("data", SessionKind.KERNEL, fds)


async def test_a_worker_that_was_not_forked_is_not_killed() -> None:
    """Process id 0 in kill(2) would mean the test's own process group."""
    life = trio.socket.socket()
    streams = [trio.lowlevel.FdStream(fd) for fd in (*os.pipe(), os.open("/dev/null", os.O_RDWR))]
    process = ForkedProcess(life, *streams)
    process.kill()
    process.close()
    for stream in streams:
        stream.close()


async def test_the_fork_server_loads_a_session_once_for_its_first_worker(
    fds: tuple[int, int],
) -> None:
    def has_pyfuse3(pid: int) -> bool:
        return "pyfuse3" in Path(f"/proc/{pid}/maps").read_text()

    async with spawning() as start:
        (server,) = children(os.getpid())
        await end(await start("data", SessionKind.KERNEL, fds))
        assert not has_pyfuse3(server)

        worker = await start("data", SessionKind.LIBFUSE, fds)

        assert has_pyfuse3(server)
        assert has_pyfuse3(worker.pid), "the worker has loaded pyfuse3 itself"
        await end(worker)
