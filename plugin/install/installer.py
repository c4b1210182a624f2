"""`passfs install` and `passfs uninstall`: the steps, in an order that never loses volumes.

An install from a source tree upgrades a plugin by removing the old one and creating a new one. The
installer therefore builds and exports the new plugin first. If an older plugin is installed, the
installer then tries the new one under another name on a copy of the registry, and only then removes
the old one. No step deletes records or data of volumes: they lie in the data directory.
"""

import json
import os
import tempfile
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from plugin.install import engine, engine_facts, image, kept_files
from plugin.install.directories import check_unused, copy_registry, prepare_directories
from plugin.install.engine import Client
from plugin.install.installation import (
    Done,
    Installation,
    InstallationError,
    Installed,
    Progress,
    Uninstalled,
    check_name,
)
from plugin.install.plugin_settings import choose_settings, environment, mount_sources
from plugin.install.source_tree import digest, read_manifest

BUILD = "PASSFS_BUILD_ID"
"""The variable in the plugin's environment that identifies the build; not a setting."""
_TRIAL = "passfs-trial-"
"""The beginning of the name of a data directory in which a new plugin is tried."""


def install(client: Client, wanted: Installation, progress: Progress) -> Installed:
    """Build, create and enable the plugin; replace an older one and keep its settings.

    Raises:
        InstallationError: a step failed. Before its removal, the old plugin is unchanged.
    """
    check_name(wanted.name)
    manifest = read_manifest(wanted.tree)
    former = _installed(client, wanted.name)
    settings, file = _choose_settings(client, manifest, former, wanted)
    data_dirs = [settings["data.source"]]
    if former is not None:
        data_dirs.append(mount_sources(former)["data.source"])
    bundle = kept_files.choose_bundle(wanted.ca_bundle, data_dirs)
    tree_digest = digest(wanted.tree)
    if former is not None and _is_built_from(client, former, tree_digest, wanted.tree):
        kept_files.keep_bundle(settings["data.source"], bundle)
        done = _reconfigure(client, former, wanted, settings, progress)
        kept_files.remove(file)
        return Installed(plugin=wanted.name, done=done, settings=settings)
    _refuse_while_in_use(client, wanted)  # before the build, which takes minutes
    image.check_scratch_space()
    progress.step(f"Building the image {image.IMAGE}")
    image_id = image.build(
        client, wanted.tree, kept_files.existing_bundle(bundle, progress), progress
    )
    kept_files.keep_bundle(settings["data.source"], bundle)
    stamp = f"{tree_digest}:{image.base_ids(client, wanted.tree)}"
    with tempfile.TemporaryDirectory(prefix="passfs-plugin-", dir=image.SCRATCH) as scratch:
        directory = Path(scratch)
        progress.step("Exporting its root file system")
        image.export(client, image_id, directory / "rootfs", progress)
        manifest["env"].append({"name": BUILD, "description": "Id of the build", "value": stamp})
        (directory / "config.json").write_text(json.dumps(manifest), encoding="utf-8")
        if former is not None:
            progress.step("Trying the new plugin on a copy of the registry")
            _try_upgrade(client, wanted.name, directory, settings)
            _refuse_while_in_use(client, wanted)  # a container may have started meanwhile
        with kept_files.kept(file, settings):
            if former is not None:
                progress.step(f"Removing the old plugin {wanted.name} (volumes and data stay)")
                engine.remove(client, wanted.name)
            progress.step(f"Creating the plugin {wanted.name}")
            engine.create(client, wanted.name, directory, settings)
            _report(settings, progress)
            progress.step(f"Enabling {wanted.name}")
            engine.enable(client, wanted.name)
    done = Done.CREATED if former is None else Done.REPLACED
    return Installed(plugin=wanted.name, done=done, settings=settings)


def uninstall(client: Client, wanted: Installation, progress: Progress) -> Uninstalled:
    """Disable and remove the plugin; the data directory stays.

    Raises:
        InstallationError: there is no such plugin, or its volumes are in use, without force.
    """
    former = _installed(client, wanted.name)
    if former is None:
        raise InstallationError(
            f"there is no plugin {wanted.name}; `docker plugin ls` lists the installed plugins."
        )
    _refuse_while_in_use(client, wanted)
    progress.step(f"Removing the plugin {wanted.name}")
    engine.remove(client, wanted.name)
    with suppress(InstallationError):  # no source tree, and so nothing that it has kept
        manifest = read_manifest(wanted.tree)
        kept_files.remove(_settings_file(engine.info(client), manifest, wanted.name))
    data = mount_sources(former)["data.source"]
    progress.line(
        f"volumes and data stay in {data}: `passfs install --data-dir {data}` finds them again"
    )
    return Uninstalled(plugin=wanted.name, data_dir=data)


def _installed(client: Client, name: str) -> dict[str, Any] | None:
    """Return the description of the plugin *name*; refuse one of another program."""
    plugin = engine.inspect(client, name)
    if plugin is not None and "data.source" not in mount_sources(plugin):
        raise InstallationError(
            f"the plugin {name} is not passfs, and stays as it is; give another name with --name."
        )
    return plugin


