"""Where the battery runs: a bare directory, and mounts by each session in several ways.

The bare directory is the oracle: a test that fails on `control` is a wrong test. Most tests run
as root, as another user and as a member of a supplementary group, each the owner of *directory*.

Markers: `privileged` runs as root only, because the test needs a privilege or chooses its callers
itself; `large` keeps a long test away from policies and callers that share its code with others;
`known_difference(reason)` expects the failure on a mount, and fails when it does not come;
`libfuse_lacks(feature, seen)` does so where libfuse serves. docs/sessions.md lists the latter.
"""

import contextlib
import functools
import itertools
import os
import re
import shutil
import stat
import tempfile
from collections.abc import Generator, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests.support.callers import MEMBER, ROOT, USER, Caller
from tests.support.mounted import Mounted, mounted
from tests.support.rings import switched_for

TEST_LIMIT_S = 90.0
ALARMING = re.compile(r"\b(WARNING|ERROR|CRITICAL)\b|Traceback")


@dataclass(frozen=True, slots=True)
class Place:
    """One column of the battery: a session with a cache policy, or a bare directory; a caller.

    *handles* is the option inode_file_handles, *passthrough* the option of that name: with `auto`,
    `kernel` has it on with every policy but `metadata`. *transport* is the option of that name.
    """

    session: str | None
    policy: str
    caller: Caller
    large: bool = True
    handles: str = "prefer"
    passthrough: str = "auto"
    transport: str = "auto"

    @property
    def id(self) -> str:
        """The name in the test's id."""
        where = "control" if self.session is None else f"{self.session}-{self.policy}"
        if self.handles != "prefer":
            where += f"-handles-{self.handles}"
        if self.passthrough != "auto":
            where += f"-passthrough-{self.passthrough}"
        if self.transport != "auto":
            where += f"-{self.transport}"
        return where if self.caller is ROOT else f"{where}-{self.caller.name}"


PLACES = [
    Place(None, "", ROOT),
    Place(None, "", USER, large=False),
    Place(None, "", MEMBER, large=False),
    *(
        place
        for session in ("kernel", "libfuse")
        for place in (
            Place(session, "auto", ROOT),
            Place(session, "auto", USER, large=False),
            Place(session, "auto", MEMBER, large=False),
            Place(session, "always", ROOT),
            Place(session, "never", ROOT, large=False),
            Place(session, "metadata", ROOT, large=False),
            Place(session, "auto", ROOT, large=False, handles="mandatory"),
        )
    ),
    Place("kernel", "auto", ROOT, passthrough="off"),
    Place("kernel", "always", ROOT, passthrough="off"),
    Place("kernel", "never", ROOT, large=False, passthrough="off"),
    Place("kernel", "auto", USER, large=False, passthrough="off"),
    Place("kernel", "auto", ROOT, passthrough="off", transport="io_uring"),
]


@dataclass(slots=True)
class Ground:
    """A place made real: fresh directories are made at *top* and lie below *beneath*."""

    place: Place
    top: Path
    beneath: Path
    mount: Mounted | None = None
    numbers: Iterator[int] = field(default_factory=itertools.count)


