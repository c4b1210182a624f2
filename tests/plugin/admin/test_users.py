"""users.py: names of the host's users and groups, looked up in its own files."""

import os
from collections.abc import Mapping
from pathlib import Path

import pytest

from plugin.admin.users import HostUsers, named
from plugin.errors import InvalidOption

USERS = """root:x:0:0:root:/root:/bin/bash
alice:x:1000:1100:Alice:/home/alice:/bin/sh
_apt:x:42:65534::/nonexistent:/usr/sbin/nologin
broken
half:x
wrong:x:none:5::/:/bin/sh
"""
GROUPS = """root:x:0:
staff:x:50:alice
alice:x:1100:
"""


@pytest.fixture
def host(tmp_path: Path) -> HostUsers:
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc" / "passwd").write_text(USERS)
    (tmp_path / "etc" / "group").write_text(GROUPS)
    return HostUsers(tmp_path, Path("/"))


def refusal(host: HostUsers, given: Mapping[str, str]) -> str:
    with pytest.raises(InvalidOption) as refused:
        host.numbered(given)
    return str(refused.value)


@pytest.mark.parametrize(
    ("option", "text", "number"),
    [
        *(("uid", "alice", "1000"), ("gid", "alice", "1100"), ("gid", " staff ", "50")),
        *(("anon_uid", "_apt", "42"), ("Anon-GID", "staff", "50"), ("uid", "root", "0")),
        *(("owner", "alice", "1000:1100"), ("owner", "alice:staff", "1000:50")),
        *(("owner", "alice:7", "1000:7"), ("owner", "7:staff", "7:50"), ("owner", "7", "7")),
        *(("uid", "1000", "1000"), ("gid", "none", "none"), ("uid", "-1", "-1"), ("gid", "", "")),
    ],
)
def test_a_name_becomes_the_number_that_the_host_has(
    host: HostUsers, option: str, text: str, number: str
) -> None:
    given = {option: text, "cache": "never", "source": "/alice"}

    assert host.numbered(given) == {**given, option: number}


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"uid": "bob"}, "option 'uid': 'bob' is no user in the host's /etc/passwd"),
        ({"uid": "staff"}, "option 'uid': 'staff' is no user in the host's /etc/passwd"),
        ({"anon-gid": "bob"}, "option 'anon-gid': 'bob' is no group in the host's /etc/group"),
        ({"owner": "bob"}, "option 'owner': 'bob' is no user in the host's /etc/passwd"),
        ({"owner": "alice:bob"}, "option 'owner': 'bob' is no group in the host's /etc/group"),
        *(({"uid": name}, f"{name!r} is no user") for name in ("broken", "half", "wrong", "x")),
    ],
)
def test_a_name_that_the_host_lacks_is_refused(
    host: HostUsers, given: Mapping[str, str], message: str
) -> None:
    refused = refusal(host, given)

    assert message in refused
    assert refused.endswith("; expected a number, or a name that the host has")


def test_only_the_hosts_own_files_count(host: HostUsers) -> None:
    """Links are resolved in the host's tree; the plugin's own /etc/passwd has other users."""
    passwd = host.root / "etc" / "passwd"
    passwd.rename(host.root / "moved")
    assert "No such file" in refusal(host, {"uid": "root"})
    passwd.symlink_to("/moved")
    assert host.numbered({"uid": "alice"}) == {"uid": "1000"}
    passwd.unlink()
    passwd.symlink_to("/proc/self/root/etc/passwd")
    assert "cannot be read" in refusal(host, {"uid": "root"})
    passwd.unlink()
    os.mkfifo(passwd)
    assert "is no user" in refusal(host, {"uid": "root"})


def test_a_plugin_that_sees_a_part_of_the_host_knows_no_names(tmp_path: Path) -> None:
    host = HostUsers(tmp_path, Path("/srv"))

    assert "the plugin sees /srv alone" in refusal(host, {"uid": "root"})
    assert host.numbered({"uid": "5"}) == {"uid": "5"}


def test_only_options_for_ids_have_names() -> None:
    assert not named({"fsname": "alice", "uid": "5", "gid": "none", "map_uid": "0:a:1"})
    assert named({"UID": "alice", "gid": "5"}) == {"UID": "alice"}
