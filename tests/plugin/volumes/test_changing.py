"""changing.py: the checks of a change of options, and the record of it."""

import json
import sqlite3
from contextlib import closing
from functools import partial
from pathlib import Path

import pytest
import trio

from plugin.protocol import CONTROL_SOCKET
from plugin.volumes.registry import Registry
from tests.plugin.admin.test_network import fuse_mounted
from tests.support.fakes.dockerd import Answer, Dockerd, plugin
from tests.support.fakes.worker import command
from tests.support.tools.records import record

SERVE = command("serve")


async def patch(directory: Path, body: bytes) -> Answer:
    async with Dockerd(directory / "data" / CONTROL_SOCKET).connection() as connection:
        return await connection.request("/volumes/vol", body, "PATCH")


async def change(directory: Path, **options: str | None) -> Answer:
    return await patch(directory, json.dumps({"Options": options}).encode())


def given(directory: Path) -> dict[str, str]:
    """Return the options in the registry of a plugin that has ended."""
    with Registry.open(directory / "data") as registry:
        (found,) = registry.records
    return dict(found.options)


async def test_the_registry_has_the_options_as_they_are_written(tmp_path: Path) -> None:
    async with plugin(tmp_path, SERVE) as dockerd:
        await dockerd.do("Create", Name="vol", Opts={"ro": "", "CACHE": "never", "xattr": "no"})
        changes = {"readonly": "false", "cache": None, "attr-timeout": "2"}
        answer = await change(tmp_path, **changes)
        assert [each["Option"] for each in answer.json["Changes"]][:2] == ["cache", "entry_timeout"]
        status = (await dockerd.volume("vol"))["Status"]
        assert (status["options"]["cache"], status["options"]["attr_timeout"]) == ("auto", "2s")
    assert given(tmp_path) == {"xattr": "no", "readonly": "false", "attr-timeout": "2"}
    async with plugin(tmp_path, SERVE) as dockerd:
        assert (await dockerd.volume("vol"))["Status"]["options"] == status["options"]


async def test_the_administrator_decides_as_for_a_new_volume(tmp_path: Path) -> None:
    settings = {"PASSFS_DEFAULT_OPTIONS": "attr_timeout=7", "PASSFS_FORBIDDEN_OPTIONS": "suid"}
    async with plugin(tmp_path, SERVE, **settings) as dockerd:
        await dockerd.do("Create", Name="vol", Opts={"attr_timeout": "2"})
        refused = await change(tmp_path, suid="true", readonly="true")
        assert "'true' is forbidden by the administrator" in refused.error
        back = (await change(tmp_path, attr_timeout=None)).json["Changes"]
        assert [(each["Before"], each["After"]) for each in back] == [("2s", "7s")] * 2
    assert given(tmp_path) == {}


async def test_long_timeouts_are_refused_on_a_network_file_system(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    async with plugin(tmp_path, SERVE) as dockerd:
        options = {"source": str(source), "cache": "auto", "attr_timeout": "1m"}
        await dockerd.do("Create", Name="vol", Opts=options)
        with fuse_mounted(source, "fuse.sshfs"):
            for timeout in ("6s", "1h"):
                refused = await change(tmp_path, attr_timeout=timeout)
                assert "is wrong for" in refused.error
                assert "sshfs" in refused.error
            assert (await change(tmp_path, attr_timeout="5s")).status == 200
        await dockerd.do("Remove", Name="vol")


@pytest.mark.parametrize("body", [b"", b"[]", b"{}", b'{"Options": {"cache": 1}}', b'{"Options"'])
async def test_a_body_that_is_no_change_is_refused(tmp_path: Path, body: bytes) -> None:
    async with plugin(tmp_path, SERVE) as dockerd:
        await dockerd.do("Create", Name="vol")
        assert (await patch(tmp_path, body)).status == 400


async def test_nothing_changes_if_the_registry_cannot_be_written(tmp_path: Path) -> None:
    async with plugin(tmp_path, SERVE) as dockerd:
        await dockerd.do("Create", Name="vol")
        await dockerd.do("Mount", Name="vol", ID="i")
        before = await dockerd.volume("vol")
        with closing(sqlite3.connect(tmp_path / "data" / "passfs.db")) as other:
            refuse = "BEFORE UPDATE ON volumes BEGIN SELECT RAISE(ABORT, 'no room'); END"
            other.execute(f"CREATE TRIGGER refuse {refuse}")
            refused = await change(tmp_path, attr_timeout="1h")
            assert "cannot write the registry" in refused.error
            assert await dockerd.volume("vol") == before
            other.execute("DROP TRIGGER refuse")
        assert (await change(tmp_path, attr_timeout="1h")).status == 200
        await dockerd.do("Unmount", Name="vol", ID="i")


async def test_options_that_are_not_accepted_any_more_can_be_mended(tmp_path: Path) -> None:
    """They are of another version of passfs."""
    (tmp_path / "data" / "volumes" / "vol").mkdir(parents=True)
    with Registry.open(tmp_path / "data") as registry:
        registry.add(record("vol", forgotten="1", cache="never"))
    async with plugin(tmp_path, SERVE) as dockerd:
        assert "forgotten" in (await dockerd.volume("vol"))["Status"]["error"]
        assert "'forgotten': is not known" in (await change(tmp_path, readonly="true")).error
        mended = (await change(tmp_path, forgotten=None, readonly="true")).json["Changes"]
        found = {each["Option"]: (each["Before"], each["After"]) for each in mended}
        assert found == {
            "cache": ("", "never"),
            "readonly": ("", "true"),
            "locks": ("", "local"),
        }
        assert "error" not in (await dockerd.volume("vol"))["Status"]


async def test_changes_at_once_are_made_one_after_the_other(tmp_path: Path) -> None:
    async with plugin(tmp_path, SERVE) as dockerd:
        await dockerd.do("Create", Name="vol")
        async with trio.open_nursery() as nursery:
            for number in range(10):
                nursery.start_soon(partial(change, tmp_path, fsname=f"name-{number}"))
            nursery.start_soon(partial(change, tmp_path, readonly="true"))
        options = (await dockerd.volume("vol"))["Status"]["options"]
        assert options["readonly"] == "true"
    assert given(tmp_path).keys() == {"fsname", "readonly"}


async def test_the_timeouts_of_a_mount_with_unknown_options_stay(tmp_path: Path) -> None:
    """An older program has written its report."""
    async with plugin(tmp_path, SERVE) as dockerd:
        await dockerd.do("Create", Name="vol")
        await dockerd.do("Mount", Name="vol", ID="i")
        answer = (await change(tmp_path, attr_timeout="1h")).json
        assert {each["When"] for each in answer["Changes"]} == {"next mount"}
        assert "an older program serves the mount" in answer["Notes"][-1]
        await dockerd.do("Unmount", Name="vol", ID="i")
