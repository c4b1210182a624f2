"""Compiles the request path: one extension for each .pyx. pyproject.toml has the rest.

The variable PASSFS_BUILD chooses a row of KINDS; without it the build is a release. With `none`
nothing is compiled: scripts/venv leaves that to scripts/core.
"""

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

from setuptools import Extension, setup

ROOT = Path(__file__).resolve().parent
CORE = "passthrough/core"
PROBES = "tests/passthrough/core"
GENERATED = "build/core"
NOTHING = "none"

UNCHECKED = {
    "boundscheck": False,
    "wraparound": False,
    "initializedcheck": False,
    "cdivision": True,
}
SANITIZERS = "-fsanitize=address,undefined"
THREADS = "-fsanitize=thread"
LINES = "-g1"  # for backtraces: functions and lines, and no variables
FRAMES = [LINES, "-fno-omit-frame-pointer"]

DIRECTIVES: dict[str, dict[str, Any]] = {
    "unchecked": UNCHECKED,
    "checked": {"boundscheck": True, "wraparound": False},
    "traced": {"boundscheck": True, "wraparound": False, "linetrace": True},
}
"""The directives of Cython. Kinds of build with the same directives share their C."""


class Kind(NamedTuple):
    """A kind of build: a row of DIRECTIVES, flags of the compiler and the linker, macros."""

    directives: str
    compile: list[str]
    link: list[str]
    macros: dict[str, str]


KINDS = {
    "release": Kind("unchecked", ["-O2", LINES], [], {"CYTHON_WITHOUT_ASSERTIONS": "1"}),
    # Checks of indices and assertions.
    "debug": Kind("checked", ["-Og", "-g3"], [], {}),
    # AddressSanitizer and UndefinedBehaviorSanitizer. Python needs LD_PRELOAD with libasan.so.
    # Python's own flags have -fwrapv, which would hide a signed overflow.
    "sanitize": Kind(
        "unchecked",
        ["-O1", *FRAMES, "-fno-wrapv", SANITIZERS, "-fno-sanitize-recover=undefined"],
        [SANITIZERS],
        {},
    ),
    # ThreadSanitizer. Python needs LD_PRELOAD with libtsan.so.
    "threads": Kind("unchecked", ["-O1", *FRAMES, THREADS], [THREADS], {}),
    # With the steps of requests at which tests end the process (steps.pxd).
    "steps": Kind(
        "unchecked",
        ["-O1", LINES],
        [],
        {"CYTHON_WITHOUT_ASSERTIONS": "1", "PASSFS_STEPS": "1"},
    ),
    # Line tracing, for coverage. It holds the interpreter's lock at each line.
    "trace": Kind(
        "traced",
        ["-Og", *FRAMES],
        [],
        {"CYTHON_TRACE": "1", "CYTHON_TRACE_NOGIL": "1"},
    ),
}


def chosen() -> str:
    """Return the kind that PASSFS_BUILD names."""
    name = os.environ.get("PASSFS_BUILD") or "release"
    if name not in KINDS:
        raise SystemExit(f"PASSFS_BUILD={name!r}: use one of {', '.join(KINDS)}")
    return name


def extensions(
    paths: Iterable[str], kind: str, *, force: bool = False, jobs: int = 1
) -> list[Extension]:
    """Translate the .pyx of *paths* to C, as far as they have changed; return their extensions.

    Up to *jobs* are translated at once.
    """
    from Cython.Build import cythonize  # noqa: PLC0415  # not before a kind is chosen

    rules = KINDS[kind]
    modules = [
        Extension(
            path.removesuffix(".pyx").replace("/", "."),
            [path],
            extra_compile_args=[
                *rules.compile,
                "-Wall",
                "-Wno-unused-function",
                "-Wno-unused-variable",
            ],
            extra_link_args=rules.link,
            define_macros=list(rules.macros.items()),
        )
        for path in paths
    ]
    translated: list[Extension] = cythonize(
        modules,
        build_dir=generated(kind),
        compiler_directives={"language_level": 3, **DIRECTIVES[rules.directives]},
        include_path=["."],
        force=force,
        nthreads=jobs if jobs > 1 else 0,
    )
    return translated


def sources(*directories: str) -> list[str]:
    """Return the paths of the modules in *directories*, relative to this file's directory."""
    return [
        str(path.relative_to(ROOT))
        for directory in directories
        for path in sorted((ROOT / directory).glob("*.pyx"))
    ]


def generated(kind: str) -> str:
    """Return the directory of the C from which builds of *kind* are made."""
    return f"{GENERATED}/{KINDS[kind].directives}"


def directory(kind: str) -> str:
    """Return the directory of all that a build of *kind* makes from C: objects, libraries."""
    return f"{GENERATED}/{kind}"


if __name__ == "__main__":
    os.chdir(ROOT)
    if os.environ.get("PASSFS_BUILD") == NOTHING:
        setup()
    else:
        jobs = len(os.sched_getaffinity(0))
        setup(
            ext_modules=extensions(sources(CORE), chosen(), jobs=jobs),
            options={
                "build": {"build_base": directory(chosen())},
                "build_ext": {"parallel": jobs},
            },
        )
