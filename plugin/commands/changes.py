"""Changes options of volumes, and shows the differences."""

from collections.abc import Mapping, Sequence

import msgspec

from plugin.commands.asking import CommandError, Plugin, path_of
from plugin.commands.document import Block, Pairs, Table
from plugin.protocol import SetReply

SET_S = 30.0
"""Names of users and the volume's lock may take 10 s each, users.py and volume_locks.py."""


class Changes(msgspec.Struct, frozen=True, kw_only=True):
    """The changes that `passfs set` has made, or with --dry-run would make."""

    volume: str
    dry_run: bool
    changes: Sequence[Mapping[str, str]]
    """Each with option, before, after and when: "now" or "next mount"."""
    notes: Sequence[str]


def change(
    plugin: Plugin, volume: str, given: Sequence[str], unset: Sequence[str], *, dry_run: bool
) -> Changes:
    """Let *volume* have the options *given*, each KEY or KEY=VALUE, and none of *unset*.

    Raises:
        CommandError: nothing has changed.
    """
    body = {"Options": _options(given, unset), "DryRun": dry_run}
    reply = plugin.ask(path_of(volume), SetReply, method="PATCH", limit_s=SET_S, body=body)
    changes = [msgspec.structs.asdict(each) for each in reply.changes]
    return Changes(volume=volume, dry_run=dry_run, changes=changes, notes=reply.notes)


def document(shown: Changes) -> list[Block]:
    """Return the document of `passfs set`."""
    columns = ("OPTION", "BEFORE", "AFTER", "WHEN")
    rows = [[each[name.lower()] for name in columns] for each in shown.changes]
    if not rows:
        return [Pairs("", [("volume", shown.volume), ("set", "no option changes")])]
    title = f"Only shown, not changed: {shown.volume}" if shown.dry_run else shown.volume
    notes = Pairs("", [("note", note) for note in shown.notes])
    return [Table(title, columns, rows), *([notes] if notes.rows else [])]


def _options(given: Sequence[str], unset: Sequence[str]) -> dict[str, str | None]:
    if not given and not unset:
        raise CommandError("no option is given. Name at least one: KEY=VALUE, or --unset KEY.")
    options: dict[str, str | None] = dict.fromkeys(unset)
    for word in given:
        name, _, text = word.partition("=")
        if name in options:
            raise CommandError(f"option {name!r} is given twice.")
        options[name] = text
    return options
