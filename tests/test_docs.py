"""What the documents say is what the code does."""

import re
from pathlib import Path

import msgspec

from passthrough.options.config import ALIASES, LACKING, MEANINGLESS, OPTIONS, Config, as_text
from tests.support.tools import faults, lacks

ROOT = Path(__file__).parents[1]


def test_the_readme_has_every_option_with_its_default_and_what_it_accepts() -> None:
    section = (ROOT / "README.md").read_text().split("### Options")[1].split("###")[0]
    rows = re.findall(r"^\| `(\w+)` \| (.+?) \| (.+?) \| (.+?) \|$", section, re.MULTILINE)
    documented = {
        name: (default.strip("`"), accepts, meaning) for name, default, accepts, meaning in rows
    }
    documented.pop("source")
    defaults = as_text(Config())

    assert documented == {
        name: (defaults[name], option.accepts, option.meaning) for name, option in OPTIONS.items()
    }


def test_the_readme_names_every_alias() -> None:
    readme = (ROOT / "README.md").read_text()

    assert [alias for alias in ALIASES if f"`{alias}`" not in readme] == []


def test_every_field_of_config_is_an_option() -> None:
    assert {field.name for field in msgspec.structs.fields(Config)} == set(OPTIONS)


def test_what_a_session_lacks_is_documented_with_the_reason() -> None:
    text = (ROOT / "docs" / "sessions.md").read_text()
    rows = re.findall(r"^\| `(\w+)` \| `(\w+)` \| (.+?) \|$", text, re.MULTILINE)
    meaningless = re.findall(r"^\| `(\w+)` \| ([^`].+?) \|$", text, re.MULTILINE)

    assert rows == [
        (option, session, why)
        for session, lacks in LACKING.items()
        for option, why in lacks.items()
    ]
    assert dict(meaningless) == MEANINGLESS


def test_what_libfuse_cannot_carry_is_what_the_battery_marks() -> None:
    """`python -m tests.support.tools.lacks` brings the table up to date."""
    assert lacks.documented() == lacks.table() != ""


def test_the_known_faults_are_what_the_battery_marks() -> None:
    """`python -m tests.support.tools.faults` brings the table up to date."""
    assert faults.documented() == faults.table()


def test_each_feature_with_a_known_fault_has_a_test_that_shows_one() -> None:
    assert {fault.feature for fault in faults.faults()} == set(faults.FEATURES)
