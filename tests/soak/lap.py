"""A lap: processes of several users and fio work on one mount, then all results are checked."""

import contextlib
import errno
import hashlib
import os
import random
import stat
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from typing import NamedTuple, TypeVar

from tests.fuzz import tree
from tests.soak import fio, shared
from tests.soak.actor import Actor
from tests.soak.model import Shown
from tests.soak.shared import Racer
from tests.support.tools.callers import MEMBER, OTHER, ROOT, USER, Call, Caller
from tests.support.tools.mounted import Mounted
from tests.support.tools.mounts import forget

T = TypeVar("T")

ACTORS = (ROOT, USER, OTHER, MEMBER)
VISITOR = Caller("visitor", 41_007, 41_008)
SLACK_S = 60.0

# The name is gone, its type has changed, or the visitor has no permission.
_MISSED = frozenset({errno.ENOENT, errno.ENOTDIR, errno.EACCES, errno.ELOOP, errno.EISDIR})


class Report(NamedTuple):
    """The result of a process."""

    expected: dict[str, Shown]
    """The expected tree of its own directory."""
    done: Counter[str]
    """Operation -> number of successes, in the shared directory."""
    steps: int


class Outcome(NamedTuple):
    """The result of a lap: a line for each error, and counts of operations."""

    wrong: list[str]
    done: Counter[str]


class Lap(NamedTuple):
    """A round of load. All processes begin in empty directories."""

    served: Mounted
    session: str
    seed: str
    seconds: float

    def run(self) -> Outcome:
        """Run all processes for `seconds`, and return the outcome."""
        self._prepare()
        until = time.monotonic() + self.seconds
        outcome = Outcome([], Counter())
        with ExitStack() as stack, self.served.limited(self.seconds + fio.LIMIT_S + SLACK_S):
            calls = {
                caller.name: stack.enter_context(caller.start(self._work(caller, until), umask=0))
                for caller in ACTORS
            }
            visit = stack.enter_context(VISITOR.start(lambda: self._visit(until)))
            fio_seed = self._verify_while(until, outcome)
            reports = self._collect(calls, outcome)
            if visits := self._result("visitor", visit, outcome):
                outcome.done["visits"] = visits
        with noting("comparing", outcome.wrong), self.served.limited(2 * fio.LIMIT_S + SLACK_S):
            self._compare(reports, fio_seed, outcome)
        return outcome

    def _prepare(self) -> None:
        """Make the directories in the source."""
        source = self.served.source
        for caller in ACTORS:
            directory = source / caller.name
            directory.mkdir(mode=0o700)
            os.chown(directory, caller.uid, caller.gid)
        shared.prepare(str(source / "shared"))
        (source / "fio").mkdir()
        os.chown(source / "fio", USER.uid, USER.gid)

    def _rng(self, name: str) -> random.Random:
        return random.Random(f"{self.seed} {name}")  # noqa: S311 - reproducible, not secret

    def _work(self, caller: Caller, until: float) -> Callable[[], Report]:
        """Return the function that a process of *caller* runs."""
        number = ACTORS.index(caller)
        mountpoint = self.served.mountpoint

        def work() -> Report:
            os.chdir(mountpoint / caller.name)
            rng = self._rng(caller.name)
            actor = Actor(caller, rng, self.session)
            racer = Racer(caller, rng, str(mountpoint / "shared"), number)
            steps = 0
            current: Actor | Racer = actor
            try:
                while time.monotonic() < until:
                    current = actor if rng.random() < 0.6 else racer
                    current.step()
                    steps += 1
                current = actor
                expected = actor.finish()
            except Exception as error:
                last = "\n".join(current.steps)
                error.add_note(
                    f"{caller.name}, step {steps}, seed {self.seed!r}; the last:\n{last}"
                )
                raise
            return Report(expected, racer.done, steps)

        return work

    def _visit(self, until: float) -> int:
        """Stat all files repeatedly, and read the readable ones; return their number."""
        seen = 0
        while time.monotonic() < until:
            for path in _walk(str(self.served.mountpoint)):
                try:
                    if stat.S_ISREG(os.lstat(path).st_mode):
                        with open(path, "rb") as file:
                            hashlib.file_digest(file, "sha256")
                    seen += 1
                except OSError as error:
                    if error.errno not in _MISSED:
                        raise
        return seen

    def _verify_while(self, until: float, outcome: Outcome) -> int:
        """Run fio and make the kernel forget, in turn; return the seed of fio's last round."""
        rng = self._rng("fio")
        while True:
            seed = rng.randrange(1 << 31)
            try:
                outcome.done["bytes that fio verified"] += fio.run(
                    USER, self.served.mountpoint / "fio", seed
                )
            except AssertionError as error:
                outcome.wrong.append(str(error))
                return seed
            forget(self.served.mountpoint)
            if time.monotonic() > until:
                return seed

    def _collect(self, calls: Mapping[str, Call[Report]], outcome: Outcome) -> dict[str, Report]:
        reports = {}
        for name, call in calls.items():
            report = self._result(name, call, outcome)
            if report is not None:
                reports[name] = report
                outcome.done["steps"] += report.steps
        return reports

    def _result(self, name: str, call: Call[T], outcome: Outcome) -> T | None:
        try:
            return call.result(self.seconds + SLACK_S)
        except Exception as error:  # noqa: BLE001 - the other results must still be collected
            text = "\n".join([repr(error), *getattr(error, "__notes__", [])])
            outcome.wrong.append(f"{name}: {text}")
            return None

    def _compare(self, reports: Mapping[str, Report], seed: int, outcome: Outcome) -> None:
        """Compare the mount with its source, and the source with the expected trees."""
        source, mountpoint = self.served.source, self.served.mountpoint
        seen, beneath = tree.read(bytes(mountpoint)), tree.read(bytes(source))
        outcome.done["names compared"] += len(seen)
        wrong = outcome.wrong
        wrong += [f"mount / source: {line}" for line in tree.differences(seen, beneath)]
        for name, report in reports.items():
            found = below(beneath, name.encode())
            right = {os.fsencode(path): shown for path, shown in report.expected.items()}
            wrong += [f"{name}: source / expected: {e}" for e in tree.lines(found, right)]
        if len(reports) == len(ACTORS):
            done = [reports[caller.name].done for caller in ACTORS]
            for place in (source, mountpoint):
                wrong += shared.wrong(str(place / "shared"), done)
        for place in (source, mountpoint):
            try:
                fio.run(USER, place / "fio", seed, only_verify=True)
            except AssertionError as error:
                wrong.append(str(error))


