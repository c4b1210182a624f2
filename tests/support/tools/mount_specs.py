"""Specs of mounts for tests of the keeper, and a thread to use a mount from."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import trio

from passthrough.options.choices import CachePolicy
from plugin.mounting.mount_spec import MOUNT_DEADLINE_S, MountSpec
from plugin.volume import FileName, VolumeName
from tests.support.fakes.worker import command
from tests.support.tools.options import effective

NAME = VolumeName("data")
DIRECTORY = FileName("data")
SERVE = command("serve")


def mount_spec(source: Path, **fields: Any) -> MountSpec:
    """Return the spec to mount *source* as volume `data`, changed by *fields*.

    The mount point has the name of the volume.
    """
    values: dict[str, Any] = {
        "name": NAME,
        "options": effective(cache=CachePolicy.NEVER),
        "origin": f"source '{source}'",
        "open_source": lambda: os.open(source, os.O_PATH | os.O_DIRECTORY),
        "limiter": trio.CapacityLimiter(1),
        "on_loss": lambda _: None,
        "deadline": trio.current_time() + MOUNT_DEADLINE_S,
    }
    values |= fields
    return MountSpec(**{"directory": FileName(values["name"])} | values)


async def in_thread(function: Callable[..., Any], *arguments: Any) -> Any:
    """Call *function* in a thread, for at most 10 s.

    A call on a mount must not block trio, which reaps the worker and serves the log.
    """
    with trio.fail_after(10):
        return await trio.to_thread.run_sync(function, *arguments, abandon_on_cancel=True)
