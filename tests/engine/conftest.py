"""End to end: every test runs on the managed plugin and on `passfs serve`, in a real engine.

Without an engine the tests fail; `make test` starts one.
"""

import contextlib
import json
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import docker
import docker.errors
import pytest

from passthrough.linux import mountinfo
from passthrough.linux.mountinfo import FSTYPE
from plugin.cli.display import Display
from plugin.install import image
from plugin.install.installation import TREE
from plugin.install.source_tree import read_manifest
from tests.support.tools.driver import (
    BASE_IMAGE,
    CA_BUNDLE,
    HOST_NAME,
    OWN_HOST_NAME,
    TOOLS_IMAGE,
    Driver,
    created,
    host_socket,
    managed,
    on_host,
)
from tests.support.tools.namespaces import MACHINE, entered
from tests.support.tools.own_engine import OwnEngine, own_engine

HERE = Path(__file__).parent
# Seconds: the engine itself gives a plugin 120 for Create and Mount.
ENGINE_TIMEOUT_S = 180
WORKER_END_S = 10
INSTALLATIONS = {"managed": managed, "host": on_host}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    # These tests run last, because the drivers last as long as the session, and other tests count
    # this process's children.
    items.sort(key=lambda item: HERE in item.path.parents)
    for item in items:
        if HERE in item.path.parents:
            item.add_marker(pytest.mark.engine)
            # The first test of an installation waits for its image to be built.
            item.add_marker(pytest.mark.timeout(1200, func_only=False))


@pytest.fixture(autouse=True, scope="session")
def _on_the_machine(request: pytest.FixtureRequest) -> Iterator[None]:
    """Run these tests in the machine's mount namespace: the engine must see what they mount."""
    with entered(request.config.stash[MACHINE]):
        yield


@pytest.fixture(scope="session")
def client() -> Iterator[docker.DockerClient]:
    for name in (HOST_NAME, OWN_HOST_NAME):
        # The socket may be left from a run that was killed. The engine would try it for 15 s at
        # each list of volumes, and after each refused Create.
        host_socket(name).unlink(missing_ok=True)
    try:
        client = docker.from_env(timeout=ENGINE_TIMEOUT_S)
        client.ping()
    except docker.errors.DockerException as error:
        pytest.fail(f"no Docker engine answers: {error}; `make test` starts one")
    yield client
    client.close()


@pytest.fixture(scope="session")
def tools(client: docker.DockerClient) -> str:
    try:
        client.images.get(BASE_IMAGE)
    except docker.errors.ImageNotFound:
        pytest.fail(f"there is no image {BASE_IMAGE}; `make test` makes it")
    client.images.build(path=str(HERE), tag=TOOLS_IMAGE, rm=True, forcerm=True)
    return TOOLS_IMAGE


@pytest.fixture(scope="session", params=list(INSTALLATIONS))
def driver(
    request: pytest.FixtureRequest, client: docker.DockerClient, tools: str
) -> Iterator[Driver]:
    assert tools
    # pytest clears its own temporary directories, which must not happen below a mount.
    directory = Path(tempfile.mkdtemp(prefix="passfs-test-", dir="/var/tmp"))
    with INSTALLATIONS[request.param](client, directory) as driver:
        yield driver
        left = [volume.name for volume in client.volumes.list(filters={"driver": driver.name})]
        assert left == []
    shutil.rmtree(directory)


