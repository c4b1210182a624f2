"""What Get and List say of a volume; from memory alone, and whatever is wrong with it.

No I/O: dockerd forgets a volume whose Get fails or does not come.
"""

from collections.abc import Callable, Mapping

from passthrough.decisions import described
from plugin.errors import InvalidOption
from plugin.keeper import Keeper
from plugin.options import VolumeOptions
from plugin.protocol import VolumeInfo
from plugin.volume import State, Volume

Understand = Callable[[Mapping[str, str]], VolumeOptions]


def describe(volume: Volume, keeper: Keeper, under_way: str, understand: Understand) -> VolumeInfo:
    """*volume* as `docker volume inspect` shows it, with the request that is under way for it."""
    status: dict[str, object] = {
        "mounted": volume.state is State.MOUNTED,
        "references": volume.reference_count,
        "worker_pid": keeper.worker_pid(volume.name),
    }
    errors = [volume.last_error, volume.source_error]
    try:
        understood = understand(volume.record.options)
    except InvalidOption as error:  # of another passfs, or another policy
        status |= {"options": dict(volume.record.options)}
        errors.append(str(error))
    else:
        status |= described(understood.config, *keeper.without(volume.name))
        if understood.source is None:
            # Not its path, because in a managed plugin that need not be the host's.
            status["data"] = "own directory"
        else:
            status["source"] = understood.source
    said = {"waiting": under_way, "error": "; ".join(dict.fromkeys(filter(None, errors)))}
    return VolumeInfo(
        name=volume.name,
        created_at=volume.record.created_at,
        mountpoint=mountpoint(volume, keeper),
        status=status | {name: text for name, text in said.items() if text},
    )


def mountpoint(volume: Volume, keeper: Keeper) -> str:
    """Where *volume* is mounted, or was until its worker died; empty otherwise."""
    if volume.state in {State.MOUNTED, State.LOST}:
        return str(keeper.target(volume.name))
    return ""
