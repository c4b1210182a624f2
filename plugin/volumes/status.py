"""The description of a volume for Get and List: from memory, for a volume in any state.

No I/O: dockerd forgets a volume if its Get fails or does not return.

List describes thousands of volumes, and other requests wait for each piece of that work. So a
description has two parts, and each line of Status belongs to one of them:

    Status.lasting    depends only on the volume's record, its worker's report and the note on its
                      source: made when one of them changes, and kept as JSON
    Status._passing   all other lines: made for each request, and cheap

A List of 10,000 volumes takes at most 0.5 s of processor time
(tests/plugin/volumes/test_many_volumes.py). It works in small pieces, and the plugin answers other
requests in between.
"""

from collections.abc import Mapping
from functools import lru_cache, partial
from typing import NamedTuple, cast

import msgspec

from passthrough.options.choices import Squash
from passthrough.options.effective import Effective, described, resolve
from passthrough.options.sessions import Release
from passthrough.options.table import OptionError, Requested, as_text
from passthrough.worker.handover import Report
from plugin.admin.host import HostFacts
from plugin.admin.policy import Policy
from plugin.errors import InvalidOption
from plugin.mounting.keeper import Keeper
from plugin.mounting.standby import Deaths
from plugin.protocol import VolumeInfo
from plugin.volume import Record, State, Volume, VolumeName, directory_in
from plugin.volumes.differences import differences

# Volumes with equal options share one text of 1 KiB.
SHARED_TEXTS = 256


class Lasting(NamedTuple):
    """The part of a description that lasts until the record, the report or the note changes."""

    record: Record
    report: Report | None
    note: str
    """On the source, `Volume.source_note`."""
    status: bytes
    """A part of Status: the members of a JSON object, without its braces."""
    error: str
    """Why the options in the record, or those of the mount, are not accepted; empty if they are."""
    standby: str = ""
    """Whether the options ask for a standby, "on" or "off" with the reason; empty if unknown."""


class Status:
    """The descriptions of volumes."""

    def __init__(self, keeper: Keeper, policy: Policy, machine: HostFacts) -> None:
        self._keeper = keeper
        self._data_dir = machine.data_dir
        self._pid = "worker_pid_in_plugin" if machine.proc is None else "worker_pid"
        self._policy = policy
        self._known: dict[VolumeName, Lasting] = {}
        self._options_members = lru_cache(SHARED_TEXTS)(partial(_options_members, policy.release))

    def describe(self, volume: Volume, in_flight: str) -> VolumeInfo:
        """Return *volume* as `docker volume inspect` shows it.

        *in_flight* is the text of `VolumeLocks.in_flight`.
        """
        lasting = self.lasting(volume)
        passing = _members(self._passing(volume, in_flight, lasting))
        return VolumeInfo(
            name=volume.name,
            created_at=volume.record.created_at,
            mountpoint=mountpoint(volume, self._keeper),
            status=msgspec.Raw(b"{%b,%b}" % (passing, lasting.status)),
        )

    def lasting(self, volume: Volume) -> Lasting:
        """Return the lasting part of the description of *volume*; make it anew if needed."""
        report = self._keeper.report(volume.name)
        known = self._known.get(volume.name)
        note = volume.source_note
        if (
            known is None
            or (known.record is not volume.record or known.report is not report)
            or known.note != note
        ):
            known = self._known[volume.name] = self._make_lasting(volume.record, report, note)
        return known

    def forget(self, name: VolumeName) -> None:
        """Drop the description of the volume *name*, which has been removed."""
        self._known.pop(name, None)

    def _passing(self, volume: Volume, in_flight: str, lasting: Lasting) -> dict[str, object]:
        errors = (volume.last_error, volume.source_error, lasting.error)
        older = self._keeper.program_note(volume.name)
        texts = {
            "dead_references": _dead(volume.dead.total()),
            "program": f"older: {older}" if older else "",
            "waiting": in_flight,
            "error": "; ".join(dict.fromkeys(filter(None, errors))),
        }
        return {
            "mounted": volume.state is State.MOUNTED,
            "references": volume.reference_count,
            self._pid: self._keeper.worker_pid(volume.name),
            **_standby(self._keeper.deaths(volume.name), lasting, older),
            **{name: text for name, text in texts.items() if text},
        }

    def _make_lasting(self, record: Record, report: Report | None, note: str) -> Lasting:
        try:
            resolved = self._policy.parse(record.options)
        except InvalidOption as error:  # of another version of passfs, or under another policy
            given = _members({"options": dict(record.options)})
            return Lasting(record, report, note, given, str(error))
        # The mount may be of an earlier plugin with other defaults.
        requested = resolved.effective.requested
        if report is not None:
            requested = report.config or requested
        serves = (
            {"data": self._data_path(record)}
            if resolved.source is None
            else {"source": resolved.served}
        )
        obstacles = (
            ("", "") if report is None else (report.without_handles, report.without_passthrough)
        )
        try:
            standby, members = self._options_members(requested, note, *obstacles)
            problem = ""
        except OptionError as refused:  # of a mount of another version, which goes on
            standby, members = "", _members({"options": as_text(requested)})
            problem = str(refused)
        next_mount = self._next_mount(requested, resolved.effective, obstacles[0])
        status = b"%b,%b" % (_members(serves | next_mount), members)
        return Lasting(record, report, note, status, problem, standby)

    def _next_mount(
        self, present: Requested, after: Effective, file_handles_obstacle: str
    ) -> dict[str, object]:
        """Return the line on the options that the next mount has in place of the *present* ones."""
        if present == after.requested:
            return {}
        try:
            config = resolve(present, self._policy.release, file_handles_obstacle)
            after = resolve(after.requested, self._policy.release, file_handles_obstacle)
        except OptionError:
            return {}
        found = {each.option: each.after for each in differences(config, after)}
        return {"next_mount": found} if found else {}

    def _data_path(self, record: Record) -> str:
        """Return the host's path of the volume's own directory, if the plugin knows that path."""
        if self._data_dir is None:
            return "own directory"
        return str(directory_in(self._data_dir, record))


