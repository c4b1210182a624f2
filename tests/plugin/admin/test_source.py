"""source.py: the directories of the host that may be the source of a volume."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from passthrough.linux import syscalls
from passthrough.worker.fuse_mount import mount, unmount
from plugin.admin.source import HostView
from plugin.errors import InvalidOption
from tests.support.tools.mounts import MS_BIND, MS_PRIVATE, MS_SHARED, mounted_on
from tests.support.tools.options import effective

EXPECTED = "; expected the absolute path of an existing directory on the host, without '..'"


@pytest.fixture
def host(tmp_path: Path) -> HostView:
    return seen_at(tmp_path, Path("/"), Path("/"))


def seen_at(tmp_path: Path, root: Path, directory: Path) -> HostView:
    for own in ("mounts", "data"):
        (tmp_path / own).mkdir()
    return HostView(root, directory, tmp_path / "mounts", tmp_path / "data")


@pytest.fixture
def seen_elsewhere(tmp_path: Path) -> HostView:
    """Return the view of a managed plugin, which sees the host's /srv at another path."""
    (tmp_path / "host" / "app").mkdir(parents=True)
    return seen_at(tmp_path, tmp_path / "host", Path("/srv"))


@pytest.fixture
def own_mount(host: HostView) -> Iterator[Path]:
    """Make a mount of passfs without a worker; to open its root sends no request."""
    target = host.mount_dir / "vol"
    target.mkdir()
    fd = mount(target, effective())
    yield target
    unmount(target)
    os.close(fd)


@pytest.fixture
def bound(tmp_path: Path) -> Iterator[Path]:
    """Bind all of *tmp_path* to a directory inside it."""
    target = tmp_path / "bound"
    target.mkdir()
    syscalls.mount(os.fsencode(tmp_path), os.fsencode(target), b"none", MS_BIND, b"")
    yield target
    syscalls.umount2(os.fsencode(target), syscalls.MNT_DETACH)


def opened(host: HostView, source: str | Path) -> os.stat_result:
    fd = host.open(str(source), effective())
    try:
        assert not os.get_inheritable(fd)
        return os.fstat(fd)
    finally:
        os.close(fd)


def refusal(host: HostView, source: str | Path) -> str:
    with pytest.raises(InvalidOption) as refused:
        host.open(str(source), effective())
    start = f"option 'source': {str(source)!r} "
    assert str(refused.value).startswith(start)
    return str(refused.value).removeprefix(start)


@pytest.mark.parametrize("spelling", ["{}", "{}/", "/{}", "{}/.", "//{}//"])
def test_a_directory_is_opened_by_each_spelling(
    host: HostView, tmp_path: Path, spelling: str
) -> None:
    directory = tmp_path / "app"
    directory.mkdir()
    found = opened(host, spelling.format(directory))
    assert os.path.samestat(found, directory.stat())


def test_symlinks_are_followed_except_for_the_last_name(host: HostView, tmp_path: Path) -> None:
    (tmp_path / "real" / "app").mkdir(parents=True)
    (tmp_path / "link").symlink_to(tmp_path / "real")
    found = opened(host, tmp_path / "link" / "app")
    assert os.path.samestat(found, (tmp_path / "real" / "app").stat())
    assert refusal(host, tmp_path / "link") == f"is a symbolic link{EXPECTED}"


def test_a_source_that_is_no_directory_is_refused(host: HostView, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "loop").symlink_to("loop")
    assert refusal(host, tmp_path / "missing") == f"does not exist{EXPECTED}"
    assert refusal(host, tmp_path / "file") == f"is not a directory{EXPECTED}"
    assert refusal(host, tmp_path / "file" / "x") == f"is not a directory{EXPECTED}"
    assert refusal(host, tmp_path / "loop" / "x").startswith("leads through too many symbolic")
    assert refusal(host, tmp_path / ("x" * 300)).startswith("cannot be opened: File name too long")


def test_a_source_is_found_below_the_host_root(seen_elsewhere: HostView) -> None:
    found = opened(seen_elsewhere, "/srv/app")
    assert os.path.samestat(found, (seen_elsewhere.root / "app").stat())
    assert os.path.samestat(opened(seen_elsewhere, "/srv"), seen_elsewhere.root.stat())


@pytest.mark.parametrize("source", ["/", "/etc", "/srvx", "/sr"])
def test_a_source_outside_of_the_host_directory_is_refused(
    seen_elsewhere: HostView, source: str
) -> None:
    assert refusal(seen_elsewhere, source) == (
        "does not lie in /srv, which is all that the plugin sees of the host;"
        " expected a directory in /srv"
    )


