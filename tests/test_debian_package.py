"""The Debian package, on a clean installation of this machine's distribution: from apt to purge."""

import gzip
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from plugin.install import source_tree
from tests.support.tools.distribution import wheel
from tests.support.tools.generated import REPOSITORY
from tests.support.tools.machine import SOCKET, Machine, install

pytestmark = [pytest.mark.full, pytest.mark.slow, pytest.mark.timeout(900)]

VERSION = source_tree.version(REPOSITORY)
UNITS = ("passfs.socket", "passfs.service")
DATA = "/var/lib/passfs/volumes/vol"
PAGES = ("/usr/share/man/man1/passfs.1.gz", "/usr/share/man/man8/mount.fuse.passfs.8.gz")
COMPLETIONS = (
    "/usr/share/bash-completion/completions/passfs",
    "/usr/share/zsh/vendor-completions/_passfs",
    "/usr/share/fish/vendor_completions.d/passfs.fish",
)
SYSTEM_PYTHON = "/usr/bin/python3"
LIMIT_S = 800.0


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build the package; if it gets the same version of Python, from this checkout's core."""
    directory = tmp_path_factory.mktemp("package")
    environment = dict(os.environ)
    print_version = "import sys; print(*sys.version_info[:2])"
    command = [SYSTEM_PYTHON, "-c", print_version]
    if subprocess.check_output(command, text=True).split() == [*map(str, sys.version_info[:2])]:
        environment["PASSFS_WHEEL"] = str(wheel(directory / "wheel"))
    command = [str(REPOSITORY / "scripts" / "deb"), str(directory)]
    built = subprocess.run(
        command, env=environment, capture_output=True, text=True, timeout=LIMIT_S, check=False
    )
    assert built.returncode == 0, built.stdout + built.stderr
    (file,) = directory.glob("passfs_*.deb")
    return file


@pytest.fixture(scope="module")
def machine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machine]:
    root = tmp_path_factory.mktemp("machine") / "root"
    install(root)
    with Machine(root) as machine:
        yield machine
    shutil.rmtree(root)


def field(package: Path, name: str) -> str:
    return subprocess.check_output(["dpkg-deb", "-f", package, name], text=True).strip()


def newer(package: Path, directory: Path) -> Path:
    """Return a package with another program, whose version is higher."""
    tree = directory / "tree"
    subprocess.run(["dpkg-deb", "--raw-extract", package, tree], check=True)
    control = tree / "DEBIAN" / "control"
    control.write_text(re.sub("(?m)^Version: .*", r"\g<0>.1", control.read_text()))
    (module,) = tree.glob("usr/lib/passfs/lib/python3.*/site-packages/passthrough/__init__.py")
    module.write_text(f"{module.read_text()}# another program\n")
    file = directory / "newer.deb"
    subprocess.run(["dpkg-deb", "-Zgzip", "-z1", "--build", tree, file], check=True)
    return file


def test_the_package_has_the_version_of_the_project(package: Path) -> None:
    version, _, revision = field(package, "Version").partition("-")
    assert (version, revision[:2]) == (VERSION, "1+")
    assert package.name == f"passfs_{version}-{revision}_{field(package, 'Architecture')}.deb"


def test_the_script_installs_all_that_the_package_is_built_with() -> None:
    """A clean installation has not even build-essential, which each package takes for granted."""
    control = (REPOSITORY / "packaging" / "debian" / "control").read_text()
    script = (REPOSITORY / "scripts" / "deb").read_text()
    needed = re.search("(?m)^Build-Depends: (.*)$", control)
    installed = re.search("(?m)^install_packages (.*)$", script)
    assert needed is not None
    assert installed is not None
    assert "python3" not in script[: installed.start()]
    names = {re.sub(r"-compat \(.*\)", "", name) for name in needed[1].split(", ")}
    assert {"build-essential", *names} - {"gcc"} == set(installed[1].split())


def test_lintian_finds_nothing(package: Path) -> None:
    # The core of this checkout has the library path of the Python that has compiled it.
    but = "--suppress-tags=custom-library-search-path"
    command = ["lintian", "--allow-root", "--fail-on=error,warning", but, str(package)]
    found = subprocess.run(command, capture_output=True, text=True, timeout=LIMIT_S, check=False)
    assert found.stdout == ""
    assert found.returncode == 0


