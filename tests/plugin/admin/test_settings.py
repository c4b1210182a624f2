"""settings.py: each variable is optional, and a bad value is refused with a reason."""

import logging
from pathlib import Path

import msgspec
import pytest

from plugin.admin.address import TcpAddress
from plugin.admin.policy import Ban
from plugin.admin.settings import SETTINGS, Settings
from plugin.errors import InvalidSetting
from tests.support.tools import settings
from tests.support.tools.generated import Section

DEFAULTS = Settings.from_environment({})


@pytest.mark.parametrize(
    ("field", "expected"),
    [
        ("socket", Path("/run/docker/plugins/passfs.sock")),
        ("data_dir", Path("/var/lib/passfs")),
        ("mount_dir", Path("/run/passfs/mounts")),
        ("host_dir", Path("/")),
        ("host_root", Path("/")),
        ("allowed_sources", ()),
        ("default_options", {}),
        ("forbidden_options", ()),
        ("owner", (0, 0)),
        ("log_level", logging.INFO),
        ("metrics", None),
    ],
)
def test_a_setting_has_its_default(field: str, expected: object) -> None:
    assert getattr(Settings.from_environment({"PATH": "/bin"}), field) == expected


def test_each_field_has_a_row() -> None:
    assert {field.name for field in msgspec.structs.fields(Settings)} == SETTINGS.keys()


@pytest.mark.parametrize("section", [settings.ENVIRONMENT, settings.TABLE], ids=["config", "docs"])
def test_the_written_files_have_each_setting(section: Section) -> None:
    text = settings.environment() if section is settings.ENVIRONMENT else settings.table()
    assert section.present() == text, f"run `{settings.COMMAND}` to update {section.file.name}"


@pytest.mark.parametrize(
    ("name", "value", "field", "expected"),
    [
        ("PASSFS_SOCKET", "/s/p.sock", "socket", Path("/s/p.sock")),
        ("PASSFS_DATA_DIR", "/d", "data_dir", Path("/d")),
        ("PASSFS_MOUNT_DIR", "/m", "mount_dir", Path("/m")),
        ("PASSFS_HOST_ROOT", "/host", "host_root", Path("/host")),
        ("PASSFS_HOST_DIR", "/srv", "host_dir", Path("/srv")),
        (
            "PASSFS_ALLOWED_SOURCES",
            "/srv:/mnt/x/",
            "allowed_sources",
            (Path("/srv"), Path("/mnt/x")),
        ),
        (
            *("PASSFS_DEFAULT_OPTIONS", "Cache=never, ro", "default_options"),
            {"cache": "never", "readonly": "true"},
        ),
        (
            *("PASSFS_FORBIDDEN_OPTIONS", "suid,dev=1", "forbidden_options"),
            (Ban("suid"), Ban("dev", "true")),
        ),
        ("PASSFS_OWNER", "100000:100001", "owner", (100000, 100001)),
        ("PASSFS_LOG_LEVEL", "Debug", "log_level", logging.DEBUG),
        ("PASSFS_METRICS", "/run/passfs/m.sock", "metrics", Path("/run/passfs/m.sock")),
        ("PASSFS_METRICS", "unix:/m.sock", "metrics", Path("/m.sock")),
        ("PASSFS_METRICS", "127.0.0.1:9464", "metrics", TcpAddress("127.0.0.1", 9464)),
        ("PASSFS_METRICS", "[::1]:65535", "metrics", TcpAddress("::1", 65535)),
    ],
)
def test_each_variable_sets_its_field(name: str, value: str, field: str, expected: object) -> None:
    assert getattr(Settings.from_environment({name: value}), field) == expected


PATHS = {
    *("PASSFS_SOCKET", "PASSFS_DATA_DIR", "PASSFS_MOUNT_DIR", "PASSFS_HOST_ROOT"),
    "PASSFS_HOST_DIR",
}


@pytest.mark.parametrize(
    "name", [setting.variable for setting in SETTINGS.values() if setting.may_be_empty]
)
def test_an_empty_value_is_the_default(name: str) -> None:
    """`docker plugin set NAME=` can empty a variable, but not remove it."""
    assert Settings.from_environment({name: ""}) == DEFAULTS


