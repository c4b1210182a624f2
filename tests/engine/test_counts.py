"""The engine's requests for each action of a user equal the fake engine's table."""

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from docker.models.containers import Container

from tests.support.tools.counted import Counted, EngineRequest, counted
from tests.support.tools.driver import TOOLS_IMAGE, Service
from tests.support.tools.engine_calls import CALLS
from tests.support.tools.files import archive
from tests.support.tools.own_engine import OwnEngine

NAME = "passfs-counted-test"


@pytest.fixture
def noted(engine: OwnEngine) -> Iterator[Counted]:
    """Provide `passfs serve` behind a proxy that records the engine's requests."""
    # The restart makes the engine forget ended services, each of which it would try for 15 s.
    engine.restart()
    directory = Path(tempfile.mkdtemp(prefix="passfs-counted-", dir="/var/tmp"))
    service = Service(directory / "p.sock", directory)
    service.start()
    try:
        with counted(Path(f"/run/docker/plugins/{NAME}.sock"), directory / "p.sock") as noted:
            yield noted
    finally:
        service.stop()
    shutil.rmtree(directory)


def test_the_fake_engine_sends_the_same_requests(engine: OwnEngine, noted: Counted) -> None:
    asked = dict(_actions(engine, noted))

    assert {
        action: tuple(request.verb for request in requests) for action, requests in asked.items()
    } == CALLS
    ids = {
        action: {request.fields["ID"] for request in requests if "ID" in request.fields}
        for action, requests in asked.items()
    }
    running = [ids.pop(action) for action in ("start", "copy in, running", "copy out, running")]
    assert running == [ids["stop"]] * 3
    others = [found for found in ids.values() if found]
    assert [len(found) for found in others] == [1] * 5
    assert len(set.union(*others)) == 5


def _actions(engine: OwnEngine, noted: Counted) -> Iterator[tuple[str, list[EngineRequest]]]:
    """Run each action of a user, and yield its name with the requests that it caused."""
    client = engine.client
    first = client.volumes.create("first", driver=NAME)
    yield "create the first volume", noted.take()
    client.volumes.create("vol", driver=NAME)
    yield "create", noted.take()
    client.volumes.create("vol", driver=NAME)
    yield "create again", noted.take()
    container = _created(engine, "vol", "/data")
    yield "create a container", noted.take()
    seeded = _created(engine, "first", "/seed")
    yield "create a container with content", noted.take()
    seeded.remove()
    yield "remove a container", noted.take()
    container.start()
    yield "start", noted.take()
    container.put_archive("/data", archive("file", b"in"))
    yield "copy in, running", noted.take()
    b"".join(container.get_archive("/data/file")[0])
    yield "copy out, running", noted.take()
    container.stop(timeout=0)
    container.wait()
    yield "stop", noted.take()
    container.put_archive("/data", archive("file", b"in"))
    yield "copy in, stopped", noted.take()
    b"".join(container.get_archive("/data/file")[0])
    yield "copy out, stopped", noted.take()
    container.remove()
    noted.take()
    client.containers.run(
        TOOLS_IMAGE, ["true"], volumes=["vol:/data"], network_mode="none", remove=True
    )
    yield "run", noted.take()
    client.api.inspect_volume("vol")
    yield "inspect", noted.take()
    client.volumes.list()
    yield "list", noted.take()
    first.remove()
    yield "remove", noted.take()
    engine.restart()
    yield "restart", noted.take()
    client.volumes.get("vol").remove()
    yield "remove after a restart", noted.take()


def _created(engine: OwnEngine, volume: str, at: str) -> Container:
    return engine.client.containers.create(
        TOOLS_IMAGE,
        ["sleep", "infinity"],
        volumes=[f"{volume}:{at}"],
        network_mode="none",
        init=True,
    )
