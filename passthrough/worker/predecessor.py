"""The guards of another program, which this program replaces: `passfs upgrade`.

The other program does nothing for that but what it does anyway. This process is of root, with all
capabilities of the service, and confines itself only once it has what it needs:

1. `examine`: the record of the session (record.py) is of this version. Nothing is touched before.
2. `stop`: the page says that the guards are held, and they are stopped. So no guard makes a worker.
3. `retire`: the worker is asked to end. If it does not, it is killed: the journal has the rest.
4. `copy`: this process gets all descriptors under their numbers, pidfd_getfd(2).
5. `enter`: it enters the guards' namespaces, and confines itself as they are.
6. A worker takes over, and waits (trial.py).
7. `commit`: the other program's page says that its service has ended. Only then the worker serves.

Up to the commit the other program can go on (`undo`): its table of descriptors is as it was, and
the tables name no other descriptor. After it, the new worker's tables name descriptors that only
this program has.

The commit is one store. If a process dies before or after it, one side goes on, and not the other.
Held guards make no worker while this process lives, for 40 s at most, and none after the commit.
The new worker does not serve before the commit, and ends if this process dies before.

The worker of the other program may be compromised, and shares its guards' descriptors and page. So
no process is signalled that is not in the guards' group. No right is taken that the guards lack.
Memory is looked into only by a process that is confined.
"""

import errno
import fcntl
import logging
import os
import signal
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

from passthrough.core.clone import copy_descriptors, exchange
from passthrough.linux import pidfd, privileges, syscalls
from passthrough.worker import control, record, sandbox
from passthrough.worker.control import NO_FD, ControlError, End, Page
from passthrough.worker.record import Record, RecordError

log = logging.getLogger(__name__)

_STANDARD: Final = frozenset({0, 1, 2})
# The guards are held for so long, and the commit comes no later than so long before the end.
_HOLD_S: Final = 40.0
_COMMIT_S: Final = 5.0
_STOP_LIMIT_S: Final = 2.0
_RETIRE_LIMIT_S: Final = 2.0
_KILL_LIMIT_S: Final = 5.0
_OTHERS_LIMIT_S: Final = 0.5
_LOOK_S: Final = 0.001
_GENERATION: Final = 0xFFFF_FFFF  # in the page's word
_PROC_ROOT_INO: Final = 1
_PROC_SUPER_MAGIC: Final = 0x9FA0
_STOPPED: Final = b"T"


class RefusedError(Exception):
    """This program cannot go on with the volume; the other one serves on."""


