"""One worker process, from its start to its end: hand-over, log lines, return code.

The process ends by itself when its file system has no user, or when the other end of its standard
input closes. If the service manager stores that end (fd_store.py), the process goes on after the
plugin, and the next plugin supervises it. Between the two plugins its log lines wait in the pipe.
A pipe holds 64 KiB, pipe(7); if it is full, the worker waits too.
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
from plugin.mounting.spawner import UNKNOWN_RETURNCODE, ForkedProcess, Process, StartWorker
from plugin.mounting.worker_output import forward_log, lines
from plugin.volume import VolumeName

log = logging.getLogger(__name__)

# After its standard input has closed, a worker only has to leave its loop.
END_GRACE_S = 1.5
# SIGKILL waits only for a call that is stuck in the kernel, which may be for ever.
KILL_GRACE_S = 1.0
# After the worker's end, for the log lines left in the pipe. Only a foreign process that inherited
# the pipe could keep it open for longer.
DRAIN_S = 1.0

# The refusal of a mount quotes this many of the worker's last log lines.
LAST_LINES = 5


class Worker:
    """The process that serves one mount of *volume*."""

    def __init__(self, volume: VolumeName) -> None:
        self.volume = volume
        self.report = Report(serving=False)
        """The report with which the worker answered the hand-over."""
        self.stored = False
        """True if the fd store has the worker's descriptors, so that it survives this plugin."""
        self.ended = trio.Event()
        """Set when the plugin stops watching the process: it has ended, or it is stored and goes on
        after the plugin."""
        self._process: Process | None = None
        self._last_lines: deque[str] = deque(maxlen=LAST_LINES)

    @property
    def pid(self) -> int:
        """Return the process id; 0 before the process starts."""
        return 0 if self._process is None else self._process.pid

    @property
    def last_log(self) -> str:
        """Return the worker's last log lines as the end of a sentence, or an empty string."""
        return f"; its last log lines: {' | '.join(self._last_lines)}" if self._last_lines else ""

    def kill(self) -> None:
        """Send SIGKILL to the process, if there is one; `run` or `supervise` sees the end."""
        if self._process is not None:
            self._process.kill()

    def descriptors(self) -> dict[str, int]:
        """Return the descriptors that lead to the process, by kind; call this after the start."""
        assert self._process is not None  # noqa: S101 - a precondition
        return self._process.descriptors()

    async def run(
        self,
        start: StartWorker,
        handover: Handover,
        session: SessionKind,
        *,
        task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
    ) -> str:
        """Start the process and wait for its end; `started` is called once the worker serves.

        The descriptors in *handover* are borrowed until then. Cancellation ends the process, unless
        it is stored.

        Returns:
            How the process ended, such as "ended with status 0".

        Raises:
            MountFailed: it never served; quotes its report or its last log lines.
        """
        process = await start(handover.volume, session, (handover.fuse_fd, handover.source_fd))
        fuse_fd, source_fd = process.passed_fds
        handover = msgspec.structs.replace(handover, fuse_fd=fuse_fd, source_fd=source_fd)
        async with self._supervised(process):
            self.report = await _hand_over(process, handover)
            if self.report.serving:
                task_status.started()
                await process.wait()
        ended = _describe_end(process.returncode)
        if not self.report.serving:
            reason = self.report.error or f"its worker {ended} before it served"
            raise MountFailed(f"volume {self.volume!r} cannot be served: {reason}{self.last_log}")
        return ended

    def adopt(self, process: Process, report: Report) -> None:
        """Adopt *process*, which an earlier plugin started and stored."""
        self._process = process
        self.report = report
        self.stored = True

    async def supervise(
        self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
    ) -> str:
        """Wait for the end of an adopted process, and return how it ended, as `run` does."""
        assert self._process is not None  # noqa: S101 - a precondition
        task_status.started()
        async with self._supervised(self._process) as process:
            await process.wait()
        return _describe_end(process.returncode)

    @asynccontextmanager
    async def _supervised(self, process: Process) -> AsyncIterator[Process]:
        """Forward the log of *process* during the block; then end it, unless it is stored."""
        self._process = process
        async with trio.open_nursery() as nursery:
            nursery.start_soon(forward_log, process.stderr, self._log)
            try:
                yield process
            finally:
                with trio.CancelScope(shield=True):
                    await process.stdin.aclose()
                    if not self.stored:
                        await self._end(process)
                process.close()
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


async def _hand_over(process: ForkedProcess, handover: Handover) -> Report:
    """Send *handover* to the worker and return its report; if the worker dies, an empty one."""
    async with process.stdout:
        try:
            await process.stdin.send_all(encode(handover))
        except trio.BrokenResourceError:
            return Report(serving=False)
        async with aclosing(lines(process.stdout)) as answers:
            line = await anext(answers, None)
    if line is None:
        return Report(serving=False)
    try:
        return decode_report(line.encode())
    except msgspec.DecodeError as error:
        return Report(serving=False, error=f"its worker answered {line!r}, not a report: {error}")


def _describe_end(returncode: int | None) -> str:
    if returncode is None:
        return "does not end"
    if returncode == UNKNOWN_RETURNCODE:
        return "ended with an unknown status"
    if returncode < 0:
        return f"was killed by {_signal_name(-returncode)}"
    return f"ended with status {returncode}"


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:  # most real-time signals have none, signal(7)
        return f"signal {number}"
