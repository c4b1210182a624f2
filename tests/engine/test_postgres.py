"""PostgreSQL in a container, while the worker of its volume is killed again and again.

500 rounds, by hand:

    PASSFS_STANDBY_ROUNDS=500 make test ARGS='tests/engine/test_postgres.py -rP'

Each installation takes half of the rounds. PASSFS_STANDBY_SEED=anything draws other ones, and
PASSFS_STANDBY_OPTIONS='writeback=true passthrough=off' gives the volumes more options.
"""

import os

import pytest

from tests.standby.killing import Killing
from tests.support.tools.driver import HOST_NAME, Driver
from tests.support.tools.members import Members
from tests.support.tools.postgres import Postgres

ROUNDS = int(os.environ.get("PASSFS_STANDBY_ROUNDS", "10"))
SEED = os.environ.get("PASSFS_STANDBY_SEED", "0")
MORE = dict(word.split("=") for word in os.environ.get("PASSFS_STANDBY_OPTIONS", "").split())
ROUND_S, SETUP_S = 5.0, 1200.0
# The kernel reads and writes the files by itself in one installation, and the worker in the other.
BY_THE_WORKER = {"passthrough": "off", "cache": "auto"}


@pytest.mark.timeout(ROUNDS * ROUND_S + SETUP_S)
def test_a_database_does_not_notice_the_death_of_a_worker(driver: Driver) -> None:
    options = (BY_THE_WORKER if driver.name == HOST_NAME else {}) | MORE
    with (
        driver.volume(standby="on", **options) as volume,
        driver.container(volume) as container,
        Members(driver.status(volume)["worker_pid"]) as processes,
    ):
        place = driver.mountpoint(volume)
        killing = Killing(processes, f"{SEED} {options}", lambda: os.statvfs(place))
        server = Postgres(container)
        for _ in range(ROUNDS // 2):
            killing.do(killing.draw())
        transactions = server.finish()
        status = driver.status(volume)
    print(f"{dict(killing.done)}, {transactions}")  # noqa: T201 - shown by -rP
    assert (status["deaths"], status["standby"]) == (killing.deaths, "ready")
