"""Idmapped mounts of a volume: owners of files, and decisions that need the caller's id."""

import contextlib
import os
import stat
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pytest

from tests.support.tools.callers import ROOT, Caller, attempt
from tests.support.tools.idmapped import idmapped
from tests.support.tools.mounted import Mounted, mounted
from tests.support.tools.rings import switched_for

LIMIT_S = 30.0
# The files of user 5 on the host are those of user 100005 behind the map.
INSIDE, OUTSIDE, COUNT = 0, 100_000, 1000
MAPPED = Caller("mapped", OUTSIDE + 5, OUTSIDE + 6)
MAPPED_ROOT = Caller("mapped root", OUTSIDE, OUTSIDE)
UNMAPPED = Caller("unmapped", 5, 6)
SUID = stat.S_ISUID | 0o777
ALLOWED = "allowed"
SERVED = {
    "passthrough": {},
    "worker": {"passthrough": "off"},
    "rings": {"transport": "io_uring"},
}


@contextlib.contextmanager
def volume(base: Path, **options: str) -> Iterator[tuple[Mounted, Path]]:
    """Serve a volume that all may write to; yield it, and the place of its idmapped mount."""
    with (
        mounted(base, {"session": "kernel", "idmap": "true", **options}) as served,
        served.limited(LIMIT_S),
    ):
        served.source.chmod(0o777)
        behind = base / "idmapped"
        with idmapped(served.mountpoint, behind, INSIDE, OUTSIDE, COUNT):
            yield served, behind


def owner(path: Path) -> tuple[int, int]:
    found = path.lstat()
    return found.st_uid, found.st_gid


@pytest.mark.parametrize("options", SERVED.values(), ids=SERVED)
def test_new_files_belong_to_the_caller_by_the_map_of_the_mount(
    base: Path, options: Mapping[str, str]
) -> None:
    with switched_for(options), volume(base, **options) as (served, behind):

        def create() -> None:
            (behind / "file").write_text("content")
            (behind / "dir").mkdir()
            (behind / "symlink").symlink_to("file")
            os.mkfifo(behind / "fifo")
            os.link(behind / "file", behind / "link")
            os.rename(behind / "link", behind / "renamed")

        MAPPED.run(create)

        for name in ("file", "dir", "symlink", "fifo", "renamed"):
            assert owner(served.source / name) == (5, 6)
            assert owner(served.mountpoint / name) == (5, 6)
            assert owner(behind / name) == (OUTSIDE + 5, OUTSIDE + 6)
        assert MAPPED.run((behind / "file").read_text) == "content"


def test_a_caller_that_the_map_lacks_creates_nothing_behind_it(base: Path) -> None:
    with volume(base) as (served, behind):
        calls: dict[str, Callable[[], object]] = {
            "file": (behind / "file").touch,
            "dir": (behind / "dir").mkdir,
            "symlink": lambda: (behind / "symlink").symlink_to("x"),
            "fifo": lambda: os.mkfifo(behind / "fifo"),
        }
        for caller in (UNMAPPED, ROOT):
            assert {attempt(caller, call) for call in calls.values()} == {"EOVERFLOW"}
        assert list(served.source.iterdir()) == []

        UNMAPPED.run((served.mountpoint / "beside").touch)
        assert owner(served.source / "beside") == (5, 6)


def test_owners_are_changed_by_the_map(base: Path) -> None:
    with volume(base) as (served, behind):
        (served.source / "file").touch()

        ROOT.run(lambda: os.chown(behind / "file", OUTSIDE + 7, OUTSIDE + 8))
        assert owner(served.source / "file") == (7, 8)
        assert attempt(ROOT, lambda: os.chown(behind / "file", 7, 8)) == "EOVERFLOW"
        assert attempt(MAPPED, lambda: (behind / "file").chmod(0o600)) == "EPERM"
        assert attempt(MAPPED_ROOT, lambda: (behind / "file").chmod(0o600)) == "EPERM"


def test_the_kernel_checks_permissions_behind_the_map(base: Path) -> None:
    with volume(base) as (served, behind):
        (served.source / "file").write_text("secret")
        (served.source / "file").chmod(0o600)
        os.chown(served.source / "file", 5, 6)

        assert MAPPED.run((behind / "file").read_text) == "secret"
        assert attempt(UNMAPPED, (behind / "file").read_text) == "EACCES"
        assert UNMAPPED.run((served.mountpoint / "file").read_text) == "secret"


@pytest.mark.parametrize("killpriv", ["true", "false"])
@pytest.mark.parametrize("passthrough", ["auto", "off"])
def test_no_caller_keeps_bits_of_a_program_that_it_would_lose_on_a_bare_directory(
    base: Path, killpriv: str, passthrough: str
) -> None:
    changes: dict[str, Callable[[Path], object]] = {
        "write": lambda path: path.open("r+b", buffering=0).write(b"x"),
        "truncate": lambda path: os.truncate(path, 1),
        "open": lambda path: os.close(os.open(path, os.O_WRONLY | os.O_TRUNC)),
        "chown": lambda path: os.chown(path, OUTSIDE + 5, OUTSIDE + 6),
    }
    with volume(base, killpriv_v2=killpriv, passthrough=passthrough) as (served, behind):
        for name, change in changes.items():
            program = served.source / name
            program.write_bytes(b"program")
            os.chown(program, 5, 6)
            program.chmod(SUID)

            assert attempt(MAPPED, lambda: change(behind / name)) == ALLOWED  # noqa: B023
            assert not program.stat().st_mode & stat.S_ISUID, name


def test_root_is_a_caller_without_privileges_to_the_worker(base: Path) -> None:
    with volume(base) as (served, behind):
        for name in ("from", "program"):
            (served.source / name).write_bytes(b"content")
        os.setxattr(served.source / "from", "trusted.name", b"value")
        os.setxattr(served.source / "from", "user.name", b"value")
        (served.source / "program").chmod(SUID)

        for place in (served.mountpoint, behind):
            assert ROOT.run(lambda: os.listxattr(place / "from")) == ["user.name"]  # noqa: B023
        there = served.mountpoint / "from"
        assert ROOT.run(lambda: os.getxattr(there, "trusted.name")) == b"value"

        def copy() -> int:
            with there.open("rb") as source, (served.mountpoint / "program").open("r+b") as target:
                return os.copy_file_range(source.fileno(), target.fileno(), 3)

        assert ROOT.run(copy) == 3
        assert not (served.source / "program").stat().st_mode & stat.S_ISUID


def test_without_the_option_no_mount_of_the_volume_can_be_idmapped(base: Path) -> None:
    with (
        mounted(base, {"session": "kernel"}) as served,
        served.limited(LIMIT_S),
        pytest.raises(OSError, match=r"Invalid argument: 'mount_setattr\(2\)'"),
        idmapped(served.mountpoint, base / "idmapped", INSIDE, OUTSIDE, COUNT),
    ):
        pass
