"""Random programs, done on a bare directory and on a mount: nobody can tell the two apart."""

import contextlib
import itertools
import os
import time
from pathlib import Path

import hypothesis
import pytest
from hypothesis.database import DirectoryBasedExampleDatabase
from hypothesis.errors import Flaky
from hypothesis.stateful import run_state_machine_as_test

from tests.fuzz.differential import DifferenceError, MountLostError, ground, shortest
from tests.fuzz.machine import Programs, TimeIsUpError
from tests.fuzz.mounts import WAYS

SECONDS = float(os.environ.get("PASSFS_FUZZ_SECONDS", "80"))
SEED = os.environ.get("PASSFS_FUZZ_SEED", "0")
"""The same programs each time, as far as the time goes; another word gives others."""
SHORTENING_S = 40.0
SLACK_S = 120.0
PROGRAMS_AT_A_TIME = 50
STEPS = 60


@pytest.mark.timeout(SECONDS + SHORTENING_S + SLACK_S)
@pytest.mark.parametrize("ways", WAYS)
def test_a_mount_is_like_a_bare_directory(ways: str, tmp_path: Path) -> None:
    settings = hypothesis.settings(
        deadline=None,
        max_examples=PROGRAMS_AT_A_TIME,
        stateful_step_count=STEPS,
        phases=[hypothesis.Phase.generate],  # for shorter programs see `shortest`
        database=DirectoryBasedExampleDatabase(tmp_path),
        suppress_health_check=list(hypothesis.HealthCheck),
        verbosity=hypothesis.Verbosity.quiet,
    )
    with ground(WAYS[ways]) as sides:
        Programs.sides = sides
        Programs.until = time.monotonic() + SECONDS / len(WAYS)
        rounds = itertools.count()
        while time.monotonic() < Programs.until and sides.failure is None:
            hypothesis.seed(f"{ways} {SEED} {next(rounds)}")(Programs)
            # Flaky is what the others become when hypothesis has seen the same program go on.
            with contextlib.suppress(TimeIsUpError, DifferenceError, MountLostError, Flaky):
                run_state_machine_as_test(Programs, settings=settings)
        failure = sides.failure
        with contextlib.suppress(MountLostError):  # nothing to find a shorter program with
            if isinstance(failure, DifferenceError):
                failure = shortest(sides, failure, SHORTENING_S)
        print(f"{sides.begun} programs")  # noqa: T201 - for who asks, -rP
        # In here: a mount that cannot be ended in order raises, too, and must not be all there is.
        if failure is not None:
            pytest.fail(str(failure), pytrace=False)
