"""What a cache policy promises, seen through a mount while the host changes what lies beneath."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from passthrough.linux.syscalls import RENAME_WHITEOUT, renameat2
from tests.support.tools.mounted import Mounted, mounted

LIMIT_S = 30


@pytest.fixture(params=["kernel", "libfuse"])
def session(request: pytest.FixtureRequest) -> str:
    """Who serves."""
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
def test_an_open_reads_what_is_there_then(served: Mounted) -> None:
    """In place and longer than before: a remembered size would cut it off."""
    beneath, seen = served.source / "file", served.mountpoint / "file"
    beneath.write_text("old")
    assert seen.stat().st_size == 3

    with beneath.open("r+") as file:
        file.write("longer than before")

    assert seen.read_text() == "longer than before"


@policies("metadata", "always")
def test_attributes_stay_known(served: Mounted) -> None:
    """The other side of the bargain: what the host changes is not seen."""
    beneath, seen = served.source / "file", served.mountpoint / "file"
    beneath.touch()
    seen.stat()

    beneath.chmod(0o600)
    beneath.rename(served.source / "other")

    assert seen.stat().st_mode & 0o777 == 0o644


@policies("always ro passthrough=off")
def test_always_keeps_pages_across_opens(served: Mounted) -> None:
    """Read-only: after a read through a writable mount the kernel asks for the access time anew.

    It then sees the new modification time too. Passed through, contents are the host's own.
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
    """Some hosts, ext4 for one, have changed the directories by the time that they refuse."""
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
    """The name is remembered; the file behind it has no name left, and writes would be lost."""
    beneath, seen = served.source / "file", served.mountpoint / "file"
    beneath.write_text("old\n")
    seen.stat()
    (served.source / "new").write_text("new\n")
    (served.source / "new").rename(beneath)

    with seen.open("a") as file:
        file.write("appended\n")

    assert beneath.read_text() == "new\nappended\n"


@policies("auto")
def test_an_unlinked_file_can_be_opened_again_by_who_has_it_open(served: Mounted) -> None:
    """proc_pid_fd(5): the path in /proc leads to the open file, whatever has become of its name."""
    seen = served.mountpoint / "file"
    with seen.open("w+") as file:
        file.write("kept")
        file.flush()
        seen.unlink()

        assert Path(f"/proc/self/fd/{file.fileno()}").read_text() == "kept"
