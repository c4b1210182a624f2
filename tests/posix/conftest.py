"""The battery: all tests of this directory, each on several columns.

A column is a caller and a bare directory, or a caller and a mount by a session with some options
(support/tools/columns.py). The fixture `ground` yields the directory or mount of a column.

The bare directory is the oracle: a test that fails on `control` is a wrong test. Most tests run
as root, as another user and as a member of a supplementary group, each the owner of *directory*.

Markers:

- `privileged`: runs as root only, because the test needs a privilege or chooses its callers itself.
- `large`: runs only on columns with `Column.large`.
- `known_difference(reason)`: must fail on each mount.
- `libfuse_lacks(feature, seen)`: must fail on each mount by libfuse. docs/sessions.md lists these.
- `columns(*ids)`: runs on these columns only.
- `fault(feature, seen, *columns)`: a fault of the product. The test must fail on these columns, or
  on each mount if none is named, and pass on all others. It must raise AssertionError, or the
  exception that `raises=` names. docs/faults.md lists the faults (support/tools/faults.py).

A test that mounts by itself takes the id of a column as *column*, and no fixture `ground`.
"""

import contextlib
import functools
import os
import re
import stat
from collections.abc import Generator, Iterator
from pathlib import Path

import pytest

from tests.support.tools.callers import ROOT, Caller
from tests.support.tools.columns import BY_ID, COLUMNS, QUICK, Column, Ground
from tests.support.tools.disks import DISKS
from tests.support.tools.files import public_directory
from tests.support.tools.mounted import mounted
from tests.support.tools.rings import switched_for

TEST_LIMIT_S = 90.0
ALARMING = re.compile(r"\b(WARNING|ERROR|CRITICAL)\b|Traceback")


def pytest_configure(config: pytest.Config) -> None:
    """Declare the markers of the battery."""
    config.addinivalue_line("markers", "privileged: runs as root only")
    config.addinivalue_line("markers", "large: runs only on columns with Column.large")
    config.addinivalue_line("markers", "columns(*ids): runs on these columns only")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Run a test on each column that its markers allow."""
    if "ground" not in metafunc.fixturenames:
        return
    marks = {mark.name for mark in metafunc.definition.iter_markers()}
    named = metafunc.definition.get_closest_marker("columns")
    columns = [
        column
        for column in COLUMNS
        if (column.caller is ROOT or "privileged" not in marks)
        and (column.large or "large" not in marks)
    ]
    if named is not None:
        columns = [BY_ID[column] for column in named.args]
    parameters = [
        pytest.param(column, id=column.id, marks=[] if column == QUICK else pytest.mark.full)
        for column in columns
    ]
    metafunc.parametrize("ground", parameters, indirect=True, scope="session")


def pytest_itemcollected(item: pytest.Item) -> None:
    """Expect a strict failure on the columns with a known difference or a fault."""
    for fault in _faults(item):
        raises = fault.kwargs.get("raises", AssertionError)
        reason = ": ".join(fault.args[:2])
        item.add_marker(pytest.mark.xfail(strict=True, reason=reason, raises=raises))
    column = item.callspec.params.get("ground") if hasattr(item, "callspec") else None
    if not isinstance(column, Column) or column.session is None:
        return
    mark = item.get_closest_marker("known_difference")
    if mark is None and column.session == "libfuse":
        mark = item.get_closest_marker("libfuse_lacks")
    if mark is not None:
        item.add_marker(pytest.mark.xfail(strict=True, reason=", ".join(mark.args)))


def _faults(item: pytest.Item) -> list[pytest.Mark]:
    """Return the marks of the faults that show on the column of *item*.

    Raises: KeyError if a mark names an unknown column.
    """
    parameters = item.callspec.params if hasattr(item, "callspec") else {}
    column = parameters.get("ground")
    if not isinstance(column, Column):
        column = BY_ID[str(parameters.get("column", "control"))]
    found = []
    for fault in item.iter_markers("fault"):
        columns = [BY_ID[named] for named in fault.args[2:]]
        if column.session is not None and (column in columns or not columns):
            found.append(fault)
    return found


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> bool | None:
    """Run the test's function as the caller of its column, in a child process."""
    ground = pyfuncitem.funcargs.get("ground")
    if not isinstance(ground, Ground) or ground.column.caller is ROOT:
        return None
    # pytest's own hook also reads the names of the function's parameters from `_fixtureinfo`.
    names = pyfuncitem._fixtureinfo.argnames
    arguments = {name: pyfuncitem.funcargs[name] for name in names}
    ground.column.caller.run(functools.partial(pyfuncitem.obj, **arguments))
    return True


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Add the stderr of the mount to a failure; a fixture may not fail as expected."""
    report = yield
    if call.when != "call" and call.excinfo is not None and hasattr(report, "wasxfail"):
        report.outcome = "failed"
        del report.wasxfail
    ground = getattr(item, "funcargs", {}).get("ground")
    if report.failed and isinstance(ground, Ground) and ground.mount is not None:
        report.sections.append((f"stderr of the mount, {call.when}", ground.mount.logged()))
    return report


@pytest.fixture(scope="session")
def ground(request: pytest.FixtureRequest) -> Iterator[Ground]:
    """Yield the ground that tests of one column share: a mount, or a directory."""
    if os.geteuid() != 0:
        pytest.fail("the battery mounts, and acts as several users: run it as root")
    wanted: Column = request.param
    with public_directory() as base, contextlib.ExitStack() as stack:
        source = base / "source"
        source.mkdir()
        stack.enter_context(DISKS[wanted.disk](source))
        if wanted.session is None:
            yield Ground(wanted, source, source)
            return
        options = {
            "session": wanted.session,
            "cache": wanted.policy,
            "inode_file_handles": wanted.file_handles,
            "passthrough": wanted.passthrough,
            "transport": wanted.transport,
            **dict(wanted.more[1]),
        }
        with switched_for(options):
            served = stack.enter_context(mounted(base, options, wanted.descriptors))
        yield Ground(wanted, served.mountpoint, served.source, served)


@pytest.fixture
def caller(ground: Ground) -> Caller:
    """Return the caller that runs the test, to start a second process of the same user."""
    return ground.column.caller


@pytest.fixture
def directory(ground: Ground, request: pytest.FixtureRequest) -> Iterator[Path]:
    """Yield a fresh directory of the caller's, made through the mount if there is one."""
    name = str(next(ground.numbers))
    path = ground.top / name
    if ground.mount is None:
        yield _made(path, ground.column.caller)
        return
    logged_before = ground.mount.log.stat().st_size
    with ground.mount.limited(TEST_LIMIT_S):
        yield _made(path, ground.column.caller)
        wrong = _faults(request.node)
        if request.node.get_closest_marker("large") is None and not wrong:
            assert _tree(path) == _tree(ground.beneath / name)
    logged = ground.mount.logged(logged_before)
    assert not ALARMING.search(logged), logged


@pytest.fixture
def beneath(ground: Ground, directory: Path) -> Path:
    """Return the host's directory beneath *directory*; on a bare directory, the same one."""
    return ground.beneath / directory.name


def _made(path: Path, owner: Caller) -> Path:
    path.mkdir()
    os.chown(path, owner.uid, owner.gid)
    return path


def _tree(top: Path) -> dict[bytes, tuple[object, ...]]:
    """Return name -> attributes by lstat(2), for each file below *top*."""
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
