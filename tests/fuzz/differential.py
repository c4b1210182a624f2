"""Two directories that must stay alike: a bare one, and one that is a passthrough mount.

A program is a list of steps, each a caller's name, an operation of hands.py and its arguments.
Each step is done on both sides, and the outcomes are compared; so are the trees when asked for.
What differs is raised with the program, as text that can be run again.
"""

import contextlib
import re
import subprocess
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, cast

from tests.fuzz import tree
from tests.fuzz.actor import Actor, acting
from tests.fuzz.hands import Hands, Outcome
from tests.fuzz.known import DIFFERENCES, Difference
from tests.fuzz.mounts import Ways
from tests.support.tools.callers import MEMBER, ROOT, TEAM_GID, USER
from tests.support.tools.mounted import Mounted, mounted
from tests.support.tools.rings import switched_for

Step = tuple[object, ...]

STEP_LIMIT_S = 60.0  # a disk that others keep busy may take long to sync
SHORT_BYTES = 40
AT_ONCE_S = 0.001
HOST = "host"
CALLERS = {caller.name: caller for caller in (ROOT, USER, MEMBER)}
ALARMING = re.compile(r"\b(WARNING|ERROR|CRITICAL)\b|Traceback")

# What each program finds, so that short ones already do something: a team's directory, one with a
# sticky bit, a directory of the user's, and a setuid file of two names that all may write to.
SETTING: Sequence[Step] = (
    ("root", "mkdir", b"t", 0),
    ("root", "chown", b"t", 0, TEAM_GID, True),
    ("root", "chmod", b"t", 0o2775),
    ("root", "mkdir", b"s", 0),
    ("root", "chmod", b"s", 0o1777),
    ("user", "mkdir", b"d", 0o755),
    ("user", "open", 0, b"a", 0o102, 0o666),  # O_CREAT | O_RDWR
    ("user", "write", 0, 1, 5_000),
    ("user", "close", 0),
    ("user", "chmod", b"a", 0o6777),
    ("root", "setxattr", b"a", b"trusted.t", b"v", 0, True),
    ("user", "link", b"a", b"d/b", False),
    ("user", "symlink", b"d/b", b"l"),
)


class DifferenceError(BaseException):
    """The two sides are not alike after *program*; the text says where, and has the program.

    Not an Exception, because hypothesis would run that program again to see whether it fails.
    """

    def __init__(self, text: str, program: Sequence[Step]) -> None:
        super().__init__(text)
        self.program = tuple(program)


class MountLostError(BaseException):
    """The mount hung or ended.

    Not an Exception: nothing can be tried again on this mount to find a shorter program.
    """


