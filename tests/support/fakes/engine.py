"""A fake engine: it keeps plugins in memory and refuses the requests that Docker refuses."""

import io
import json
import os
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from docker.errors import APIError, ImageNotFound, NotFound
from requests import Response

from plugin.admin.settings import SETTINGS
from plugin.install import installer
from plugin.install.installation import TREE, Installation
from plugin.install.source_tree import CONTEXT

BASE = "debian:trixie-slim"


def api_error(status: int, explanation: str) -> APIError:
    response = Response()
    response.status_code = status
    return APIError("refused", response, explanation)


def root_file_system() -> bytes:
    """Return an exported image with the files that an extraction could change."""
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w") as tar:
        null = tarfile.TarInfo("dev/null")
        null.type, null.devmajor, null.devminor = tarfile.CHRTYPE, 1, 3
        tar.addfile(null)
        for name, mode, owner in (("bin/su", 0o4755, 0), ("srv/mine", 0o640, 1234)):
            member = tarfile.TarInfo(name)
            member.mode, member.uid, member.gid, member.size = mode, owner, owner, 3
            tar.addfile(member, io.BytesIO(b"abc"))
        link = tarfile.TarInfo("etc/mtab")
        link.type, link.linkname = tarfile.SYMTYPE, "/proc/mounts"
        tar.addfile(link)
        scratch = tarfile.TarInfo("tmp")
        scratch.type, scratch.mode = tarfile.DIRTYPE, 0o1777
        tar.addfile(scratch)
    return archive.getvalue()


class Plugins(dict[str, dict[str, Any]]):
    """The plugins by name; a call, as of the method of this name, lists them."""

    def __call__(self) -> list[dict[str, Any]]:
        return json.loads(json.dumps([*self.values()]))  # type: ignore[no-any-return]


class FakeEngine:
    """The methods of docker.APIClient that the installer uses; `calls` has their order."""

    def __init__(self) -> None:
        self.plugins = Plugins()
        self.calls: list[str] = []
        self.running: list[dict[str, Any]] = []
        self.local_images = {BASE: "sha256:" + 64 * "b"}
        self.info_answer = {
            "OSType": "linux",
            "DockerRootDir": "/var/lib/docker",
            "SecurityOptions": ["name=seccomp,profile=default"],
        }
        self.build_events: list[dict[str, Any]] = [{"stream": "Step 1/1 : FROM debian\n"}]
        self.image_id = "sha256:1"
        self.context: dict[str, tarfile.TarInfo] = {}
        self.exported: dict[str, os.stat_result] = {}
        self.left_containers: set[str] = set()
        self.broken: dict[str, str] = {}
        """Call, such as "enable passfs", that fails -> the engine's explanation."""
        self.broken_once: dict[str, str] = {}
        """The same, for calls that fail only once."""

    def _called(self, verb: str, name: str) -> None:
        self.calls.append(f"{verb} {name}")
        self._fails(f"{verb} {name}")

    def _fails(self, call: str) -> None:
        if call in self.broken:
            raise api_error(500, self.broken[call])
        if call in self.broken_once:
            raise api_error(500, self.broken_once.pop(call))

    def _plugin(self, name: str) -> dict[str, Any]:
        if name.removesuffix(":latest") not in self.plugins:
            raise NotFound("no such plugin")
        return self.plugins[name.removesuffix(":latest")]

    def build(self, *, fileobj: IO[bytes], **options: object) -> Iterator[dict[str, Any]]:
        assert options["custom_context"]
        with tarfile.open(fileobj=fileobj) as tar:
            self.context = {member.name: member for member in tar}
        yield from self.build_events
        yield {"aux": {"ID": self.image_id}}

    def info(self) -> dict[str, Any]:
        self._fails("info")
        return self.info_answer

    def images(self, name: str) -> list[dict[str, str]]:
        return [{"Id": self.local_images[name]}] if name in self.local_images else []

    def inspect_image(self, name: str) -> dict[str, Any]:
        if name != self.image_id:
            raise ImageNotFound(name)
        return {"Id": self.image_id, "Size": 100}

    def create_container(self, image: str, **_: object) -> dict[str, str]:
        assert image == self.image_id
        self.left_containers.add("c")
        return {"Id": "c"}

    def export(self, container: str, chunk_size: int) -> Iterator[bytes]:
        assert container in self.left_containers
        data = root_file_system()
        assert chunk_size > 0
        return (data[start : start + 1000] for start in range(0, len(data), 1000))

    def remove_container(self, container: str, **_: object) -> None:
        self.left_containers.remove(container)

    def containers(self) -> list[dict[str, Any]]:
        self._fails("containers")
        return self.running

    def version(self) -> dict[str, str]:
        self._fails("version")
        return {"Version": "29.1", "ApiVersion": "1.52"}

    def inspect_plugin(self, name: str) -> dict[str, Any]:
        self._fails("inspect")
        return json.loads(json.dumps(self._plugin(name)))  # type: ignore[no-any-return]

    def create_plugin(self, name: str, directory: str) -> None:
        self._called("create", name)
        if name in self.plugins:
            raise api_error(409, "exists")
        root = Path(directory) / "rootfs"
        self.exported = {str(path.relative_to(root)): path.lstat() for path in root.rglob("*")}
        config = json.loads((Path(directory) / "config.json").read_text())
        self.plugins[name] = {
            "Name": f"{name}:latest",
            "Enabled": False,
            "Config": {
                "Description": config["description"],
                "Env": [{"Name": e["name"], "Value": e["value"]} for e in config["env"]],
                "Mounts": [{"Name": m["name"], "Source": m["source"]} for m in config["mounts"]],
            },
            "Settings": {"Env": [f"{e['name']}={e['value']}" for e in config["env"]]},
        }

    def configure_plugin(self, name: str, options: dict[str, str]) -> None:
        self._called("configure", name)
        plugin = self._plugin(name)
        assert not plugin["Enabled"], "cannot set on an active plugin"
        mounts = {f"{mount['Name']}.source": mount for mount in plugin["Config"]["Mounts"]}
        environment = dict(entry.split("=", 1) for entry in plugin["Settings"]["Env"])
        for key, value in options.items():
            if key in mounts:
                mounts[key]["Source"] = value
            else:
                assert key in environment, f"setting {key} not found"
                environment[key] = value
        plugin["Settings"]["Env"] = [f"{key}={value}" for key, value in environment.items()]

    def enable_plugin(self, name: str, timeout: int) -> None:
        assert timeout == 0
        self._called("enable", name)
        self._plugin(name)["Enabled"] = True

    def disable_plugin(self, name: str, *, force: bool) -> None:
        self._called("disable", name.removesuffix(":latest"))
        if not force:
            raise api_error(409, "in use")
        self._plugin(name)["Enabled"] = False

    def remove_plugin(self, name: str, *, force: bool) -> None:
        assert force
        self._called("remove", name)
        assert not self._plugin(name)["Enabled"]
        del self.plugins[name]

    def settings(self, name: str = "passfs") -> dict[str, str]:
        """Return the settings that `docker plugin inspect` shows."""
        plugin = self.plugins[name]
        sources = {f"{m['Name']}.source": m["Source"] for m in plugin["Config"]["Mounts"]}
        return sources | dict(entry.split("=", 1) for entry in plugin["Settings"]["Env"])


