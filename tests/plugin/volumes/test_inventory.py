"""inventory.py: a volume's own directory belongs to the host's user for the containers' root."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from plugin.admin.policy import Policy
from plugin.volumes.inventory import Inventory
from plugin.volumes.registry import Registry
from plugin.volumes.storage import Storage
from tests.support.fakes.dockerd import plugin
from tests.support.fakes.worker import command
from tests.support.tools.options import RELEASE
from tests.support.tools.records import record

SERVE = command("serve")
OWNER = (100000, 100001)
"""The containers' root of an engine with userns-remap."""


def owner_of(directory: Path, options: Mapping[str, str], owner: tuple[int, int]) -> object:
    """Return the user and the group of the directory of a new volume."""
    storage = Storage(directory, owner)
    storage.prepare()
    config = Policy(RELEASE).parse(options).effective
    volume = record("volume", **options)
    with Registry.open(directory) as registry:
        Inventory(registry, storage).add(volume, config)
    status = os.stat(storage.path(volume))
    return status.st_uid, status.st_gid


@pytest.mark.parametrize(
    ("options", "owner", "expected"),
    [
        ({}, (0, 0), (0, 0)),
        ({}, OWNER, OWNER),
        ({"uid": "5"}, OWNER, (5, OWNER[1])),
        ({"uid": "0", "gid": "0"}, OWNER, (0, 0)),
        ({"map_uid": "0:5000:10", "map_gid": "0:6000:10"}, (0, 0), (5000, 6000)),
        ({"map_uid": "0:5000:10,100000:200000:10"}, OWNER, (200000, OWNER[1])),
        # A map without id 0 gives the containers' root no user: only `uid` could name one.
        ({"map_uid": "1000:5000:10"}, (0, 0), (0, 0)),
        ({"squash": "root"}, (0, 0), (65534, 65534)),
        ({"squash": "all", "anon_uid": "7", "anon_gid": "8"}, OWNER, (7, 8)),
        ({"squash": "all", "anon_uid": "7", "uid": "9", "anon_gid": "8"}, (0, 0), (9, 8)),
    ],
    ids=str,
)
def test_a_new_directory_belongs_to_the_containers_root(
    tmp_path: Path, options: dict[str, str], owner: tuple[int, int], expected: object
) -> None:
    assert owner_of(tmp_path, options, owner) == expected


async def test_the_owner_setting_is_no_option_of_the_volume(tmp_path: Path) -> None:
    """Volumes with a source are accepted, and Status shows no uid or gid."""
    source = tmp_path / "source"
    source.mkdir()
    async with plugin(tmp_path, SERVE, PASSFS_OWNER="100000:100001") as dockerd:
        await dockerd.do("Create", Name="own")
        await dockerd.do("Create", Name="source", Opts={"source": str(source)})
        made = os.stat(tmp_path / "data" / "volumes" / "own")
        status = (await dockerd.volume("own"))["Status"]

    assert (made.st_uid, made.st_gid) == OWNER
    assert (status["options"]["uid"], status["options"]["gid"]) == ("none", "none")
    assert source.stat().st_uid == 0


@pytest.mark.parametrize(
    ("options", "lacking"),
    [
        ({}, []),
        ({"map_uid": "0:5000:10", "map_gid": "0:5000:10"}, []),
        ({"map_uid": "0:0:1,100000:200000:10"}, []),
        ({"map_uid": "1000:5000:10"}, ["map_uid"]),
        ({"map_uid": "1:5000:10", "map_gid": "1:5000:10"}, ["map_uid", "map_gid"]),
        ({"map_uid": "1000:5000:10", "squash": "root"}, []),
    ],
    ids=str,
)
async def test_a_map_without_id_0_has_a_note(
    tmp_path: Path, options: dict[str, Any], lacking: list[str]
) -> None:
    """The engine uses id 0: without it, `docker cp` and the copy of an image's content fail."""
    async with plugin(tmp_path, SERVE) as dockerd:
        await dockerd.do("Create", Name="vol", Opts=options)
        notes = (await dockerd.volume("vol"))["Status"]["notes"]

    assert [note.split(" ")[0] for note in notes] == lacking
    assert [note for note in notes if "docker cp" not in note] == []