@dataclass(slots=True)
class Ground:
    """Both sides, and who acts there; *program* is what has been done since `begin`."""

    ways: Ways
    bare: Path
    mount: Mounted
    actors: dict[str, tuple[Actor, Actor]] = field(default_factory=dict)
    program: list[Step] = field(default_factory=list)
    known: Sequence[Difference] = DIFFERENCES
    begun: int = 0
    logged: int = 0
    failure: DifferenceError | MountLostError | None = None
    """The first that was raised, whatever became of it."""

    def begin(self) -> None:
        """Start a new program in an empty directory of both sides that everybody may write to."""
        self.begun += 1
        name = b"/%d" % self.begun
        self._succeed("root", "make_room", name)
        for caller in self.actors:
            self._succeed(caller, "begin", name)
        self.program.clear()
        for step in SETTING:
            self._done(step)

    def do(self, *step: object) -> Outcome:
        """Do one step on both sides; gives the outcome.

        Raises: DifferenceError when they do not agree, MountLostError when the mount is gone.
        """
        self.program.append(step)
        return self._done(step)

    def compare(self) -> None:
        """Compare the trees, the mount's with the bare one's and with its own source.

        Raises: DifferenceError, MountLostError.
        """
        bare = tree.read(bytes(self.bare))
        paths = [b"/" + path for path in bare]
        has, remembered = self._succeed("root", "attributes_of", paths)
        self._check("mount / bare, without a listing", tree.lines(remembered, has))
        seen = self._tree_of_mount()
        self._check("mount / bare", tree.differences_in_kind(seen, bare))
        # After the mount's: with write-back, reading a file and closing it writes it back.
        beneath = tree.read(bytes(self.mount.source))
        if "use_host_ino" in self.ways.options:
            seen = tree.with_numbers_of_host(seen)
        if "writeback" in self.ways.options:
            seen, beneath = tree.without_now(seen), tree.without_now(beneath)
        self._check("mount / its source", tree.differences(seen, beneath))

    def end(self) -> None:
        """Compare a last time, close what is open, and empty both sides.

        Raises: DifferenceError, MountLostError.
        """
        try:
            self.compare()
        finally:
            for caller in self.actors:
                self._succeed(caller, "end")
            self._succeed("root", "empty")
        self._check("left in the source", [str(path) for path in self.mount.source.iterdir()])
        log = self.mount.logged(self.logged)
        self.logged += len(log.encode())
        self._check("logged by the mount", [log] if ALARMING.search(log) else [])

    def _done(self, step: Step) -> Outcome:
        caller, operation, *arguments = step
        if operation == "compare":
            self.compare()
            return "ok", None
        if caller == HOST:
            return self._done_by_host(str(operation), *arguments)
        bare, seen = self._both(str(caller), str(operation), *arguments)
        known = [entry for entry in self.known if entry.applies(self.ways.options)]
        if bare != seen and not any(entry.explains(step, seen) for entry in known):
            raise self._differs(f"mount {seen} / bare {bare}")
        return bare

    def _done_by_host(self, operation: str, name: object, *arguments: object) -> Outcome:
        """Do what a process of the host does, in the source: the mount is not asked."""
        assert isinstance(name, bytes)
        outcomes = []
        for side in (self.bare, self.mount.source):
            path = bytes(side / str(self.begun)) + b"/" + name
            outcomes.append(Hands().act(operation, (path, *arguments)))
        if outcomes[0] != outcomes[1]:
            raise self._differs(f"source {outcomes[1]} / bare {outcomes[0]}")
        return outcomes[0]

    def _succeed(self, caller: str, operation: str, *arguments: object) -> tuple[Any, Any]:
        """Do on both sides what is no step of the program; gives both results."""
        bare, seen = self._both(caller, operation, *arguments)
        if (bare[0], seen[0]) != ("ok", "ok"):
            raise self._differs(f"mount {seen[0]} / bare {bare[0]}")
        return bare[1], seen[1]

    def _tree_of_mount(self) -> tree.Tree:
        _, on_mount = self.actors["root"]
        on_mount.ask("tree")
        outcome, seen = self._answer_of_mount(on_mount, "tree")
        self._check("reading the mount", [] if outcome == "ok" else [outcome])
        return cast("tree.Tree", seen)

    def _both(self, caller: str, operation: str, *arguments: object) -> tuple[Outcome, Outcome]:
        on_bare, on_mount = self.actors[caller]
        on_bare.ask(operation, *arguments)
        on_mount.ask(operation, *arguments)
        what = f"{caller}: {operation}{arguments}"
        bare = on_bare.answer(STEP_LIMIT_S)
        seen = self._answer_of_mount(on_mount, what)
        if self.mount.process.poll() is not None or seen[0] in {"ENOTCONN", "ECONNABORTED"}:
            raise self._lost("is gone", what)
        return bare, seen

    def _answer_of_mount(self, actor: Actor, what: str) -> Outcome:
        try:
            return actor.answer(STEP_LIMIT_S)
        except TimeoutError:
            with self.mount.limited(AT_ONCE_S), contextlib.suppress(TimeoutError, EOFError):
                actor.answer(STEP_LIMIT_S)
            raise self._lost("hung", what) from None
        except EOFError:
            raise self._lost("ended its caller", what) from None

    def _lost(self, how: str, what: str) -> MountLostError:
        log = self.mount.logged()
        lost = MountLostError(self._text(f"the mount {how}: {what}; its stderr:\n{log}"))
        self.failure = self.failure or lost
        return lost

    def _check(self, what: str, lines: Sequence[str]) -> None:
        if lines:
            raise self._differs("\n".join([f"{what}:", *lines]))

    def _differs(self, how: str) -> DifferenceError:
        difference = DifferenceError(self._text(how), self.program)
        self.failure = self.failure or difference
        return difference

    def _text(self, sentence: str) -> str:
        steps = "\n".join(f"    ({', '.join(map(literal, step))})," for step in self.program)
        return f"{sentence}\nTo see it again:\n\n{PROGRAM.format(self.ways, steps)}"