def _choose_settings(
    client: Client,
    manifest: Mapping[str, Any],
    former: Mapping[str, Any] | None,
    wanted: Installation,
) -> tuple[dict[str, str], Path]:
    """Return the plugin's settings, and the file that keeps them while the plugin is replaced."""
    info = engine.info(client)
    engine_facts.check(info, os.geteuid())
    suggested = engine_facts.suggested(info)
    file = _settings_file(info, manifest, wanted.name)
    kept = kept_files.read(file)
    if former is not None and former["Enabled"]:  # since then, and perhaps configured anew
        kept = {}
    settings = choose_settings(manifest, former, wanted, suggested, kept)
    prepare_directories(settings)
    engine_facts.check_data_dir(info, os.geteuid(), settings["data.source"])
    check_unused(settings["data.source"], former)
    return settings, file


def _settings_file(info: Mapping[str, Any], manifest: Mapping[str, Any], name: str) -> Path:
    """Return the file that keeps the settings of the plugin *name* while it is replaced."""
    defaults = {f"{mount['name']}.source": mount["source"] for mount in manifest["mounts"]}
    directory = (defaults | engine_facts.suggested(info))["data.source"]
    return kept_files.settings_file(directory, name)


def build_stamp(plugin: Mapping[str, Any]) -> str:
    """Return what identifies the build of an inspected plugin; empty if no install made it."""
    # From Config: `docker plugin upgrade` replaces Config, but not the environment in Settings.
    entries = plugin["Config"]["Env"] or ()
    return next((str(entry["Value"]) for entry in entries if entry["Name"] == BUILD), "")


def _is_built_from(client: Client, plugin: Mapping[str, Any], tree_digest: str, tree: Path) -> bool:
    """Return whether a build of *tree*, which has *tree_digest*, would make *plugin*."""
    digest_of_plugin, _, bases = build_stamp(plugin).partition(":")
    # A base image that the engine no longer has is no reason to build.
    return digest_of_plugin == tree_digest and image.base_ids(client, tree) in {bases, ""}


def _refuse_while_in_use(client: Client, wanted: Installation) -> None:
    containers = engine.containers_with_volumes(client, wanted.name)
    if containers and not wanted.force:
        raise InstallationError(
            f"volumes of {wanted.name} are mounted in running containers, which would lose them: "
            f"{', '.join(containers)}. Stop these containers first, or use --force and restart "
            "them."
        )


def _reconfigure(
    client: Client,
    former: dict[str, Any],
    wanted: Installation,
    settings: Mapping[str, str],
    progress: Progress,
) -> Done:
    """Give *settings* to the installed plugin, which has the current build, and enable it."""
    present = mount_sources(former) | environment(former)
    if settings.items() <= present.items():
        if former["Enabled"]:
            progress.line("this plugin is installed and has these settings: nothing to do")
            return Done.NOTHING
        progress.step(f"Enabling {wanted.name}")
        engine.enable(client, wanted.name)
        return Done.ENABLED
    progress.step(f"Configuring {wanted.name}")
    _refuse_while_in_use(client, wanted)
    engine.disable(client, former)
    try:
        engine.configure(client, wanted.name, settings)
        _report(settings, progress)
        progress.step(f"Enabling {wanted.name}")
        engine.enable(client, wanted.name)
    except InstallationError as error:
        before = {key: value for key, value in present.items() if key in settings}
        _restore(client, former | {"Name": wanted.name}, before, error)
        raise InstallationError(f"{error} {wanted.name} has its former settings again.") from error
    return Done.CONFIGURED


def _restore(
    client: Client, former: Mapping[str, Any], settings: dict[str, str], failure: Exception
) -> None:
    """Give the plugin its former *settings* again, after *failure* of a change."""
    try:
        # Inspected again, because a plugin can be enabled although the request timed out.
        engine.disable(client, engine.inspect(client, former["Name"]) or former)
        engine.configure(client, former["Name"], settings)
        if former["Enabled"]:
            engine.enable(client, former["Name"])
    except InstallationError as error:
        raise InstallationError(
            f"{failure} The former settings do not work either: {error}"
        ) from error


def _try_upgrade(client: Client, name: str, directory: Path, settings: Mapping[str, str]) -> None:
    """Create, enable and remove the new plugin beside the old one, on a copy of the registry."""
    above, slash, last = name.rpartition("/")
    trial = f"{above}{slash}{last.partition(':')[0]}-trial"
    with tempfile.TemporaryDirectory(prefix=_TRIAL, dir=image.SCRATCH) as data:
        _clear_trial(client, trial)
        try:
            copy_registry(settings["data.source"], data)
            engine.create(client, trial, directory, {**settings, "data.source": data})
            engine.enable(client, trial)
        except InstallationError as error:
            raise InstallationError(
                f"the new plugin does not start, so {name} was left as it is: {error}"
            ) from error
        finally:
            if engine.inspect(client, trial) is not None:
                engine.remove(client, trial)


def _clear_trial(client: Client, trial: str) -> None:
    """Remove the plugin that an install has left which was killed; refuse to remove another one."""
    left = engine.inspect(client, trial)
    if left is None:
        return
    is_tried = mount_sources(left).get("data.source", "").startswith(f"{image.SCRATCH}/{_TRIAL}")
    is_unfinished = not left["Enabled"] and build_stamp(left)
    if not is_tried and not is_unfinished:
        raise InstallationError(
            f"the new plugin is tried under the name {trial}, and there is a plugin of that name;"
            " remove it first."
        )
    engine.remove(client, trial)


def _report(settings: Mapping[str, str], progress: Progress) -> None:
    for key, value in settings.items():
        progress.line(f"{key}={value}")
    if owner := settings.get("PASSFS_OWNER"):
        progress.line(
            f"new volumes without a source belong to {owner}, the root of this engine's containers"
        )
