"""Random programs have the same results on a bare directory and on a mount."""

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

from tests.fuzz.differential import DifferenceError, MountLostError, both_sides, shortest
from tests.fuzz.machine import Programs, TimeIsUpError
from tests.fuzz.mounts import VARIANTS

pytestmark = pytest.mark.full

SECONDS = float(os.environ.get("PASSFS_FUZZ_SECONDS", "80"))
SEED = os.environ.get("PASSFS_FUZZ_SEED", "0")
"""With the same seed the same programs run, as many as the time allows."""
SHORTENING_S = 40.0
SLACK_S = 120.0
PROGRAMS_AT_A_TIME = 50
STEPS = 60


@pytest.mark.timeout(SECONDS + SHORTENING_S + SLACK_S)
@pytest.mark.parametrize("variant", VARIANTS)
def test_a_mount_is_like_a_bare_directory(variant: str, tmp_path: Path) -> None:
    settings = hypothesis.settings(
        max_examples=PROGRAMS_AT_A_TIME,
        stateful_step_count=STEPS,
        phases=[hypothesis.Phase.generate],  # `shortest` replaces hypothesis's own shrinking
        database=DirectoryBasedExampleDatabase(tmp_path),
        suppress_health_check=list(hypothesis.HealthCheck),
        verbosity=hypothesis.Verbosity.quiet,
    )
    with both_sides(VARIANTS[variant]) as sides:
        Programs.sides = sides
        Programs.until = time.monotonic() + SECONDS / len(VARIANTS)
        rounds = itertools.count()
        while time.monotonic() < Programs.until and sides.failure is None:
            hypothesis.seed(f"{variant} {SEED} {next(rounds)}")(Programs)
            # hypothesis raises Flaky if the same program succeeded before; `sides.failure` keeps
            # the error.
            with contextlib.suppress(TimeIsUpError, DifferenceError, MountLostError, Flaky):
                run_state_machine_as_test(Programs, settings=settings)
        failure = sides.failure
        with contextlib.suppress(MountLostError):  # the mount may be lost while shortening
            if isinstance(failure, DifferenceError):
                failure = shortest(sides, failure, SHORTENING_S)
        print(f"{sides.begun} programs")  # noqa: T201 - shown by -rP
        # Fail inside of the block: if the unmount raises too, this failure is still reported.
        if failure is not None:
            pytest.fail(str(failure), pytrace=False)
