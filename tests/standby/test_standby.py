"""Trials of killing: the worker of a volume is killed under load, and no load sees an error.

The rounds are shared by the subjects, which are volumes with different options. Each has all loads
that its options allow. 500 rounds, by hand:

    PASSFS_STANDBY_ROUNDS=500 make test ARGS='tests/standby -rP'

PASSFS_STANDBY_SEED=anything draws other rounds and other operations, and
PASSFS_STANDBY_LOADS='Storm Database' leaves out the other loads. The machine decides where in
its work a kill meets the worker, so a failure may not recur.
"""

import os
import re
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.fuzz.differential import ALARMING
from tests.standby import server
from tests.standby.appends import Appends
from tests.standby.database import Database
from tests.standby.holders import Holders
from tests.standby.listings import Listings
from tests.standby.load import Load, Place
from tests.standby.maps import Maps
from tests.standby.mixed import Mixed
from tests.standby.repository import Repository
from tests.standby.server import Server
from tests.standby.storm import Storm
from tests.standby.trial import Trial
from tests.standby.verified import Verified
from tests.standby.volume import Volume, volume
from tests.standby.xattrs import Xattrs
from tests.support.tools.callers import OTHER, USER, Caller

ROUNDS = int(os.environ.get("PASSFS_STANDBY_ROUNDS", "50"))
SEED = os.environ.get("PASSFS_STANDBY_SEED", "0")
ONLY = os.environ.get("PASSFS_STANDBY_LOADS", "").split()
ROUND_S, SLACK_S = 3.0, 200.0
EXPECTED = re.compile(r": (worker \d+ (was killed by SIGKILL|took over|ended)|guard \d+ has)")
TOOK_OVER = re.compile(r" took over after ([0-9.]+) ms")
SHOWN = 40
"""Lines of errors in a report: one fault can affect every file."""

ALL: Sequence[type[Load]] = (
    *(Appends, Database, Holders, Listings, Maps, Mixed, Repository, Storm, Verified, Xattrs),
)


class Subject(NamedTuple):
    """A volume: its options, its loads, their users, and the program that serves it."""

    options: Mapping[str, str]
    loads: Sequence[type[Load]] = ALL
    callers: Sequence[Caller] = (USER, OTHER)
    program: str = "passthrough"


SUBJECTS: Mapping[str, Subject] = {
    "passthrough": Subject({"passthrough": "on"}, (*ALL, Server)),
    "without passthrough": Subject({"passthrough": "off", "cache": "auto"}),
    # As the plugin does: the fork server makes the worker, for a keeper.
    "kept": Subject({}, program="tests.support.tools.kept"),
    "without cache": Subject({"passthrough": "off", "cache": "never"}),
    "write-back": Subject({"passthrough": "off", "writeback": "true", "allow_direct_io": "false"}),
    # All users act as one, so one user has all loads. `Mixed` expects refusals.
    "squash": Subject(
        {"squash": "all", "anon_uid": str(USER.uid), "anon_gid": str(USER.gid)},
        [kind for kind in ALL if kind is not Mixed],
        (USER, USER),
    ),
}


def loads(subject: Subject, served: Volume, base: Path, seed: str) -> dict[str, Load]:
    """Return the loads of a subject, each with a directory of its own."""
    found: dict[str, Load] = {}
    for kind in subject.loads:
        name = kind.__name__
        if (kind is Server and server.programs() is None) or (ONLY and name not in ONLY):
            continue
        place = Place(
            served.served.mountpoint / name,
            served.served.source / name,
            base / "twins" / name,
            same_times="writeback" not in subject.options,
            whiteouts="squash" not in subject.options,
        )
        found[name] = kind(place, subject.callers, seed)
    return found


def is_alarming(line: str) -> bool:
    """Return whether a line of the log is more than the report of a death."""
    return ALARMING.search(line) is not None and EXPECTED.search(line) is None


@pytest.mark.slow
@pytest.mark.timeout(ROUNDS * ROUND_S + SLACK_S)
@pytest.mark.parametrize("name", SUBJECTS)
def test_no_load_notices_the_death_of_a_worker(base: Path, name: str) -> None:
    subject = SUBJECTS[name]
    (base / "twins").mkdir()
    options = {"session": "kernel", "standby": "on", **subject.options}
    with volume(base, options, subject.program) as served:
        trial = Trial(served, loads(subject, served, base, SEED), f"{SEED} {name}")
        wrong = trial.run(max(1, ROUNDS // len(SUBJECTS)))
        log = served.served.logged()
    took_over = [*map(float, TOOK_OVER.findall(log))] or [0.0]
    print(  # noqa: T201 - shown by -rP
        f"{dict(trial.done)}, {len(took_over)} take-overs with a median of"
        f" {statistics.median(took_over)} ms, the worst {max(took_over)} ms;"
        f" steps: {dict(trial.steps)}"
    )
    wrong += [f"logged: {line}" for line in log.splitlines() if is_alarming(line)]
    if wrong:
        left = [f"and {len(wrong) - SHOWN} lines more"] if len(wrong) > SHOWN else []
        pytest.fail("\n".join([f"{name}:", *wrong[:SHOWN], *left]), pytrace=False)
