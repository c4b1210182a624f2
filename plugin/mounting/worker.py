"""The processes that serve one mount, from their start to their end: hand-over, log, return code.

Without a standby there is one process, the worker. With a standby the process that the fork server
forks is the first guard, and workers follow each other (standby.py). All processes of the mount
share one table of descriptors. So the end of the log tells that the last of them has ended.

The processes end by themselves when their file system has no user, or when the other end of their
standard input closes. If the service manager stores that end (fd_store.py), they go on after the
plugin, and the next plugin supervises them. Between the two plugins their log lines wait in the
pipe. A pipe holds 64 KiB, pipe(7); if it is full, lines are lost (passthrough/worker/stderr.py).

A next plugin of another program has processes of its own program take over from them, its
*successor* (succession.py).
"""

import logging
import os
from collections import deque
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, aclosing, asynccontextmanager, nullcontext

import msgspec
import trio

from passthrough.options.choices import SessionKind
from passthrough.options.table import Requested
from passthrough.worker.counters import Counters
from passthrough.worker.handover import KEEP, Handover, Report, decode_report, encode
from plugin import events, log as logs
from plugin.errors import MountFailed
from plugin.mounting import failures
from plugin.mounting.fd_store import FUSE, KINDS, key_of
from plugin.mounting.process import ForkedProcess, Process
from plugin.mounting.spawner import StartWorker
from plugin.mounting.standby import Standby
from plugin.mounting.worker_output import Message, forward_log, lines
from plugin.volume import VolumeName

log = logging.getLogger(__name__)

# After its standard input has closed, a worker only has to leave its loop.
END_GRACE_S = 1.5
# SIGKILL waits only for a call that is stuck in the kernel, which may be for ever.
KILL_GRACE_S = 1.0
# Guards and worker count as ended after so many looks without any. A fresh worker has noted itself
# by then.
LOOKS = 3
LOOK_S = 1.0
# After the worker's end, for the log lines left in the pipe. Only a foreign process that inherited
# the pipe could keep it open for longer.
DRAIN_S = 1.0

# The refusal of a mount quotes this many of the worker's last log lines.
LAST_LINES = 5


def _at_once() -> AbstractAsyncContextManager[bool]:
    return nullcontext(enter_result=True)