def pytest_configure(config: pytest.Config) -> None:
    """Declare the markers of the battery."""
    config.addinivalue_line("markers", "privileged: runs as root only")
    config.addinivalue_line("markers", "large: does not run for each policy and caller")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Run a test on each place that its markers allow."""
    if "place" not in metafunc.fixturenames:
        return
    marks = {mark.name for mark in metafunc.definition.iter_markers()}
    places = [
        pytest.param(place, id=place.id)
        for place in PLACES
        if (place.caller is ROOT or "privileged" not in marks)
        and (place.large or "large" not in marks)
    ]
    metafunc.parametrize("place", places, indirect=True, scope="session")


def pytest_itemcollected(item: pytest.Item) -> None:
    """Turn a known difference into a strict expected failure, where it is one."""
    place = item.callspec.params.get("place") if hasattr(item, "callspec") else None
    if not isinstance(place, Place) or place.session is None:
        return
    mark = item.get_closest_marker("known_difference")
    if mark is None and place.session == "libfuse":
        mark = item.get_closest_marker("libfuse_lacks")
    if mark is not None:
        item.add_marker(pytest.mark.xfail(strict=True, reason=", ".join(mark.args)))


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> bool | None:
    """Run the test's function as the caller of its place, in a child process."""
    ground = pyfuncitem.funcargs.get("place")
    if not isinstance(ground, Ground) or ground.place.caller is ROOT:
        return None
    # `_fixtureinfo` is what pytest's own hook reads: the names that the function takes.
    names = pyfuncitem._fixtureinfo.argnames
    arguments = {name: pyfuncitem.funcargs[name] for name in names}
    ground.place.caller.run(functools.partial(pyfuncitem.obj, **arguments))
    return True


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Show what the mount's process wrote beside the failure."""
    report = yield
    ground = getattr(item, "funcargs", {}).get("place")
    if report.failed and isinstance(ground, Ground) and ground.mount is not None:
        report.sections.append((f"stderr of the mount, {call.when}", ground.mount.logged()))
    return report


@pytest.fixture(scope="session")
def place(request: pytest.FixtureRequest) -> Iterator[Ground]:
    """Yield the ground that tests of one place share: a mount, or a directory."""
    if os.geteuid() != 0:
        pytest.fail("the battery mounts, and acts as several users: run it as root")
    wanted: Place = request.param
    # Not pytest's own temporary directory: that one is closed to other users.
    base = Path(tempfile.mkdtemp(prefix="passfs-posix-"))
    base.chmod(0o755)
    try:
        if wanted.session is None:
            yield Ground(wanted, base, base)
        else:
            options = {
                "session": wanted.session,
                "cache": wanted.policy,
                "inode_file_handles": wanted.handles,
                "passthrough": wanted.passthrough,
                "transport": wanted.transport,
            }
            with contextlib.ExitStack() as stack:
                with switched_for(options):
                    served = stack.enter_context(mounted(base, options))
                yield Ground(wanted, served.mountpoint, served.source, served)
    finally:
        shutil.rmtree(base)


@pytest.fixture
def caller(place: Ground) -> Caller:
    """Return who runs the test: what a second process of the same user is started as."""
    return place.place.caller


@pytest.fixture
def directory(place: Ground, request: pytest.FixtureRequest) -> Iterator[Path]:
    """Yield a fresh directory of the caller's, made through the mount if there is one."""
    name = str(next(place.numbers))
    path = place.top / name
    if place.mount is None:
        yield _made(path, place.place.caller)
        return
    logged_before = place.mount.log.stat().st_size
    with place.mount.limited(TEST_LIMIT_S):
        yield _made(path, place.place.caller)
        if request.node.get_closest_marker("large") is None:
            assert _tree(path) == _tree(place.beneath / name)
    logged = place.mount.logged(logged_before)
    assert not ALARMING.search(logged), logged


@pytest.fixture
def beneath(place: Ground, directory: Path) -> Path:
    """Return the host's directory under *directory*; on a bare directory, that itself."""
    return place.beneath / directory.name


def _made(path: Path, owner: Caller) -> Path:
    path.mkdir()
    os.chown(path, owner.uid, owner.gid)
    return path


def _tree(top: Path) -> dict[bytes, tuple[object, ...]]:
    """Return name -> what stat says, for all that lies below *top*."""
    found: dict[bytes, tuple[object, ...]] = {}
    for root, directories, files in os.walk(os.fsencode(top)):
        for name in directories + files:
            path = os.path.join(root, name)
            status = os.lstat(path)
            link = os.readlink(path) if stat.S_ISLNK(status.st_mode) else b""
            found[os.path.relpath(path, os.fsencode(top))] = (
                *(status.st_ino, oct(status.st_mode), status.st_nlink),
                *(status.st_uid, status.st_gid, status.st_size, status.st_rdev),
                *(status.st_mtime_ns, link),
            )
    return found
