"""Two directories that must stay alike: a bare directory and a mount of passfs.

A program is a list of steps: the caller's name, an operation of operations.py and its arguments.
Each step runs on both sides, and its outcomes are compared. The step `compare` compares the trees.
A difference is raised with the program, as source text that can be run again.
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
from tests.fuzz.known import DIFFERENCES, Difference
from tests.fuzz.mounts import Variant
from tests.fuzz.operations import Operations, Outcome
from tests.support.tools.callers import MEMBER, ROOT, TEAM_GID, USER
from tests.support.tools.mounted import Mounted, mounted
from tests.support.tools.rings import switched_for

Step = tuple[object, ...]

STEP_LIMIT_S = 60.0  # a busy disk may take long to sync
SHORT_BYTES = 40
AT_ONCE_S = 0.001
HOST = "host"
CALLERS = {caller.name: caller for caller in (ROOT, USER, MEMBER)}
ALARMING = re.compile(r"\b(WARNING|ERROR|CRITICAL)\b|Traceback")

# The files at the start of each program, so that short programs have an effect. There is a team's
# directory, a sticky one, one of the user's, and a setuid file with two names that all may write.
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
    """A difference of the two sides after *program*; the text has the difference and the program.

    It is no Exception, because hypothesis would run the program again to see whether it fails.
    """

    def __init__(self, text: str, program: Sequence[Step]) -> None:
        super().__init__(text)
        self.program = tuple(program)


class MountLostError(BaseException):
    """The mount hung or ended.

    It is no Exception, because hypothesis cannot search for a shorter program on this mount.
    """


@dataclass(slots=True)
class Sides:
    """Both sides, and the processes of the callers. *program* has the steps since `begin`."""

    variant: Variant
    bare: Path
    mount: Mounted
    actors: dict[str, tuple[Actor, Actor]] = field(default_factory=dict)
    program: list[Step] = field(default_factory=list)
    known: Sequence[Difference] = DIFFERENCES
    begun: int = 0
    logged: int = 0
    failure: DifferenceError | MountLostError | None = None
    """The first error that was raised, even if a caller has suppressed it."""

    def begin(self) -> None:
        """Start a new program in an empty directory of both sides that all users may write to."""
        self.begun += 1
        name = b"/%d" % self.begun
        self._call_both("root", "prepare", name)
        for caller in self.actors:
            self._call_both(caller, "begin", name)
        self.program.clear()
        for step in SETTING:
            self._run_step(step)

    def do(self, *step: object) -> Outcome:
        """Run one step on both sides, and return the outcome.

        Raises: DifferenceError if the outcomes differ, MountLostError if the mount is gone.
        """
        self.program.append(step)
        return self._run_step(step)

    def compare(self) -> None:
        """Compare the tree of the mount with that of the bare directory and that of its source.

        Raises: DifferenceError, MountLostError.
        """
        bare = tree.read(bytes(self.bare))
        paths = [b"/" + path for path in bare]
        has, remembered = self._call_both("root", "attributes_of", paths)
        self._check("mount / bare, without a listing", tree.lines(remembered, has))
        seen = self._tree_of_mount()
        self._check("mount / bare", tree.differences_in_kind(seen, bare))
        # The source is read last: with write-back, closing a file on the mount writes it back.
        beneath = tree.read(bytes(self.mount.source))
        if "use_host_ino" in self.variant.options:
            seen = tree.with_numbers_of_host(seen)
        if "writeback" in self.variant.options:
            seen, beneath = tree.without_current_times(seen), tree.without_current_times(beneath)
        self._check("mount / its source", tree.differences(seen, beneath))

    def end(self) -> None:
        """Compare a last time, close all descriptors, and empty both sides.

        Raises: DifferenceError, MountLostError.
        """
        try:
            self.compare()
        finally:
            for caller in self.actors:
                self._call_both(caller, "end")
            self._call_both("root", "empty")
        self._check("left in the source", [str(path) for path in self.mount.source.iterdir()])
        log = self.mount.logged(self.logged)
        self.logged += len(log.encode())
        self._check("logged by the mount", [log] if ALARMING.search(log) else [])

    def _run_step(self, step: Step) -> Outcome:
        caller, operation, *arguments = step
        if operation == "compare":
            self.compare()
            return "ok", None
        if caller == HOST:
            return self._run_on_host(str(operation), *arguments)
        bare, seen = self._both(str(caller), str(operation), *arguments)
        known = [entry for entry in self.known if entry.applies(self.variant.options)]
        if bare != seen and not any(entry.explains(step, seen) for entry in known):
            raise self._differs(f"mount {seen} / bare {bare}")
        return bare

    def _run_on_host(self, operation: str, name: object, *arguments: object) -> Outcome:
        """Run an operation of a host process: in the source, not through the mount."""
        assert isinstance(name, bytes)
        outcomes = []
        for side in (self.bare, self.mount.source):
            path = bytes(side / str(self.begun)) + b"/" + name
            outcomes.append(Operations().act(operation, (path, *arguments)))
        if outcomes[0] != outcomes[1]:
            raise self._differs(f"source {outcomes[1]} / bare {outcomes[0]}")
        return outcomes[0]

    def _call_both(self, caller: str, operation: str, *arguments: object) -> tuple[Any, Any]:
        """Run a call of the harness on both sides, and return both results; it must succeed."""
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
        return f"{sentence}\nTo run it again:\n\n{PROGRAM.format(self.variant, steps)}"


def literal(argument: object) -> str:
    """Return an argument as source text, with long repetitive names as products."""
    if isinstance(argument, bytes) and len(argument) > SHORT_BYTES:
        unit = argument[: (argument + argument).index(argument, 1)]
        return f"{unit!r} * {len(argument) // len(unit)}" if unit != argument else repr(argument)
    return repr(argument)


PROGRAM = """\
from tests.fuzz.differential import replay
from tests.fuzz.mounts import Variant

