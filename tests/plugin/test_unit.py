"""The systemd unit; that its capabilities suffice, tests/engine shows by serving with them."""

import subprocess
from pathlib import Path

from tests.support.driver import UNIT, unit


def test_systemd_understands_the_unit(tmp_path: Path) -> None:
    """systemd-analyze(1) names unknown sections, settings and values."""
    copy = tmp_path / UNIT.name
    copy.write_text(UNIT.read_text().replace(unit("ExecStart")[0], "/bin/true"))
    verified = subprocess.run(
        ["systemd-analyze", "verify", copy],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )

    ours = [line for line in verified.stderr.splitlines() if UNIT.name in line]
    assert ours == []
    assert verified.returncode == 0, verified.stderr


def test_a_restart_of_the_engine_does_not_stop_the_service() -> None:
    """It is up before the engine asks for its volumes, and does not go down with it."""
    assert "docker.service" in unit("Before")
    bound = [unit(name) for name in ("Requires", "BindsTo", "PartOf", "Requisite", "Upholds")]
    assert [words for words in bound if "docker.service" in words] == []


def test_the_service_mounts_in_the_hosts_own_namespace() -> None:
    """Each of these settings would give it a mount namespace of its own, systemd.exec(5)."""
    text = UNIT.read_text()
    hiding = ("PrivateTmp", "PrivateDevices", "ProtectHome", "ProtectKernel", "PrivateMounts")

    assert [name for name in hiding if f"\n{name}" in text] == []
