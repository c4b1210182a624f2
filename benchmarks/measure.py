"""The process that measures: a Plan on standard input, a Report on standard output.

Run by isolation.py only, as the first process of a PID namespace and in a mount namespace of its
own, so that every process that it sees and every mount that it makes goes when it goes.
"""

import datetime as dt
import os
import random
import shutil
import subprocess
import sys
import time
from pathlib import Path

import msgspec

from benchmarks import machine, rounds, volumes
from benchmarks.lines import Place
from benchmarks.plan import Plan
from benchmarks.report import Figures, Line, Report, Sample, conclude
from benchmarks.subjects import Directories, Subject, SubjectError, mounted, subjects

# A limit and no reservation. Some file systems refuse to create where less than 4 GiB are free.
_TMPFS_SIZE = "size=16g"


def main() -> int:
    """Measure; gives the exit status."""
    if os.getpid() != 1:
        say("this is run by `python -m benchmarks`, in namespaces of its own")
        return 2
    plan = msgspec.json.decode(sys.stdin.buffer.read(), type=Plan)
    try:
        report = measure(plan)
    except SubjectError as error:
        say(str(error))
        return 2
    sys.stdout.buffer.write(msgspec.json.encode(report))
    return 0


def measure(plan: Plan) -> Report:
    """Take every figure that *plan* asks for.

    Raises:
        SubjectError: a subject cannot be mounted.
    """
    began = time.monotonic()
    at = _directories(plan)
    compared = subjects(plan)
    for subject in compared:  # before anything is measured, rather than after an hour
        with mounted(subject, at):
            pass
    report = Report(
        taken=dt.datetime.now(dt.UTC).isoformat(timespec="seconds"),
        duration_s=0,
        plan=plan,
        machine=machine.facts(),
        versions=_versions(compared),
        lines=[
            Line(
                name=line.name,
                group=line.group,
                operation=line.operation,
                of={subject.name: Figures(samples=[]) for subject in compared},
            )
            for line in rounds.chosen(plan)
        ],
    )
    watch = machine.Watch()
    with machine.loaded(wanted=plan.busy):
        _rounds(plan, report, compared, at)
        if plan.costs:
            say("what a volume and a request cost")
            own = [subject for subject in compared if subject.name in plan.passfs]
            report.costs += volumes.request_costs(plan, compared[1:], at)
            report.costs += volumes.volume_costs(plan, own, at)
    report.machine |= machine.facts_after(watch)
    conclude(report)
    report.duration_s = round(time.monotonic() - began, 1)
    return report


def _directories(plan: Plan) -> Directories:
    """Where it happens: the source in *plan*'s stage, the rest on a tmpfs in any case."""
    stage = Path(plan.stage)
    if plan.on_tmpfs:
        subprocess.run(["mount", "-t", "tmpfs", "-o", _TMPFS_SIZE, "none", stage], check=True)
    source = stage / "source"
    source.mkdir()
    other = stage / "other"
    other.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", _TMPFS_SIZE, "none", other], check=True)
    at = Directories(source, other / "mount", other / "scratch")
    at.mountpoint.mkdir()
    at.scratch.mkdir()
    return at


def _rounds(plan: Plan, report: Report, compared: list[Subject], at: Directories) -> None:
    """All subjects in each round, in an order of its own: what changes slowly hits all alike."""
    chance = random.Random(plan.seed)  # noqa: S311 - an order, not a secret
    lines = {line.name: line for line in report.lines}
    for number in range(1, plan.rounds + 1):
        for subject in chance.sample(compared, len(compared)):
            began = time.monotonic()
            with mounted(subject, at) as servers:
                where = at.mountpoint if subject.command else at.source
                place = Place(str(at.source), str(where), str(at.scratch), servers, plan.scaled)
                for name, outcome in rounds.through(plan, place):
                    figures = lines[name].of[subject.name]
                    if isinstance(outcome, Sample):
                        figures.samples.append(outcome)
                    else:
                        figures.failure = outcome
            _clear(at.source)
            say(f"round {number}/{plan.rounds}: {subject.name}, {time.monotonic() - began:.1f} s")


def _clear(source: Path) -> None:
    for entry in source.iterdir():
        if entry.is_dir() and not entry.is_symlink():
            shutil.rmtree(entry)
        else:
            entry.unlink()


def _versions(compared: list[Subject]) -> dict[str, str]:
    """What each peer says that it is."""
    return {
        subject.name: machine.version(subject.command[0])
        for subject in compared
        if subject.command and not subject.options and subject.command[0] != sys.executable
    }


def say(sentence: str) -> None:
    """Tell whoever waits."""
    sys.stderr.write(sentence + "\n")
    sys.stderr.flush()


if __name__ == "__main__":
    sys.exit(main())
