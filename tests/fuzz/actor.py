"""A process that acts for one caller on one side, for as long as the test runs.

Run as a program it shuts itself into the side's directory with chroot(2), so that no `..` and no
absolute symlink leads out of what is compared, takes the caller's ids, and answers requests until
its pipe ends. Not a fork for each operation: descriptors, mappings and listings have to last.
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
from tests.fuzz.hands import Hands, Outcome
from tests.support.tools.callers import Caller

REPOSITORY = Path(__file__).resolve().parents[2]
START_LIMIT_S = 20.0
STAGE: dict[str, Callable[..., object]] = {
    "make_room": tree.make_room,
    "tree": lambda: tree.read(b"/"),
    "attributes_of": tree.attributes_of,
    "empty": lambda: tree.empty(b"/"),
}


class Actor:
    """The test's end of the process."""

    def __init__(self, caller: Caller, process: subprocess.Popen[bytes], end: Connection) -> None:
        self.caller = caller
        self._process = process
        self._end = end

    def ask(self, operation: str, *arguments: object) -> None:
        """Send a request; `answer` gives its outcome."""
        # A process that has died shows when its answer does not come.
        with contextlib.suppress(BrokenPipeError):
            self._end.send((operation, arguments))

    def answer(self, limit_s: float) -> Outcome:
        """Return the outcome of the last request.

        Raises: TimeoutError when there is none within *limit_s*, EOFError when the process died.
        """
        if not self._end.poll(limit_s):
            raise TimeoutError
        outcome: Outcome = self._end.recv()
        return outcome

    def end(self) -> None:
        """Let the process end; one that hangs is killed, which a dead mount allows."""
        self._end.close()
        try:
            self._process.wait(START_LIMIT_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


@contextlib.contextmanager
def acting(caller: Caller, side: Path) -> Iterator[Actor]:
    """Start the process of *caller* on *side*; it ends with the block."""
    ours, theirs = Pipe()
    with theirs:
        who = [str(caller.uid), str(caller.gid), ",".join(map(str, caller.groups))]
        process = subprocess.Popen(
            [sys.executable, "-m", "tests.fuzz.actor", str(theirs.fileno()), str(side), *who],
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


def _answer(hands: Hands, operation: str, arguments: Sequence[object]) -> Outcome:
    """Do one operation, or what belongs to no caller: make room, read the tree and so on."""
    if operation not in STAGE:
        return hands.act(operation, arguments)
    try:
        return "ok", STAGE[operation](*arguments)
    except OSError as error:
        return f"{operation} failed: {error}", None


def main() -> None:
    """Answer until the pipe ends."""
    end = Connection(int(sys.argv[1]))
    hands = Hands()
    # Whatever Python imports late must be there before the directory that it lies in is not.
    pickle.loads(pickle.dumps(OSError(1, "")))  # noqa: S301 - made right here
    groups = [int(group) for group in sys.argv[5].split(",") if group]
    _enter(sys.argv[2], int(sys.argv[3]), int(sys.argv[4]), groups)
    with contextlib.suppress(EOFError):
        while True:
            operation, arguments = end.recv()
            end.send(_answer(hands, operation, arguments))


if __name__ == "__main__":
    main()
