"""Calls that may hang, each in a child process of its own, all at the same time.

A thread would not do: the kernel lets no process end while one of its threads hangs in a call that
no signal interrupts. A child that hangs so is left behind. It has no file of this process that
another program could wait for.
"""

import os
import select
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from typing import Any, Final, Generic, NamedTuple, NoReturn, TypeVar

import msgspec

from plugin.errors import printable

T = TypeVar("T")

_AFTER_KILL_S: Final = 0.5
_LOOK_S: Final = 0.005
_READ_BYTES: Final = 1 << 16


class Failed(Exception):  # noqa: N818 - as the refusals in errors.py
    """The call has not returned; str() is the reason."""


class Silent(Failed):
    """The call has not returned in time."""


class Call(NamedTuple, Generic[T]):
    """A call, and the type of its result, which must have a form in JSON."""

    function: Callable[[], T]
    kind: Any
    """`type[T]`; mypy takes no union for that."""
    limit_s: float


class _Outcome(msgspec.Struct, frozen=True):
    """The outcome of a call, as the child sends it."""

    result: msgspec.Raw
    error: str = ""


class Child(Generic[T]):
    """The child process of a call."""

    def __init__(self, call: Call[T]) -> None:
        self._call = call
        self._ends = time.monotonic() + call.limit_s
        self._fd, theirs = os.pipe2(os.O_CLOEXEC)
        self._pid = os.fork()
        if self._pid == 0:
            _run(call.function, theirs)
        os.close(theirs)

    def result(self) -> T:
        """Return the result of the call.

        Raises:
            Silent: it has not returned within its limit.
            Failed: it has raised an error.
        """
        received = b""
        while select.select([self._fd], [], [], max(0.0, self._ends - time.monotonic()))[0]:
            part = os.read(self._fd, _READ_BYTES)
            if not part:
                return self._decoded(received)
            received += part
        raise Silent(f"no answer within {self._call.limit_s:g} s")

    def _decoded(self, received: bytes) -> T:
        if not received:  # the machine may lack memory
            raise Failed("the process of the check was killed")
        outcome = msgspec.json.decode(received, type=_Outcome)
        if outcome.error:
            raise Failed(outcome.error)
        result: T = msgspec.json.decode(outcome.result, type=self._call.kind)
        return result

    def end(self) -> None:
        """Kill the child, and its own children; wait for its end, unless it hangs in the kernel."""
        os.close(self._fd)
        for kill in (os.killpg, os.kill):  # the child may not lead its group yet
            with suppress(ProcessLookupError):
                kill(self._pid, signal.SIGKILL)
        limit = time.monotonic() + _AFTER_KILL_S
        while os.waitpid(self._pid, os.WNOHANG)[0] == 0 and time.monotonic() < limit:
            time.sleep(_LOOK_S)


@contextmanager
def running(calls: Sequence[Call[T]]) -> Iterator[list[Child[T]]]:
    """Make the *calls*, all at the same time; at the end of the block the children end."""
    with ExitStack() as stack:
        children = []
        for call in calls:
            children.append(Child(call))
            stack.callback(children[-1].end)
        yield children


def made(call: Call[T]) -> T:
    """Make one call.

    Raises:
        Failed: it has not returned, or raised an error.
    """
    with running([call]) as (child,):
        return child.result()


def _run(function: Callable[[], object], fd: int) -> NoReturn:
    """Make the call of this child process, and send the outcome to *fd*."""
    try:
        os.setpgid(0, 0)
        _let_go_of_standard_files()
        data = msgspec.json.encode(_outcome(function))
        while data:
            data = data[os.write(fd, data) :]
    finally:
        os._exit(0)


def _outcome(function: Callable[[], object]) -> _Outcome:
    nothing = msgspec.Raw(b"null")
    try:
        return _Outcome(msgspec.Raw(msgspec.json.encode(function())))
    except OSError as error:
        what = "" if error.filename is None else f"{os.fsdecode(error.filename)}: "
        return _Outcome(nothing, printable(f"{what}{error.strerror or error}"))
    except Exception as error:  # noqa: BLE001 - the parent reports it
        return _Outcome(nothing, printable(f"please report this error: {error!r}"))


def _let_go_of_standard_files() -> None:
    """Have no file that a reader of the command's output waits for."""
    null = os.open(os.devnull, os.O_RDWR)
    for number in range(3):
        os.dup2(null, number)
