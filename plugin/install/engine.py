"""What we ask of the Docker Engine: to build, create, configure and enable the managed plugin.

The only module that imports docker-py. Without an image registry an upgrade is removal and
creation, so the order of the steps is the safety: the new plugin is built, exported and, where an
older one is installed, tried on a copy of the registry under a name of its own, before the old one
is touched. Records and data of volumes lie in the data directory, which no step here ever deletes.
"""

import json
import os
import tarfile
import tempfile
import textwrap
from collections import deque
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import docker
from docker.errors import APIError, DockerException, NotFound

from plugin.install import daemon
from plugin.install.installation import (
    Installation,
    InstallationError,
    Progress,
    base_images,
    check_name,
    check_space,
    check_unused,
    choose_settings,
    copy_registry,
    digest,
    environment,
    mount_sources,
    prepare_directories,
    read_manifest,
    write_context,
)
from plugin.install.kept_settings import (
    choose_bundle,
    existing,
    forget,
    kept,
    recall,
    remember_bundle,
    settings_file,
)

IMAGE = "passfs-rootfs:latest"
"""Tag of the image whose root file system becomes the plugin's."""

BUILD = "PASSFS_BUILD"
"""Name in the plugin's environment that says which build it is; not a setting."""

_TIMEOUT = 180  # seconds; the engine itself gives a plugin 120 for Create and Mount
_SCRATCH = "/var/tmp"  # noqa: S108  # for some 160 MB; /tmp may be a small tmpfs
# Bytes: the root file system twice, as an archive and unpacked; docker-py's archive of a plugin.
_SCRATCH_SPACE, _TMP_SPACE = 400_000_000, 200_000_000
_LINE = 90  # characters of a build step, whose commands may be long
_CHUNK = 1 << 20  # bytes read from the engine at once
_REASON_LINES = 15  # of a failed build's output, enough for pip's or apt's own error


def connect() -> docker.APIClient:
    """A client of the engine that DOCKER_HOST names, else of the local one; the caller closes it.

    Raises:
        InstallationError: no engine answers.
    """
    try:
        return docker.APIClient(**docker.utils.kwargs_from_env(), version="auto", timeout=_TIMEOUT)
    except DockerException as error:
        where = os.environ.get("DOCKER_HOST", "unix:///var/run/docker.sock")
        raise InstallationError(
            f"no Docker engine answers at {where} ({error}). Is it installed and running, "
            "and may you use it?"
        ) from error


def install(client: docker.APIClient, wanted: Installation, progress: Progress) -> None:
    """Build, create and enable the plugin; where it exists, replace it and keep its settings.

    Raises:
        InstallationError: a step failed. Until the old plugin is removed, that is as it was.
    """
    check_name(wanted.name)
    manifest = read_manifest(wanted.tree)
    former = _inspect(client, wanted.name)
    settings, memory = _prepared(client, manifest, former, wanted)
    data_dirs = [settings, mount_sources(former) if former is not None else settings]
    bundle = choose_bundle(wanted.ca_bundle, [place["data.source"] for place in data_dirs])
    sources = digest(wanted.tree)
    if former is not None and _is_built_from(client, former, sources, wanted.tree):
        remember_bundle(settings["data.source"], bundle)
        _reconfigure(client, former, wanted, settings, progress)
        forget(memory)
        return
    _refuse_while_in_use(client, wanted)  # before the build, which takes minutes
    check_space(_SCRATCH, _SCRATCH_SPACE)
    check_space(tempfile.gettempdir(), _TMP_SPACE)
    progress.step(f"Building the image {IMAGE}")
    image = build(client, wanted.tree, existing(bundle, progress.line), progress)
    remember_bundle(settings["data.source"], bundle)
    stamp = f"{sources}:{_bases(client, wanted.tree)}"
    with tempfile.TemporaryDirectory(prefix="passfs-plugin-", dir=_SCRATCH) as scratch:
        directory = Path(scratch)
        progress.step("Exporting its root file system")
        export(client, image, directory / "rootfs", progress)
        manifest["env"].append({"name": BUILD, "description": "What was built", "value": stamp})
        (directory / "config.json").write_text(json.dumps(manifest), encoding="utf-8")
        if former is not None:
            progress.step("Trying the new plugin on a copy of the registry")
            _rehearse(client, wanted.name, directory, settings)
            _refuse_while_in_use(client, wanted)  # a container may have started meanwhile
        with kept(memory, settings):
            if former is not None:
                progress.step(f"Removing the old plugin {wanted.name} (volumes and data stay)")
                _remove(client, wanted.name)
            progress.step(f"Creating the plugin {wanted.name}")
            _create(client, wanted.name, directory, settings)
            _tell(settings, progress)
            progress.step(f"Enabling {wanted.name}")
            _enable(client, wanted.name)