def _options_members(
    release: Release,
    requested: Requested,
    note: str,
    file_handles_obstacle: str,
    passthrough_obstacle: str,
) -> tuple[str, bytes]:
    """Return `Lasting.standby`, and the other members of Status on the options.

    The options are those in force for the mount, or for the next one. *note* is on the source, and
    empty if there is none.

    Raises:
        OptionError: *requested* cannot be served.
    """
    config = resolve(requested, release, file_handles_obstacle)
    members = described(config, release, passthrough_obstacle)
    standby = cast("str", members.pop("standby", ""))
    notes = cast("list[str]", members["notes"])
    more = [*_maps_without_engine(config), *filter(None, [note])]
    return standby, _members(members | {"notes": notes + more})


def _maps_without_engine(config: Effective) -> list[str]:
    """Return a note for each map without id 0, which the engine uses in volumes."""
    if config.squash is not Squash.NONE:  # id 0 then acts as the anonymous id
        return []
    maps = {"map_uid": config.map_uid, "map_gid": config.map_gid}
    return [
        f"{option} has no range with id 0, which the engine uses: `docker cp` and the copy of an"
        " image's content into the volume fail; add 0:HOST:1, or mount with :nocopy"
        for option, ranges in maps.items()
        if ranges and not any(each.container == 0 for each in ranges)
    ]


def _standby(deaths: Deaths | None, lasting: Lasting, older: str) -> dict[str, object]:
    """Return the lines on the standby, and on the workers that have died.

    *older* says why an older program serves the mount; empty if none does.
    """
    if deaths is None:
        text = lasting.standby
        if lasting.report is not None and text.startswith("on"):
            why = "an older program made it" if older else "the log of its worker says why"
            text = f"off: this mount has none; {why}"
        return {"standby": text} if text else {}
    lines: dict[str, object] = {"standby": deaths.standby, "deaths": deaths.number}
    return lines | ({"last_death": deaths.last} if deaths.last else {})


def _dead(count: int) -> str:
    """Return the line on *count* dead references, with the remedy; empty if there are none."""
    if not count:
        return ""
    return (
        f"{count}: the worker of their mount has ended; a container that has this mount gets"
        " ENOTCONN until it is restarted"
    )


def _members(status: Mapping[str, object]) -> bytes:
    """Return the JSON object *status*, which has a member, without its braces."""
    return msgspec.json.encode(status)[1:-1]


def mountpoint(volume: Volume, keeper: Keeper) -> str:
    """Return the mount point of *volume*, also if its worker has died; else an empty text."""
    if volume.state in {State.MOUNTED, State.LOST}:
        return str(keeper.target(volume.record.directory))
    return ""