def test_a_symlink_is_resolved_in_the_tree_of_the_host(tmp_path: Path) -> None:
    """An absolute symlink is resolved in the host's tree, never in the plugin's own."""
    root = tmp_path / "host"
    (root / "app" / "sub").mkdir(parents=True)
    host = seen_at(tmp_path, root, Path("/"))
    (root / "inside").symlink_to("/app")
    (root / "outside").symlink_to(tmp_path)
    (root / "up").symlink_to("../../../..")
    found = opened(host, "/inside/sub")
    assert os.path.samestat(found, (root / "app" / "sub").stat())
    assert refusal(host, "/outside/mounts").startswith("does not exist")
    found = opened(host, "/up/app")
    assert os.path.samestat(found, (root / "app").stat())


@pytest.mark.parametrize("link", ["/srv/app", "/app", "../app", "app/../../srv/app"])
def test_a_symlink_out_of_the_host_directory_is_refused(
    seen_elsewhere: HostView, link: str
) -> None:
    """The symlink must not lead to a directory of the same name in /srv."""
    root = seen_elsewhere.root
    for place in ("app/sub", "srv/app/sub"):
        (root / place).mkdir(parents=True)
    (root / "link").symlink_to(link)
    assert refusal(seen_elsewhere, "/srv/link/sub") == (
        "leads out of /srv through a symbolic link; every absolute link does;"
        " expected a path in /srv that does not"
    )
    assert refusal(seen_elsewhere, "/srv/link") == f"is a symbolic link{EXPECTED}"


def test_a_symlink_inside_the_host_directory_is_followed(seen_elsewhere: HostView) -> None:
    root = seen_elsewhere.root
    (root / "app" / "sub").mkdir()
    (root / "app" / "link").symlink_to("../app")
    found = opened(seen_elsewhere, "/srv/app/link/sub")
    assert os.path.samestat(found, (root / "app" / "sub").stat())


def test_links_of_proc_are_not_followed(host: HostView) -> None:
    assert refusal(host, "/proc/self/root/etc").startswith("leads through too many symbolic")


def test_a_source_in_a_volume_of_passfs_is_refused(host: HostView, own_mount: Path) -> None:
    assert refusal(host, own_mount) == f"lies in a volume of passfs itself{EXPECTED}"


def test_a_source_in_the_mount_directory_is_refused(host: HostView) -> None:
    """The plugin makes and removes directories in its mount directory."""
    (host.mount_dir / "beside").mkdir()
    assert refusal(host, host.mount_dir / "beside") == (
        f"lies in {host.mount_dir}, where volumes are mounted; expected a directory that does not"
    )


@pytest.mark.parametrize("above", ["", "..", "../.."])
def test_a_source_that_contains_the_mount_directory_is_refused(host: HostView, above: str) -> None:
    """A volume that contains its own mount point would wait for itself."""
    source = os.path.normpath(host.mount_dir / above)
    assert refusal(host, source) == (
        f"contains {host.mount_dir}, where volumes are mounted; expected a directory that does not"
    )


def test_a_bind_mount_does_not_hide_the_mount_directory(host: HostView, bound: Path) -> None:
    assert refusal(host, bound).startswith("contains ")
    assert refusal(host, bound / "mounts").startswith("contains ")


def test_a_bind_mount_below_the_source_does_not_hide_the_mount_directory(
    host: HostView, tmp_path: Path
) -> None:
    source = tmp_path / "app"
    (source / "deep").mkdir(parents=True)
    opened(host, source)
    syscalls.mount(os.fsencode(tmp_path), os.fsencode(source / "deep"), b"none", MS_BIND, b"")
    try:
        assert refusal(host, source).startswith("contains ")
    finally:
        syscalls.umount2(os.fsencode(source / "deep"), syscalls.MNT_DETACH)


@pytest.mark.parametrize("inside", ["", "volumes/other", "trash"])
def test_a_source_in_the_data_directory_is_refused(
    host: HostView, bound: Path, inside: str
) -> None:
    """The managed plugin sees its data directory twice: in the host's tree and as a mount."""
    (host.data_dir / inside).mkdir(parents=True, exist_ok=True)
    for source in (host.data_dir / inside, bound / "data" / inside):
        relation = "lies in" if inside else "contains"
        assert refusal(host, source) == (
            f"{relation} {host.data_dir}, where passfs keeps its data;"
            " expected a directory that does not"
        )


