"""Calls of other users: a function that runs in a child process with the ids of a caller.

The child is forked, so the function may use any variable of the test. A pipe returns its pickled
result, or its exception with errno and traceback.
"""

import errno
import os
import pickle
import select
import signal
import time
import traceback
import warnings
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from types import TracebackType
from typing import Generic, Self, TypeVar

T = TypeVar("T")

CALL_LIMIT_S = 60.0  # far beyond the slowest call: a child that takes longer hangs
PIPE_CHUNK_BYTES = 1 << 16


class Call(Generic[T]):
    """A function that runs in a child process; as a context manager, it ends with the block."""

    def __init__(self, function: Callable[[], T], become: Callable[[], None]) -> None:
        """Fork a child that calls *become* and then *function*."""
        reader, writer = os.pipe()
        with warnings.catch_warnings():
            # Python 3.12 warns if another thread exists, and pytest's faulthandler has one. The
            # child calls nothing that waits for a lock of that thread.
            warnings.simplefilter("ignore", DeprecationWarning)
            self.pid = os.fork()
        if self.pid == 0:
            os.close(reader)
            _answer(writer, function, become)
        os.close(writer)
        self._reader = reader
        self._ended = False

    def result(self, limit_s: float = CALL_LIMIT_S) -> T:
        """Return the result of the function, or raise its exception.

        Raises: TimeoutError if no answer came within *limit_s* seconds (the child is killed);
        ChildProcessError if the child ended without an answer.
        """
        try:
            answer = self._read_all(time.monotonic() + limit_s)
        finally:
            status = self._end()
        if not answer:
            message = f"the child ended with wait status {status} and no answer"
            raise ChildProcessError(message)
        succeeded, value = pickle.loads(answer)  # noqa: S301 - from our own child
        if not succeeded:
            raise value
        result: T = value
        return result

    @property
    def answer_fd(self) -> int:
        """Return the descriptor that becomes readable when the function has returned."""
        return self._reader

    def kill(self) -> None:
        """Kill the child, as a crash would, and wait for its end."""
        self._end()

    def __enter__(self) -> Self:
        """Return the call itself."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        where: TracebackType | None,
    ) -> None:
        """End the child if it still runs."""
        self._end()

    def _read_all(self, deadline: float) -> bytes:
        answer = b""
        while True:
            ready, _, _ = select.select([self._reader], [], [], max(0, deadline - time.monotonic()))
            if not ready:
                message = f"no answer from process {self.pid} in time"
                raise TimeoutError(message)
            chunk = os.read(self._reader, PIPE_CHUNK_BYTES)
            if not chunk:
                return answer
            answer += chunk

    def _end(self) -> int:
        if self._ended:
            return 0
        self._ended = True
        os.close(self._reader)
        # A child that has answered has ended, or is about to: the signal changes nothing.
        os.kill(self.pid, signal.SIGKILL)
        return os.waitpid(self.pid, 0)[1]


def _answer(writer: int, function: Callable[[], T], become: Callable[[], None]) -> None:
    """Send (succeeded, value) from the child, and end it without the parent's clean-up."""
    try:
        try:
            become()
            answer = pickle.dumps((True, function()))
        except BaseException as error:  # noqa: BLE001 - the parent raises it again
            answer = _pickled_error(error)
        while answer:
            answer = answer[os.write(writer, answer) :]
    finally:
        os._exit(0)


def _pickled_error(error: BaseException) -> bytes:
    where = f"in a child process:\n{traceback.format_exc()}"
    error.add_note(where)
    try:
        return pickle.dumps((False, error))
    except (pickle.PicklingError, TypeError, AttributeError):  # pytest's own, among others
        return pickle.dumps((False, AssertionError(where)))


@dataclass(frozen=True, slots=True)
class Caller:
    """A user: uid, gid, supplementary groups, none of which needs an entry in /etc/passwd."""

    name: str
    uid: int
    gid: int
    groups: tuple[int, ...] = ()

    def start(self, function: Callable[[], T], *, umask: int = 0o022) -> Call[T]:
        """Call *function* as this caller in a child process that runs beside the test."""
        return Call(function, lambda: self._become(umask))

    def run(self, function: Callable[[], T], *, umask: int = 0o022) -> T:
        """Call *function* as this caller in a child process, and return the result.

        Raises: the exception of the function, with its errno; TimeoutError.
        """
        with self.start(function, umask=umask) as call:
            return call.result()

    def _become(self, umask: int) -> None:
        os.umask(umask)
        if os.geteuid() == self.uid:
            return
        os.setgroups(self.groups)
        os.setresgid(self.gid, self.gid, self.gid)
        os.setresuid(self.uid, self.uid, self.uid)


TEAM_GID = 41_100

ROOT = Caller("root", 0, 0)
USER = Caller("user", 41_001, 41_002)
OTHER = Caller("other", 41_003, 41_004)
MEMBER = Caller("member", 41_005, 41_006, groups=(TEAM_GID,))


def attempt(caller: Caller, call: Callable[[], object]) -> str:
    """Call *call* as *caller*; return the name of its error, or "allowed"."""
    try:
        caller.run(lambda: call() and None)
    except OSError as error:
        return errno.errorcode[error.errno or 0]
    return "allowed"


def together(calls: Iterable[Call[T]]) -> list[T]:
    """Return the results of calls that run at the same time, in the order of *calls*.

    Raises: the first exception, after all children have ended.
    """
    running = list(calls)
    try:
        return [call.result() for call in running]
    finally:
        for call in running:
            call.kill()
