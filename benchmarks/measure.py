"""The process that measures: a Plan on standard input, a Report on standard output.

isolation.py runs it as the first process of a PID namespace, in a mount namespace of its own. So
every process that it sees and every mount that it makes ends with it.
"""

import datetime as dt
import os
import random
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import msgspec

from benchmarks import machine, requests, rounds, volumes
from benchmarks.lines import Site
from benchmarks.plan import Plan
from benchmarks.report import Figures, LineResults, Report, Sample, conclude
from benchmarks.subjects import Directories, Subject, SubjectError, mounted, subjects

# An upper limit, not a reservation. mergerfs creates no file if less than 4 GiB are free.
_TMPFS_SIZE = "size=16g"


def main() -> int:
    """Measure, and return the exit status."""
    if os.getpid() != 1:
        say("run `python -m benchmarks`, which starts this in namespaces of its own")
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
    """Return a report with every figure that *plan* asks for.

    Raises:
        SubjectError: a subject cannot be mounted.
    """
    began = time.monotonic()
    at = _directories(plan)
    compared = subjects(plan)
    for subject in compared:  # fail before anything is measured, not after an hour
        with mounted(subject, at):
            pass
    report = Report(
        taken=dt.datetime.now(dt.UTC).isoformat(timespec="seconds"),
        duration_s=0,
        plan=plan,
        machine=machine.facts(),
        versions=_versions(compared),
        lines=[
            LineResults(
                name=line.name,
                group=line.group,
                operation=line.operation,
                of={subject.name: Figures(samples=[]) for subject in compared},
            )
            for line in rounds.chosen(plan)
        ],
    )
    watch = machine.Watch()
    with machine.loaded(plan.busy):
        _rounds(plan, report, compared, at)
        if plan.costs:
            say("costs of a volume and of a request")
            own = [subject for subject in compared if subject.name in plan.passfs]
            report.costs += volumes.request_costs(plan, compared[1:], at)
            report.costs += volumes.volume_costs(plan, own, at)
    report.machine |= machine.facts_after(watch)
    conclude(report)
    report.duration_s = round(time.monotonic() - began, 1)
    return report


def _directories(plan: Plan) -> Directories:
    """Make the directories: the source in *plan*'s stage, the others always on a tmpfs."""
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
    """Run all subjects in each round, in random order: slow changes then affect all alike."""
    chance = random.Random(plan.seed)  # noqa: S311 - an order, not a secret
    lines = {line.name: line for line in report.lines}
    for number in range(1, plan.rounds + 1):
        for subject in chance.sample(compared, len(compared)):
            began, watch = time.monotonic(), machine.Watch()
            for name, outcome in _through(plan, subject, at):
                figures = lines[name].of[subject.name]
                if isinstance(outcome, Sample):
                    figures.samples.append(outcome)
                else:
                    figures.failure = outcome
            _clear(at.source)
            say(
                f"round {number}/{plan.rounds}: {subject.name}, {time.monotonic() - began:.1f} s;"
                f" load {os.getloadavg()[0]:.1f}, stolen {watch.shares()[1]:.0%}"
            )


def _through(plan: Plan, subject: Subject, at: Directories) -> Iterator[rounds.Outcome]:
    """Mount one subject, and yield the outcome of each line."""
    mount = str(at.mountpoint if subject.command else at.source)
    with mounted(subject, at) as servers, requests.counted(mount) as count:
        site = Site(str(at.source), mount, str(at.scratch), servers, plan.scaled, count)
        yield from rounds.through(plan, site)


def _clear(source: Path) -> None:
    for entry in source.iterdir():
        if entry.is_dir() and not entry.is_symlink():
            shutil.rmtree(entry)
        else:
            entry.unlink()


def _versions(compared: list[Subject]) -> dict[str, str]:
    """Return the version that each peer prints, if it does."""
    return {
        subject.name: version
        for subject in compared
        if subject.command
        and not subject.options
        and subject.command[0] != sys.executable
        and (version := machine.version(subject.command[0]))
    }


def say(sentence: str) -> None:
    """Print *sentence* to standard error, as progress."""
    sys.stderr.write(sentence + "\n")
    sys.stderr.flush()


if __name__ == "__main__":
    sys.exit(main())
