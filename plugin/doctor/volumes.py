"""The checks of all volumes together: their health, and the findings of `passfs check`."""

from typing import Final

from plugin.commands import inquiry, views
from plugin.commands.asking import CommandError, Plugin
from plugin.commands.views import ListedVolumes, Row
from plugin.doctor.facts import Facts
from plugin.doctor.finding import Found, State, listed
from plugin.protocol import CANNOT_BE_MOUNTED

_NO_PLUGIN: Final = "no plugin to ask"
_BAD: Final = ("lost", "error")


def health(facts: Facts) -> Found:
    """Count the volumes by their health."""
    if facts.plugin.health is None:
        return Found(State.OK, _NO_PLUGIN)
    rows = views.rows(ListedVolumes(volumes=facts.plugin.volumes))
    if bad := [row for row in rows if row.health in _BAD]:
        return Found(
            State.ERROR,
            f"{len(bad)} of {len(rows)} with an error: {_named(bad)}",
            "their containers get errors, or do not start",
            "passfs ls has the reasons; docs/operations.md what to do about each",
        )
    if poor := [row for row in rows if row.health == "degraded" or row.dead_users]:
        return Found(
            State.WARNING,
            f"{len(poor)} of {len(rows)} with a caution: {_named(poor)}",
            "they are served all the same",
            "passfs ls has the reasons",
        )
    busy = [row for row in rows if row.health == "busy"]
    waiting = f", {len(busy)} with a request in hand: {_named(busy)}" if busy else ""
    return Found(State.OK, f"{len(rows)}, none with an error{waiting}")


def registry(facts: Facts) -> Found:
    """Count the findings of `passfs check`."""
    if facts.plugin.health is None:
        return Found(State.OK, _NO_PLUGIN)
    try:
        found = inquiry.findings(Plugin(facts.machine.data_dir), None)
    except CommandError as error:
        return Found(
            State.WARNING, str(error), "the volumes were not checked", "passfs check, once more"
        )
    if not found:
        return Found(State.OK, "registry, disk and mounts agree")
    unusable = [each for each in found if each["problem"].startswith(CANNOT_BE_MOUNTED)]
    first = (unusable or found)[0]
    return Found(
        State.ERROR if unusable else State.WARNING,
        f"findings: {len(found)}, such as {first['volume'] or 'all volumes'}: {first['problem']}",
        first["meaning"],
        "passfs check has them all, each with its remedy",
    )


def _named(rows: list[Row]) -> str:
    return listed([f"{row.name} ({row.health})" for row in rows])
