"""Listings that the kernel keeps, with `no_opendir`, and why this is an option."""

import os
from pathlib import Path

import pytest

from tests.support.tools.mounted import mounted

LIMIT_S = 60.0
DESCRIPTORS = 1024
DIRECTORIES = 1500

both = pytest.mark.parametrize(
    "options", [{}, {"no_opendir": ""}], ids=["opened", "without an open"]
)


@both
def test_more_directories_are_listed_than_there_are_descriptors(
    base: Path, options: dict[str, str]
) -> None:
    with mounted(base, options, descriptors=DESCRIPTORS) as served, served.limited(LIMIT_S):
        for number in range(DIRECTORIES):
            (served.source / f"{number}").mkdir()
            (served.source / f"{number}" / "file").touch()

        found = {
            name: os.listdir(served.mountpoint / name) for name in os.listdir(served.mountpoint)
        }

        assert found == {f"{number}": ["file"] for number in range(DIRECTORIES)}
        assert (served.mountpoint / "0" / "file").read_bytes() == b""
        with os.scandir(served.mountpoint) as first:
            next(first)
            assert len(os.listdir(served.mountpoint)) == DIRECTORIES
            assert len(list(first)) == DIRECTORIES - 1


@both
def test_the_kernel_sees_a_change_of_the_host_by_its_time_alone(
    base: Path, options: dict[str, str]
) -> None:
    """A copy with its times (cp -p, tar, rsync -t) changes a directory and leaves its mtime."""
    with mounted(base, {"cache": "never"} | options) as served, served.limited(LIMIT_S):
        directory, shown = served.source / "directory", served.mountpoint / "directory"
        directory.mkdir()
        times = directory.stat()
        assert os.listdir(shown) == []
        (directory / "new").touch()
        os.utime(directory, ns=(times.st_atime_ns, times.st_mtime_ns))

        assert os.listdir(shown) == ([] if options else ["new"])
        assert (shown / "new").exists()
        (directory / "another").touch()
        assert sorted(os.listdir(shown)) == ["another", "new"]
