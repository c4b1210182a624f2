"""network.py: the refusal of long caches on file systems that other machines change."""

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from passthrough.linux import mountinfo, syscalls
from passthrough.options.parsing import parse_options
from passthrough.options.table import OptionError
from plugin.admin import network
from tests.support.fakes.dockerd import plugin
from tests.support.fakes.worker import command
from tests.support.tools.options import RELEASE, resolved

NFS, EXT4 = 0x6969, 0xEF53
SERVE = command("serve")


@pytest.fixture
def source(tmp_path: Path) -> Path:
    directory = tmp_path / "source"
    (directory / "deep" / "er").mkdir(parents=True)
    return directory


@contextmanager
def fuse_mounted(target: Path, fstype: str) -> Iterator[None]:
    """Mount a FUSE file system of type *fstype*; its server never answers.

    The mount belongs to another user, so the kernel answers statfs(2) itself, with FUSE's f_type.
    """
    fd = os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC)
    try:
        data = f"fd={fd},rootmode=40000,user_id=65533,group_id=65533".encode()
        syscalls.mount(b"server:/share", os.fsencode(target), fstype.encode(), 0, data)
        try:
            yield
        finally:
            syscalls.umount2(os.fsencode(target), syscalls.MNT_DETACH)
    finally:
        os.close(fd)


def refusal(source: Path, **options: str) -> str:
    """Return the refusal of *source* with *options*; empty if it is accepted."""
    fd = os.open(source, os.O_PATH | os.O_DIRECTORY)
    try:
        network.check("/srv", resolved(parse_options(options, RELEASE)), fd, mountinfo.read())
    except OptionError as error:
        return str(error)
    finally:
        os.close(fd)
    return ""


def fake_statfs(monkeypatch: pytest.MonkeyPatch, filesystem_type: int) -> None:
    """Have statfs(2) return *filesystem_type*."""
    monkeypatch.setattr(syscalls, "filesystem_type", lambda _: filesystem_type)


@pytest.mark.parametrize(
    ("options", "wrong", "accepted"),
    [
        ({"cache": "always"}, "'cache': 'always'", "never or auto"),
        ({"cache": "metadata"}, "'cache': 'metadata'", "never or auto"),
        ({"cache": "always", "entry_timeout": "0"}, "'cache': 'always'", "never or auto"),
        ({"writeback": ""}, "'writeback': 'true'", "false"),
        ({"entry_timeout": "6"}, "'entry_timeout': '6s'", "at most 5s"),
        ({"attr_timeout": "1m"}, "'attr_timeout': '60s'", "at most 5s"),
        ({"dir_entry_timeout": "1d"}, "'dir_entry_timeout': '86400s'", "at most 5s"),
        ({"dir_attr_timeout": "5001ms"}, "'dir_attr_timeout': '5.001s'", "at most 5s"),
        ({"negative_timeout": "1h"}, "'negative_timeout': '3600s'", "at most 5s"),
    ],
)
def test_a_long_cache_is_refused_on_a_network_file_system(
    source: Path,
    monkeypatch: pytest.MonkeyPatch,
    options: dict[str, str],
    wrong: str,
    accepted: str,
) -> None:
    assert refusal(source, **options) == ""
    fake_statfs(monkeypatch, EXT4)
    assert refusal(source, **options) == ""
    fake_statfs(monkeypatch, NFS)
    assert refusal(source, **options) == (
        f"option {wrong} is wrong for '/srv', which lies on NFS: this machine"
        f" does not notice changes by others; expected {accepted}"
    )


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"cache": "never"},
        {"cache": "auto", "entry_timeout": "5s", "negative_timeout": "0"},
        {"cache": "never", "writeback": "true"},  # off on a network file system, with a note
        {"locks": "host", "passthrough": "auto"},
    ],
)
def test_a_short_cache_is_accepted_on_a_network_file_system(
    source: Path, monkeypatch: pytest.MonkeyPatch, options: dict[str, str]
) -> None:
    fake_statfs(monkeypatch, NFS)
    assert refusal(source, **options) == ""


@pytest.mark.parametrize(
    ("number", "name"),
    [
        (0xFF534D42, "SMB"),
        (0xFE534D42, "SMB"),
        (0x00C36400, "CephFS"),
        (0x01021997, "9P"),
        (0x0BD00BD0, "Lustre"),
        (0x7461636F, "OCFS2"),
    ],
)
def test_network_file_systems_are_found_by_statfs(
    source: Path, monkeypatch: pytest.MonkeyPatch, number: int, name: str
) -> None:
    fake_statfs(monkeypatch, number)
    assert f"'/srv', which lies on {name}:" in refusal(source, cache="always")


@pytest.mark.parametrize(
    ("fstype", "name"), [("fuse.glusterfs", "GlusterFS"), ("fuse.sshfs", "sshfs"), ("fuse", "")]
)
def test_a_fuse_file_system_is_found_by_its_subtype(source: Path, fstype: str, name: str) -> None:
    with fuse_mounted(source, fstype):
        assert (f"which lies on {name}:" in refusal(source, cache="always")) == bool(name)
        assert refusal(source, cache="auto") == ""
    assert refusal(source, cache="always") == ""


def test_a_network_file_system_below_another_mount_does_not_count(source: Path) -> None:
    with fuse_mounted(source, "fuse.sshfs"):
        syscalls.mount(b"none", os.fsencode(source), b"tmpfs", 0, b"")
        try:
            assert refusal(source, cache="always") == ""
        finally:
            syscalls.umount2(os.fsencode(source), syscalls.MNT_DETACH)


def test_a_network_file_system_mounted_in_the_source_counts_unless_hidden(source: Path) -> None:
    with fuse_mounted(source / "deep" / "er", "fuse.sshfs"):
        assert "wrong for '/srv/deep/er', where sshfs is mounted" in refusal(source, cache="always")
        assert refusal(source, cache="always", submounts="hide") == ""
        beside = source.with_name("source-of-others")
        beside.mkdir()
        assert refusal(beside, cache="always") == ""


async def test_a_source_with_a_dead_server_is_refused(
    tmp_path: Path, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def gone(_: int) -> int:
        raise OSError(errno.ENOTCONN, os.strerror(errno.ENOTCONN))

    async with plugin(tmp_path, SERVE) as dockerd:
        monkeypatch.setattr(syscalls, "filesystem_type", gone)
        opts = {"source": str(source), "cache": "always"}
        refused = await dockerd.call("Create", Name="vol", Opts=opts)
        assert refused.status == 400
        assert "cannot be checked: Transport endpoint is not connected" in refused.error


@pytest.mark.logs("volume vol: cannot be mounted: option 'cache'")
async def test_create_and_each_mount_check_the_file_system(tmp_path: Path, source: Path) -> None:
    options = {"source": str(source), "cache": "always"}
    reason = f"'always' is wrong for '{source}', which lies on GlusterFS"
    async with plugin(tmp_path, SERVE) as dockerd:
        await dockerd.do("Create", Name="vol", Opts=options)
        await dockerd.do("Mount", Name="vol", ID="a")
        await dockerd.do("Unmount", Name="vol", ID="a")
        with fuse_mounted(source, "fuse.glusterfs"):
            assert reason in (await dockerd.call("Mount", Name="vol", ID="b")).error
            assert reason in (await dockerd.volume("vol"))["Status"]["error"]
            assert reason in (await dockerd.call("Create", Name="vol2", Opts=options)).error
        assert await dockerd.names() == {"vol"}
        await dockerd.do("Mount", Name="vol", ID="b")
        await dockerd.do("Unmount", Name="vol", ID="b")
