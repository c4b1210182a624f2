"""Engines with another root than the host's in containers: userns-remap and rootless."""

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from plugin.install import engine_facts
from plugin.install.installation import TREE, Installation
from plugin.install.plugin_settings import choose_settings
from plugin.install.source_tree import read_manifest
from tests.support.tools.driver import Driver, created, execute
from tests.support.tools.files import archive
from tests.support.tools.own_engine import (
    REMAPPED,
    ROOTLESS_USER,
    Kind,
    OwnEngine,
    own_engine,
    remapped,
    rootless,
)


@contextlib.contextmanager
def installed(kind: Kind, tree: Path, owner: int) -> Iterator[tuple[OwnEngine, Driver]]:
    """Install the plugin with the settings that `passfs install` chooses.

    *owner* owns the data directory. The image comes from another engine: this one has no network.
    """
    directory = Path(tempfile.mkdtemp(prefix="passfs-own-", dir="/var/tmp"))
    directory.chmod(0o711)
    (directory / "data").mkdir(mode=0o700)
    os.chown(directory / "data", owner, owner)
    with own_engine(kind) as engine:
        info = engine.client.api.info()
        engine_facts.check(
            info, owner, str(engine.directory / "fuse" if owner else engine_facts.FUSE)
        )
        settings = choose_settings(
            read_manifest(TREE), None, Installation(), engine_facts.suggested(info), {}
        )
        with created(engine.client, directory, tree, settings=settings) as driver:
            yield engine, driver
    shutil.rmtree(directory)


def test_containers_write_to_their_volumes_if_users_are_remapped(plugin_tree: Path) -> None:
    """The engine, which is still user 0, copies into volumes if their map has a range for 0."""
    with installed(remapped, plugin_tree, 0) as (_, driver):
        with driver.volume() as volume:
            driver.run(volume, "echo mine > /data/file; mkdir /data/directory")
            directory = driver.own_directory(volume)
            for path in (directory, directory / "file", directory / "directory"):
                assert (path.stat().st_uid, path.stat().st_gid) == REMAPPED
        uids, gids = (f"0:0:1,{number}:300000:65536" for number in REMAPPED)
        with driver.volume(map_uid=uids, map_gid=gids) as volume:
            assert (
                driver.run(volume, "cat /seed/file; id -u > /seed/mine", at="/seed") == "seeded\n"
            )
            mine = (driver.own_directory(volume) / "mine").stat()
            assert (mine.st_uid, mine.st_gid) == (300000, 300000)
            with driver.container(volume) as container:
                assert container.put_archive("/data", archive("copied", b"by docker cp"))
                assert execute(container, "cat /data/copied") == "by docker cp"
            assert driver.status(volume)["notes"] == []


def test_a_rootless_engine_serves_its_user(plugin_tree: Path) -> None:
    """Status shows the missing features: file handles and passthrough need host privileges."""
    with installed(rootless, plugin_tree, ROOTLESS_USER) as (engine, driver):
        source = engine.directory / "source"
        source.mkdir()
        os.chown(source, ROOTLESS_USER, ROOTLESS_USER)
        for options in ({}, {"source": str(source)}):
            with driver.volume(**options) as volume:
                driver.run(volume, "echo mine > /data/file; chown 7:7 /data/file; cat /data/file")
                with driver.container(volume):
                    status = driver.status(volume)
                assert status["options"]["inode_file_handles"] == "never"
                assert status["passthrough"].startswith("off: it takes CAP_SYS_ADMIN")
                at = source if options else driver.own_directory(volume)
                assert (at / "file").stat().st_uid == REMAPPED[0] + 6
                assert at.stat().st_uid == ROOTLESS_USER
