"""The lines about a volume in the journal: those of the service, or of the engine that logs for it.

dockerd logs what a managed plugin prints. Both units are read, so the command needs to know neither
the kind of installation nor a running plugin. The lines have either format of PASSFS_LOG_FORMAT.
"""

import re
import subprocess
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import closing, suppress
from datetime import UTC, datetime
from typing import Any, Final

import msgspec

from plugin.commands.asking import CommandError
from plugin.errors import escaped, printable

UNITS: Final = ("passfs.service", "docker.service")
# Those that a line is made of, of any length (--all); journalctl adds times and cursor. With the
# log driver `journald`, dockerd logs the output of containers, which have a CONTAINER_ID.
_FIELDS: Final = ("--all", "--output=json", "--output-fields=MESSAGE,_SYSTEMD_UNIT,CONTAINER_ID")

# The line of a managed plugin, as dockerd logs it.
_OF_DOCKERD: Final = re.compile(
    r'time="[^"]*" level=\w+ msg="((?:[^"\\]|\\.)*)" plugin=\S+', re.ASCII
)


class Line(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A line of the journal."""

    time: str
    """In UTC."""
    unit: str
    message: str
    """As the text format has it."""
    fields: Mapping[str, Any] = {}
    """Of a line in the JSON format."""


def lines(
    volume: str,
    units: Sequence[str] = UNITS,
    *,
    follow: bool = False,
    since: str = "",
    last: int | None = None,
) -> Iterator[Line]:
    """Yield the lines about *volume*, the oldest first; if *follow* is set, wait for more.

    *since* leaves out earlier lines, in the words of journalctl(1), and *last* all but so many.

    Raises:
        CommandError: there is no journal, or no line.
    """
    command = ["journalctl", "--no-pager", *_FIELDS, *(f"--unit={unit}" for unit in units)]
    start = [f"--since={since}"] if since else []
    about, found = _about(volume), False
    if last is not None:
        newest, cursor = _newest([*command, *start], volume, about, last)
        yield from newest
        found, start = bool(newest), [f"--after-cursor={cursor}"] if cursor else start
    if last is None or follow:
        more = ("--follow", "--lines=all") if follow else ()
        for entry in _entries([*command, *start, *more]):
            if line := _line_about(volume, about, entry):
                found = True
                yield line
    if not found:
        raise CommandError(
            f"the journal of {' and '.join(units)} has no line about {printable(volume)}"
            f"{' since ' + printable(since) if since else ''}. If dockerd or passfs logs elsewhere,"
            " look there for lines with `volume NAME:`."
        )


def _newest(
    command: Sequence[str], volume: str, about: re.Pattern[str], number: int
) -> tuple[list[Line], str]:
    """Return the last lines about *volume*, the oldest first, and the cursor of the journal's end.

    The journal is read backwards, and no further than these lines.
    """
    found: list[Line] = []
    cursor = ""
    with closing(_entries([*command, "--reverse"])) as entries:
        for entry in entries:
            cursor = cursor or str(entry.get("__CURSOR", ""))
            if line := _line_about(volume, about, entry):
                found.append(line)
            if len(found) == number:
                break
    return found[::-1], cursor


def _line_about(volume: str, about: re.Pattern[str], entry: Mapping[str, Any]) -> Line | None:
    """Return the line of *entry* if it is about *volume*."""
    message = entry.get("MESSAGE")
    # Bytes that are no text are a list.
    if not isinstance(message, str) or "CONTAINER_ID" in entry:
        return None
    message = _of_plugin(message)
    fields = _fields(message)
    if fields.get("volume") != escaped(volume) and not about.search(message):
        return None
    seconds = int(entry.get("__REALTIME_TIMESTAMP", 0)) / 1e6
    return Line(
        time=f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%dT%H:%M:%SZ}",
        unit=str(entry.get("_SYSTEMD_UNIT", "")),
        message=_as_text(fields) if fields else message,
        fields=fields,
    )


def _about(volume: str) -> re.Pattern[str]:
    """Return a pattern of the messages about *volume*, as log.py and server.py write them."""
    begins = r"^(?:[A-Z]+ [\w.]+: )?(?:volume |/VolumeDriver\.\w+ )"
    return re.compile(rf"{begins}{re.escape(printable(volume))}(?::| id=)")


def _of_plugin(message: str) -> str:
    """Return the line of the plugin in *message*, which dockerd may have logged in its formats."""
    if quoted := _OF_DOCKERD.fullmatch(message):
        return re.sub(r"\\(.)", r"\1", quoted[1])
    fields = _fields(message)
    return str(fields["msg"]) if {"msg", "plugin"} <= fields.keys() else message


def _fields(message: str) -> Mapping[str, Any]:
    """Return the fields of a line in the JSON format; empty for another line."""
    if message.startswith("{"):
        with suppress(msgspec.DecodeError, RecursionError):
            return msgspec.json.decode(message, type=dict[str, Any])
    return {}


def _as_text(fields: Mapping[str, Any]) -> str:
    """Return the line with *fields* as the text format has it."""
    head = f"{fields.get('level', '')} {fields.get('logger', '')}: {fields.get('message', '')}"
    return " | ".join([head, *str(fields.get("traceback", "")).splitlines()])


def _entries(command: Sequence[str]) -> Generator[dict[str, Any], None, None]:
    """Yield the entries that *command* prints; it ends with the generator."""
    try:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    except FileNotFoundError as error:
        raise CommandError(
            "there is no journalctl(1) on this machine. Look for lines with `volume NAME:` in the"
            " log of dockerd, or of passfs."
        ) from error
    try:
        for line in process.stdout or ():
            with suppress(msgspec.DecodeError):
                yield msgspec.json.decode(line, type=dict[str, Any])
        _, errors = process.communicate()
        if process.returncode:
            raise CommandError(
                f"`{' '.join(command)}` failed: {errors.decode(errors='backslashreplace').strip()}"
            )
    finally:
        process.kill()
        process.communicate()
