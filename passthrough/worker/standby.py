"""The standby of a volume: two guards, which make the worker anew when it dies.

The process that has answered INIT becomes the first guard. It makes the worker and a second guard
by clone(2) with CLONE_FILES: all share one table of descriptors, so /dev/fuse, the inodes, the open
files and their locks outlive each of them. The tables of the core are shared memory. A worker that
is made after a death takes the tables over.

A guard has one thread, serves no request and waits in poll(2). So it is at rest when it clones
itself, and the clone has the guard's memory, as it was after INIT. Only the first guard makes
processes. It watches the worker and the second guard, and replaces each that dies. The second guard
watches the first one, and takes its place if it dies. If both die, the worker serves on alone.

Two workers never serve at once. A fresh worker serves only if it changes the generation in the
control page (control.py) from the one that its guard saw; otherwise it ends quietly. A guard opens
and closes descriptors only while no worker takes over: a worker that takes over closes what nothing
accounts for.

An end that the worker notes in the control page is orderly, and the guards end with its status. Any
other end makes a successor, after a wait (backoff.py).
"""

import gc
import logging
import math
import os
import select
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Final, NoReturn

from passthrough.core.clone import clone
from passthrough.core.crash import catch_crashes
from passthrough.linux import privileges
from passthrough.linux.pidfd import end_child, has_ended
from passthrough.worker import backoff, control, events, successor
from passthrough.worker.control import NO_FD, Death, End, Page
from passthrough.worker.successor import Fresh, Gone
from passthrough.worker.trial import Trial

log = logging.getLogger(__name__)

GIVEN_UP_STATUS: Final = 1
NOT_KEPT_STATUS: Final = 1

_ASKS_TO_END: Final = (signal.SIGTERM, signal.SIGINT)
_SIGNALS: Final = (*_ASKS_TO_END, signal.SIGCHLD)
# Between two second guards, and between attempts to make a process.
_RETRY_S: Final = 0.5
_READ_BYTES: Final = 512
_GUARD_NAME: Final = b"passfs-guard"


def run(
    page: Page,
    work: Callable[[Fresh], int],
    ready: Callable[[], object] = lambda: None,
    trial: Trial | None = None,
) -> int:
    """Guard a worker until the service ends; return the exit status.

    A worker is a process that calls *work* and ends with its result. There it confines itself,
    calls `Fresh.serves` once it serves, and `Fresh.ends` once the end is decided. *ready* is called
    before there is another process. The process must have one thread, and is a guard from now on.
    With *trial*, the service ends unless the first worker is kept; there is no process left then.
    """
    catch_crashes(page.memory, control.CRASH_AT)
    gc.freeze()  # otherwise each collection in a worker would copy the pages that it shares
    gc.disable()
    caller = os.getpid()
    worker_name = privileges.thread_name()
    with _handled():
        guard = _Guard(page)
        ready()  # the numbers of descriptors that are opened from now on may change their meaning
        guard.enter()
        while True:
            status = guard.watch() if trial is None else guard.try_worker(trial)
            trial = None
            if status is None:
                _be_worker(guard, worker_name, work)
            if os.getpid() == caller:
                return status
            os._exit(status)


@contextmanager
def _handled() -> Iterator[None]:
    """Have signals wake the guard: the interpreter writes their numbers to the guard's pipe."""
    before = {number: signal.signal(number, lambda *_: None) for number in _SIGNALS}
    try:
        yield
    finally:
        signal.set_wakeup_fd(-1)
        for number, handler in before.items():
            signal.signal(number, handler)


def _be_worker(guard: "_Guard", name: bytes, work: Callable[[Fresh], int]) -> NoReturn:
    """Work in a fresh worker, and end its process."""
    status = 1
    try:
        fresh = guard.claim()
        if fresh is None:
            status = 0  # another worker serves
        else:
            privileges.name_thread(name)
            gc.enable()
            status = work(fresh)
    except BaseException:
        log.exception("a worker ends because of a bug in passfs")
        guard.page.end(End.ORDERLY, status)
    finally:
        os._exit(status)


