"""Option submounts, by users of a mount that a worker in its sandbox serves."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from passthrough.linux import syscalls
from tests.support.tools.mounted import mounted
from tests.support.tools.mounts import MS_BIND

LIMIT_S = 60.0


@pytest.fixture
def source(tmp_path: Path) -> Iterator[Path]:
    """Mount a tmpfs, a directory of the source and a single file below the source."""
    source = tmp_path / "source"
    source.mkdir()
    for name in ("disk", "same", "plain"):
        (source / name).mkdir()
    (source / "plain/file").write_text("same")
    (source / "alone").touch()
    syscalls.mount(b"none", os.fsencode(source / "disk"), b"tmpfs", 0, b"")
    (source / "disk/file").write_text("disk")
    for what, where in (("plain", "same"), ("plain/file", "alone")):
        paths = os.fsencode(source / what), os.fsencode(source / where)
        syscalls.mount(*paths, b"", MS_BIND, b"")
    yield source
    for name in ("disk", "same", "alone"):
        syscalls.umount2(os.fsencode(source / name), syscalls.MNT_DETACH)


@pytest.mark.usefixtures("source")
@pytest.mark.parametrize("session", ["libfuse", "kernel"])
def test_users_of_a_mount_see_empty_directories(tmp_path: Path, session: str) -> None:
    with (
        mounted(tmp_path, {"submounts": "hide", "session": session}) as served,
        served.limited(LIMIT_S),
    ):
        assert sorted(walk(served.mountpoint)) == ["disk", "plain", "plain/file", "same"]
        with pytest.raises(OSError, match="Read-only"):
            (served.mountpoint / "disk/new").touch()
        assert "'alone' is left out of a listing: Invalid cross-device" in served.logged()


def walk(top: Path) -> list[str]:
    return [
        os.path.relpath(os.path.join(directory, name), top)
        for directory, names, files in os.walk(top)
        for name in (*names, *files)
    ]
