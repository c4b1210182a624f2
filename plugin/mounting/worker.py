"""One worker process, from its start to its end: the hand-over, its log lines, how it ended.

The process ends by itself when its file system has no user any more, and when nobody holds the
other end of its standard input. Where a service manager keeps that end as well, the process goes on
while one plugin ends and the next one begins, which then attends to it. Its log lines wait in the
pipe meanwhile; if there are more than the pipe holds, 64 KiB, it waits too.
"""

import logging
import signal
from collections import deque
from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager

import msgspec
import trio

from passthrough.options.choices import SessionKind
from passthrough.worker.handover import Handover, Report, decode_report, encode
from plugin.errors import MountFailed
from plugin.mounting.spawner import UNKNOWN, Forked, Process, Start
from plugin.mounting.worker_output import forward, lines
from plugin.volume import VolumeName

log = logging.getLogger(__name__)

# A worker that is told to end only has to leave its loop.
END_GRACE_S = 1.5
# SIGKILL waits only for a call that is stuck in the kernel, which may be for ever.
KILL_GRACE_S = 1.0
# After its end, for what still lies in the pipe. Only a stranger that inherited it could hold it.
DRAIN_S = 1.0

# How much of what a worker last said goes into the refusal of a mount.
LAST_LINES = 5


class Worker:
    """The process that serves one mount of *volume*."""

    def __init__(self, volume: VolumeName) -> None:
        self.volume = volume
        self.report = Report(serving=False)
        """What it has said of itself."""
        self.kept = False
        """Whether the process goes on when it is attended to no more: somebody else keeps it."""
        self.ended = trio.Event()
        """Set when it is attended to no more: once it served, nobody uses its file system then."""
        self._process: Process | None = None
        self._last_lines: deque[str] = deque(maxlen=LAST_LINES)

    @property
    def pid(self) -> int:
        """The process's id; 0 before it starts."""
        return 0 if self._process is None else self._process.pid

    @property
    def last_words(self) -> str:
        """What it last wrote to its log, to be appended to a sentence."""
        return f"; its last words: {' | '.join(self._last_lines)}" if self._last_lines else ""

    def kill(self) -> None:
        """End the process at once; `run` notices."""
        if self._process is not None:
            self._process.kill()

    def ties(self) -> dict[str, int]:
        """The descriptors that lead to the process, by kind; it has been started."""
        assert self._process is not None  # noqa: S101 - says who may ask
        return self._process.ties()

    async def run(
        self,
        start: Start,
        handover: Handover,
        session: SessionKind,
        *,
        task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
    ) -> str:
        """Start the process and stay until it has ended; started once it says that it serves.

        The descriptors in *handover* are borrowed until then. Cancellation ends the process, unless
        it is kept.

        Returns:
            How the process ended.

        Raises:
            MountFailed: it never served; says why, in its own last words.
        """
        process = await start(handover.volume, session, (handover.fuse_fd, handover.source_fd))
        fuse_fd, source_fd = process.given
        handover = msgspec.structs.replace(handover, fuse_fd=fuse_fd, source_fd=source_fd)
        async with self._attended(process):
            self.report = await _hand_over(process, handover)
            if self.report.serving:
                task_status.started()
                await process.wait()
        ended = _how_it_ended(process.returncode)
        if not self.report.serving:
            reason = self.report.error or f"its worker {ended} before it served"
            raise MountFailed(f"volume {self.volume!r} cannot be served: {reason}{self.last_words}")
        return ended

    def adopt(self, process: Process, report: Report) -> None:
        """Take over *process*, which serves since an earlier plugin has started it."""
        self._process = process
        self.report = report
        self.kept = True

    async def attend(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> str:
        """Stay with a process that was adopted until it has ended; gives how."""
        assert self._process is not None  # noqa: S101 - says who may ask
        task_status.started()
        async with self._attended(self._process) as process:
            await process.wait()
        return _how_it_ended(process.returncode)

    @asynccontextmanager
    async def _attended(self, process: Process) -> AsyncIterator[Process]:
        """Take its log lines; at the end it has ended, or has been left to who keeps it."""
        self._process = process
        async with trio.open_nursery() as nursery:
            nursery.start_soon(forward, process.stderr, self._log)
            try:
                yield process
            finally:
                with trio.CancelScope(shield=True):
                    await process.stdin.aclose()
                    if not self.kept:
                        await self._end(process)
                process.let_go()
                self.ended.set()
            nursery.cancel_scope.deadline = trio.current_time() + DRAIN_S

    async def _end(self, process: Process) -> None:
        with trio.move_on_after(END_GRACE_S if self.report.serving else 0):
            await process.wait()
        if process.returncode is None:
            process.kill()
            with trio.move_on_after(KILL_GRACE_S):
                await process.wait()
        if process.returncode is None:
            log.error(
                "volume %s: worker %d is stuck in the kernel and does not end",
                self.volume,
                process.pid,
            )

    def _log(self, level: int, text: str) -> None:
        self._last_lines.append(text)
        log.log(level, "volume %s: %s", self.volume, text)


async def _hand_over(process: Forked, handover: Handover) -> Report:
    """Tell the worker what to serve and wait for its one answer; a worker that dies gives none."""
    async with process.stdout:
        try:
            await process.stdin.send_all(encode(handover))
        except trio.BrokenResourceError:
            return Report(serving=False)
        async with aclosing(lines(process.stdout)) as said:
            line = await anext(said, None)
    if line is None:
        return Report(serving=False)
    try:
        return decode_report(line.encode())
    except msgspec.DecodeError as error:
        return Report(serving=False, error=f"its worker said {line!r}: {error}")


def _how_it_ended(returncode: int | None) -> str:
    if returncode is None:
        return "does not end"
    if returncode == UNKNOWN:
        return "ended, nobody knows how"
    if returncode < 0:
        return f"was killed by {_signal_name(-returncode)}"
    return f"ended with status {returncode}"


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:  # most real-time signals have none, signal(7)
        return f"signal {number}"