def literal(argument: object) -> str:
    """Return an argument as the source of a program, long names short."""
    if isinstance(argument, bytes) and len(argument) > SHORT_BYTES:
        unit = argument[: (argument + argument).index(argument, 1)]
        return f"{unit!r} * {len(argument) // len(unit)}" if unit != argument else repr(argument)
    return repr(argument)


PROGRAM = """\
from tests.fuzz.differential import replay
from tests.fuzz.mounts import Ways

replay({}, [
{}
])
"""


@contextlib.contextmanager
def ground(ways: Ways) -> Iterator[Ground]:
    """Mount as *ways* say, start everybody's processes; all is gone when the block ends."""
    with contextlib.ExitStack() as stack:
        # Not pytest's own temporary directory: that one is closed to other users.
        base = Path(stack.enter_context(TemporaryDirectory(prefix="passfs-fuzz-")))
        if ways.host:
            stack.enter_context(_file_system(ways.host, base))
        base.chmod(0o755)
        bare = base / "bare"
        bare.mkdir()
        with switched_for(ways.options):
            served = stack.enter_context(mounted(base, ways.options))
        # What it says at its start is about options, and every mount with these says it.
        sides = Ground(ways, bare, served, logged=len(served.logged().encode()))
        for name, caller in CALLERS.items():
            sides.actors[name] = (
                stack.enter_context(acting(caller, bare)),
                stack.enter_context(acting(caller, served.mountpoint)),
            )
        yield sides


@contextlib.contextmanager
def _file_system(kind: str, where: Path) -> Iterator[None]:
    subprocess.run(["mount", "-t", kind, "passfs-fuzz", str(where)], check=True)
    try:
        yield
    finally:
        # Lazily: what still holds it is a mount that hung, and that has its own report.
        subprocess.run(["umount", "-l", str(where)], check=True)


def replay(ways: Ways, program: Sequence[Step]) -> None:
    """Run a program; gives nothing if the sides stay alike.

    Raises: DifferenceError, MountLostError.
    """
    with ground(ways) as sides:
        run(sides, program)


def run(sides: Ground, program: Sequence[Step]) -> None:
    """Run a program from the beginning to the comparison at its end.

    Raises: DifferenceError, MountLostError.
    """
    sides.begin()
    try:
        for step in program:
            sides.do(*step)
    finally:
        sides.end()


def shortest(sides: Ground, found: DifferenceError, limit_s: float) -> DifferenceError:
    """Leave out of the program that led to *found* what can be; gives what that one leads to.

    Not hypothesis's own search, which thinks in choices, not in steps, and may take minutes.
    """
    deadline = time.monotonic() + limit_s
    size = len(found.program) // 2
    while size and time.monotonic() < deadline:
        kept = found
        for start in range(len(found.program) - size, -1, -size):
            program = kept.program[:start] + kept.program[start + size :]
            kept = _failure(sides, program) or kept
        size = size // 2 if kept is found or size > 1 else 1
        found = kept
    return found


def _failure(sides: Ground, program: Sequence[Step]) -> DifferenceError | None:
    try:
        run(sides, program)
    except DifferenceError as error:
        return error
    return None
