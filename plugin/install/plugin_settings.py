"""The settings of a managed plugin, as `docker plugin set` names them: the present and the new.

The module reads config.json and the engine's description of an installed plugin, but sends no
request to an engine.
"""

import os
from collections.abc import Mapping
from typing import Any

from passthrough.linux import kernel_features
from plugin.admin.settings import SETTINGS, Setting, Settings
from plugin.errors import InvalidSetting
from plugin.install.installation import Installation, InstallationError


def choose_settings(
    manifest: Mapping[str, Any],
    former: Mapping[str, Any] | None,
    wanted: Installation,
    suggested: Mapping[str, str],
    kept: Mapping[str, str],
) -> dict[str, str]:
    """Return the plugin's settings, as `docker plugin set` names them.

    Each setting comes from the first of these that has it: *wanted*; *kept* (of an install that was
    cut off), or *former* if nothing is kept; *suggested* (for this engine); the default.

    Raises:
        InstallationError: a directory is not absolute, or the plugin would refuse the settings.
    """
    settings = {f"{mount['name']}.source": mount["source"] for mount in manifest["mounts"]}
    settable = {entry["name"] for entry in manifest["env"] if entry.get("settable")}
    settable |= settings.keys()
    present = kept or _settings_of(former)
    settings |= {key: value for key, value in {**suggested, **present}.items() if key in settable}
    for field, text in wanted.settings.items():
        settings |= _as_engine_names(SETTINGS[field], text)
    try:
        read = Settings.from_environment(settings)
        read.check_managed()
        read.policy(kernel_features.linux_release())
    except InvalidSetting as error:
        raise InstallationError(str(error)) from error
    return settings


def mount_sources(plugin: Mapping[str, Any]) -> dict[str, str]:
    """Return the sources of an inspected plugin's mounts, as `docker plugin set` names them."""
    # From Config and not from Settings: `docker plugin set` writes the source of a mount to Config,
    # and after a restart of the engine only Config has it.
    return {
        f"{mount['Name']}.source": mount["Source"] for mount in plugin["Config"]["Mounts"] or ()
    }


def environment(plugin: Mapping[str, Any]) -> dict[str, str]:
    """Return the environment of an inspected plugin: set variables and defaults."""
    entries = (entry.partition("=") for entry in plugin["Settings"]["Env"] or ())
    return {name: value for name, _, value in entries}


def _as_engine_names(setting: Setting, text: str) -> dict[str, str]:
    """Return *text* for all that the flag of *setting* sets, as `docker plugin set` names it."""
    names = [] if setting.fixed else [setting.variable]
    if setting.flag and setting.flag.mount:
        names.append(f"{setting.flag.mount}.source")
        if not text.startswith("/"):
            raise InstallationError(
                f"{setting.flag.name} takes an absolute path on the engine's machine, not '{text}'."
            )
        text = os.path.normpath(text)
    return dict.fromkeys(names, text)


def _settings_of(plugin: Mapping[str, Any] | None) -> dict[str, str]:
    return {} if plugin is None else mount_sources(plugin) | _changed_environment(plugin)


def _changed_environment(plugin: Mapping[str, Any]) -> dict[str, str]:
    """Return the variables that were set; all others get the defaults of the new plugin."""
    defaults = {entry["Name"]: entry.get("Value") for entry in plugin["Config"]["Env"] or ()}
    now = environment(plugin)
    # An older passfs read an empty path as the default.
    emptied = {
        setting.variable
        for setting in SETTINGS.values()
        if not (setting.may_be_empty or now.get(setting.variable))
    }
    return {
        name: value
        for name, value in now.items()
        if value != defaults.get(name) and name not in emptied
    }
