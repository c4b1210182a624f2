"""One worker process, from its start to its end: the hand-over, its log lines, how it ended.

The process ends by itself when its file system has no user any more, and when the pipe to its
standard input closes, so that it never outlives the plugin.
"""

import logging
import signal
from collections import deque
from contextlib import aclosing

import msgspec
import trio

from passthrough.handover import Handover, Report, decode_report, encode
from plugin.errors import MountFailed
from plugin.forkserver import UNKNOWN, Process, Start
from plugin.output import forward, lines

log = logging.getLogger(__name__)

# A worker that is told to end only has to leave its loop; at shutdown the engine gives us 10 s.
END_GRACE_S = 2.0
# SIGKILL waits only for a call that is stuck in the kernel, which may be for ever.
KILL_GRACE_S = 1.0
# After its end, for what still lies in the pipe. Only a stranger that inherited it could hold it.
DRAIN_S = 1.0

# How much of what a worker last said goes into the refusal of a mount.
LAST_LINES = 5


class Worker:
    """The process that serves one mount of *volume*."""

    def __init__(self, volume: str, start: Start) -> None:
        self._volume = volume
        self._start = start
        self.serving = False
        """Whether it has said that it serves, from when on nobody waits for `run` any more."""
        self.without_handles = ""
        """Why it does not hold files by handle, if it serves and was wished to."""
        self.without_passthrough = ""
        """Why the kernel does not pass reads and writes on, if it was wished to."""
        self.ended = trio.Event()
        """Set when `run` is over: once it served, nobody uses its file system any more then."""
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

    async def run(
        self, handover: Handover, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
    ) -> str:
        """Start the process and stay until it has ended; started once it says that it serves.

        The descriptors in *handover* are borrowed until then. Cancellation ends the process.

        Returns:
            How the process ended.

        Raises:
            MountFailed: it never served; says why, in its own last words.
        """
        borrowed = (handover.fuse_fd, handover.source_fd)
        process = self._process = await self._start(self._volume, borrowed)
        fuse_fd, source_fd = process.given
        handover = msgspec.structs.replace(handover, fuse_fd=fuse_fd, source_fd=source_fd)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(forward, process.stderr, self._log)
            grace_s = 0.0
            try:
                report = await _hand_over(process, handover)
                if report.serving:
                    grace_s = END_GRACE_S
                    self.serving = True
                    self.without_handles = report.without_handles
                    self.without_passthrough = report.without_passthrough
                    task_status.started()
                    await process.wait()
            finally:
                with trio.CancelScope(shield=True):
                    await self._end(process, grace_s)
                self.ended.set()
            nursery.cancel_scope.deadline = trio.current_time() + DRAIN_S
        ended = _how_it_ended(process.returncode)
        if not report.serving:
            reason = report.error or f"its worker {ended} before it served"
            raise MountFailed(
                f"volume {self._volume!r} cannot be served: {reason}{self.last_words}"
            )
        return ended

    async def _end(self, process: Process, grace_s: float) -> None:
        await process.stdin.aclose()
        with trio.move_on_after(grace_s):
            await process.wait()
        if process.returncode is None:
            process.kill()
            with trio.move_on_after(KILL_GRACE_S):
                await process.wait()
        if process.returncode is None:
            log.error(
                "volume %s: worker %d is stuck in the kernel and does not end",
                self._volume,
                process.pid,
            )
        await process.stdout.aclose()

    def _log(self, level: int, text: str) -> None:
        self._last_lines.append(text)
        log.log(level, "volume %s: %s", self._volume, text)


async def _hand_over(process: Process, handover: Handover) -> Report:
    """Tell the worker what to serve and wait for its answer; a worker that dies gives none."""
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