class Predecessor:
    """The guards of the other program."""

    def __init__(self, group: int, control_fd: int) -> None:
        """Take their process group, and the descriptor of their control page.

        Raises:
            RefusedError: it is no control page.
        """
        self._group = group
        self._held = False
        self._guards: dict[int, int] = {}  # process descriptors by process id
        self.copied: frozenset[int] = frozenset()
        """The descriptors that `copy` has copied."""
        self._until_s = 0.0  # the guards are held, CLOCK_BOOTTIME
        self.stopped_s = 0.0
        """When the other program was stopped, time.monotonic()."""
        self._page_fd = control_fd
        try:
            self.page = Page(control_fd)
        except ControlError as error:
            raise RefusedError(str(error)) from error

    # Before anything is touched

    def examine(self) -> Record:
        """Return the record of the session.

        Raises:
            RefusedError: the text says why.
        """
        try:
            state = self.page.state()
            if self._group == os.getpgrp():
                raise RefusedError("its guards are not named")
            if state.ended is not End.NONE:
                raise RefusedError("its service has ended")
            if not state.replaceable:
                raise RefusedError("its program has no standby, or is too old")
            self._find_guards()
            with self._borrowed(self.page.record_fd) as fd:
                found = record.load(fd)
            for number in found.begun.memory:
                with self._borrowed(number) as fd:
                    record.check_memory(fd)
        except (ControlError, RecordError) as error:
            raise RefusedError(str(error)) from error
        except OSError as error:
            raise RefusedError(_why(error)) from error
        return found

    def _find_guards(self) -> None:
        """Open the guards that the page names, are of the group, and live.

        Raises:
            RefusedError: there is none.
        """
        for pid, pid_fd in list(self._guards.items()):
            if pidfd.has_ended(pid_fd):
                os.close(self._guards.pop(pid))
        for index in range(control.GUARDS):
            pid, _ = self.page.guard(index)
            if pid not in self._guards and (pid_fd := self._open_member(pid)) >= 0:
                self._guards[pid] = pid_fd
        if not self._guards:
            raise RefusedError("none of its guards lives")

    def _open_member(self, pid: int) -> int:
        """Return a process descriptor of *pid*, or -1 if it has ended or is not of the group."""
        if not self._is_member(pid):
            return NO_FD
        with suppress(ProcessLookupError):
            pid_fd = os.pidfd_open(pid)
            if self._is_member(pid) and not pidfd.has_ended(pid_fd):
                return pid_fd
            os.close(pid_fd)
        return NO_FD

    def _is_member(self, pid: int) -> bool:
        with suppress(ProcessLookupError):
            return pid > 0 and os.getpgid(pid) == self._group
        return False

    @contextmanager
    def _borrowed(self, number: int) -> Iterator[int]:
        """Yield a duplicate of a descriptor of the guards."""
        fd = privileges.duplicate_of(next(iter(self._guards.values())), number)
        try:
            yield fd
        finally:
            os.close(fd)

    # The other program stops

    def stop(self) -> None:
        """Have the guards make no worker any more.

        Raises:
            OSError: one does not stop.
            RefusedError: they have ended.
        """
        self._held = True
        self.stopped_s = time.monotonic()
        self._until_s = time.clock_gettime(time.CLOCK_BOOTTIME) + _HOLD_S
        self.page.hold(os.getpid(), self._until_s)
        stopped: set[int] = set()
        while stopped != self._guards.keys():  # one may have made another meanwhile
            for pid, pid_fd in self._guards.items():
                _signal(pid_fd, signal.SIGSTOP)
                _await_stop(pid, pid_fd)
            stopped = set(self._guards)
            self._find_guards()
        log.debug("the other program's guards are stopped: %s", sorted(stopped))

    def retire(self) -> None:
        """End the worker, and what else there is beside the guards.

        Raises:
            OSError: the worker does not end.
        """
        pid = self.page.worker_pid
        worker_fd = NO_FD if pid in self._guards else self._open_member(pid)
        if worker_fd != NO_FD:
            try:
                _end(pid, worker_fd)
            finally:
                os.close(worker_fd)
        self._end_others()
        word = self.page.word
        # A worker that a guard is about to make all the same loses its place.
        later = word & ~_GENERATION | (word + 1) & _GENERATION
        if not exchange(self.page.memory, control.WORD_AT, word, later):
            raise OSError(errno.EBUSY, "the other program has made a worker")
        log.debug("the other program's worker %d has ended", pid)

    def _end_others(self) -> None:
        """Kill fresh workers, and processes that make one call for a worker (core/notify.pyx).

        The latter may wait for a request, and end only once that is answered. They do nothing more.
        A fresh worker notes itself in the page before it does anything.

        Raises:
            OSError: a worker does not end.
        """
        killed: set[int] = set()
        while found := self._members() - self._guards.keys() - killed:
            for pid in found:
                if (pid_fd := self._open_member(pid)) != NO_FD:
                    try:
                        self._kill_other(pid, pid_fd)
                    finally:
                        os.close(pid_fd)
            killed |= found

    def _kill_other(self, pid: int, pid_fd: int) -> None:
        _signal(pid_fd, signal.SIGKILL)
        if not pidfd.has_ended(pid_fd, _OTHERS_LIMIT_S) and pid == self.page.worker_pid:
            _kill(pid, pid_fd)

    def _members(self) -> set[int]:
        """Return the processes of the group."""
        pids = (int(name) for name in os.listdir("/proc") if name.isdecimal())
        return {pid for pid in pids if self._is_member(pid)}

    # This process takes its place

    def copy(self, own: Sequence[int]) -> list[int]:
        """Copy all descriptors of the guards; *own* move, and their new numbers are returned.

        Raises:
            OSError: this process may not, or has another limit of descriptors.
        """
        pid = next(iter(self._guards))
        numbers = set(map(int, os.listdir(f"/proc/{pid}/fd"))) - _STANDARD
        least = max(numbers) + 1
        self.page.close()  # it has a descriptor of its own
        try:
            *moved, self._page_fd = (_moved(fd, least) for fd in (*own, self._page_fd))
            self._guards = {each: _moved(fd, least) for each, fd in self._guards.items()}
            if clash := numbers & _open_here():
                raise OSError(errno.EBUSY, f"descriptors {sorted(clash)} are of this program")
            copy_descriptors(self._guards[pid], sorted(numbers))
        finally:
            self.page = Page(self._page_fd)
        os.close(self._page_fd)
        self.copied = frozenset(numbers)
        log.debug("%d descriptors of the other program are copied", len(numbers))
        return moved

    def enter(self, *, confined: bool, by_file_handle: bool) -> None:
        """Go to where the guards are, and with *confined* become what they are.

        Raises:
            OSError: this process may not.
            SandboxError: the sandbox is incomplete.
        """
        pid, process_fd = next(iter(self._guards.items()))
        if not confined:
            if not os.path.samefile(f"/proc/{pid}/ns/mnt", "/proc/self/ns/mnt"):
                privileges.enter_namespaces(process_fd, privileges.CLONE_NEWNS)
            return
        kept = sandbox.kept_capabilities(by_file_handle=by_file_handle)
        if kept & privileges.effective_capabilities() & ~_bounding_set(pid):
            raise OSError(errno.EPERM, "the other program's guards have fewer capabilities")
        procfs_fd = os.open(f"/proc/{pid}/cwd", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        if os.fstat(procfs_fd).st_ino != _PROC_ROOT_INO or not _is_proc(procfs_fd):
            raise OSError(errno.EPERM, "the other program's guards have no sandbox")
        sandbox.enter_as_next_guard(process_fd, procfs_fd, by_file_handle=by_file_handle)

    # The end of one of the two

    @property
    def is_replaced(self) -> bool:
        """Whether `commit` has been called, in this process or another one."""
        return self.page.is_replaced

    def commit(self) -> None:
        """Have the other program never serve again.

        Raises:
            OSError: it may go on by now, or has ended by itself.
        """
        if time.clock_gettime(time.CLOCK_BOOTTIME) > self._until_s - _COMMIT_S:
            raise OSError(errno.ETIMEDOUT, "the other program is not held any more")
        self.page.end(End.REPLACED, 0)
        if not self.is_replaced:
            raise OSError(errno.ESRCH, "the service of the other program has ended")

    def dismiss(self) -> None:
        """End the other program, after the commit."""
        for pid_fd in self._guards.values():
            _signal(pid_fd, signal.SIGKILL)
            os.close(pid_fd)
        self._guards.clear()

    def undo(self) -> None:
        """Let the other program go on, unless it has been replaced; no worker may be left here."""
        if self._held and not self.is_replaced:
            self._held = False
            self.page.hold(0, 0.0)
            for pid_fd in self._guards.values():
                _signal(pid_fd, signal.SIGCONT)


def _why(error: OSError) -> str:
    """Return what it means that the guards' descriptors cannot be had."""
    if error.errno == errno.EPERM:
        return (
            "this process may not take its descriptors: CAP_SYS_PTRACE is missing, or the setting"
            " kernel.yama.ptrace_scope is 3"
        )
    return f"its descriptors cannot be had: {error.strerror or error}"


def _signal(pid_fd: int, number: int) -> None:
    with suppress(ProcessLookupError):
        signal.pidfd_send_signal(pid_fd, number)


def _end(pid: int, pid_fd: int) -> None:
    """Have a worker make room, or kill it."""
    _signal(pid_fd, signal.SIGUSR1)
    if pidfd.has_ended(pid_fd, _RETIRE_LIMIT_S):
        return
    log.warning("worker %d does not make room in time, and is killed", pid)
    _kill(pid, pid_fd)


def _kill(pid: int, pid_fd: int) -> None:
    """Kill a worker, and wait for its end."""
    _signal(pid_fd, signal.SIGKILL)
    if not pidfd.has_ended(pid_fd, _KILL_LIMIT_S):
        raise OSError(errno.EBUSY, f"worker {pid} of the other program does not end")


def _await_stop(pid: int, pid_fd: int) -> None:
    """Wait until a guard that got SIGSTOP has stopped, or ended."""
    until = time.monotonic() + _STOP_LIMIT_S
    while not pidfd.has_ended(pid_fd, _LOOK_S):
        with suppress(FileNotFoundError, ProcessLookupError):
            state = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()[0]
            if state == _STOPPED:
                return
        if time.monotonic() > until:
            raise OSError(errno.EBUSY, f"guard {pid} does not stop")


def _moved(fd: int, least: int) -> int:
    """Move a descriptor to a number from *least* on."""
    new = fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, least)
    os.close(fd)
    return new


def _open_here() -> set[int]:
    """Return the descriptors of this process."""
    return {fd for fd in map(int, os.listdir("/proc/self/fd")) if _is_open(fd)}


def _is_open(fd: int) -> bool:
    try:
        fcntl.fcntl(fd, fcntl.F_GETFD)
    except OSError:
        return False
    return True


def _bounding_set(pid: int) -> int:
    with open(f"/proc/{pid}/status", "rb") as lines:
        return next(int(line.split()[1], 16) for line in lines if line.startswith(b"CapBnd:"))


def _is_proc(fd: int) -> bool:
    return syscalls.filesystem_type(fd) == _PROC_SUPER_MAGIC
