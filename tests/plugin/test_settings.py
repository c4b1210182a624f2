"""plugin/settings.py: every variable is optional, and a bad value is refused in a sentence."""

import logging
from pathlib import Path

import pytest

from plugin.errors import InvalidSetting
from plugin.settings import VARIABLES, Settings


def test_everything_has_a_default() -> None:
    assert Settings.from_environment({"PATH": "/bin"}) == Settings()


@pytest.mark.parametrize(
    ("name", "value", "field", "expected"),
    [
        ("PASSFS_SOCKET", "/s/p.sock", "socket", Path("/s/p.sock")),
        ("PASSFS_DATA_DIR", "/d", "data_dir", Path("/d")),
        ("PASSFS_MOUNT_DIR", "/m", "mount_dir", Path("/m")),
        ("PASSFS_HOST_ROOT", "/host", "host_root", Path("/host")),
        ("PASSFS_HOST_DIR", "/srv", "host_dir", Path("/srv")),
        ("PASSFS_LOG_LEVEL", "Debug", "log_level", logging.DEBUG),
    ],
)
def test_each_variable_sets_its_field(name: str, value: str, field: str, expected: object) -> None:
    assert getattr(Settings.from_environment({name: value}), field) == expected


@pytest.mark.parametrize("name", VARIABLES)
def test_an_empty_value_is_the_default(name: str) -> None:
    """`docker plugin set NAME=` cannot remove a variable, only empty it."""
    assert Settings.from_environment({name: ""}) == Settings()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("PASSFS_SOCKET", "p.sock"),
        ("PASSFS_SOCKET", "/" + "s" * 107),
        ("PASSFS_DATA_DIR", "data"),
        ("PASSFS_MOUNT_DIR", "/mnt/../etc"),
        ("PASSFS_HOST_ROOT", "host"),
        ("PASSFS_HOST_DIR", "./srv"),
        ("PASSFS_LOG_LEVEL", "loud"),
    ],
)
def test_a_refusal_names_variable_value_and_what_would_do(name: str, value: str) -> None:
    with pytest.raises(InvalidSetting) as refusal:
        Settings.from_environment({name: value})
    assert str(refusal.value).startswith(f"{name}={value!r} is not accepted; expected ")
