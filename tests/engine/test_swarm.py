"""A Swarm of two engines in networks of their own, which share a directory."""

import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from pathlib import Path

import pytest

from tests.support.tools.driver import OWN_NAME, TOOLS_IMAGE, created
from tests.support.tools.own_engine import OwnEngine, own_engine, within
from tests.support.tools.processes import wait_until

ADDRESSES = ("10.213.0.1", "10.213.0.2")
TASKS_S = 90
# Each node's task writes a file, and waits for that of the other node.
TASK = 'echo "$NODE" > /data/$NODE; until set -- /data/* && [ $# = 2 ]; do sleep 0.1; done'


@pytest.fixture
def nodes(plugin_tree: Path) -> Iterator[tuple[OwnEngine, OwnEngine]]:
    """Provide a manager and a worker node; their plugins have the same name and separate data."""
    scratch = Path(tempfile.mkdtemp(prefix="passfs-swarm-", dir="/var/tmp"))
    with ExitStack() as stack:
        manager, worker = (stack.enter_context(own_engine()) for _ in ADDRESSES)
        _connect(manager, worker)
        for number, node in enumerate((manager, worker)):
            directory = scratch / str(number)
            directory.mkdir()
            stack.enter_context(created(node.client, directory, plugin_tree))
        manager.docker("swarm", "init", "--advertise-addr", ADDRESSES[0])
        token = manager.docker("swarm", "join-token", "--quiet", "worker").strip()
        stack.callback(manager.docker, "swarm", "leave", "--force")
        stack.callback(worker.docker, "swarm", "leave", "--force")
        _join(worker, token)
        yield manager, worker
    shutil.rmtree(scratch)


def _join(worker: OwnEngine, token: str) -> None:
    """Join a node; the command gives up after 20 s, and the engine goes on."""
    join = ("swarm", "join", "--token", token, "--advertise-addr", ADDRESSES[1])
    with suppress(AssertionError):
        worker.docker(*join, f"{ADDRESSES[0]}:2377")
    wait_until(lambda: worker.client.info()["Swarm"]["LocalNodeState"] == "active")


def _connect(one: OwnEngine, other: OwnEngine) -> None:
    """Connect the networks of two engines by a veth pair, which ends with either network."""
    ends = [("wire", str(node.network)) for node in (one, other)]
    (name, here), (peer, there) = ends
    add = ["ip", "link", "add", name, "netns", here, "type", "veth"]
    subprocess.run([*add, "peer", "name", peer, "netns", there], check=True)
    for node, address in zip((one, other), ADDRESSES, strict=True):
        ip = [*within(node.network), "ip"]
        subprocess.run([*ip, "address", "add", f"{address}/24", "dev", "wire"], check=True)
        subprocess.run([*ip, "link", "set", "wire", "up"], check=True)


def test_tasks_on_all_nodes_share_a_directory(
    nodes: tuple[OwnEngine, OwnEngine], source: Path
) -> None:
    """Each node has a volume of its own; both have the same source, with the data."""
    manager, _ = nodes
    mount = {
        "type": "volume",
        "source": "shared",
        "target": "/data",
        "volume-driver": OWN_NAME,
        "volume-opt=source": str(source),
        "volume-opt=cache": "never",
    }
    manager.docker(
        *("service", "create", "--quiet", "--detach", "--name", "writers", "--mode", "global"),
        *("--no-resolve-image", "--restart-condition", "none", "--env", "NODE={{.Node.ID}}"),
        *("--mount", ",".join(f"{name}={value}" for name, value in mount.items())),
        *(TOOLS_IMAGE, "sh", "-euc", TASK),
    )
    try:
        _wait_for_tasks(manager)
    finally:
        manager.docker("service", "rm", "writers")
        for node in nodes:
            _remove_volume(node)

    members = {node.client.info()["Swarm"]["NodeID"] for node in nodes}
    assert len(members) == 2
    assert {path.name for path in source.iterdir()} == members


def _wait_for_tasks(manager: OwnEngine) -> None:
    deadline = time.monotonic() + TASKS_S
    form = ("--no-trunc", "--format", "{{.CurrentState}}: {{.Error}}")
    while True:
        tasks = manager.docker("service", "ps", *form, "writers").splitlines()
        if len(tasks) == 2 and all(task.startswith("Complete") for task in tasks):
            return
        assert time.monotonic() < deadline, tasks
        time.sleep(0.1)


def _remove_volume(node: OwnEngine) -> None:
    """Remove the node's volume after the swarm has removed the container."""
    deadline = time.monotonic() + TASKS_S
    while containers := node.client.api.containers(all=True):
        assert time.monotonic() < deadline, containers
        time.sleep(0.1)
    (volume,) = node.client.volumes.list(filters={"name": "shared"})
    assert volume.attrs["Driver"] == f"{OWN_NAME}:latest"
    node.client.api.remove_volume(volume.name)
