"""log.py: only warnings and errors on standard error, which dockerd logs as errors."""

import logging
from collections.abc import Iterator

import pytest

from plugin import log


@pytest.fixture
def root_logger_restored() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    root.handlers.clear()  # `configure` would close pytest's handlers
    yield
    root.handlers[:] = handlers
    root.setLevel(level)


@pytest.mark.usefixtures("root_logger_restored")
def test_warnings_and_errors_go_to_standard_error(capsys: pytest.CaptureFixture[str]) -> None:
    log.configure(logging.INFO)
    logger = logging.getLogger("passfs.test")
    for level in (logging.DEBUG, logging.INFO, logging.WARNING, logging.ERROR):
        logger.log(level, "a line")

    out, err = capsys.readouterr()
    assert out == "INFO passfs.test: a line\n"
    assert err == "WARNING passfs.test: a line\nERROR passfs.test: a line\n"


@pytest.mark.usefixtures("root_logger_restored")
def test_a_message_is_one_printable_line(capsys: pytest.CaptureFixture[str]) -> None:
    """A volume's name may have any characters."""
    log.configure(logging.INFO)
    name = "a\nERROR passfs: \x1b[2J\u2028\ud800 \u00e4\t\\"
    logging.getLogger("passfs.test").info("volume %s: created", name)

    line = r"INFO passfs.test: volume a\nERROR passfs: \x1b[2J\u2028\ud800 ä\t\: created"
    assert capsys.readouterr().out == f"{line}\n"


@pytest.mark.usefixtures("root_logger_restored")
def test_a_traceback_follows_on_separate_lines(capsys: pytest.CaptureFixture[str]) -> None:
    log.configure(logging.INFO)
    try:
        int("no")
    except ValueError:
        logging.getLogger("passfs.test").exception("bug")

    lines = capsys.readouterr().err.splitlines()
    assert lines[:2] == ["ERROR passfs.test: bug", "Traceback (most recent call last):"]
    assert lines[-1].startswith("ValueError: invalid literal")