class Worker:
    """The processes that serve one mount of *volume*."""

    def __init__(self, volume: VolumeName, control_fd: int = -1, turn: int = 0) -> None:
        """Take the descriptor of the control page; -1 if there is none."""
        self.volume = volume
        self.turn = turn
        """The number of the programs that have served the mount before this one."""
        self.standby = Standby(control_fd)
        self.report = Report(serving=False)
        """The report with which the worker answered the hand-over."""
        self.stored = False
        """True if the fd store has the worker's descriptors, so that it survives this plugin."""
        self.is_outlived = False
        """True if guards and worker have ended, and a process that waits for pages has not."""
        self.ended = trio.Event()
        """Set when the plugin stops watching the processes: they have ended, or they are stored and
        go on after the plugin."""
        self._process: Process | None = None
        self._all_ended = trio.Event()
        self._requested: Requested | None = None
        self._options_changed = trio.Event()
        self._last_lines: deque[str] = deque(maxlen=LAST_LINES)

    @property
    def pid(self) -> int:
        """Return the process id of the worker that serves now; 0 if it is not known."""
        first = 0 if self._process is None else max(0, self._process.pid)
        return self.standby.worker_pid() or first

    @property
    def last_lines(self) -> list[str]:
        """Return the worker's last log lines."""
        return [*self._last_lines]

    @property
    def last_log(self) -> str:
        """Return the worker's last log lines as the end of a sentence, or an empty string."""
        return f"; its last log lines: {' | '.join(self._last_lines)}" if self._last_lines else ""

    def kill(self) -> None:
        """Send SIGKILL to all processes of the mount; `run` or `supervise` sees the end."""
        if self._process is not None:
            self._process.kill()

    def kill_leader(self) -> None:
        """Send SIGKILL to the first process alone: with a standby, the first guard."""
        if self._process is not None:
            self._process.kill_leader()

    def resume(self) -> None:
        """Let processes that a successor has stopped go on; harmless at any other time."""
        if self._process is not None:
            self._process.resume()

    def keep(self) -> None:
        """Let this successor serve from now on.

        Raises:
            OSError: it has ended.
        """
        assert self._process is not None  # noqa: S101 - a precondition
        os.write(self._process.stdin.fileno(), KEEP)

    async def give_up(self) -> None:
        """End the processes of this successor; for one that is supervised.

        One that is stuck in the kernel has not ended on return.
        """
        assert self._process is not None  # noqa: S101 - a precondition
        await self._process.stdin.aclose()
        for grace_s in (END_GRACE_S, KILL_GRACE_S):
            with trio.move_on_after(grace_s):
                await self.ended.wait()
                return
            self.kill()
        self.log_stuck()

    @property
    def group(self) -> int:
        """The process group in the plugin's pid namespace; below 1 if it is not known."""
        return 0 if self._process is None else self._process.group

    @property
    def keys(self) -> list[str]:
        """The keys of the descriptors in the fd store."""
        return [key_of(kind, self.turn) for kind in KINDS if kind != FUSE]

    def descriptors(self) -> dict[str, int]:
        """Return the descriptors that the next plugin needs, by key; call this after the start."""
        assert self._process is not None  # noqa: S101 - a precondition
        by_kind = self._process.descriptors() | self.standby.descriptors()
        return {key_of(kind, self.turn): fd for kind, fd in by_kind.items()}

    async def run(
        self,
        start: StartWorker,
        handover: Handover,
        session: SessionKind,
        prepared: Callable[[], AbstractAsyncContextManager[bool]] = _at_once,
        *,
        task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
    ) -> str:
        """Start the process and wait for its end; `started` is called once the worker serves.

        A successor does not serve then, but waits for `keep`. The descriptors in *handover* are
        borrowed until then. The process gets the hand-over in a block of *prepared*, unless that
        yields False; the end of the block comes before that of the process. Cancellation ends the
        process, unless it is stored.

        Returns:
            How the process ended, such as "ended with status 0".

        Raises:
            MountFailed: it never served; quotes its report or its last log lines.
        """
        self._requested = handover.config
        passed = _descriptors_of(handover)
        passed |= {f"{kind}_fd": fd for kind, fd in self.standby.descriptors().items()}
        process = await start(handover.volume, session, [*passed.values()])
        numbers = dict(zip(passed, process.passed_fds, strict=True))
        async with self._supervised(process), prepared() as is_prepared:
            if is_prepared:
                self.report = await _hand_over(process, _renumbered(handover, numbers))
            if self.report.serving:
                task_status.started()
                await self._follow(process)
        ended = self.standby.ending(process.returncode)
        if not self.report.serving:
            reason = self.report.error or f"its worker {ended} before it served"
            raise MountFailed(f"volume {self.volume!r} cannot be served: {reason}{self.last_log}")
        return ended

    def adopt(self, process: Process, report: Report) -> None:
        """Adopt *process*, which an earlier plugin started and stored."""
        self._process = process
        self.standby.attach(process)
        self.report = report
        self.stored = True

    async def supervise(
        self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
    ) -> str:
        """Wait for the end of adopted processes, and return how they ended, as `run` does."""
        assert self._process is not None  # noqa: S101 - a precondition
        task_status.started()
        async with self._supervised(self._process) as process:
            await self._follow(process)
        return self.standby.ending(process.returncode)

    @asynccontextmanager
    async def _supervised(self, process: Process) -> AsyncIterator[Process]:
        """Forward the log of *process* during the block; then end it, unless it is stored."""
        self._process = process
        self.standby.attach(process)
        # The end of the log ends `_wait`, also while the plugin ends and cancels all else.
        reading = trio.CancelScope(shield=True)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._forward_log, process, reading)
            try:
                yield process
            finally:
                with trio.CancelScope(shield=True):
                    await process.stdin.aclose()
                    if not self.stored:
                        await self._end(process)
                reading.shield = False
                self.standby.close()
                process.close()
                self.ended.set()
            nursery.cancel_scope.deadline = trio.current_time() + DRAIN_S

    async def _forward_log(self, process: Process, scope: trio.CancelScope) -> None:
        with scope:
            await forward_log(process.stderr, self._log)
            self._all_ended.set()

    async def _follow(self, process: Process) -> None:
        """Follow the workers until all processes of the mount have ended."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self.standby.follow)
            nursery.start_soon(self._tell_failures)
            await self._wait(process)
            nursery.cancel_scope.cancel()

    async def _wait(self, process: Process) -> None:
        """Wait until all processes of the mount have ended; for one task at a time."""
        await process.wait()
        if self.standby.exists():
            await self._wait_for_others()
        process.kill()  # for a process that has closed its standard error
        self._all_ended.set()

    async def _wait_for_others(self) -> None:
        """Wait for the end of the log, which all processes of the mount hold open.

        One that waits for pages may outlive guards and worker (core/notify.pyx). Only the abort of
        the connection ends that wait.
        """
        looks = 0
        while looks < LOOKS and not self._all_ended.is_set():
            with trio.move_on_after(LOOK_S):
                await self._all_ended.wait()
            looks = 0 if self.standby.lives() else looks + 1
        if not self._all_ended.is_set():
            self.is_outlived = True

    async def _end(self, process: Process) -> None:
        # A successor without a report may have stopped the processes before it.
        with trio.move_on_after(END_GRACE_S if self.report.serving or self.turn else 0):
            await self._wait(process)
            return
        process.kill()
        with trio.move_on_after(KILL_GRACE_S):
            await self._wait(process)
            return
        self.log_stuck()

    def log_stuck(self) -> None:
        """Log that a kill has not ended the processes."""
        log.error(
            "volume %s: worker %d is stuck in the kernel and does not end",
            *(self.volume, self.pid),
        )

    def let_options(self, config: Requested) -> None:
        """Let `config.log_level` be in force for all lines from now on."""
        self.report = msgspec.structs.replace(self.report, config=config)
        self._options_changed.set()
        self._options_changed = trio.Event()

    def _logs(self, level: int) -> bool:
        """Return whether lines of *level* are logged: by the option, or by the plugin's setting.

        The processes send all of their lines, so that another level takes effect at once.
        """
        config = self.report.config or self._requested
        if config is None or config.log_level is None:
            return log.isEnabledFor(level)
        return level >= config.log_level.number

    def _log(self, message: Message) -> None:
        if not self._logs(message.level):
            return
        self._last_lines.extend([message.text, *message.traceback.splitlines()])
        if not events.retell(self.volume, message.text):
            extra = {"traceback": message.traceback}
            logs.write(log, message.level, "volume %s: %s", self.volume, message.text, extra=extra)

    async def _tell_failures(self) -> None:
        """Log at the level `debug` how many requests fail, until cancelled."""
        before: Counters | None = None
        while True:
            changed = self._options_changed
            if not self._logs(logging.DEBUG):
                before = None
                await changed.wait()
                continue
            now = self.standby.counters()
            if before is not None and now is not None and (text := failures.between(before, now)):
                self._log(Message(logging.DEBUG, text, ""))
            before = now
            with trio.move_on_after(failures.INTERVAL_S):
                await changed.wait()


def _descriptors_of(handover: Handover) -> dict[str, int]:
    """Return the descriptors of *handover*, without that of its own control page."""
    if handover.predecessor is None:
        return {"fuse_fd": handover.fuse_fd, "source_fd": handover.source_fd}
    return {"fuse_fd": handover.fuse_fd, "before_fd": handover.predecessor.control_fd}


def _renumbered(handover: Handover, numbers: dict[str, int]) -> Handover:
    """Return *handover* with *numbers* of descriptors, by the names of `_descriptors_of`."""
    before_fd = numbers.pop("before_fd", -1)
    if handover.predecessor is None:
        return msgspec.structs.replace(handover, **numbers)
    before = msgspec.structs.replace(handover.predecessor, control_fd=before_fd)
    return msgspec.structs.replace(handover, predecessor=before, **numbers)


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
