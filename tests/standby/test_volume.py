"""The checks at the end of a trial find what a take-over must not leave behind."""

import fcntl
import os
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.soak.resources import locked
from tests.standby.volume import Resources, Volume, targets, volume


@pytest.fixture
def served(base: Path) -> Iterator[Volume]:
    with volume(base, {"session": "kernel", "standby": "on", "passthrough": "off"}) as served:
        yield served


@contextmanager
def opened(path: Path, flags: int) -> Iterator[int]:
    fd = os.open(path, flags, 0o644)
    try:
        yield fd
    finally:
        os.close(fd)


def test_what_the_kernel_gives_back_is_no_difference(served: Volume) -> None:
    before = served.settled()
    path = served.served.mountpoint / "file"
    path.write_text("text")
    assert os.listdir(served.served.mountpoint) == ["file"]
    assert served.resources().differences(before) != []
    path.unlink()

    assert served.settled(before).differences(before) == []


@pytest.mark.parametrize(
    ("name", "flags", "found"),
    [
        ("file", os.O_CREAT | os.O_RDWR, {"open files", "inodes", "lookups"}),
        (".", os.O_RDONLY | os.O_DIRECTORY, {"open directories", "opens of inodes"}),
    ],
)
def test_an_open_file_is_a_difference(
    served: Volume, name: str, flags: int, found: set[str]
) -> None:
    before = served.settled()

    with opened(served.served.mountpoint / name, flags):
        differences = served.resources().differences(before)

    assert found <= {line.partition(":")[0] for line in differences}


def test_a_lock_is_found_on_the_host(served: Volume) -> None:
    path = served.served.mountpoint / "file"
    with opened(path, os.O_CREAT | os.O_RDWR) as fd:
        assert locked(served.served.source) == []
        fcntl.lockf(fd, fcntl.LOCK_EX)

        assert locked(served.served.source) == [str(served.served.source / "file")]


def test_descriptors_and_guards_are_counted() -> None:
    before = Resources({}, Counter({"/dev/fuse": 1, "anon_inode:[pidfd]": 3}), 2, 2)
    later = Resources({}, Counter({"/dev/fuse": 1, "anon_inode:[pidfd]": 4}), 2, 1)

    assert later.differences(before) == [
        "1 descriptors of anon_inode:[pidfd] more than before ",
        "guards: 1, and 2 before",
    ]
    assert before.differences(before) == []
    with opened(Path("/dev/null"), os.O_RDONLY):
        assert targets(os.getpid())["/dev/null"] != []