@pytest.fixture(scope="session")
def plugin_tree(client: docker.DockerClient) -> Iterator[Path]:
    """Provide the input of `docker plugin create`: the plugin's config.json and root file system.

    Its programs are bind-mounted, because an engine takes 10 s and more to pack them each time. The
    driver that `passfs install` makes has them packed, as for a user.
    """
    with tempfile.TemporaryDirectory(prefix="passfs-tree-", dir="/var/tmp") as scratch:
        Path(scratch).chmod(0o711)  # for a rootless engine
        tree, programs = Path(scratch, "tree"), Path(scratch, "programs")
        programs.mkdir()
        bundle = CA_BUNDLE if CA_BUNDLE.exists() else None
        image_id = image.build(client.api, TREE, bundle, Display())
        image.export(client.api, image_id, tree / "rootfs", Display())
        manifest = read_manifest(TREE)
        for name in ("usr", "opt"):
            (tree / "rootfs" / name).rename(programs / name)
            (tree / "rootfs" / name).mkdir()
            bound = {"source": str(programs / name), "destination": f"/{name}"}
            manifest["mounts"].append({**bound, "type": "bind", "options": ["rbind", "ro"]})
        (tree / "config.json").write_text(json.dumps(manifest))
        yield tree


@pytest.fixture(scope="session")
def engine() -> Iterator[OwnEngine]:
    """Provide an engine that tests may stop, start and change."""
    with own_engine() as engine:
        yield engine


@pytest.fixture(scope="session")
def own_managed(engine: OwnEngine, plugin_tree: Path) -> Iterator[Driver]:
    """Provide the managed plugin in that engine."""
    directory = Path(tempfile.mkdtemp(prefix="passfs-own-", dir="/var/tmp"))
    with created(engine.client, directory, plugin_tree) as driver:
        yield driver
    shutil.rmtree(directory)


@pytest.fixture(autouse=True)
def nothing_left_behind(client: docker.DockerClient) -> Iterator[None]:
    """Check that no container, mount or process with /dev/fuse outlives a test.

    This replaces the check of this process's descriptors: docker-py keeps its connections open.
    """
    before = _of_the_driver(client)
    yield
    # A worker ends by itself, shortly after the unmount.
    deadline = time.monotonic() + WORKER_END_S
    while (left := _of_the_driver(client) - before) and time.monotonic() < deadline:
        time.sleep(0.05)

    assert left == set()


def _of_the_driver(client: docker.DockerClient) -> set[str]:
    containers = {f"container {container.id}" for container in client.containers.list(all=True)}
    places = (os.fsencode(client.info()["DockerRootDir"]), b"/var/tmp/passfs-")
    mounts = {
        f"mount {mount.target!r}"
        for mount in mountinfo.read()
        if mount.fstype == FSTYPE and mount.target.startswith(places)
    }
    return containers | mounts | {f"process {pid} with /dev/fuse" for pid in _fuse_holders()}


def _fuse_holders() -> Iterator[str]:
    """Yield processes of the tests with /dev/fuse open, also in containers and managed plugins."""
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):  # the process may have ended
            links = [os.readlink(link) for link in (process / "fd").iterdir()]
            if "/dev/fuse" in links and _is_of_the_tests(process.name):
                yield process.name


def _is_of_the_tests(pid: str) -> bool:
    """Return whether this process or the engine has started *pid*; others may use FUSE too."""
    while pid != "0":
        stat = Path(f"/proc/{pid}/stat").read_text(errors="replace")
        name, _, fields = stat.partition("(")[2].rpartition(")")
        if pid == str(os.getpid()) or name.startswith("containerd-shim"):
            return True
        pid = fields.split()[1]
    return False


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """Provide a directory of the host's user for a volume; all users may enter it."""
    for directory in (tmp_path, *tmp_path.parents):
        if directory.stat().st_mode & 0o005 != 0o005:
            directory.chmod(directory.stat().st_mode | 0o011)
    source = tmp_path / "source"
    source.mkdir(mode=0o755)
    return source


# pytest-docker: a compose project with the driver under test.


@pytest.fixture(scope="session")
def docker_compose_command(driver: Driver) -> str:
    command = os.environ.get("PASSFS_TEST_COMPOSE", "docker compose")
    return f"PASSFS_DRIVER={driver.name} {command}"


@pytest.fixture(scope="session")
def docker_compose_file() -> str:
    return str(HERE / "compose.yaml")


@pytest.fixture(scope="session")
def docker_compose_project_name(driver: Driver) -> str:
    return driver.name.removesuffix(":latest")
