"""plugin/log.py: dockerd shows a plugin's standard error as errors, so only those go there."""

import logging
from collections.abc import Iterator

import pytest

from plugin import log


@pytest.fixture
def root_logger_restored() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    root.handlers.clear()  # pytest's own, which `configure` would close
    yield
    root.handlers[:] = handlers
    root.setLevel(level)


@pytest.mark.usefixtures("root_logger_restored")
def test_warnings_and_worse_go_to_standard_error(capsys: pytest.CaptureFixture[str]) -> None:
    log.configure(logging.INFO)
    logger = logging.getLogger("passfs.test")
    for level in (logging.DEBUG, logging.INFO, logging.WARNING, logging.ERROR):
        logger.log(level, "a line")

    out, err = capsys.readouterr()
    assert out == "INFO passfs.test: a line\n"
    assert err == "WARNING passfs.test: a line\nERROR passfs.test: a line\n"
