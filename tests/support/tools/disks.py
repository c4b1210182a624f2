"""Small file systems for sources, each made for a test and removed after it."""

import contextlib
import os
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from pathlib import Path

from passthrough.linux import syscalls

LIMIT_S = 30.0
EXT4_BYTES = 32 << 20
# Percent of the blocks, which ext4 keeps for root.
RESERVED_PERCENT = 30
# Files in each layer or submount; to list them takes several requests.
FILES = 200
LOWER = "lower"
LISTED = "listed"
"""A second directory like LOWER, for a test that lists names before any lookup."""
SUBMOUNTS = ("one", "two")
LARGE_SUBMOUNT = "large"


@contextlib.contextmanager
def ext4(
    target: Path,
    *,
    size: int = EXT4_BYTES,
    inodes: int | None = None,
    reserved_percent: int = 0,
    busy: bool = False,
) -> Iterator[None]:
    """Mount a new ext4 of *size* bytes on the directory *target*, from an image beside it.

    mount(8) sets LO_FLAGS_AUTOCLEAR: the kernel detaches the loop device with the last mount.
    With *busy*, processes may still use the mount at the end of the block.

    Raises: CalledProcessError if the machine has no loop devices, or the mount is in use.
    """
    image = target.with_name(f"{target.name}.img")
    with image.open("wb") as file:
        file.truncate(size)
    number = [] if inodes is None else ["-N", str(inodes)]
    _run("mkfs.ext4", "-q", "-m", str(reserved_percent), *number, image)
    _run("mount", "-o", "loop", image, target)
    try:
        yield
    finally:
        if busy:
            _run("umount", "--lazy", target)
        else:
            _unmount(target)
        image.unlink()


@contextlib.contextmanager
def overlay(target: Path) -> Iterator[None]:
    """Mount an overlayfs with inode numbers of 64 bits for files of the lower layer.

    With xino=on, overlayfs puts the number of the layer's file system into the uppermost bits
    (Documentation/filesystems/overlayfs.rst).
    """
    with contextlib.ExitStack() as stack:
        base = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="passfs-layers-")))
        layers = {name: base / name for name in ("lower", "upper")}
        for layer in layers.values():
            layer.mkdir()
            stack.enter_context(_memory(layer))
        _fill(layers["lower"])
        upper, work = layers["upper"] / "top", layers["upper"] / "work"
        upper.mkdir()
        work.mkdir()
        options = f"xino=on,lowerdir={layers['lower']},upperdir={upper},workdir={work}"
        _run("mount", "-t", "overlay", "-o", options, "none", target)
        stack.callback(_unmount, target)
        yield


@contextlib.contextmanager
def without_acls(target: Path) -> Iterator[None]:
    """Mount a file system without POSIX ACLs and extended attributes: ramfs."""
    syscalls.mount(b"none", os.fsencode(target), b"ramfs", 0, b"mode=0755")
    try:
        yield
    finally:
        _unmount(target)


@contextlib.contextmanager
def submounts(target: Path) -> Iterator[None]:
    """Mount two file systems in memory below *target*, with equal numbers, and an overlayfs."""
    with contextlib.ExitStack() as stack:
        for name in (*SUBMOUNTS, LARGE_SUBMOUNT):
            (target / name).mkdir()
        for name in SUBMOUNTS:
            stack.enter_context(_memory(target / name))
            _fill(target / name)
        stack.enter_context(overlay(target / LARGE_SUBMOUNT))
        yield


DISKS: Mapping[str, Callable[[Path], AbstractContextManager[None]]] = {
    "": lambda _: contextlib.nullcontext(),
    "ext4": lambda target: ext4(target, reserved_percent=RESERVED_PERCENT),
    "overlay": overlay,
    "submounts": submounts,
    "without-acls": without_acls,
}
"""By name, a context manager that mounts the file system of a source on its directory."""


def _fill(top: Path) -> None:
    for name in (LOWER, LISTED):
        (top / name).mkdir()
        for number in range(FILES):
            (top / name / str(number)).touch()


@contextlib.contextmanager
def _memory(target: Path) -> Iterator[None]:
    syscalls.mount(b"none", os.fsencode(target), b"tmpfs", 0, b"mode=0755")
    try:
        yield
    finally:
        _unmount(target)


def _unmount(target: Path) -> None:
    """Unmount; if something still uses the mount, detach it and raise."""
    try:
        _run("umount", target)
    except subprocess.CalledProcessError:
        _run("umount", "-l", target)
        raise


def _run(*words: str | Path) -> None:
    subprocess.run(words, check=True, timeout=LIMIT_S)
