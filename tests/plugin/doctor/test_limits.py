"""The checks of limits, with the numbers of other machines."""

from pathlib import Path

import pytest

from plugin.doctor import limits
from plugin.doctor.facts import Facts, PluginFacts
from plugin.doctor.finding import State
from tests.support.tools.doctor import PLUGIN_PID, facts, plugin, volume, written

LIMITS = """\
Limit                     Soft Limit           Hard Limit           Units
Max open files            1024                 {files}                 files
Max locked memory         65536                {locked}              bytes
"""


def limited(directory: Path, volumes: int = 1, files: str = "20000", locked: str = "0") -> Facts:
    """Return facts with a plugin that has these hard limits."""
    text = LIMITS.format(files=files, locked=locked)
    written(directory, **{f"proc__{PLUGIN_PID}__limits": text})
    written(directory, proc__sys__fs__file_nr="1000\t0\t100000\n")
    (directory / "proc/sys/fs/file_nr").rename(directory / "proc/sys/fs/file-nr")
    return facts(directory, plugin=plugin(*(volume(f"v{number}") for number in range(volumes))))


@pytest.mark.parametrize(
    ("files", "volumes", "state"),
    [
        ("20000", 3, State.OK),
        ("unlimited", 3, State.OK),
        ("4000", 3, State.WARNING),
        ("6000", 1001, State.WARNING),
    ],
)
def test_the_descriptors_of_the_plugin(
    tmp_path: Path, files: str, volumes: int, state: State
) -> None:
    found = limits.open_files(limited(tmp_path, volumes, files=files))
    assert found.state is state
    assert ("LimitNOFILE=" in found.remedy) == (state is State.WARNING)


def test_the_descriptors_of_the_machine(tmp_path: Path) -> None:
    known = limited(tmp_path)
    assert limits.open_files(known._replace(plugin=PluginFacts())).found == (
        "1000 of 100000 files are open on this machine"
    )
    (tmp_path / "proc/sys/fs/file-nr").write_text("99000\t0\t100000\n")
    found = limits.open_files(known)
    assert (found.state, found.remedy) == (State.WARNING, "raise fs.file-max by sysctl(8)")


@pytest.mark.parametrize("version", ["0::", "8:pids:"])
@pytest.mark.parametrize(
    ("inner", "outer", "free"),
    [
        ("max", "max", ""),
        ("36864", "max", "36764 more threads in the cgroup /system.slice/passfs"),
        ("36864", "1500", "1400 more threads in the cgroup /system.slice"),
        ("36864", "1000", "900 more threads in the cgroup /system.slice"),
        ("200", "max", "100 more threads in the cgroup /system.slice/passfs"),
    ],
)
def test_the_threads_of_a_cgroup_and_of_those_above(
    tmp_path: Path, version: str, inner: str, outer: str, free: str
) -> None:
    top = tmp_path / "sys/fs/cgroup" / version.split(":")[1]
    written(
        tmp_path, **{f"proc__{PLUGIN_PID}__cgroup": f"{version}/system.slice/passfs\n1:cpu:/\n"}
    )
    for directory, most in ((top / "system.slice/passfs", inner), (top / "system.slice", outer)):
        directory.mkdir(parents=True, exist_ok=True)
        (directory / "pids.max").write_text(f"{most}\n")
        (directory / "pids.current").write_text("100\n")
    found = limits.threads(facts(tmp_path, plugin=plugin()))
    few = bool(free) and int(free.split(maxsplit=1)[0]) < 1300
    assert found.state is (State.WARNING if few else State.OK)
    assert found.found == (free or "no cgroup of the plugin has a limit")


def test_the_threads_of_the_machine(tmp_path: Path) -> None:
    written(tmp_path, **{"proc__sys__kernel__threads-max": "1234\n"})
    assert limits.threads(facts(tmp_path)).found == "1234 threads on this machine"


@pytest.mark.parametrize(
    ("locked", "state", "text"),
    [
        ("65536", State.NOTE, "the plugin may lock 65536 bytes"),
        ("8388608", State.OK, "the plugin may lock 8388608 bytes"),
        ("unlimited", State.OK, "the plugin may lock all memory"),
    ],
)
def test_locked_memory(tmp_path: Path, locked: str, state: State, text: str) -> None:
    found = limits.locked_memory(limited(tmp_path, locked=locked))
    assert (found.state, found.found) == (state, text)
