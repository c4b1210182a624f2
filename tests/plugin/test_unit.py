"""The systemd units. tests/engine shows that their capabilities suffice."""

import subprocess
from pathlib import Path

from plugin.admin.settings import SETTINGS
from plugin.api.listening import SOCKET_UMASK
from plugin.mounting.fd_store import KINDS
from tests.support.tools.driver import SOCKET, UNIT, unit


def test_systemd_accepts_the_units(tmp_path: Path) -> None:
    """systemd-analyze(1) names unknown sections, settings and values."""
    copies = [tmp_path / UNIT.name, tmp_path / SOCKET.name]
    copies[0].write_text(UNIT.read_text().replace(unit("ExecStart")[0], "/bin/true"))
    copies[1].write_text(SOCKET.read_text())
    verified = subprocess.run(
        ["systemd-analyze", "verify", *copies],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )

    ours = [line for line in verified.stderr.splitlines() if UNIT.stem in line]
    assert ours == []
    assert verified.returncode == 0, verified.stderr


def test_a_restart_of_the_engine_does_not_stop_the_service() -> None:
    """The service starts before the engine asks for volumes, and does not stop with it."""
    assert "docker.service" in unit("Before")
    bound = [unit(name) for name in ("Requires", "BindsTo", "PartOf", "Requisite", "Upholds")]
    assert [words for words in bound if "docker.service" in words] == []


def test_the_service_mounts_in_the_hosts_own_namespace() -> None:
    """Each of these settings would give it a mount namespace of its own: systemd.exec(5)."""
    text = UNIT.read_text()
    hiding = ("PrivateTmp", "PrivateDevices", "ProtectHome", "ProtectKernel", "PrivateMounts")

    assert [name for name in hiding if f"\n{name}" in text] == []


def test_a_restart_of_the_service_does_not_kill_its_workers() -> None:
    """The restarts never end, because a unit that fails for good loses its descriptors."""
    assert unit("Type") == ["notify"]
    assert unit("NotifyAccess") == ["main"]
    assert unit("KillMode") == ["process"]
    assert unit("Restart") == ["always"]
    assert unit("StartLimitIntervalSec") == ["0"]
    assert unit("OOMPolicy") == ["continue"]
    assert unit("RestartPreventExitStatus") == []


def test_systemd_keeps_the_descriptors_of_2000_volumes() -> None:
    (most,) = unit("FileDescriptorStoreMax")
    assert int(most) >= 2000 * len(KINDS)


def test_the_socket_unit_belongs_to_the_service() -> None:
    """The unit has one socket, at the plugin's default path and with the mode the plugin uses."""
    assert SOCKET.stem == UNIT.stem
    assert unit("ListenStream", SOCKET) == [SETTINGS["socket"].default]
    (mode,) = unit("SocketMode", SOCKET)
    assert int(mode, base=8) == 0o777 & ~SOCKET_UMASK == 0o660
    assert unit("Also") == [SOCKET.name]
