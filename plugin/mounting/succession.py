"""The succession: processes of the plugin's own program take over a mount from an older program.

After a restart of the service, the workers of adopted mounts run the program of an earlier plugin.
The keeper replaces them one mount at a time, without an interruption of requests:

1. The fork server forks the *successor*: a first guard of the plugin's own program, with a control
   page of its own. The service manager stores its descriptors beside those of the present
   processes (fd_store.py).
2. The successor gets the hand-over with the process group and the page of its predecessor. It
   refuses tables of another version. Otherwise it stops the old processes, takes over their
   descriptors and tables, and reports. From then on no process serves until step 3.
3. The keeper writes KEEP to the standard input of the successor, which notes the replacement in the
   old page, serves, and kills the old processes.
4. The keeper drops the stored descriptors of the old processes.

At each instant one side can go on. Until the note in the old page, the old processes do, as soon as
the successor has ended and SIGCONT has reached them: the successor ends by itself if its standard
input closes, and the keeper ends it if it fails. After the note, the successor does. If all old
processes have ended before the note, the mount is lost only if the successor ends, too.

If the plugin dies, the next one finds the descriptors of both. It ends a successor that has not
reported, and writes KEEP to one that has, because it cannot know whether the plugin before did.
"""

import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from functools import partial
from typing import NamedTuple

import trio

from passthrough.options.choices import SessionKind
from passthrough.worker import control
from passthrough.worker.handover import Handover, Predecessor, Report
from plugin import events
from plugin.errors import MountFailed
from plugin.mounting.fd_store import FdStore
from plugin.mounting.mount import Mount, duplicated
from plugin.mounting.spawner import StartWorker
from plugin.mounting.worker import Worker
from plugin.volume import VolumeName

log = logging.getLogger(__name__)

PENDING = "it is about to be replaced"
DETACHED = "the mount is detached, and still in use"
# From the fork to the report. A request that is in hand delays it for 2 s at most.
READY_S = 10.0
# From KEEP to the note in the old page, which takes no call that could wait.
COMMIT_S = 5.0
# SIGKILL waits only for a call that is stuck in the kernel.
LEAVE_S = 3.0
_LOOK_S = 0.001

Supervise = Callable[[Mount, Worker, Callable[..., Awaitable[str]]], Awaitable[object]]
"""Supervise a worker of a mount by a function such as `Worker.run`; return once it serves."""


class ServedBy(NamedTuple):
    """The program that serves a mount."""

    name: VolumeName
    note: str
    """Why it is an older program; empty if it is the plugin's own."""
    loss: str
    replaced_s: float
    """The seconds that the replacement of an older program took; 0 if there was none."""
    detached: bool
    """True if the volume has been unmounted, and the mount is still in use."""


def served_by(name: VolumeName, mount: Mount) -> ServedBy:
    """Return the program that serves *mount* of the volume *name*."""
    note = DETACHED if mount.detached and mount.program_note else mount.program_note
    return ServedBy(name, note, mount.loss, mount.replaced_s, mount.detached)


def note(mount: Mount, program: str) -> None:
    """Note whether an older program than *program* serves the adopted *mount*."""
    state = mount.worker.standby.state
    if state is None or state.program != program:
        mount.program_note = obstacle(mount) or PENDING
    if mount.successor is None:
        mount.worker.resume()  # an earlier plugin may have died during a succession


def obstacle(mount: Mount) -> str:
    """Return why no other program can take over *mount*, as a part of a sentence; else empty."""
    if mount.detached:
        return DETACHED
    if mount.successor is not None:  # it hangs in the kernel
        return "processes of another program, which were to take over before, have not ended"
    return _obstacle_of(mount.worker)


def _obstacle_of(worker: Worker) -> str:
    """Return why nothing can follow *worker* and its guards; empty if it can."""
    state, deaths = worker.standby.state, worker.standby.deaths()
    if state is None or deaths is None:
        return "it has no standby"
    if not state.replaceable:
        return "that program cannot hand over"
    if deaths.standby == "missing" or worker.group <= 0:
        return "its first guard has ended"
    if worker.report.config is None:
        return "its options are not known"
    return ""


async def replace(
    mount: Mount, program: str, start: StartWorker, store: FdStore, supervise: Supervise
) -> None:
    """Let processes of *program* take over *mount*; `Mount.program_note` says why they have not."""
    began_s = trio.current_time()
    reason = obstacle(mount) or await _take_over(mount, program, start, store, supervise)
    volume = mount.worker.volume
    if reason:
        mount.program_note = reason
        events.tell(events.NOT_TAKEN_OVER, volume, reason=reason)
        return
    mount.replaced_s = trio.current_time() - began_s