@pytest.mark.parametrize("name", sorted(PATHS))
def test_an_empty_path_is_refused(name: str) -> None:
    with pytest.raises(InvalidSetting) as refusal:
        Settings.from_environment({name: ""})
    assert (
        str(refusal.value) == f"{name}='' is not accepted; expected an absolute path without '..'"
    )


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("PASSFS_SOCKET", "p.sock"),
        ("PASSFS_SOCKET", "/" + "s" * 107),
        ("PASSFS_DATA_DIR", "data"),
        ("PASSFS_MOUNT_DIR", "/mnt/../etc"),
        ("PASSFS_MOUNT_DIR", "/mnt/\udcff"),
        ("PASSFS_HOST_ROOT", "host"),
        ("PASSFS_HOST_DIR", "./srv"),
        ("PASSFS_OWNER", "root"),
        ("PASSFS_OWNER", "1"),
        ("PASSFS_OWNER", "1:4294967295"),
        ("PASSFS_OWNER", "1:-1"),
        ("PASSFS_ALLOWED_SOURCES", "srv"),
        ("PASSFS_FORBIDDEN_OPTIONS", "cache=auto"),
        ("PASSFS_LOG_LEVEL", "loud"),
        ("PASSFS_METRICS", "metrics.sock"),
        ("PASSFS_METRICS", "unix:metrics.sock"),
        ("PASSFS_METRICS", "/" + "s" * 107),
        ("PASSFS_METRICS", "/run/../m.sock"),
        ("PASSFS_METRICS", "/\0"),
        ("PASSFS_METRICS", "9464"),
        ("PASSFS_METRICS", ":9464"),
        ("PASSFS_METRICS", "localhost:9464"),
        ("PASSFS_METRICS", "127.0.0.1"),
        ("PASSFS_METRICS", "127.0.0.1:0"),
        ("PASSFS_METRICS", "127.0.0.1:65536"),
        ("PASSFS_METRICS", "127.0.0.1:٣"),
        ("PASSFS_METRICS", "::1:9464"),
        ("PASSFS_METRICS", "[127.0.0.1]:9464"),
    ],
)
def test_a_refusal_names_variable_value_and_accepted_values(name: str, value: str) -> None:
    with pytest.raises(InvalidSetting) as refusal:
        Settings.from_environment({name: value})
    assert str(refusal.value).startswith(f"{name}={value!r} is not accepted; expected ")


@pytest.mark.parametrize("value", [":", "/srv:", "/srv::/mnt", " "])
def test_an_empty_part_of_allowed_sources_is_refused(value: str) -> None:
    with pytest.raises(InvalidSetting, match=r"PASSFS_ALLOWED_SOURCES=.*absolute path"):
        Settings.from_environment({"PASSFS_ALLOWED_SOURCES": value})


@pytest.mark.parametrize(
    ("name", "value", "sentence"),
    [
        ("PASSFS_DEFAULT_OPTIONS", "cash=auto", "option 'cash': is not known"),
        ("PASSFS_DEFAULT_OPTIONS", "cache=auto,Cache=never", "'never' is a second value"),
        ("PASSFS_FORBIDDEN_OPTIONS", "dev=perhaps", "expected true or false"),
    ],
)
def test_a_refused_option_is_named_with_its_reason(name: str, value: str, sentence: str) -> None:
    with pytest.raises(InvalidSetting) as refusal:
        Settings.from_environment({name: value})
    assert str(refusal.value).startswith(f"{name}={value!r} is not accepted: option ")
    assert sentence in str(refusal.value)


def test_a_default_must_not_be_forbidden() -> None:
    """A volume without options is always accepted."""
    given = {"PASSFS_FORBIDDEN_OPTIONS": "rw"}
    with pytest.raises(InvalidSetting, match="set readonly in PASSFS_DEFAULT_OPTIONS"):
        Settings.from_environment(given)
    Settings.from_environment(given | {"PASSFS_DEFAULT_OPTIONS": "ro"})


def test_the_policy_refuses_a_forbidden_default() -> None:
    settings = Settings.from_environment({"PASSFS_DEFAULT_OPTIONS": "ro"})
    contradictory = msgspec.structs.replace(settings, forbidden_options=(Ban("readonly", "true"),))

    with pytest.raises(InvalidSetting, match="PASSFS_FORBIDDEN_OPTIONS='readonly=true'"):
        contradictory.policy((6, 9))


def test_allowed_sources_must_lie_in_the_host_directory() -> None:
    with pytest.raises(InvalidSetting) as refusal:
        Settings.from_environment(
            {"PASSFS_HOST_DIR": "/srv", "PASSFS_ALLOWED_SOURCES": "/srv/a:/mnt"}
        )
    assert str(refusal.value) == (
        "PASSFS_ALLOWED_SOURCES='/mnt' is not accepted;"
        " expected directories in PASSFS_HOST_DIR='/srv'"
    )


def test_default_options_that_the_automatic_session_lacks_are_refused_at_the_start() -> None:
    settings = Settings.from_environment({"PASSFS_DEFAULT_OPTIONS": "no_open"})

    settings.policy((6, 9))
    with pytest.raises(
        InvalidSetting,
        match=r"^PASSFS_DEFAULT_OPTIONS='no_open=true' is not accepted: .* cannot be had with",
    ):
        settings.policy((6, 8))


@pytest.mark.parametrize("value", ["127.0.0.1:9464", "/run/m.sock", "/var/lib/passfs-m.sock"])
def test_a_managed_plugin_refuses_metrics_that_the_host_does_not_reach(value: str) -> None:
    given = Settings.from_environment({"PASSFS_METRICS": value})
    with pytest.raises(InvalidSetting) as refusal:
        given.check_managed()
    assert str(refusal.value) == (
        f"PASSFS_METRICS='{value}' is not accepted; expected a Unix socket in"
        " PASSFS_DATA_DIR='/var/lib/passfs', such as /var/lib/passfs/metrics.sock: a managed plugin"
        " has no network, and the host sees no other directory of the plugin"
    )


@pytest.mark.parametrize("value", ["", "/var/lib/passfs/metrics.sock"])
def test_a_managed_plugin_takes_a_socket_in_its_data_directory(value: str) -> None:
    Settings.from_environment({"PASSFS_METRICS": value}).check_managed()
