"""log.py: the text format and the JSON format; only warnings and errors on standard error.

dockerd logs a managed plugin's standard error as errors.
"""

import json
import logging
import sys
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

import msgspec
import pytest

from plugin import log

EVIL = "a\nERROR passfs: \x1b[2J\u2028\ud800 \u00e4\t\\"
# journald splits longer lines, LineMax= in journald.conf(5).
LINE_MAX_BYTES = 48 * 1024


@pytest.fixture
def root_logger_restored() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    root.handlers.clear()  # `configure` would close pytest's handlers
    yield
    root.handlers[:] = handlers
    root.setLevel(level)


pytestmark = pytest.mark.usefixtures("root_logger_restored")
logger = logging.getLogger("passfs.test")


def fail(message: str) -> None:
    logger.error("volume %s: bug", "vol", exc_info=ValueError(message))


@pytest.mark.parametrize("as_json", [False, True], ids=["text", "json"])
def test_warnings_and_errors_go_to_standard_error(
    capsys: pytest.CaptureFixture[str], *, as_json: bool
) -> None:
    log.configure(logging.INFO, as_json=as_json)
    for level in (logging.DEBUG, logging.INFO, logging.WARNING, logging.ERROR):
        logger.log(level, "a line")

    out, err = capsys.readouterr()
    if as_json:
        lines = [json.loads(line) for line in (out + err).splitlines()]
        assert [line["level"] for line in lines] == ["INFO", "WARNING", "ERROR"]
        assert out.count("\n") == 1
    else:
        assert out == "INFO passfs.test: a line\n"
        assert err == "WARNING passfs.test: a line\nERROR passfs.test: a line\n"


def test_a_message_is_one_printable_line(capsys: pytest.CaptureFixture[str]) -> None:
    """A volume's name may have any characters."""
    log.configure(logging.INFO)
    logger.info("volume %s: created", EVIL)

    line = r"INFO passfs.test: volume a\nERROR passfs: \x1b[2J\u2028\ud800 ä\t\: created"
    assert capsys.readouterr().out == f"{line}\n"


def test_each_line_of_a_traceback_begins_as_its_message(
    capsys: pytest.CaptureFixture[str],
) -> None:
    log.configure(logging.INFO)
    fail("it\nERROR plugin.events: volume other: removed")

    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "ERROR passfs.test: volume vol: bug"
    assert lines[1] == "ERROR passfs.test: volume vol: ValueError: it"
    assert lines[-1].endswith("volume vol: ERROR plugin.events: volume other: removed")
    assert {line.partition(" Trace")[0][:31] for line in lines} == {
        "ERROR passfs.test: volume vol: "
    }


def test_an_object_has_time_level_logger_message_and_fields(
    capsys: pytest.CaptureFixture[str],
) -> None:
    log.configure(logging.INFO, as_json=True)
    before = datetime.now(UTC) - timedelta(milliseconds=1)
    extra = {"fields": {"event": "created", "options": {"uid": "5"}, "worker": 7}}
    logger.info("volume %s: created", "vol", extra=extra)

    line = json.loads(capsys.readouterr().out)
    assert line.pop("time").endswith("Z")
    own = {"level": "INFO", "logger": "passfs.test", "message": "volume vol: created"}
    assert line == own | {"volume": "vol"} | extra["fields"]
    logger.info("a line")
    time = json.loads(capsys.readouterr().out)["time"]
    assert len(time) == len("2026-01-01T00:00:00.000Z")
    assert before <= datetime.fromisoformat(time) <= datetime.now(UTC)


def test_an_object_is_one_line_in_ascii_with_any_text(capsys: pytest.CaptureFixture[str]) -> None:
    log.configure(logging.INFO, as_json=True)
    logger.info("volume %s: x", EVIL, extra={"fields": {EVIL: {EVIL: EVIL}}})

    out = capsys.readouterr().out
    assert out.isascii()
    assert out.count("\n") == 1
    assert out[:-1].isprintable()
    line = msgspec.json.decode(out)  # it refuses lone surrogates
    name = EVIL.replace("\ud800", r"\ud800")
    assert line["volume"] == name
    assert line[name] == {name: name}
    assert line["message"] == r"volume a\nERROR passfs: \x1b[2J\u2028\ud800 ä\t\: x"


def test_a_traceback_is_a_field_of_an_object(capsys: pytest.CaptureFixture[str]) -> None:
    log.configure(logging.INFO, as_json=True)
    fail("no")

    (text,) = capsys.readouterr().err.splitlines()
    line = json.loads(text)
    assert (line["volume"], line["message"]) == ("vol", "volume vol: bug")
    assert line["traceback"].startswith("ValueError")
    assert line["traceback"].endswith("ValueError: no")


@pytest.mark.parametrize("text", ["x" * 10**6, "\x00" * 10**6, "\U0001f600" * 10**6, "ä" * 50_000])
@pytest.mark.parametrize("as_json", [False, True], ids=["text", "json"])
def test_no_text_makes_a_line_that_journald_splits(
    capsys: pytest.CaptureFixture[str], text: str, *, as_json: bool
) -> None:
    log.configure(logging.INFO, as_json=as_json)
    fields = {"mount_id": text, "reason": text, "cause": text, "options": {text: text}}
    logger.info("volume %s: %s", text, text, extra={"fields": fields, "traceback": text})

    lines = capsys.readouterr().out.encode(sys.stdout.encoding).splitlines()
    assert lines
    assert max(map(len, lines)) < LINE_MAX_BYTES
    if as_json:
        assert json.loads(lines[0])["cut"] is True
