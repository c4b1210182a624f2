"""Cache policies, tested through a mount while the host changes the source."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from passthrough.linux.syscalls import renameat2
from tests.support.tools.host_calls import RENAME_WHITEOUT
from tests.support.tools.mounted import Mounted, mounted

LIMIT_S = 30


@pytest.fixture(params=["kernel", "libfuse"])
def session(request: pytest.FixtureRequest) -> str:
    """Return the name of the session that serves."""
    return str(request.param)


@pytest.fixture
def served(request: pytest.FixtureRequest, tmp_path: Path, session: str) -> Iterator[Mounted]:
    policy, *more = request.param.split()
    options = {"session": session, "cache": policy}
    options |= {name: value for name, _, value in (option.partition("=") for option in more)}
    with mounted(tmp_path, options) as served, served.limited(LIMIT_S):
        yield served


def policies(*names: str) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("served", names, indirect=True)


@policies("never")
def test_never_shows_every_change_at_once(served: Mounted) -> None:
    beneath, seen = served.source / "file", served.mountpoint / "file"
    beneath.write_text("old")
    assert seen.read_text() == "old"

    beneath.write_text("longer than before")
    beneath.chmod(0o640)

    assert seen.stat().st_mode & 0o777 == 0o640
    assert seen.read_text() == "longer than before"
    beneath.unlink()
    assert not seen.exists()


@policies("never", "metadata")
def test_an_open_reads_the_current_content(served: Mounted) -> None:
    """The host writes in place and makes the file longer, so a cached size would cut it off."""
    beneath, seen = served.source / "file", served.mountpoint / "file"
    beneath.write_text("old")
    assert seen.stat().st_size == 3

    with beneath.open("r+") as file:
        file.write("longer than before")

    assert seen.read_text() == "longer than before"


@policies("metadata", "always")
def test_attributes_stay_cached(served: Mounted) -> None:
    """The price of these policies: changes by the host are not seen."""
    beneath, seen = served.source / "file", served.mountpoint / "file"
    beneath.touch()
    seen.stat()

    beneath.chmod(0o600)
    beneath.rename(served.source / "other")

    assert seen.stat().st_mode & 0o777 == 0o644


@policies("always ro passthrough=off")
def test_always_keeps_pages_across_opens(served: Mounted) -> None:
    """Mount read-only, without passthrough.

    After a read through a writable mount, the kernel requests attributes again, for the access
    time, and would see the new modification time. Files passed through have the host's content.
    """
    beneath, seen = served.source / "file", served.mountpoint / "file"
    beneath.write_text("old")
    assert seen.read_text() == "old"

    beneath.write_text("new")

    assert seen.read_text() == "old"


@policies("never", "auto", "metadata", "always")
def test_changes_through_the_mount_are_seen_at_once(served: Mounted) -> None:
    seen = served.mountpoint / "file"
    for text in ("one", "another", "x"):
        seen.write_text(text)
        assert (seen.read_text(), seen.stat().st_size) == (text, len(text))
        assert (served.source / "file").read_text() == text


@policies("auto", "metadata", "always")
def test_a_refused_whiteout_leaves_no_old_times(served: Mounted) -> None:
    """Some file systems of hosts, such as ext4, change the directories before they refuse."""
    for name in ("old", "top/full/child"):
        (served.mountpoint / name).mkdir(parents=True)
    seen = [served.mountpoint, served.mountpoint / "top"]
    for directory in seen:
        os.utime(directory, ns=(0, 0))

    old, new = (os.fsencode(one) for one in (seen[0] / "old", seen[1] / "full"))
    with pytest.raises(OSError, match="not empty"):
        renameat2(-1, old, -1, new, RENAME_WHITEOUT)

    beneath = [served.source, served.source / "top"]
    assert [one.stat().st_mtime_ns for one in seen] == [one.stat().st_mtime_ns for one in beneath]


@policies("auto", "metadata", "always")
def test_a_file_that_the_host_has_replaced_is_not_written_to(served: Mounted) -> None:
    """The kernel has the name cached, but its file has none left, so writes would be lost."""
    beneath, seen = served.source / "file", served.mountpoint / "file"
    beneath.write_text("old\n")
    seen.stat()
    (served.source / "new").write_text("new\n")
    (served.source / "new").rename(beneath)

    with seen.open("a") as file:
        file.write("appended\n")

    assert beneath.read_text() == "new\nappended\n"


@policies("auto")
def test_an_unlinked_file_that_is_open_can_be_opened_again(served: Mounted) -> None:
    """The path in /proc leads to the open file, even without a name, proc_pid_fd(5)."""
    seen = served.mountpoint / "file"
    with seen.open("w+") as file:
        file.write("kept")
        file.flush()
        seen.unlink()

        assert Path(f"/proc/self/fd/{file.fileno()}").read_text() == "kept"
