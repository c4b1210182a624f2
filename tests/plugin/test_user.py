"""Actions of a user of Docker, request by request, and the mounts after each action."""

from pathlib import Path
from typing import NamedTuple

import pytest

from tests.support.fakes import worker
from tests.support.fakes.dockerd import mounted, plugin
from tests.support.tools.engine_calls import CALLS, User

SERVE = worker.command("serve")


class Step(NamedTuple):
    """An action, its mount id, and the references of the volume after it."""

    action: str
    mount_id: str
    references: int


A_LIFE = [
    Step("create the first volume", "", 0),
    Step("create again", "", 0),
    Step("create a container with content", "filling", 0),
    Step("start", "one", 1),
    Step("copy in, running", "one", 1),
    Step("copy out, running", "one", 1),
    Step("create a container", "", 1),
    Step("start", "two", 2),
    Step("run", "three", 2),
    Step("copy in, running", "two", 2),
    Step("stop", "one", 1),
    Step("copy in, stopped", "four", 1),
    Step("inspect", "", 1),
    Step("list", "", 1),
    Step("stop", "two", 0),
    Step("copy out, stopped", "five", 0),
    Step("remove a container", "", 0),
    Step("run", "six", 0),
    Step("restart", "", 0),
]


async def test_a_volume_is_mounted_while_a_container_runs(tmp_path: Path) -> None:
    async with plugin(tmp_path, SERVE) as dockerd:
        user = User(dockerd)
        for step in A_LIFE:
            await user.act(step.action, "vol", step.mount_id)
            assert await dockerd.references("vol") == step.references, step
            assert mounted(tmp_path) == ["vol"] * bool(step.references), step
        await user.act("remove after a restart", "vol")
        assert await dockerd.names() == set()


async def test_two_volumes_are_independent(tmp_path: Path) -> None:
    async with plugin(tmp_path, SERVE) as dockerd:
        user = User(dockerd)
        for name in ("one", "two"):
            await user.act("create", name, cache="never")
            await user.act("start", name, "one")
        await user.act("stop", "one", "one")
        assert mounted(tmp_path) == ["two"]
        await user.act("remove", "one")
        await user.act("stop", "two", "one")
        assert await dockerd.names() == {"two"}


async def test_the_fake_user_reports_a_refusal(tmp_path: Path) -> None:
    """The fake user does not accept a refusal as a success."""
    async with plugin(tmp_path, SERVE) as dockerd:
        with pytest.raises(AssertionError, match="Create"):
            await User(dockerd).act("create", "vol", cahce="never")


def test_every_action_is_used() -> None:
    assert CALLS.keys() - {step.action for step in A_LIFE} == {
        "create",
        "remove",
        "remove after a restart",
    }