replay({}, [
{}
])
"""


@contextlib.contextmanager
def both_sides(variant: Variant) -> Iterator[Sides]:
    """Mount *variant* and start the callers' processes, for the length of a block."""
    with contextlib.ExitStack() as stack:
        # pytest's own temporary directory is closed to other users.
        base = Path(stack.enter_context(TemporaryDirectory(prefix="passfs-fuzz-")))
        if variant.host:
            stack.enter_context(_file_system(variant.host, base))
        base.chmod(0o755)
        bare = base / "bare"
        bare.mkdir()
        with switched_for(variant.options):
            served = stack.enter_context(mounted(base, variant.options))
        # At its start the worker logs about its options; these lines are no failure.
        sides = Sides(variant, bare, served, logged=len(served.logged().encode()))
        for name, caller in CALLERS.items():
            sides.actors[name] = (
                stack.enter_context(acting(caller, bare)),
                stack.enter_context(acting(caller, served.mountpoint)),
            )
        yield sides


@contextlib.contextmanager
def _file_system(kind: str, target: Path) -> Iterator[None]:
    subprocess.run(["mount", "-t", kind, "passfs-fuzz", str(target)], check=True)
    try:
        yield
    finally:
        # Lazily, because a mount that hung may still use it, and has raised its own error.
        subprocess.run(["umount", "-l", str(target)], check=True)


def replay(variant: Variant, program: Sequence[Step]) -> None:
    """Run a program on two new sides.

    Raises: DifferenceError, MountLostError.
    """
    with both_sides(variant) as sides:
        run(sides, program)


def run(sides: Sides, program: Sequence[Step]) -> None:
    """Run a program on *sides*, with the comparison at its end.

    Raises: DifferenceError, MountLostError.
    """
    sides.begin()
    try:
        for step in program:
            sides.do(*step)
    finally:
        sides.end()


def shortest(sides: Sides, found: DifferenceError, limit_s: float) -> DifferenceError:
    """Shorten the program of *found* for at most *limit_s*, and return its difference.

    hypothesis's own search may take minutes, because it removes choices, not steps.
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


def _failure(sides: Sides, program: Sequence[Step]) -> DifferenceError | None:
    try:
        run(sides, program)
    except DifferenceError as error:
        return error
    return None
