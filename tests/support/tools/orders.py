"""What tests ask of a keeper: a volume to mount, and to use what is mounted."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import trio

from passthrough.options.choices import CachePolicy
from plugin.mounting.keeper import MOUNT_DEADLINE_S, Order
from plugin.volume import FileName, VolumeName
from tests.support.fakes.worker import command
from tests.support.tools.options import effective

NAME = VolumeName("data")
DIRECTORY = FileName("data")
SERVE = command("serve")


def order(source: Path, **fields: Any) -> Order:
    """What to mount: *source* as the volume `data`, at a mount point of the volume's name."""
    given: dict[str, Any] = {
        "name": NAME,
        "options": effective(cache=CachePolicy.NEVER),
        "origin": f"source '{source}'",
        "open_source": lambda: os.open(source, os.O_PATH | os.O_DIRECTORY),
        "limiter": trio.CapacityLimiter(1),
        "lost": lambda _: None,
        "deadline": trio.current_time() + MOUNT_DEADLINE_S,
    }
    given |= fields
    return Order(**{"directory": FileName(given["name"])} | given)


async def in_thread(function: Callable[..., Any], *arguments: Any) -> Any:
    """Use the mount from a thread: its worker is ours to reap, its requests not ours to answer."""
    with trio.fail_after(10):
        return await trio.to_thread.run_sync(function, *arguments, abandon_on_cancel=True)