@pytest.mark.parametrize(
    ("own", "reason"),
    [
        ("mounts", "contains a directory of passfs itself, where volumes are mounted"),
        ("data", "contains a directory of passfs itself, where passfs keeps its data"),
    ],
)
def test_a_refusal_shows_no_path_of_the_plugin_s_own_namespace(
    tmp_path: Path, own: str, reason: str
) -> None:
    """A managed plugin's own directories have other paths on the host."""
    (tmp_path / "away").mkdir()
    host = seen_at(tmp_path / "away", tmp_path / "host", Path("/srv"))
    (tmp_path / "host" / "deep" / own).mkdir(parents=True)
    inside = tmp_path / "host" / "deep" / own
    host = host._replace(mount_dir=inside) if own == "mounts" else host._replace(data_dir=inside)

    assert refusal(host, "/srv") == f"{reason}; expected a directory that does not"


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """Return a directory with a file system of its own."""
    (tmp_path / "disk").mkdir()
    with mounted_on(tmp_path / "disk", "tmpfs"):
        yield tmp_path / "disk"


def noted(host: HostView, source: Path | str) -> str:
    notes: list[str] = []
    os.close(host.open(str(source), effective(), notes.append))
    assert [host.check(str(source), effective())] == notes
    return notes[0]


@pytest.mark.parametrize(
    ("seen_at_root", "until"),
    [(True, "the volume is mounted again"), (False, "passfs starts again")],
)
def test_a_private_mount_is_noted_because_later_disks_are_not_seen(
    host: HostView, disk: Path, *, seen_at_root: bool, until: str
) -> None:
    if not seen_at_root:
        host = host._replace(root=disk, directory=Path("/srv"))
    source = disk if seen_at_root else "/srv"
    for propagation, seen in ((MS_PRIVATE, False), (MS_SHARED, True), (MS_PRIVATE, False)):
        syscalls.mount(b"none", os.fsencode(disk), b"none", propagation, b"")
        note = noted(host, source)
        assert (note == "") == seen
        assert seen or f"mounts on or below the source later, until {until};" in note


def test_a_source_that_contains_the_data_directory_is_refused(
    host: HostView, tmp_path: Path
) -> None:
    (tmp_path / "above" / "data").mkdir(parents=True)
    beside = host._replace(data_dir=tmp_path / "above" / "data")
    assert refusal(beside, tmp_path / "above") == (
        f"contains {beside.data_dir}, where passfs keeps its data;"
        " expected a directory that does not"
    )


def test_a_source_beside_the_plugin_s_directories_is_accepted(
    host: HostView, tmp_path: Path
) -> None:
    for beside in ("mounts-of-others", "data-of-others"):
        (tmp_path / beside).mkdir()
        opened(host, tmp_path / beside)


# The directories that an administrator allows.

NOT_ALLOWED = "lies in none of the directories that the administrator of this plugin allows"


@pytest.fixture
def narrow(host: HostView, tmp_path: Path) -> HostView:
    """Allow sources in `allowed/one` and in `allowed/two`; only the first exists."""
    (tmp_path / "allowed" / "one" / "app").mkdir(parents=True)
    (tmp_path / "other" / "app").mkdir(parents=True)
    return host._replace(
        allowed=(tmp_path / "allowed" / "two", tmp_path / "allowed" / "one"),
    )


def test_a_source_in_an_allowed_directory_is_opened(narrow: HostView, tmp_path: Path) -> None:
    for source in (tmp_path / "allowed" / "one", tmp_path / "allowed" / "one" / "app"):
        assert os.path.samestat(opened(narrow, source), source.stat())


@pytest.mark.parametrize("source", ["other", "other/app", "allowed", "allowed/one-more"])
def test_a_source_outside_of_the_allowed_directories_is_refused(
    narrow: HostView, tmp_path: Path, source: str
) -> None:
    (tmp_path / "allowed" / "one-more").mkdir()
    missing, there = narrow.allowed
    assert refusal(narrow, tmp_path / source) == (
        f"{NOT_ALLOWED}; expected a directory in"
        f" {missing} (which allows nothing: No such file or directory), {there}"
    )


@pytest.mark.parametrize(
    "source",
    [
        *("other/none", "other/none/below", "other/file", "other/file/below", "other/link"),
        *("other/loop/x", "other/" + "x" * 300, "allowed/none", "allowed/one/out/none"),
        *("allowed/one/out/file", "allowed/one/out/link", "allowed/one/up/none", "none"),
    ],
)
def test_existing_and_missing_sources_outside_get_the_same_refusal(
    narrow: HostView, tmp_path: Path, source: str
) -> None:
    """A user with access to a part of the host learns nothing of files elsewhere."""
    (tmp_path / "other" / "file").touch()
    (tmp_path / "other" / "link").symlink_to("app")
    (tmp_path / "other" / "loop").symlink_to("loop")
    (tmp_path / "allowed" / "one" / "out").symlink_to(tmp_path / "other")
    (tmp_path / "allowed" / "one" / "up").symlink_to("../../other")
    expected = refusal(narrow, tmp_path / "other" / "app")
    if source.startswith("allowed/one/"):  # a refusal names the directory above the source first
        missing, there = narrow.allowed
        nearest = [f"{there}", f"{missing} (which allows nothing: No such file or directory)"]
        expected = f"{NOT_ALLOWED}; expected a directory in {', '.join(nearest)}"

    assert refusal(narrow, tmp_path / source) == expected


