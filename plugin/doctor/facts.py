"""What several checks of `passfs doctor` need to know, asked once."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple, Self

import msgspec

from passthrough.linux import kernel_features
from passthrough.options.sessions import Release
from passthrough.session import probe
from plugin.children import Call, Failed, running
from plugin.commands.asking import CommandError, Plugin
from plugin.commands.views import ListedVolumes, status_of
from plugin.install import engine_facts, service
from plugin.install.installation import InstallationError
from plugin.install.plugin_settings import mount_sources
from plugin.protocol import HealthReply, VolumeInfo

ANSWER_S: Final = 5.0
"""The limit for each answer of the plugin, the engine, systemd and the kernel."""
_SYSTEMD: Final = Path("/run/systemd/system")
"""Exists if systemd runs, sd_booted(3)."""


class Machine(NamedTuple):
    """The machine, as this process sees it."""

    data_dir: str
    release: Release
    architecture: str
    user: int
    """Effective."""
    proc: Path = Path("/proc")
    sys: Path = Path("/sys")
    fuse: Path = Path(probe.DEVICE)

    @classmethod
    def own(cls, data_dir: str) -> Self:
        """Return this machine, with a plugin that has *data_dir*."""
        release = kernel_features.linux_release()
        return cls(os.path.abspath(data_dir), release, os.uname().machine, os.geteuid())


class InitFacts(msgspec.Struct, frozen=True, kw_only=True):
    """What the kernel offers in INIT."""

    major: int = 0
    minor: int = 0
    flags: int = 0
    error: str = ""
    """Why it is not known."""


class PluginFacts(msgspec.Struct, frozen=True, kw_only=True):
    """The plugin at the control socket."""

    pid: int = 0
    """On this host; 0 if it is not visible."""
    health: HealthReply | None = None
    """None if no plugin answers."""
    volumes: Sequence[VolumeInfo] = ()
    refusal: str = ""
    """Why no plugin answers."""
    absent: bool = False
    """True if no plugin listens."""


class EngineFacts(msgspec.Struct, frozen=True, kw_only=True):
    """The Docker engine, and the managed plugin with the data directory."""

    version: str = ""
    api: str = ""
    kind: str = ""
    """Rootless, or with userns-remap; else empty."""
    name: str = ""
    """The managed plugin; empty if there is none."""
    enabled: bool = False
    build: str = ""
    """What identifies its build; empty if no install made it."""
    error: str = ""
    """Why the engine does not answer."""


class ServiceFacts(msgspec.Struct, frozen=True, kw_only=True):
    """The service on the host."""

    unit: str = ""
    """The path of the unit; empty if there is none."""
    state: str = ""
    """As `systemctl is-active` prints it."""
    error: str = ""


class Facts(NamedTuple):
    """What the checks know."""

    machine: Machine
    init: InitFacts = InitFacts()
    plugin: PluginFacts = PluginFacts()
    engine: EngineFacts = EngineFacts()
    service: ServiceFacts = ServiceFacts()

    @property
    def is_root(self) -> bool:
        """Return whether the command runs as root."""
        return self.machine.user == 0

    @property
    def process(self) -> Path:
        """The directory of the plugin in /proc; that of this process if no plugin is visible."""
        return self.machine.proc / (str(self.plugin.pid) if self.plugin.pid else "self")

    @property
    def process_name(self) -> str:
        """Whose process it is."""
        return "the plugin" if self.plugin.pid else "this process"

    def statuses(self) -> dict[str, Mapping[str, Any]]:
        """Return the Status of each volume."""
        return {volume.name: status_of(volume) for volume in self.plugin.volumes}


def gathered(machine: Machine) -> Facts:
    """Ask the kernel, the plugin, the engine and systemd; none of them delays the others."""
    asked: Sequence[tuple[Any, Any]] = (
        (InitFacts, lambda: _init(machine)),
        (PluginFacts, lambda: _plugin(machine.data_dir)),
        (EngineFacts, lambda: _engine(machine.data_dir)),
        (ServiceFacts, _service),
    )
    found: list[Any] = []
    with running([Call(ask, kind, 2 * ANSWER_S) for kind, ask in asked]) as children:
        for (kind, _), child in zip(asked, children, strict=True):
            try:
                found.append(child.result())
            except Failed as failure:
                field = "refusal" if kind is PluginFacts else "error"
                found.append(kind(**{field: str(failure)}))
    return Facts(machine, *found)


def is_loaded(machine: Machine) -> bool:
    """Return whether the kernel has FUSE; to open its device would load the module."""
    return "fuse" in (machine.proc / "filesystems").read_text().split()


def _init(machine: Machine) -> InitFacts:
    if not is_loaded(machine):
        return InitFacts(error="the kernel has no FUSE yet")
    offer = probe.offered(str(machine.fuse))
    return InitFacts(major=offer.major, minor=offer.minor, flags=offer.flags)


def _plugin(data_dir: str) -> PluginFacts:
    plugin = Plugin(data_dir)
    try:
        health = plugin.ask("/health", HealthReply, limit_s=ANSWER_S)
        listed = plugin.ask("/volumes", ListedVolumes, limit_s=ANSWER_S)
    except CommandError as error:
        absent = FileNotFoundError | ConnectionRefusedError | NotADirectoryError
        return PluginFacts(refusal=str(error), absent=isinstance(error.__cause__, absent))
    return PluginFacts(pid=plugin.pid, health=health, volumes=listed.volumes)


def _engine(data_dir: str) -> EngineFacts:
    # Imported here, in a child process: docker-py takes longer to load than all checks.
    from plugin.install import engine  # noqa: PLC0415
    from plugin.install.installer import build_stamp  # noqa: PLC0415

    try:
        with engine.connect(limit_s=ANSWER_S) as client:
            version, info = engine.version(client), engine.info(client)
            plugin = next(
                (
                    each
                    for each in engine.plugins(client)
                    if mount_sources(each).get("data.source") == os.path.normpath(data_dir)
                ),
                None,
            )
    except InstallationError as error:
        return EngineFacts(error=str(error))
    rootless = "rootless" if engine_facts.is_rootless(info) else ""
    remapped = engine_facts.remapped_root(info)
    return EngineFacts(
        version=str(version["Version"]),
        api=str(version["ApiVersion"]),
        kind=rootless or (f"userns-remap to {remapped}" if remapped else ""),
        name="" if plugin is None else str(plugin["Name"]),
        enabled=plugin is not None and bool(plugin["Enabled"]),
        build="" if plugin is None else build_stamp(plugin),
    )


def _service() -> ServiceFacts:
    if not _SYSTEMD.is_dir():
        return ServiceFacts()
    try:
        unit = service.unit_path()
        if unit is None:
            return ServiceFacts()
        return ServiceFacts(unit=str(unit), state=service.active_state())
    except InstallationError as error:
        return ServiceFacts(error=str(error))
