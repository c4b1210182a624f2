"""Files that are held by file handle, and that the host removes."""

import time
from pathlib import Path

import pytest

from tests.support.tools.mounted import Mounted, mounted
from tests.support.tools.processes import descriptors

USED_S = 1.0  # a removed file that was used so lately stays open
FREED_S = 12.0
PAUSE_S = 0.25  # so that the worker never has as many as it keeps open, 64


@pytest.mark.slow
@pytest.mark.parametrize("session", ["kernel", "libfuse"])
def test_a_removed_file_is_open_until_its_last_use_is_a_while_ago(
    tmp_path: Path, session: str
) -> None:
    """After LOOKUP comes OPEN, for which a removed file must be open; then its space is freed."""
    with mounted(tmp_path, {"inode_file_handles": "mandatory", "session": session}) as served:
        looked_up: dict[str, float] = {}
        deadline = time.monotonic() + FREED_S
        while "file-0" in open_ones(served) or not looked_up:
            assert time.monotonic() < deadline
            name = f"file-{len(looked_up)}"
            (served.source / name).touch()
            looked_up[name] = time.monotonic()
            (served.mountpoint / name).stat()
            (served.source / name).unlink()
            time.sleep(PAUSE_S)

        found = open_ones(served)
        now = time.monotonic()
        assert {name for name, at in looked_up.items() if now - at < USED_S} <= found


def open_ones(served: Mounted) -> set[str]:
    """Return the names that the host has removed, and that the worker has open."""
    removed = " (deleted)"
    targets = descriptors(served.worker_pid).values()
    return {Path(path.removesuffix(removed)).name for path in targets if path.endswith(removed)}