def test_a_refusal_in_an_allowed_directory_has_the_reason(narrow: HostView, tmp_path: Path) -> None:
    one = tmp_path / "allowed" / "one"
    (one / "file").touch()
    (one / "link").symlink_to("app")
    (one / "loop").symlink_to("loop")

    assert refusal(narrow, one / "none") == f"does not exist{EXPECTED}"
    assert refusal(narrow, f"/{one}/./none") == f"does not exist{EXPECTED}"
    assert refusal(narrow, one / "file") == f"is not a directory{EXPECTED}"
    assert refusal(narrow, one / "link") == f"is a symbolic link{EXPECTED}"
    assert refusal(narrow, one / "loop" / "x").startswith("leads through too many symbolic")


def test_a_source_outside_of_the_host_directory_counts_as_not_allowed(
    seen_elsewhere: HostView,
) -> None:
    narrow = seen_elsewhere._replace(allowed=(Path("/srv/app"),))
    for source in ("/etc", "/srv/none", "/srv"):
        assert refusal(narrow, source) == f"{NOT_ALLOWED}; expected a directory in /srv/app"


def test_a_symlink_does_not_lead_out_of_an_allowed_directory(
    narrow: HostView, tmp_path: Path
) -> None:
    for name, to in (("absolute", tmp_path / "other"), ("relative", Path("../../other"))):
        link = tmp_path / "allowed" / "one" / name
        link.symlink_to(to)
        assert os.path.samestat((link / "app").stat(), (tmp_path / "other" / "app").stat())
        assert refusal(narrow, link / "app").startswith(NOT_ALLOWED)


def test_a_symlink_may_lead_into_an_allowed_directory(narrow: HostView, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "allowed" / "one")
    found = opened(narrow, tmp_path / "link" / "app")
    assert os.path.samestat(found, (tmp_path / "allowed" / "one" / "app").stat())


def test_an_allowed_directory_that_became_a_symlink_allows_nothing(
    narrow: HostView, tmp_path: Path
) -> None:
    """A user with write access above it, as in a volume, could choose the allowed directory."""
    (tmp_path / "allowed" / "two").symlink_to(tmp_path / "other")
    why = f"{tmp_path}/allowed/two (which allows nothing: a symbolic link is part of it)"
    assert why in refusal(narrow, tmp_path / "other" / "app")
    assert NOT_ALLOWED in refusal(narrow, tmp_path / "allowed" / "two" / "app")
    below = narrow._replace(allowed=(tmp_path / "allowed" / "two" / "app",))
    assert "a symbolic link is part of it" in refusal(below, tmp_path / "other" / "app")


def test_a_bind_mount_of_an_allowed_directory_is_not_allowed(
    narrow: HostView, tmp_path: Path, bound: Path
) -> None:
    """A bind mount may be read-only: the settings allow a path and not the files."""
    assert refusal(narrow, bound / "allowed" / "one" / "app").startswith(NOT_ALLOWED)
    through = narrow._replace(allowed=(bound / "allowed",))
    assert opened(through, bound / "allowed" / "one").st_ino
    assert refusal(through, tmp_path / "allowed" / "one").startswith(NOT_ALLOWED)


def test_allowed_directories_are_named_as_on_the_host(seen_elsewhere: HostView) -> None:
    (seen_elsewhere.root / "other").mkdir()
    narrow = seen_elsewhere._replace(allowed=(Path("/srv/app"),))
    assert opened(narrow, "/srv/app").st_ino
    assert refusal(narrow, "/srv/other") == f"{NOT_ALLOWED}; expected a directory in /srv/app"


def test_all_of_the_host_may_be_allowed(host: HostView, tmp_path: Path) -> None:
    (tmp_path / "app").mkdir()
    assert opened(host._replace(allowed=(Path("/"),)), tmp_path / "app").st_ino


def test_an_allowed_directory_that_hangs_delays_no_source_elsewhere(
    narrow: HostView, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The plugin does not open a directory that lies on a dead network file system."""
    really_open = syscalls.openat2

    def hanging(dir_fd: int, path: bytes, flags: int, resolve: int) -> int:
        assert b"two" not in path
        return really_open(dir_fd, path, flags, resolve)

    monkeypatch.setattr(syscalls, "openat2", hanging)
    assert opened(narrow, tmp_path / "allowed" / "one" / "app").st_ino
