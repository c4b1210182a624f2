"""worker.py: a worker serves or reports the reason, and its log reaches the plugin's log."""

import logging
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
import trio

from passthrough.options.choices import SessionKind
from passthrough.options.table import Requested
from passthrough.worker.handover import Handover
from plugin.errors import MountFailed
from plugin.mounting.spawner import spawning
from plugin.mounting.worker import Worker
from tests.support.fakes.worker import command
from tests.support.tools.mount_specs import NAME


@pytest.fixture
def handover() -> Iterator[Handover]:
    """Descriptors without a mount: only the end of its standard input ends such a worker."""
    fds = [os.open("/dev/null", os.O_RDWR), os.open("/", os.O_PATH)]
    yield Handover(volume="data", config=Requested(), fuse_fd=fds[0], source_fd=fds[1])
    for fd in fds:
        os.close(fd)


@pytest.mark.parametrize(
    ("manner", "sentence"),
    [
        ("refuse", "volume 'data' cannot be served: the kernel is too old"),
        pytest.param(
            "end at once",
            "volume 'data' cannot be served: its worker ended with status 3 before it served;"
            " its last log lines: fake: out of luck",
            marks=pytest.mark.logs("volume data: fake: out of luck"),
        ),
        (
            "report garbage",
            "volume 'data' cannot be served: its worker answered 'hello?', not a report: ",
        ),
    ],
)
async def test_a_worker_that_does_not_serve_is_refused_with_the_reason(
    handover: Handover, manner: str, sentence: str
) -> None:
    async with spawning(command(manner)) as start:
        with pytest.raises(MountFailed) as refusal:
            await Worker(NAME).run(start, handover, SessionKind.KERNEL)
    assert str(refusal.value).startswith(sentence)


@pytest.mark.parametrize(
    ("number", "name"),
    [(signal.SIGKILL, "SIGKILL"), (40, "signal 40"), (signal.SIGRTMAX, "SIGRTMAX")],
)
async def test_the_end_of_a_worker_is_described(handover: Handover, number: int, name: str) -> None:
    ended: list[str] = []

    async with spawning(command("serve")) as start, trio.open_nursery() as nursery:
        worker = Worker(NAME)

        async def run(*, task_status: trio.TaskStatus[None]) -> None:
            ended.append(
                await worker.run(start, handover, SessionKind.KERNEL, task_status=task_status)
            )

        await nursery.start(run)
        assert Path(f"/proc/{worker.pid}/comm").exists()  # noqa: ASYNC240 - not a real file
        os.kill(worker.pid, number)
    assert ended == [f"was killed by {name}"]


async def test_a_worker_ends_with_the_plugin(handover: Handover) -> None:
    """Cancellation closes the worker's standard input, which ends the worker."""
    async with spawning(command("serve")) as start, trio.open_nursery() as nursery:
        worker = Worker(NAME)
        await nursery.start(worker.run, start, handover, SessionKind.KERNEL)
        nursery.cancel_scope.cancel()
    assert not Path(f"/proc/{worker.pid}").exists()  # noqa: ASYNC240 - not a real file


@pytest.mark.logs("^plugin.mounting.worker: volume data: b: two$")
async def test_log_lines_of_a_worker_keep_their_levels(
    handover: Handover, caplog: pytest.LogCaptureFixture
) -> None:
    """Lines without a level, as in a traceback, belong to the line before them."""
    caplog.set_level(logging.DEBUG)
    async with spawning(command("log")) as start, trio.open_nursery() as nursery:
        await nursery.start(Worker(NAME).run, start, handover, SessionKind.KERNEL)
        while "volume data: c: three" not in caplog.messages:
            await trio.lowlevel.checkpoint()
        nursery.cancel_scope.cancel()
    assert [
        (record.levelname, record.getMessage(), record.__dict__["traceback"])
        for record in caplog.records
    ] == [
        ("DEBUG", "volume data: a: one", ""),
        ("WARNING", "volume data: b: two", "  a line more"),
        ("INFO", "volume data: c: three", ""),
    ]
