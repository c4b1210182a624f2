"""Random programs, done on a bare directory and on a mount: nobody can tell the two apart."""

import os
import time
from pathlib import Path

import hypothesis
import pytest
from hypothesis.database import DirectoryBasedExampleDatabase
from hypothesis.stateful import run_state_machine_as_test

from tests.fuzz.differential import DifferenceError, MountLostError, Options, ground, shortest
from tests.fuzz.machine import Programs

SECONDS = float(os.environ.get("PASSFS_FUZZ_SECONDS", "60"))
SHORTENING_S = 40.0
SLACK_S = 120.0
PROGRAMS_AT_A_TIME = 8
STEPS = 60

MOUNTS: dict[str, Options] = {
    "never": {"cache": "never"},
    "auto": {"cache": "auto"},
    "metadata": {"cache": "metadata"},
    "always": {"cache": "always"},
}
"""What is compared with a bare directory; each gets an equal part of the time."""


@pytest.mark.timeout(SECONDS + SHORTENING_S + SLACK_S)
@pytest.mark.parametrize("mount", MOUNTS)
def test_a_mount_is_like_a_bare_directory(mount: str, tmp_path: Path) -> None:
    settings = hypothesis.settings(
        deadline=None,
        max_examples=PROGRAMS_AT_A_TIME,
        stateful_step_count=STEPS,
        phases=[hypothesis.Phase.generate],  # for shorter programs see `shortest`
        database=DirectoryBasedExampleDatabase(tmp_path),
        suppress_health_check=list(hypothesis.HealthCheck),
        verbosity=hypothesis.Verbosity.quiet,
    )
    end = time.monotonic() + SECONDS / len(MOUNTS)
    with ground(MOUNTS[mount]) as sides:
        Programs.sides = sides
        failure: BaseException | None = None
        while time.monotonic() < end and failure is None:
            try:
                run_state_machine_as_test(Programs, settings=settings)
            except DifferenceError as found:
                failure = shortest(sides, found, SHORTENING_S)
            except MountLostError as lost:
                failure = lost
    if failure is not None:
        pytest.fail(str(failure), pytrace=False)