class Transcript:
    """The lines and steps that the installer reported."""

    def __init__(self) -> None:
        self.steps: list[str] = []
        self.lines: list[str] = []
        self.amounts: list[tuple[int, int]] = []

    def step(self, title: str) -> None:
        self.steps.append(title)

    def line(self, text: str) -> None:
        self.lines.append(text)

    def amount(self, done: int, total: int) -> None:
        self.amounts.append((done, total))


class Install:
    """`passfs install` in the fake engine, with a data directory below *directory*."""

    def __init__(self, docker: FakeEngine, directory: Path) -> None:
        self._docker = docker
        self.data_dir = directory / "data"
        self.tree = small_tree(directory / "tree")
        self.transcript = Transcript()

    def __call__(self, **wanted: Any) -> Transcript:
        self.transcript = Transcript()
        self._docker.calls = []
        self._docker.context = {}
        given: dict[str, Any] = {"data_dir": str(self.data_dir), "tree": self.tree} | wanted
        fields = [field for field in SETTINGS if field in given]
        settings = {field: given.pop(field) for field in fields}
        settings = {field: text for field, text in settings.items() if text is not None}
        installation = Installation(settings=settings, **given)
        installer.install(self._docker, installation, self.transcript)
        return self.transcript

    def change_sources(self) -> None:
        """Change the sources, so that the next install is an upgrade."""
        with (self.tree / "plugin" / "module.py").open("a") as module:
            module.write("# newer\n")


def small_tree(directory: Path) -> Path:
    """Make a source tree with the real config.json and Dockerfile, and a module per package."""
    directory.mkdir()
    for name in CONTEXT:
        if (TREE / name).is_dir():
            (directory / name / "__pycache__").mkdir(parents=True)
            (directory / name / "module.py").write_text(f"# {name}\n")
            (directory / name / "__pycache__" / "module.pyc").write_text("compiled")
        else:
            (directory / name).parent.mkdir(exist_ok=True)
            (directory / name).write_text(f"{name}\n")
    for name in ("Dockerfile", "pyproject.toml"):
        (directory / name).write_bytes((TREE / name).read_bytes())
    manifest = json.loads((TREE / "config.json").read_text())
    (data,) = (mount for mount in manifest["mounts"] if mount["name"] == "data")
    data["source"] = str(directory.parent / "default")  # not that of the machine
    (directory / "config.json").write_text(json.dumps(manifest))
    return directory


def container(name: str, driver: str) -> dict[str, Any]:
    return {"Names": [f"/{name}"], "Mounts": [{"Type": "volume", "Driver": driver}]}