async def _take_over(
    mount: Mount, program: str, start: StartWorker, store: FdStore, supervise: Supervise
) -> str:
    """Let processes of *program* take over; return why they have not."""
    worker = mount.worker
    assert worker.report.config is not None  # noqa: S101 - `obstacle` has checked it
    successor = Worker(worker.volume, control.make(program), worker.turn + 1)
    handover = Handover(
        volume=mount.target.name,
        config=worker.report.config,
        fuse_fd=mount.fuse_fd,
        source_fd=-1,
        predecessor=Predecessor(
            group=worker.group, control_fd=worker.standby.descriptors()["control"]
        ),
    )
    stored = partial(_stored, mount, successor, store)
    run = partial(successor.run, start, handover, SessionKind.KERNEL, stored)
    mount.successor = successor
    try:
        with trio.fail_after(READY_S):
            await supervise(mount, successor, run)
    except trio.TooSlowError:
        return f"it was not ready within {READY_S:g} s"
    except (MountFailed, OSError) as error:
        return successor.report.error.removeprefix("refused: ") or str(error)
    finally:
        if successor.ended.is_set() or not successor.report.serving:
            successor.standby.close()
            note_end(mount, successor)
    return await conclude(mount, successor)


@asynccontextmanager
async def _stored(mount: Mount, successor: Worker, store: FdStore) -> AsyncIterator[bool]:
    """Have the service manager store the descriptors of *successor*, unless it does not serve.

    Yields False if they are not stored: the mount would end with the plugin.
    """
    try:
        if store.exists:
            with duplicated(successor.descriptors()) as descriptors:
                await trio.to_thread.run_sync(store.add, mount.number, descriptors)
    except OSError as error:
        reason = f"the service manager does not store its successor: {error.strerror}"
        successor.report = Report(serving=False, error=reason)
    try:
        yield not successor.report.error
    finally:
        if not successor.stored and store.exists:
            with trio.CancelScope(shield=True):
                await trio.to_thread.run_sync(store.remove, {mount.number: successor.keys})


async def resolve(mount: Mount, program: str, store: FdStore) -> None:
    """Conclude or undo the succession of an adopted mount, which an earlier plugin has begun."""
    successor = mount.successor
    if successor is None:
        await _settle(mount.worker)
        await dismiss(mount)
    elif (state := successor.standby.state) is not None and (state.waits or state.settled):
        await conclude(mount, successor)
    else:
        successor.stored = False
        await trio.to_thread.run_sync(store.remove, {mount.number: successor.keys})
        await successor.give_up()
    note(mount, program)
    mount.resolved.set()


async def _settle(worker: Worker) -> None:
    """Let a *worker* without a predecessor serve; kill the worker at READY_S if it is not ready."""
    with trio.move_on_after(READY_S):
        while (state := worker.standby.state) is not None and not state.settled:
            if worker.ended.is_set():
                return
            if state.waits:
                with suppress(OSError):  # it has ended
                    worker.keep()
            await trio.sleep(10 * _LOOK_S)
        return
    worker.kill()


async def conclude(mount: Mount, successor: Worker) -> str:
    """Let *successor* serve *mount*, and the other processes end; return why it has failed."""
    with suppress(OSError):  # it has ended
        successor.keep()
        successor.stored = True  # from now on the note in the old page decides
    with trio.move_on_after(COMMIT_S) as limit:
        await _decision(mount, successor)
    if limit.cancelled_caught:
        # It alone writes the note. The other processes go on if it has, and end otherwise.
        successor.kill_leader()
        with trio.move_on_after(LEAVE_S):
            await _decision(mount, successor)
    if mount.worker is not successor and not successor.ended.is_set():
        successor.log_stuck()
        return "its successor is stuck in the kernel; the old program goes on after its end"
    if mount.worker is not successor:
        return f"its successor has failed{successor.last_log}"
    await dismiss(mount)
    return ""


async def _decision(mount: Mount, successor: Worker) -> None:
    """Wait until *successor* serves *mount*, or has ended."""
    while (  # noqa: ASYNC110 - of memory
        mount.worker is not successor and not mount.settle() and not successor.ended.is_set()
    ):
        await trio.sleep(_LOOK_S)


async def dismiss(mount: Mount) -> None:
    """Wait for the end of the replaced processes of *mount*; kill those that do not end."""
    for deadline_s in (LEAVE_S, LEAVE_S):
        with trio.move_on_after(deadline_s):
            while mount.leaving:
                await mount.leaving[0].ended.wait()
                del mount.leaving[0]
            return
        for worker in mount.leaving:
            worker.kill()
    log.error("volume %s: processes of an older program do not end", mount.worker.volume)


def note_end(mount: Mount, ended: Worker) -> None:
    """Note the end of one of the workers of *mount*; if it is the successor, the worker goes on.

    If the successor has taken the place before that end, it is the worker from now on.
    """
    if not mount.settle() and mount.successor is ended:
        mount.successor = None
        mount.worker.resume()


async def wait_for_successor(mount: Mount, ended: Worker) -> None:
    """Wait until the successor of *ended* has taken its place in *mount*, or has ended, too."""
    while (  # noqa: ASYNC110 - of memory
        mount.worker is ended and mount.successor is not None and not mount.settle()
    ):
        await trio.sleep(_LOOK_S)