def uninstall(client: docker.APIClient, wanted: Installation, progress: Progress) -> None:
    """Disable and remove the plugin; the data directory stays.

    Raises:
        InstallationError: there is no such plugin, or its volumes are in use, without force.
    """
    former = _inspect(client, wanted.name)
    if former is None:
        raise InstallationError(
            f"there is no plugin {wanted.name}; `docker plugin ls` lists those that are installed."
        )
    _refuse_while_in_use(client, wanted)
    progress.step(f"Removing the plugin {wanted.name}")
    _remove(client, wanted.name)
    data = mount_sources(former).get("data.source")
    progress.line(
        f"volumes and data stay in {data}: `passfs install --data-dir {data}` finds them again"
    )


def build(client: docker.APIClient, tree: Path, ca_bundle: Path | None, progress: Progress) -> str:
    """Build IMAGE from *tree*, return its id; pip trusts *ca_bundle* (PEM) meanwhile, if given.

    Raises:
        InstallationError: with the end of the build's output.
    """
    last = deque[str](maxlen=_REASON_LINES)
    image = IMAGE
    with tempfile.TemporaryFile(dir=_SCRATCH) as context:
        write_context(context, tree, ca_bundle)
        try:
            for event in client.build(
                fileobj=context, custom_context=True, tag=IMAGE, rm=True, forcerm=True, decode=True
            ):
                if "error" in event:
                    raise InstallationError(_build_failure(client, tree, event["error"], last))
                # By id, because another installation may move the tag at any time.
                image = event.get("aux", {}).get("ID", image)
                text = event.get("stream", "").rstrip()
                last.extend(text.splitlines())
                if text.startswith("Step "):
                    progress.line(textwrap.shorten(text, _LINE, placeholder=" ..."))
        except (APIError, OSError) as error:
            raise InstallationError(_build_failure(client, tree, _reason(error), last)) from error
    return image


def export(client: docker.APIClient, image: str, directory: Path, progress: Progress) -> None:
    """Unpack the root file system of *image* into the new *directory*; as root, with its owners.

    Raises:
        InstallationError: the engine cannot export it.
    """
    done = 0
    with _engine("export the image"), tempfile.TemporaryFile(dir=_SCRATCH) as file:
        total = client.inspect_image(image)["Size"]
        with _container(client, image) as container:
            for chunk in client.export(container, chunk_size=_CHUNK):
                done += file.write(chunk)
                # The archive is a little longer than what the engine calls the image's size.
                progress.amount(done, max(done, total))
        file.seek(0)
        with tarfile.open(fileobj=file) as archive:
            # As is: the tree is what our own engine built, and the stricter filters drop setuid
            # and sticky bits. An attribute, because Debian 12's Python 3.11.2 does not know the
            # argument `filter`. Devices are left out: the engine makes a plugin's /dev, and the
            # user of a rootless engine could not make them.
            archive.extraction_filter = lambda member, _: None if member.isdev() else member
            archive.extractall(directory)  # noqa: S202


def _build_failure(client: docker.APIClient, tree: Path, reason: str, last: deque[str]) -> str:
    for base in base_images(tree):
        if not client.images(name=base):
            return (
                f"the base image {base} is not here and could not be pulled: {reason}. "
                "Where no registry can be reached, `make up` makes it with debootstrap."
            )
    return "\n".join(["the image could not be built:", *last, reason])


def _tell(settings: Mapping[str, str], progress: Progress) -> None:
    for key, value in settings.items():
        progress.line(f"{key}={value}")
    if owner := settings.get("PASSFS_OWNER"):
        progress.line(
            f"new volumes without a source belong to {owner}, the root of this engine's containers"
        )


def _prepared(
    client: docker.APIClient,
    manifest: Mapping[str, Any],
    former: Mapping[str, Any] | None,
    wanted: Installation,
) -> tuple[dict[str, str], Path]:
    """Return the plugin's settings, and the file to keep them in while it is replaced."""
    with _engine("say what it is"):
        info = client.info()
    daemon.check(info, os.geteuid())
    suggested = daemon.suggested(info)
    usual = {f"{mount['name']}.source": mount["source"] for mount in manifest["mounts"]} | suggested
    memory = settings_file(usual["data.source"], wanted.name)
    settings = choose_settings(manifest, former, wanted, suggested, recall(memory))
    prepare_directories(settings)
    daemon.check_data_dir(info, os.geteuid(), settings["data.source"])
    check_unused(settings["data.source"], former)
    return settings, memory


def _bases(client: docker.APIClient, tree: Path) -> str:
    """Return the ids of the base images that the engine has, for the stamp; a pull changes them."""
    found = [image["Id"] for name in base_images(tree) for image in client.images(name=name)]
    return ",".join(identity.removeprefix("sha256:")[:12] for identity in found)


def _is_built_from(
    client: docker.APIClient, plugin: Mapping[str, Any], sources: str, tree: Path
) -> bool:
    """Return whether a build of *tree*, whose digest is *sources*, would make *plugin*."""
    built_from, _, on = environment(plugin).get(BUILD, "").partition(":")
    # A base image that the engine no longer has is no reason to build.
    return built_from == sources and _bases(client, tree) in {on, ""}


def _inspect(client: docker.APIClient, name: str) -> dict[str, Any] | None:
    with _engine(f"say whether there is a plugin {name}"):
        try:
            plugin: dict[str, Any] = client.inspect_plugin(name)
        except NotFound:
            return None
    return plugin