def test_the_package_has_the_dashboard_for_grafana(package: Path) -> None:
    files = subprocess.check_output(["dpkg-deb", "--contents", package], text=True).split()
    assert "./usr/share/doc/passfs/grafana/passfs.json" in files


def test_containers_notice_no_upgrade_and_data_outlives_a_purge(
    machine: Machine, package: Path, tmp_path: Path
) -> None:
    shutil.copy(package, machine.inside("/passfs.deb"))
    machine.run("apt-get", "update")
    docker = machine.inside("/usr/bin/docker")  # of an engine with the managed plugin
    docker.write_text("#!/bin/sh\necho true\n")
    docker.chmod(0o755)
    output = machine.run("apt-get", "install", "--yes", "--no-install-recommends", "/passfs.deb")
    assert "the managed plugin passfs is enabled, so the service was not started." in output
    assert machine.run("systemctl", "is-enabled", *UNITS, status=1).split() == ["disabled"] * 2
    assert not machine.inside(SOCKET).exists()
    docker.write_text("#!/bin/sh\necho false\n")
    machine.run("systemctl", "enable", "--now", "passfs.socket", "passfs")
    is_installed(machine)
    mounts_without_docker(machine)

    machine.call("VolumeDriver.Create", Name="vol")
    target = machine.call("VolumeDriver.Mount", Name="vol", ID="i")["Mountpoint"]
    with (machine.inside(target) / "file").open("wb", buffering=0) as file:
        file.write(b"before\n")
        shutil.copy(newer(package, tmp_path), machine.inside("/newer.deb"))
        output = machine.run("dpkg", "--install", "/newer.deb")
        assert "vol: taken over in " in output
        assert field(package, "Version") + ".1" in machine.run("dpkg-query", "--show", "passfs")
        file.write(b"after\n")
        output = machine.run("dpkg", "--remove", "passfs", status=1)
        assert "Stop their containers, then remove the package." in output
        file.write(b"in use\n")
        assert machine.run("systemctl", "is-active", *UNITS).split() == ["active", "active"]

    machine.call("VolumeDriver.Unmount", Name="vol", ID="i")
    machine.run("dpkg", "--remove", "passfs")
    assert not machine.inside(SOCKET).exists()
    assert not machine.inside("/usr/lib/passfs").exists()
    assert "/var/lib/passfs stays" in machine.run("dpkg", "--purge", "passfs")
    assert not machine.inside("/etc/default/passfs").exists()
    assert (machine.inside(DATA) / "file").read_bytes() == b"before\nafter\nin use\n"


def is_installed(machine: Machine) -> None:
    """Check what the package has installed: programs, units and the manual page."""
    assert machine.run("passfs", "--version") == f"passfs {VERSION}\n"
    assert machine.run("systemctl", "is-enabled", *UNITS).split() == ["enabled", "enabled"]
    assert machine.run("systemctl", "is-active", *UNITS).split() == ["active", "active"]
    assert machine.run("systemd-analyze", "verify", *UNITS) == ""
    for page in PAGES:
        text = gzip.decompress(machine.inside(page).read_bytes())
        assert text == (REPOSITORY / "packaging" / "passfs.1").read_bytes()
    for file in COMPLETIONS:
        assert "_PASSFS_COMPLETE=complete_" in machine.inside(file).read_text()
    document = machine.run("systemctl", "show", "--value", "--property=Documentation", UNITS[1])
    assert machine.inside(document.strip().removeprefix("file://")).is_file()


def mounts_without_docker(machine: Machine) -> None:
    """Mount a directory by mount(8), which finds its helper in /sbin."""
    machine.run("mount", "-t", "fuse.passfs", "/srv", "/mnt")
    machine.inside("/mnt/file").write_text("mounted\n")
    assert machine.run("findmnt", "--noheadings", "--output=FSTYPE", "/mnt") == "fuse.passfs\n"
    machine.run("umount", "/mnt")
    assert machine.inside("/srv/file").read_text() == "mounted\n"
    assert not machine.inside("/mnt/file").exists()
