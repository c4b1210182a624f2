"""source.py with the options `subpath` and `create`: a directory below the source, or a new one."""

import errno
import os
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from passthrough.linux import syscalls
from plugin.admin import new_directory
from plugin.admin.source import HostView
from plugin.errors import InvalidOption
from tests.support.tools.options import effective

OWNER = (41_001, 41_002)
OUTSIDE = "lies in none of the directories that the administrator of this plugin allows"


class Tree(NamedTuple):
    """A view of the host that allows one directory, with a directory beside that one."""

    host: HostView
    allowed: Path
    other: Path


@pytest.fixture
def tree(tmp_path: Path) -> Tree:
    for name in ("mounts", "data", "allowed", "other"):
        (tmp_path / name).mkdir()
    allowed = (tmp_path / "allowed",)
    host = HostView(Path("/"), Path("/"), tmp_path / "mounts", tmp_path / "data", allowed)
    return Tree(host, tmp_path / "allowed", tmp_path / "other")


def opened(host: HostView, source: Path, subpath: str) -> os.stat_result:
    fd = host.open(str(source), effective(subpath=subpath))
    try:
        assert not os.get_inheritable(fd)
        return os.fstat(fd)
    finally:
        os.close(fd)


def refusal(call: Callable[[], object]) -> str:
    with pytest.raises(InvalidOption) as refused:
        call()
    return str(refused.value)


def made(host: HostView, source: Path, **options: object) -> str:
    """Have the directory made, and checked as Create does."""
    config = effective(create=True, **options)
    with host.made(str(source), config, OWNER):
        return host.check(str(source), config)


# A part of the source.


def test_a_part_of_the_source_is_opened(tree: Tree) -> None:
    part = tree.allowed / "app" / "a" / "b"
    part.mkdir(parents=True)
    (tree.allowed / "app" / "current").symlink_to("a")

    for subpath in ("a/b", "current/b"):
        assert os.path.samestat(opened(tree.host, tree.allowed / "app", subpath), part.stat())
    assert os.path.samestat(opened(tree.host, tree.allowed / "app", "current"), part.parent.stat())


@pytest.mark.parametrize(
    ("subpath", "reason"),
    [
        ("absolute", "leads out of the source through a symbolic link"),
        ("absolute/app", "leads out of the source through a symbolic link"),
        ("up", "leads out of the source through a symbolic link"),
        ("up/app", "leads out of the source through a symbolic link"),
        ("root/etc", "leads out of the source through a symbolic link"),
        ("loop", "leads through too many symbolic links"),
        ("file", "is not a directory"),
        ("none", "does not exist"),
    ],
)
def test_a_part_never_lies_out_of_the_source(tree: Tree, subpath: str, reason: str) -> None:
    source = tree.allowed / "app"
    source.mkdir()
    (tree.allowed / "other").mkdir()
    (tree.other / "app").mkdir()
    (source / "absolute").symlink_to(tree.other)
    (source / "up").symlink_to("../other")
    (source / "root").symlink_to("/")
    (source / "loop").symlink_to("loop")
    (source / "file").touch()

    assert refusal(lambda: opened(tree.host, source, subpath)) == (
        f"option 'subpath': {subpath!r} {reason}; expected the path of a directory in"
        f" {str(source)!r}"
    )


def test_the_part_decides_whether_a_source_is_allowed(tree: Tree) -> None:
    (tree.allowed / "app").mkdir()
    (tree.other / "app").mkdir()
    above = tree.allowed.parent

    assert opened(tree.host, above, "allowed/app")
    for subpath in ("other/app", "other/none", "other", "none"):
        assert OUTSIDE in refusal(lambda: opened(tree.host, above, subpath))  # noqa: B023
    everything = tree.host._replace(allowed=())
    assert "contains" in refusal(lambda: opened(everything, above.parent, above.name))
    (tree.host.data_dir / "own").mkdir()
    assert "lies in" in refusal(lambda: opened(everything, above, "data/own"))


# A missing source.


