"""A process that runs the operations of one caller on one side, as long as the test runs.

The program changes its root to the side's directory, chroot(2), so that no `..` and no absolute
symlink leads out of the compared tree. It takes the caller's ids, and answers requests until its
pipe ends. One process runs all operations, because descriptors, mappings and listings must last.
"""

import contextlib
import os
import pickle
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from multiprocessing.connection import Connection, Pipe
from pathlib import Path

from tests.fuzz import tree
from tests.fuzz.operations import Operations, Outcome
from tests.support.tools.callers import Caller

REPOSITORY = Path(__file__).resolve().parents[2]
START_LIMIT_S = 20.0
HARNESS_CALLS: dict[str, Callable[..., object]] = {
    "prepare": tree.prepare,
    "tree": lambda: tree.read(b"/"),
    "attributes_of": tree.attributes_of,
    "empty": lambda: tree.empty(b"/"),
}


class Actor:
    """The test's connection to the process."""

    def __init__(self, caller: Caller, process: subprocess.Popen[bytes], end: Connection) -> None:
        self.caller = caller
        self._process = process
        self._end = end

    def ask(self, operation: str, *arguments: object) -> None:
        """Send a request; `answer` returns its outcome."""
        # If the process has died, `answer` raises.
        with contextlib.suppress(BrokenPipeError):
            self._end.send((operation, arguments))

    def answer(self, limit_s: float) -> Outcome:
        """Return the outcome of the last request.

        Raises: TimeoutError if there is none within *limit_s*, EOFError if the process died.
        """
        if not self._end.poll(limit_s):
            raise TimeoutError
        outcome: Outcome = self._end.recv()
        return outcome

    def end(self) -> None:
        """End the process: close its pipe, and kill it after 20 s. A dead mount allows the kill."""
        self._end.close()
        try:
            self._process.wait(START_LIMIT_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


@contextlib.contextmanager
def acting(caller: Caller, side: Path) -> Iterator[Actor]:
    """Run the process of *caller* on *side* for the length of a block."""
    ours, theirs = Pipe()
    with theirs:
        ids = [str(caller.uid), str(caller.gid), ",".join(map(str, caller.groups))]
        process = subprocess.Popen(
            [sys.executable, "-m", "tests.fuzz.actor", str(theirs.fileno()), str(side), *ids],
            cwd=REPOSITORY,
            pass_fds=[theirs.fileno()],
            stdin=subprocess.DEVNULL,
        )
    actor = Actor(caller, process, ours)
    try:
        yield actor
    finally:
        actor.end()


def _enter(side: str, uid: int, gid: int, groups: Sequence[int]) -> None:
    os.chroot(side)
    os.chdir("/")
    if uid:
        os.setgroups(groups)
        os.setresgid(gid, gid, gid)
        os.setresuid(uid, uid, uid)


def _answer(operations: Operations, operation: str, arguments: Sequence[object]) -> Outcome:
    """Run one operation of the caller, or a call of the harness."""
    if operation not in HARNESS_CALLS:
        return operations.act(operation, arguments)
    try:
        return "ok", HARNESS_CALLS[operation](*arguments)
    except OSError as error:
        return f"{operation} failed: {error}", None


def main() -> None:
    """Answer requests until the pipe ends."""
    end = Connection(int(sys.argv[1]))
    operations = Operations()
    # Pickling errors imports modules, which cannot be found after the chroot.
    pickle.loads(pickle.dumps(OSError(1, "")))  # noqa: S301 - made in this line
    groups = [int(group) for group in sys.argv[5].split(",") if group]
    _enter(sys.argv[2], int(sys.argv[3]), int(sys.argv[4]), groups)
    with contextlib.suppress(EOFError):
        while True:
            operation, arguments = end.recv()
            end.send(_answer(operations, operation, arguments))


if __name__ == "__main__":
    main()
