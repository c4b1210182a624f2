"""What Get and List say of a volume; from memory alone, and whatever is wrong with it.

No I/O: dockerd forgets a volume whose Get fails or does not come.
"""

from collections.abc import Callable, Mapping

from passthrough.config import Config
from passthrough.decisions import described
from passthrough.handover import Report
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
        status |= _applying(understood.config, keeper.report(volume.name))
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


def _applying(config: Config, report: Report | None) -> dict[str, object]:
    """What applies to the volume's mount, or would to its next one, of *config*."""
    if report is None:
        return described(config)
    # A mount may be older than this plugin, and than what it was told of other defaults.
    goes_by = report.config or config
    return described(goes_by, report.without_handles, report.without_passthrough)


def mountpoint(volume: Volume, keeper: Keeper) -> str:
    """Where *volume* is mounted, or was until its worker died; empty otherwise."""
    if volume.state in {State.MOUNTED, State.LOST}:
        return str(keeper.target(volume.name))
    return ""