@contextlib.contextmanager
def noting(what: str, wrong: list[str]) -> Iterator[None]:
    """Add an OSError of the block to *wrong*, so that the caller can go on with other checks."""
    try:
        yield
    except OSError as error:
        wrong.append(f"{what}: {error}")


def below(whole: tree.Tree, directory: bytes) -> dict[bytes, Shown]:
    """Return the subtree of *whole* below *directory*, in the form of Model.expected."""
    found: dict[bytes, Shown] = {}
    for path, node in whole.items():
        if path != directory and not path.startswith(directory + b"/"):
            continue
        mode, links, uid, gid, size, *_ = node.attributes
        name = path[len(directory) + 1 :] or b"."
        if isinstance(mode, str) and stat.S_ISDIR(int(mode, 8)):
            found[name] = mode, uid, gid
        else:
            xattrs = [(key.strip("'"), value) for key, value in node.xattrs]
            users = tuple((key, value) for key, value in xattrs if key.startswith("user."))
            found[name] = mode, links, uid, gid, size, node.content, users
    return found


def _walk(top: str) -> Iterator[str]:
    """Yield the paths below *top*, while other processes add and remove files."""

    def missed(error: OSError) -> None:
        if error.errno not in _MISSED:
            raise error

    for directory, _, names in os.walk(top, onerror=missed):
        yield from (os.path.join(directory, name) for name in names)
