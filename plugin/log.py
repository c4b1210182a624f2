"""The plugin's log: INFO and below on standard output, WARNING and above on standard error.

dockerd logs a managed plugin's standard error as errors, where an ordinary line would raise a false
alarm.

The message of a record about a volume begins with ABOUT. A record may have `fields`
(plugin/events.py), and a `traceback` that another process has written (worker_output.py).

Users choose names of volumes, mount ids and paths. No such text forges a line: unprintable
characters are escaped, and a long line is cut before journald would split it.
"""

import json
import logging
import sys
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from typing import Any, Final

from plugin.errors import escaped, printable

# journald splits lines after LineMax=, by default 48 KiB, journald.conf(5). A character takes up to
# 4 bytes in UTF-8, and up to 12 in JSON.
LONGEST_TEXT: Final = 8_000
LONGEST_JSON_BYTES: Final = 40_000
CUT_TEXT: Final = 500


ABOUT: Final = "volume %s: "


class Text(logging.Formatter):
    """A formatter that writes `LEVEL LOGGER: MESSAGE`.

    Lines have no timestamp: dockerd and journald add their own. The lines of a traceback follow,
    with the same beginning and the name of the volume.
    """

    def format(self, record: logging.LogRecord) -> str:
        """Return the lines of *record*."""
        head = f"{record.levelname} {record.name}: "
        volume = _fields(record).get("volume")
        about = head if volume is None else f"{head}volume {volume}: "
        following = [about + line for line in self.traceback(record).splitlines()]
        return "\n".join(map(_line, [head + record.getMessage(), *following]))

    def traceback(self, record: logging.LogRecord) -> str:
        """Return the traceback of *record*, or an empty string."""
        if record.exc_info:
            return self.formatException(record.exc_info)
        return str(getattr(record, "traceback", ""))


class Json(Text):
    """A formatter that writes one object on one line, in ASCII."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the object of *record*."""
        at = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")
        line = {
            "time": at.replace("+00:00", "Z"),
            "level": record.levelname,
            "logger": record.name,
            "message": _line(record.getMessage()),
            **_fields(record),
        }
        if traceback := self.traceback(record):
            line["traceback"] = traceback
        text = _encoded(line)
        return text if len(text) <= LONGEST_JSON_BYTES else _encoded(dict(_short(line)))


def write(
    logger: logging.Logger, level: int, text: str, *values: object, extra: Mapping[str, object]
) -> None:
    """Log a record also if *level* is below that of the log, as the option `log_level` asks for."""
    unknown = "(unknown file)", 0
    logger.handle(logger.makeRecord(logger.name, level, *unknown, text, values, None, extra=extra))


def configure(level: int, *, as_json: bool = False) -> None:
    """Send the records of all loggers from *level* on to the process's two streams."""
    ordinary = logging.StreamHandler(sys.stdout)
    ordinary.addFilter(_below_warning)
    urgent = logging.StreamHandler(sys.stderr)
    urgent.setLevel(logging.WARNING)
    for handler in (ordinary, urgent):
        handler.setFormatter(Json() if as_json else Text())
    logging.basicConfig(level=level, handlers=[ordinary, urgent], force=True)


def _below_warning(record: logging.LogRecord) -> bool:
    return record.levelno < logging.WARNING


def _fields(record: logging.LogRecord) -> Mapping[str, Any]:
    """Return the fields of *record*, and the volume that it is about."""
    fields: Mapping[str, Any] = getattr(record, "fields", {})
    if isinstance(record.args, tuple) and str(record.msg).startswith(ABOUT):
        return {"volume": record.args[0], **fields}
    return fields


def _line(text: str) -> str:
    """Return *text* on one line, without unprintable characters, and cut if it is long."""
    line = printable(text[: LONGEST_TEXT + 1])
    return line if len(line) <= LONGEST_TEXT else f"{line[:LONGEST_TEXT]}..."


def _encoded(line: Mapping[str, Any]) -> str:
    return json.dumps(_text(line))


def _text(value: Any) -> Any:  # noqa: ANN401 - as of json
    """Return *value* with bytes that are no UTF-8 escaped, because readers of JSON refuse them."""
    if isinstance(value, Mapping):
        return {escaped(name): _text(each) for name, each in value.items()}
    return escaped(value) if isinstance(value, str) else value


def _short(line: Mapping[str, Any]) -> Iterator[tuple[str, object]]:
    """Yield the fields of *line* that fit: texts are cut, and options left out."""
    for name, value in line.items():
        if not isinstance(value, Mapping):
            yield name, value[:CUT_TEXT] if isinstance(value, str) else value
    yield "cut", True
