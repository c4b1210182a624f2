"""A volume with a standby: the guard's work before there is a worker, and the work of each worker.

The guard makes the core and answers INIT. A worker confines itself, takes over unless it is the
first, and serves. The first one that serves reports.
"""

import errno
import logging
import os
from collections.abc import Callable, Iterable
from functools import partial
from typing import Final, NamedTuple, NoReturn

from passthrough.core.counters import count_in
from passthrough.core.timeouts import live_in
from passthrough.options.choices import InodeFileHandles, Sandbox
from passthrough.options.effective import Effective
from passthrough.session import kernel
from passthrough.session.abi import Init
from passthrough.session.negotiation import Began
from passthrough.worker import control, counters, live, record, sandbox, standby
from passthrough.worker.control import ControlError, Page
from passthrough.worker.handover import Handover, Report
from passthrough.worker.predecessor import Predecessor
from passthrough.worker.record import Record, RecordError
from passthrough.worker.sandbox import SandboxError
from passthrough.worker.successor import Fresh
from passthrough.worker.trial import Trial

log = logging.getLogger(__name__)

_FAILED: Final = 1
# The limit of processes or memory is reached.
_PASSING: Final = frozenset({errno.EAGAIN, errno.ENOMEM})


class Volume(NamedTuple):
    """All that the processes of a volume need to serve it."""

    handover: Handover
    config: Effective
    answer: Callable[[Report], object]
    """Writes the report to the keeper."""
    serving: Callable[[Began], object]
    """Reports that requests are answered."""
    keeper_fd: int | None
    without_handles: str = ""


def serve(volume: Volume, source_fd: int, procfs_fd: int | None) -> int:
    """Serve until the service ends; return the exit status.

    Takes *source_fd*, and *procfs_fd* of a guard with a sandbox.

    Raises:
        OSError: the session with the kernel failed before there was a worker.
    """
    fuse_fd = volume.handover.fuse_fd
    page = open_page(volume.handover.control_fd)
    served = kernel.prepare(volume.config, source_fd)
    try:
        without_passthrough = kernel.begin(served, fuse_fd)
    except BaseException:
        served.close()
        os.close(fuse_fd)
        raise
    if not served.rare.uses(Init.PASSTHROUGH):
        served.core.pass_nothing_through()
    if procfs_fd is not None:
        sandbox.work_as_guard(procfs_fd)
    begun = kernel.begun(served, without_passthrough)
    page.record_fd = record.store(begun, volume.without_handles)
    work = partial(_work, volume, served, begun.began)
    return standby.run(page, work, served.note_descriptors)


def go_on(volume: Volume, keeper_fd: int, before: Predecessor, found: Record) -> int:
    """Serve as `serve` does, in place of another program's guards that are stopped.

    This process has their descriptors. The volume is kept by the keeper at *keeper_fd*.

    Raises:
        OSError: their memory is not what it has to be.
    """
    page = open_page(volume.handover.control_fd)
    page.take_history(before.page)
    _check_memory(found.begun.memory)
    served = kernel.go_on(volume.config, found.begun, volume.handover.fuse_fd)
    begun = kernel.begun(served, found.begun.without_passthrough)
    page.record_fd = record.store(begun, found.without_handles)

    def ready() -> None:
        served.note_descriptors(before.copied - {*served.core.memory})
        before.copied = frozenset()  # there may be many

    report = partial(volume.serving, begun.began)
    trial = Trial(before, page, keeper_fd, report)
    work = partial(_work, volume, served, begun.began, trial=trial)
    return standby.run(page, work, ready, trial)


def _check_memory(fds: Iterable[int]) -> None:
    """Check once more what `examine` has seen: a worker may have changed its descriptors since."""
    try:
        for fd in fds:
            record.check_memory(fd)
    except RecordError as error:
        raise OSError(errno.EPROTO, str(error)) from error


def open_page(fd: int | None) -> Page:
    """Return the control page *fd*, which is closed, or a page of this volume's own.

    This process, and its clones, count their requests behind the page from now on. The core that
    they make next has the timeouts of the page.
    """
    page = Page.private() if fd is None else _page(fd)
    if counters.exist(page.memory):
        count_in(page.memory, counters.AT)
    if live.exist(page.memory):
        live_in(page.memory, live.AT)
    return page


def _page(fd: int) -> Page:
    try:
        return Page(fd)
    except ControlError as error:
        log.warning("the deaths of workers are not counted: %s", error)
        return Page.private()
    finally:
        os.close(fd)


def _work(
    volume: Volume,
    served: kernel.Served,
    began: Began,
    fresh: Fresh,
    trial: Trial | None = None,
) -> int:
    """Serve in a worker; return its exit status."""
    reports = fresh.reports and trial is None
    in_hand = 0

    def serving() -> None:
        nonlocal reports
        if reports:
            reports = False
            _tell(fresh, lambda: volume.serving(began))
        fresh.serves()
        if fresh.gone is not None or trial is not None:
            log.debug("%d requests of the worker before go on", in_hand)

    try:
        if trial is not None:
            trial.begin()
        if volume.config.sandbox is Sandbox.NAMESPACE:
            by_file_handle = volume.config.inode_file_handles is not InodeFileHandles.NEVER
            sandbox.enter_as_worker(by_file_handle=by_file_handle)
        if fresh.gone is not None or trial is not None:
            in_hand = _take_over(served, fresh)
        if trial is not None:
            fresh.wait_for_commit(trial)
        kernel.serve(
            served,
            volume.handover.fuse_fd,
            serving,
            volume.keeper_fd,
            unable=partial(_leave_to_another, fresh, committed=trial is not None),
            ending=fresh.ends,
            retire=_retire,
        )
    except (OSError, SandboxError) as error:
        fresh.ends(_FAILED)
        log.exception("volume %s", volume.handover.volume)
        if reports:
            report = Report(serving=False, error=str(error))
            _tell(fresh, lambda: volume.answer(report))
        return _FAILED
    finally:
        served.close()
    return 0


def _tell(fresh: Fresh, tell: Callable[[], object]) -> None:
    """Write a report; the worker before may have died right after its own.

    The keeper reads one report, and then closes the pipe.
    """
    try:
        tell()
    except BrokenPipeError:
        if fresh.gone is None:
            raise


def _take_over(served: kernel.Served, fresh: Fresh) -> int:
    try:
        return served.take_over(fresh.kept)
    except OSError as error:
        _leave_to_another(fresh, error)
        raise


def _leave_to_another(fresh: Fresh, error: OSError, *, committed: bool = False) -> None:
    """End a successor that lacks processes or memory; the tables are as after any death.

    So does the first worker of another program, once its upgrade is *committed*.
    """
    if (committed or fresh.gone is not None) and error.errno in _PASSING:
        log.warning("this worker cannot take over: %s", error)
        os._exit(_FAILED)


def _retire() -> NoReturn:
    """End at once: all that a successor needs is in the shared memory."""
    os._exit(control.RETIRED)
