"""`passfs mount`, and mount(8) with the helper of passfs, in the run's mount namespace."""

import contextlib
import os
import subprocess
import sys
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

from passthrough.standalone import records
from tests.support.tools.generated import REPOSITORY
from tests.support.tools.mounts import mounted_on, mounts_at
from tests.support.tools.processes import children, descriptors, lives, wait_until

LIMIT_S = 60.0
PASSFS = (sys.executable, "-c", "from plugin.start import main; main()")
SBIN = Path("/sbin").resolve()
# As pip writes the scripts of a package.
_SCRIPT = "#!{python}\nimport sys\nfrom {module} import {function}\nsys.exit({function}())\n"


class Done(NamedTuple):
    """A command that has ended."""

    status: int
    out: str
    err: str


def run(
    *words: object, cwd: Path | None = None, environment: Mapping[str, str] | None = None
) -> Done:
    """Run a command, which must not hang."""
    done = subprocess.run(
        [*map(str, words)],
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
        check=False,
        cwd=cwd,
        env={**os.environ, **(environment or {})},
    )
    return Done(done.returncode, done.stdout, done.stderr)


def passfs(*words: object, cwd: Path | None = None) -> Done:
    """Run `passfs` with *words*."""
    return run(*PASSFS, *words, cwd=cwd)


@contextlib.contextmanager
def own_records() -> Iterator[None]:
    """Have the records of mounts in a file system that ends with the block."""
    above = records.DIRECTORY.parent
    made = not above.exists()
    above.mkdir(exist_ok=True)
    try:
        with mounted_on(above, "tmpfs"):
            yield
    finally:
        if made:
            above.rmdir()


@contextlib.contextmanager
def overlaid(target: Path, directory: Path) -> Iterator[None]:
    """Let new files in *target* end with the block; *directory* is empty, and holds them."""
    with mounted_on(directory, "tmpfs"):
        upper, work = directory / "upper", directory / "work"
        upper.mkdir()
        work.mkdir()
        with mounted_on(target, "overlay", f"lowerdir={target},upperdir={upper},workdir={work}"):
            yield


@contextlib.contextmanager
def helper_in_sbin(directory: Path) -> Iterator[None]:
    """Put the helper of mount(8) into /sbin, as `ln -s` would; *directory* is for the overlay."""
    scripts = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]["scripts"]
    module, _, function = scripts["mount.fuse.passfs"].partition(":")
    with overlaid(SBIN, directory):
        script = SBIN / "mount.fuse.passfs"
        text = _SCRIPT.format(python=sys.executable, module=module, function=function)
        script.write_text(text)
        script.chmod(0o755)
        yield


def serving(mountpoint: Path) -> set[int]:
    """Return the processes that serve *mountpoint*: orphans that are children of this one."""
    (mounted,) = mounts_at(mountpoint)
    record = f"{os.major(mounted.device)}:{os.minor(mounted.device)}"
    path = str(records.DIRECTORY / record)
    found: set[int] = set()
    queue = children()
    while queue:
        pid = queue.pop()
        queue |= children(pid)
        if lives(pid) and path in _open_files(pid):
            found.add(pid)
    return found


def worker(pids: set[int]) -> int:
    """Return the worker of *pids*."""
    (found,) = (pid for pid in pids if _name(pid).startswith("passfs:"))
    return found


def wait_for_end(pids: set[int]) -> None:
    """Wait until the processes *pids* have ended."""
    wait_until(lambda: not any(map(lives, pids)))


def _name(pid: int) -> str:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/comm").read_text()
    return ""


def _open_files(pid: int) -> set[str]:
    with contextlib.suppress(OSError):
        return set(descriptors(pid).values())
    return set()