class _Guard:
    """One of the two guards; the process that made the object is the first.

    The numbers of the pipes are the same in all processes; each guard has the pipe of its index.
    """

    def __init__(self, page: Page) -> None:
        self.page = page
        self._index = 0
        self._first = True
        self._pipes = [os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK) for _ in range(control.GUARDS)]
        self._worker = 0  # the process id of a worker that this guard has made and not reaped
        self._born_s = 0.0
        self._gone: Gone | None = None  # the last worker
        self._expected = 0  # the word of the page when the last worker was found dead
        self._wait_s = 0.0  # before the last worker was made
        self._asked = False  # by SIGTERM or SIGINT
        self._told = 0  # the generation to which SIGTERM was passed on
        self._mended_s = -_RETRY_S
        self._take_place(0)

    def enter(self) -> None:
        """Note this process in the page, with a process descriptor."""
        self.page.set_guard(self._index, os.getpid(), os.pidfd_open(os.getpid()))

    def watch(self, trial: Trial | None = None) -> int | None:
        """Wait and replace what dies; return the exit status, or None in a fresh worker.

        A second guard of a *trial* ends if the first one ends before the commit.
        """
        while True:
            self._reap()
            if not self._first and has_ended(self.page.guard(1 - self._index)[1]):
                if trial is not None and not trial.before.is_replaced:
                    return NOT_KEPT_STATUS
                self._become_first()
            self._pass_on()
            if self._first:
                if self._worker_lives():
                    if self._is_settled():
                        self._mend_guards()
                else:
                    state = self.page.state()
                    if state.ended:
                        self._dismiss_other()
                        return state.end_status
                    if not self._make_worker():
                        return None
                    continue
            self._wait()

    def try_worker(self, trial: Trial) -> int | None:
        """Make the first worker on trial, and go on as `watch` once it is kept."""
        self._mend_guards()  # this process may die right after the commit
        if not self._first:
            return self.watch(trial)
        self._expected = self.page.word
        self._worker = self._clone()
        if not self._worker:
            return None
        self._born_s = time.monotonic()
        try:
            while (kept := trial.is_kept()) is None and self._worker and not self._asked:
                self._poll([trial.keeper_fd], trial.left_s)
                self._reap()
            if not kept or not self._worker:
                return NOT_KEPT_STATUS
            trial.commit()
        finally:
            if not trial.before.is_replaced:
                self._end_trial()
        return self.watch()

    def _end_trial(self) -> None:
        """End the worker and the second guard."""
        if self._worker:
            end_child(self._worker)
            self._worker = 0
        self._dismiss_other()

    def claim(self) -> Fresh | None:
        """Make this process the worker, unless another one is; then return None."""
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGCHLD])
        if not successor.claim(self.page, self._expected):
            return None
        return Fresh(self.page, self._gone, [write_fd for _, write_fd in self._pipes])

    def _take_place(self, index: int) -> None:
        """Become the guard with *index*, and be woken by its pipe."""
        self._index = index
        signal.set_wakeup_fd(self._pipes[index][1], warn_on_full_buffer=False)
        privileges.name_thread(_GUARD_NAME)

    def _clone(self) -> int:
        """Make a process, with signals blocked in it; return its id, in the new process 0."""
        signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
        pid = NO_FD
        try:
            pid = clone()
        finally:
            if pid:
                signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)
        return pid

    # The worker

    def _worker_lives(self) -> bool:
        """Return whether a worker serves or is about to."""
        if self._worker:
            return True
        while True:
            word, fd = self.page.word, self.page.worker_fd
            dead = fd == NO_FD or has_ended(fd)
            if word == self.page.word:  # a worker of the other guard may have come meanwhile
                self._expected = word if dead else self._expected
                return not dead

    def _is_settled(self) -> bool:
        """Return whether no worker takes over, so that descriptors may come and go."""
        fresh = self._worker and self.page.word == self._expected  # it has not claimed its place
        return not fresh and self.page.generation == self.page.settled > 0

    def _pass_on(self) -> None:
        """Pass SIGTERM on to the worker, once to each."""
        generation = self.page.generation
        if self._asked and self._told != generation and self._is_settled():
            with suppress(ProcessLookupError):
                signal.pidfd_send_signal(self.page.worker_fd, signal.SIGTERM)
            self._told = generation

    def _make_worker(self) -> bool:
        """Make the next worker, or end the service; return False in the worker."""
        if self.page.generation or self._gone is not None:
            gone = self._gone = self._gone or Gone.of_another_guard(self.page)
            if not self._is_noted(gone) and not self._wait_after(self._note_death(gone), gone):
                return True
        self._wait_while_held()
        while not self._asked:
            if self.page.word != self._expected:  # the other guard had made one before it died
                return True
            try:
                self._worker = self._clone()
            except OSError as error:
                log.warning("no worker can be made: %s", error)
                self._sleep(_RETRY_S)
            else:
                self._born_s = time.monotonic()
                return self._worker != 0
        self.page.end(End.ORDERLY, 0)
        return True

    def _wait_while_held(self) -> None:
        """Make no worker while another program is about to go on with the volume."""
        while (left_s := self.page.held_s()) > 0:
            self._poll([], min(left_s, _RETRY_S / 10))

    def _is_noted(self, gone: Gone) -> bool:
        """Return whether this is no death, or the other guard has noted it before it died."""
        if gone.status == control.RETIRED << 8:
            return True
        recent = self.page.state().recent
        return gone.status == control.STATUS_UNKNOWN and bool(recent) and recent[-1].pid == gone.pid

    def _note_death(self, gone: Gone) -> Death:
        """Note the death of a worker in the page and in the log."""
        opcode, nodeid = self.page.crash()
        self.page.forget_crash()
        boot_s = time.clock_gettime(time.CLOCK_BOOTTIME)
        death = Death(time.time(), boot_s, gone.pid, gone.status, opcode, nodeid)
        self.page.add_death(death)
        how = control.describe(gone.status)
        cause = how + control.describe_request(opcode, nodeid)
        events.tell(events.WORKER_DIED, worker=gone.pid, cause=cause)
        return death

    def _wait_after(self, death: Death, gone: Gone) -> bool:
        """Wait before the next worker is made; return False if there will be none."""
        recent = self.page.state().recent
        self._wait_s = backoff.wait_after(death, recent, gone.lived_s, self._wait_s)
        if self._wait_s == math.inf:
            limits = {"deaths": backoff.MOST_DEATHS, "within_s": backoff.WITHIN_S}
            events.tell(events.GIVEN_UP, **limits)
            self.page.end(End.GIVEN_UP, GIVEN_UP_STATUS)
            return False
        self._sleep(self._wait_s)
        return True

    # The guards

    def _become_first(self) -> None:
        """Take the place of the first guard, which has died."""
        self._first = True
        if self.page.guard(self._index)[0] != os.getpid():  # it died before it noted this one
            self.enter()

    def _mend_guards(self) -> None:
        """Make a second guard if there is none; the new process goes on as that."""
        other = 1 - self._index
        pid, fd = self.page.guard(other)
        if fd != NO_FD:
            if not has_ended(fd):
                return
            events.tell(events.GUARD_REPLACED, guard=pid)
            self.page.set_guard(other, 0, NO_FD)
            os.close(fd)
        if time.monotonic() < self._mended_s + _RETRY_S:
            return
        self._mended_s = time.monotonic()
        try:
            pid = self._clone()
        except OSError as error:
            log.warning("no second guard can be made: %s", error)
            return
        if pid:
            self.page.set_guard(other, pid, os.pidfd_open(pid))
            return
        self._first = False
        self._worker = 0
        self._gone = None
        self._take_place(other)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)

    def _dismiss_other(self) -> None:
        """End the second guard, so that none is left when the first ends."""
        pid, fd = self.page.guard(1 - self._index)
        if fd != NO_FD:
            with suppress(ProcessLookupError):
                signal.pidfd_send_signal(fd, signal.SIGKILL)
            with suppress(ChildProcessError):
                os.waitpid(pid, 0)

    # Waiting

    def _reap(self) -> None:
        """Reap the children that have ended, and note how the last worker did."""
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if not pid:
                return
            if pid == self._worker:
                now_s = time.monotonic()
                self._worker = 0
                self._gone = None
                if not self._worker_lives():  # that of the other guard may have come before it
                    self._gone = Gone(pid, status, now_s, now_s - self._born_s)

    def _wait(self) -> None:
        """Wait for a signal, a byte in the pipe, or the end of a watched process."""
        _, guard_fd = self.page.guard(1 - self._index)
        fds: list[int] = []
        timeout_s = None
        if not self._first:
            fds = [guard_fd]
        elif not self._worker:  # SIGCHLD tells the end of an own child
            fds = [self.page.worker_fd]
        if self._first and self._is_settled():
            fds.append(guard_fd)
            timeout_s = _RETRY_S if guard_fd == NO_FD else None
        self._poll(fds, timeout_s)

    def _sleep(self, seconds: float) -> None:
        """Sleep, but not beyond SIGTERM."""
        until = time.monotonic() + seconds
        while not self._asked and (left := until - time.monotonic()) > 0:
            self._poll([], left)

    def _poll(self, fds: Sequence[int], timeout_s: float | None) -> None:
        """Wait until one of *fds* or the pipe is readable; empty the pipe."""
        pipe = self._pipes[self._index][0]
        poll = select.poll()
        for fd in (pipe, *fds):
            if fd != NO_FD:
                poll.register(fd, select.POLLIN)
        poll.poll(None if timeout_s is None else 1000 * timeout_s)
        with suppress(BlockingIOError):
            numbers = os.read(pipe, _READ_BYTES)
            self._asked = self._asked or any(number in numbers for number in _ASKS_TO_END)
