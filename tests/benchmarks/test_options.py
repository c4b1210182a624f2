"""The command's options agree with docs/performance.md."""

import re
from pathlib import Path

import typer

from benchmarks.__main__ import app

DOCUMENT = Path(__file__).parents[2] / "docs" / "performance.md"


def test_every_option_is_documented_and_no_other() -> None:
    """Take the longest spelling of each option, and of an on/off pair the off one: `--no-costs`."""
    given = set()
    for parameter in typer.main.get_command(app).params:
        off = getattr(parameter, "secondary_opts", [])
        given.add((off or sorted(parameter.opts, key=len))[-1])
    rows = re.findall(r"^\| (`--[^|]+) \|", DOCUMENT.read_text(), re.MULTILINE)
    documented = {name for row in rows for name in re.findall(r"--[a-z-]+", row)}

    assert documented == given


def test_the_document_names_no_unknown_option() -> None:
    known = {
        word for p in typer.main.get_command(app).params for word in (*p.opts, *p.secondary_opts)
    }

    assert set(re.findall(r"(?<=[\s`])--[a-z-]+", DOCUMENT.read_text())) <= known