@pytest.mark.parametrize(
    ("options", "mode", "owner"),
    [
        ({}, 0o755, OWNER),
        ({"mode": 0o2770}, 0o2770, OWNER),
    ],
)
def test_a_missing_source_is_made_with_its_owner_and_mode(
    tree: Tree, options: dict[str, int], mode: int, owner: tuple[int, int]
) -> None:
    made(tree.host, tree.allowed / "app", **options)
    found = (tree.allowed / "app").stat()

    assert (stat.S_IMODE(found.st_mode), (found.st_uid, found.st_gid)) == (mode, owner)


def test_a_source_that_exists_stays_as_it_is(tree: Tree) -> None:
    """An allowed directory itself is such a source, whose parent is not allowed."""
    (tree.allowed / "app").mkdir(mode=0o700)
    for source in (tree.allowed, tree.allowed / "app"):
        before = source.stat()
        made(tree.host, source, mode=0o777)
        assert source.stat() == before


def test_only_the_last_name_is_made(tree: Tree) -> None:
    """Each other missing name may be a typing error."""
    source = tree.allowed / "typo" / "app"

    assert refusal(lambda: made(tree.host, source)) == (
        f"option 'source': {str(source.parent)!r} does not exist; expected the absolute path of an"
        " existing directory on the host, without '..'"
    )
    assert list(tree.allowed.iterdir()) == []


def test_a_missing_part_of_a_source_is_made_below_it(tree: Tree) -> None:
    (tree.allowed / "a").mkdir()
    made(tree.host, tree.allowed, subpath="a/b")
    assert (tree.allowed / "a" / "b").is_dir()

    refused = refusal(lambda: made(tree.host, tree.allowed, subpath="c/d"))
    assert refused.startswith("option 'subpath': 'c' does not exist")
    refused = refusal(lambda: made(tree.host, tree.allowed / "none", subpath="a"))
    assert "does not exist" in refused


def test_nothing_is_made_out_of_an_allowed_directory(tree: Tree) -> None:
    (tree.allowed / "link").symlink_to(tree.other)
    (tree.allowed / "dangling").symlink_to(tree.other / "new")
    (tree.allowed / "app").mkdir()
    (tree.allowed / "app" / "out").symlink_to("../../other")

    assert OUTSIDE in refusal(lambda: made(tree.host, tree.other / "new"))
    assert OUTSIDE in refusal(lambda: made(tree.host, tree.allowed / "link" / "new"))
    assert "is a symbolic link" in refusal(lambda: made(tree.host, tree.allowed / "dangling"))
    refused = refusal(lambda: made(tree.host, tree.allowed / "app", subpath="out/new"))
    assert "leads out of the source" in refused
    assert list(tree.other.iterdir()) == []


def test_nothing_is_made_in_directories_of_the_plugin(tree: Tree) -> None:
    everything = tree.host._replace(allowed=())
    for own in (tree.host.mount_dir, tree.host.data_dir):
        assert "lies in" in refusal(lambda: made(everything, own / "new"))  # noqa: B023
        assert list(own.iterdir()) == []
    made(everything, tree.allowed.parent / "new")  # beside them


