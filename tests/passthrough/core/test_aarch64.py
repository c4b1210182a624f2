"""The compiled core for aarch64: its C compiles, and numbers that Python has are right there.

The generated C is the same for each architecture: it takes flags, numbers and structures from the
headers. Python's headers are this machine's. Only pyconfig.h differs, and not in the size of a
type.
"""

import os
import subprocess
import sysconfig
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import pytest

from passthrough.linux import privileges, syscalls
from passthrough.worker import seccomp
from passthrough.worker.calls import ALLOWED, BY_FILE_HANDLE, BY_RING, REFUSED
from tests.support.tools.core_builds import CORE, GENERATED, ROOT

COMPILER = "aarch64-linux-gnu-gcc"  # of the package gcc-aarch64-linux-gnu
FLAGS = (
    *("-O0", "-fPIC", "-fwrapv", "-DNDEBUG", "-DCYTHON_WITHOUT_ASSERTIONS=1", "-Wall", "-Werror"),
    *("-Wno-unused-function", "-Wno-unused-variable"),
    f"-I{sysconfig.get_path('include')}",
)
HEADERS = (
    *("asm/ioctls.h", "asm/unistd.h", "fcntl.h", "linux/capability.h", "linux/fs.h"),
    *("linux/fuse.h", "linux/openat2.h", "linux/prctl.h", "sched.h", "stddef.h", "sys/mount.h"),
    *("sys/stat.h", "sys/statfs.h"),
)
# In seccomp.py, and in the headers of the cross compiler's package or newer.
CONTROLS = (
    *("FS_IOC_GETFLAGS", "FS_IOC_SETFLAGS", "FS_IOC_FSGETXATTR", "FS_IOC_FSSETXATTR", "TCGETS"),
    *("FUSE_DEV_IOC_CLONE", "FUSE_DEV_IOC_BACKING_OPEN", "FUSE_DEV_IOC_BACKING_CLOSE"),
    *("F_SETOWN", "F_SETOWN_EX", "CLONE_FS", "CLONE_THREAD"),
)
LAYOUT = """
_Static_assert(offsetof(struct statx, stx_mnt_id) == 144, "statx");
_Static_assert(offsetof(struct statfs, f_type) == 0 && sizeof(long) == 8, "statfs");
_Static_assert(sizeof(((struct statfs *)0)->f_type) == 8, "statfs");
"""


@pytest.mark.slow
@pytest.mark.timeout(300)  # half a minute of processor time
def test_each_module_compiles(tmp_path: Path) -> None:
    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        said = list(pool.map(partial(compile_module, tmp_path), CORE))
    assert "".join(said) == ""


def compile_module(target: Path, name: str) -> str:
    """Return what the compiler says on the module *name*."""
    source = ROOT / GENERATED / "passthrough/core" / f"{name}.c"
    command = [COMPILER, *FLAGS, "-c", str(source), "-o", str(target / f"{name}.o")]
    return subprocess.run(command, check=False, capture_output=True, text=True).stderr


def test_numbers_are_those_of_the_headers(tmp_path: Path) -> None:
    source = tmp_path / "numbers.c"
    lines = [f"#include <{header}>" for header in HEADERS] + [LAYOUT, *system_calls(), *constants()]
    source.write_text("#define _GNU_SOURCE\n" + "\n".join(lines))
    command = [COMPILER, "-fsyntax-only", "-Wall", str(source)]
    said = subprocess.run(command, check=False, capture_output=True, text=True).stderr
    assert said == ""


def system_calls() -> Iterator[str]:
    """Yield a check for each number that the sandbox's filter has for machines but x86_64."""
    checked = {name: check.numbers for name, check in seccomp.CHECKED.items()}
    calls = {**ALLOWED, **REFUSED, **BY_FILE_HANDLE, **BY_RING, **checked}
    column = seccomp.MACHINES["aarch64"].column
    for name, numbers in calls.items():
        yield from equal(f"__NR_{name}", numbers[column])


def constants() -> Iterator[str]:
    for name in CONTROLS:
        yield from equal(name, getattr(seccomp, name))
    for module in (syscalls, privileges):
        for name, value in vars(module).items():
            if name.lstrip("_").isupper() and isinstance(value, int):
                yield from equal(name.lstrip("_"), value)


def equal(name: str, number: int | None) -> Iterator[str]:
    """Yield lines that fail to compile if the headers have another number for *name*."""
    yield f"#ifdef {name}"
    if number is None:
        yield f"#error {name} exists"
    else:
        yield f'_Static_assert({name} == {number}, "{name}");'
    yield "#endif"