def _refuse_while_in_use(client: docker.APIClient, wanted: Installation) -> None:
    name = wanted.name
    drivers = {name, name if ":" in name.rpartition("/")[2] else f"{name}:latest"}
    with _engine("list its containers"):
        running = client.containers()
    users = [
        container["Names"][0].lstrip("/")
        for container in running
        if any(mount.get("Driver") in drivers for mount in container["Mounts"])
    ]
    if users and not wanted.force:
        raise InstallationError(
            f"volumes of {name} are mounted in running containers, which would lose them: "
            f"{', '.join(sorted(users))}. Stop these first, or use --force and restart them after."
        )


def _reconfigure(
    client: docker.APIClient,
    former: dict[str, Any],
    wanted: Installation,
    settings: Mapping[str, str],
    progress: Progress,
) -> None:
    """Bring the installed plugin, which is the very one wanted, to *settings* and enable it."""
    present = mount_sources(former) | environment(former)
    if settings.items() <= present.items():
        if former["Enabled"]:
            progress.line("the installed plugin is this one and has these settings: nothing to do")
        else:
            progress.step(f"Enabling {wanted.name}")
            _enable(client, wanted.name)
        return
    progress.step(f"Configuring {wanted.name}")
    _refuse_while_in_use(client, wanted)
    _disable(client, former)
    try:
        _configure(client, wanted.name, settings)
        _tell(settings, progress)
        progress.step(f"Enabling {wanted.name}")
        _enable(client, wanted.name)
    except InstallationError as error:
        before = {key: value for key, value in present.items() if key in settings}
        _put_back(client, former | {"Name": wanted.name}, before, error)
        raise InstallationError(f"{error} {wanted.name} has its former settings again.") from error


def _put_back(
    client: docker.APIClient, former: Mapping[str, Any], settings: dict[str, str], failed: Exception
) -> None:
    """Give the plugin its former *settings* again, after a change of them has *failed*."""
    try:
        _disable(client, _inspect(client, former["Name"]) or former)  # enabling may time out
        _configure(client, former["Name"], settings)
        if former["Enabled"]:
            _enable(client, former["Name"])
    except InstallationError as error:
        raise InstallationError(f"{failed} Nor with its former settings: {error}") from error


def _rehearse(
    client: docker.APIClient, name: str, directory: Path, settings: Mapping[str, str]
) -> None:
    """Create, enable and remove the new plugin beside the old, on a copy of the registry."""
    trial = f"{name.partition(':')[0]}-trial"
    with tempfile.TemporaryDirectory(prefix="passfs-trial-", dir=_SCRATCH) as data:
        if _inspect(client, trial) is not None:  # left by a run that was killed
            _remove(client, trial)
        try:
            copy_registry(settings["data.source"], data)
            _create(client, trial, directory, {**settings, "data.source": data})
            _enable(client, trial)
        except InstallationError as error:
            raise InstallationError(
                f"the new plugin does not start, so {name} was left as it is: {error}"
            ) from error
        finally:
            if _inspect(client, trial) is not None:
                _remove(client, trial)


def _create(
    client: docker.APIClient, name: str, directory: Path, settings: Mapping[str, str]
) -> None:
    with _engine(f"create the plugin {name}"):
        client.create_plugin(name, str(directory))
    _configure(client, name, settings)


def _configure(client: docker.APIClient, name: str, settings: Mapping[str, str]) -> None:
    with _engine(f"configure the plugin {name}"):
        client.configure_plugin(name, dict(settings))


def _enable(client: docker.APIClient, name: str) -> None:
    with _engine(
        f"enable the plugin {name}",
        hint="What the plugin itself said is in the engine's log (journalctl -u docker).",
    ):
        client.enable_plugin(name, timeout=0)  # 0: the engine's own limits for each call


def _disable(client: docker.APIClient, plugin: Mapping[str, Any]) -> None:
    if plugin["Enabled"]:
        # By force, because the engine counts every volume that exists as a use, mounted or not.
        with _engine(f"disable the plugin {plugin['Name']}"):
            client.disable_plugin(plugin["Name"], force=True)


def _remove(client: docker.APIClient, name: str) -> None:
    with _engine(f"remove the plugin {name}"):
        _disable(client, client.inspect_plugin(name))
        client.remove_plugin(name, force=True)


@contextmanager
def _container(client: docker.APIClient, image: str) -> Iterator[str]:
    """Give a container of *image* that never runs; it is removed in the end."""
    with _engine("create a container to export"):
        container: str = client.create_container(image, network_disabled=True)["Id"]
    try:
        yield container
    finally:
        client.remove_container(container, force=True)


@contextmanager
def _engine(action: str, hint: str = "") -> Iterator[None]:
    """Turn docker-py's errors into a sentence: what was being done, what the engine answered."""
    try:
        yield
    except (DockerException, OSError) as error:  # OSError: what requests raises is one
        message = f"the engine could not {action}: {_reason(error)}"
        raise InstallationError(f"{message}. {hint}".rstrip()) from error


def _reason(error: Exception) -> str:
    explanation = error.explanation if isinstance(error, APIError) else None
    return str(explanation or error).rstrip(". \n")