def test_a_directory_that_cannot_be_a_source_is_removed_again(
    tree: Tree, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise InvalidOption("no source for these options")

    monkeypatch.setattr("plugin.admin.network.check", fail)

    assert refusal(lambda: made(tree.host, tree.allowed / "app")) == "no source for these options"
    assert list(tree.allowed.iterdir()) == []


@pytest.fixture
def parent(tree: Tree) -> Iterator[int]:
    fd = os.open(tree.allowed, os.O_RDONLY | os.O_DIRECTORY)
    yield fd
    os.close(fd)


def test_a_new_source_is_never_seen_without_its_owner_and_mode(
    tree: Tree, parent: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A plugin that is killed at any step leaves no such directory, either."""
    app = tree.allowed / "app"
    seen: list[bool] = []

    def observed(real: Callable[..., object]) -> Callable[..., object]:
        def observe(*arguments: object, **options: object) -> object:
            result = real(*arguments, **options)
            seen.append(app.exists())
            if app.exists():
                found = app.stat()
                assert (stat.S_IMODE(found.st_mode), found.st_uid) == (0o2770, OWNER[0])
            return result

        return observe

    for module, name in (
        *((os, name) for name in ("mkdir", "fchown", "fchmod", "fsync")),
        (syscalls, "renameat2"),
    ):
        monkeypatch.setattr(module, name, observed(getattr(module, name)))
    assert new_directory.make(parent, "app", 0o2770, OWNER) is not None
    assert seen == [False] * 4 + [True] * 2
    assert os.listdir(parent) == ["app"]


def test_of_two_programs_that_make_a_source_one_does(
    tree: Tree, parent: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = syscalls.renameat2

    def other_first(*arguments: Any) -> None:
        (tree.allowed / "app").mkdir(mode=0o700)
        real(*arguments)

    monkeypatch.setattr(syscalls, "renameat2", other_first)
    assert new_directory.make(parent, "app", 0o777, OWNER) is None
    assert stat.S_IMODE((tree.allowed / "app").stat().st_mode) == 0o700
    assert os.listdir(parent) == ["app"]


@pytest.mark.parametrize("exists", [False, True])
def test_a_source_is_made_without_rename_noreplace(
    tree: Tree, parent: int, monkeypatch: pytest.MonkeyPatch, *, exists: bool
) -> None:
    """NFS lacks it."""

    def refuse(*_: object) -> None:
        if exists:
            (tree.allowed / "app").mkdir(mode=0o700)
        raise OSError(errno.EINVAL, "no such flag")

    monkeypatch.setattr(syscalls, "renameat2", refuse)
    made = new_directory.make(parent, "app", 0o777, OWNER)
    assert (made is None) == exists
    mode = stat.S_IMODE((tree.allowed / "app").stat().st_mode)
    assert mode == (0o700 if exists else 0o777)
    assert os.listdir(parent) == ["app"]


def test_only_the_empty_directory_of_this_create_is_removed(tree: Tree, parent: int) -> None:
    app = tree.allowed / "app"
    made = new_directory.make(parent, "app", None, OWNER)
    assert made is not None
    (app / "file").touch()
    made.remove(parent, "app")
    (app / "file").unlink()
    app.rename(tree.allowed / "mine")
    app.mkdir()
    made.remove(parent, "app")
    assert sorted(os.listdir(parent)) == ["app", "mine"]
    made.remove(parent, "mine")
    made.remove(parent, "mine")
    assert os.listdir(parent) == ["app"]


def test_a_directory_that_another_one_replaces_stays_as_it_is(
    tree: Tree, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A user who may write to the parent replaces the new directory before it gets its owner."""
    precious = tree.other / "precious"
    precious.mkdir()
    (precious / "file").touch()
    before = precious.stat()
    replace = precious

    def openat2(*arguments: int | bytes) -> int:
        new = next(tree.allowed.glob(".passfs-*"))
        new.rmdir()
        replace.rename(new)
        replaced.append(new)
        return real(*arguments)  # type: ignore[arg-type]

    real = syscalls.openat2
    replaced: list[Path] = []
    parent = os.open(tree.allowed, os.O_RDONLY | os.O_DIRECTORY)
    monkeypatch.setattr(syscalls, "openat2", openat2)
    try:
        with pytest.raises(OSError, match="not empty"):
            new_directory.make(parent, "app", 0o777, OWNER)
        assert replaced[-1].stat().st_mode == before.st_mode
        replaced[-1].rename(precious)
        replace = tree.other / "empty"
        replace.mkdir()
        os.chown(replace, 7, 7)
        with pytest.raises(OSError, match="user 7 owns the new directory, as on NFS with root_sq"):
            new_directory.make(parent, "app", 0o777, OWNER)
        assert not replaced[-1].exists()  # it may be the new one, on NFS
        replace = tree.other / "link"
        replace.symlink_to(precious)
        with pytest.raises(OSError, match="symbolic links"):
            new_directory.make(parent, "app", 0o777, OWNER)
    finally:
        os.close(parent)
    assert not (tree.allowed / "app").exists()
    assert (precious.stat().st_mode, precious.stat().st_uid) == (before.st_mode, before.st_uid)
