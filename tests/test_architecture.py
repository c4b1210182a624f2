"""The shape of the program: who imports whom, and what each file may hold.

The docstring of each package lists its rooms and modules from the top down, and the docstring of
each room lists the modules in it. A module imports only from lines below its own. The tables here
say the rest.
"""

import ast
import re
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[1]
PACKAGES = ("passthrough", "plugin", "benchmarks")
LONGEST_FILE, LONGEST_FUNCTION = 400, 50

# The request path in Python and its handlers: modules of one kind, side by side.
UNORDERED = {Path("passthrough/core/operations"), Path("passthrough/session/handlers")}

# What each package knows of the others. `plugin` knows the contract with a worker and what
# surrounds a mount; the benchmarks start the programs, and look at mounts.
KNOWN_OF_OTHERS = {
    "passthrough": set[str](),
    "plugin": {
        *("options.choices", "options.effective", "options.parsing", "options.sessions"),
        *("options.table", "options.vocabulary"),
        *("identity.idmap", "worker.fuse_mount", "worker.handover"),
        *("linux.filehandles", "linux.kernel_features", "linux.mountinfo", "linux.syscalls"),
    },
    "benchmarks": {
        *("options.choices", "options.parsing", "options.table", "worker.fuse_mount"),
        *("linux.kernel_features", "linux.mountinfo", "linux.syscalls"),
    },
}

# Each foreign library, and the only modules that know it.
DOORS = {
    "pyfuse3": {"passthrough/session/libfuse.py"},
    # listing.py makes the buffer that getdents64(2) fills, rings.py the one that the kernel puts
    # requests into; neither calls anything.
    "ctypes": {
        "passthrough/linux/syscalls.py",
        "passthrough/linux/filecalls.py",
        "passthrough/linux/privileges.py",
        "passthrough/core/listing.py",
        "passthrough/linux/memory.py",
        "passthrough/session/rings.py",
        "passthrough/session/uring.py",
    },
    "docker": {"plugin/install/engine.py"},
    "hypercorn": {"plugin/api/server.py"},
    "starlette": {"plugin/api/server.py"},
    "trio": {
        f"plugin/{name}.py"
        for name in (
            *(
                "app",
                "api/server",
                "volumes/driver",
                "volumes/source_check",
                "volumes/volume_locks",
            ),
            *("mounting/keeper", "mounting/detaching", "mounting/worker", "mounting/spawner"),
            *("mounting/worker_output", "threads"),
        )
    },
    "typer": {"passthrough/__main__.py", "plugin/__main__.py", "benchmarks/__main__.py"},
    "rich": {"plugin/__main__.py", "benchmarks/__main__.py"},
    # The benchmarks use it as any program does whose database lies in a volume.
    "sqlite3": {"plugin/volumes/registry.py", "plugin/volumes/database.py", "benchmarks/work.py"},
}

# The one that any module may use: it makes values of text, and does nothing else.
FREE = {"msgspec"}

# Modules that decide and do nothing else: no system call, no file, no clock.
WITHOUT_IO = {
    "passthrough/options/cache_policy.py",
    "passthrough/options/choices.py",
    "passthrough/options/effective.py",
    "passthrough/options/parsing.py",
    "passthrough/options/sessions.py",
    "passthrough/options/table.py",
    "passthrough/options/timeouts.py",
    "passthrough/worker/handover.py",
    "passthrough/identity/idmap.py",
    "passthrough/core/opening.py",
    "passthrough/identity/squashing.py",
    "passthrough/options/values.py",
    "passthrough/options/vocabulary.py",
    "plugin/errors.py",
    "plugin/volumes/old_names.py",
    "plugin/options.py",
    "plugin/admin/policy.py",
    "plugin/protocol.py",
    "plugin/admin/settings.py",
    "plugin/volumes/status.py",
    "plugin/volume.py",
    "benchmarks/markdown.py",
    "benchmarks/picture.py",
    "benchmarks/plan.py",
    "benchmarks/report.py",
    "benchmarks/table.py",
}
PURE_OF_OS = {"os.path.normpath", "os.path.join", "os.fsencode", "os.fsdecode", "os.strerror"}
IO_MODULES = {"ctypes", "io", "shutil", "signal", "socket", "sqlite3", "subprocess", "tempfile"}

# What may be called while a module is imported, beside its own classes and functions: what makes
# a value, a type or a logger, loads the C library, or asks where the package lies.
AT_IMPORT = {
    *("re.compile", "struct.Struct", "Struct", "frozenset", "TypeVar", "ParamSpec", "NewType"),
    *("ctypes.byref", "ctypes.c_long", "ctypes.c_size_t", "ctypes.sizeof"),
    *("ctypes.CDLL", "ctypes.PyDLL", "logging.getLogger", "logging.getLevelName"),
    *("contextlib.nullcontext", "FIXED.items", "int"),
    *("typer.Typer", "typer.Option", "typer.Argument", "app.command", "Console"),
    *("Path", "Path(__file__).resolve", "msgspec.field", "values.word"),
    *("Line", "cold", "warm", "Peer"),  # rows of the benchmarks' tables
}


def modules() -> list[Path]:
    return [
        path.relative_to(REPOSITORY)
        for package in PACKAGES
        for path in sorted((REPOSITORY / package).rglob("*.py"))
    ]


def tree(module: Path) -> ast.Module:
    return ast.parse((REPOSITORY / module).read_text(), str(module))


def imports(module: Path) -> Iterator[str]:
    """Every dotted name that *module* imports, wherever in it."""
    for node in ast.walk(tree(module)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def own_imports(module: Path) -> Iterator[tuple[str, ...]]:
    """The modules of our own that *module* imports, each as the parts of its path."""
    for name in imports(module):
        parts = tuple(name.split("."))
        if parts[0] in PACKAGES:
            while len(parts) > 1 and not (REPOSITORY / Path(*parts)).with_suffix(".py").is_file():
                parts = parts[:-1]
            yield parts


def order(package: Path) -> list[str]:
    """The lines of *package*, as its docstring lists its modules and packages from the top down."""
    text = ast.get_docstring(tree(package / "__init__.py")) or ""
    return [match[1] for match in re.finditer(r"^ {4}(\w+)(?:\.py|/)? {2,}\S", text, re.MULTILINE)]


def packages() -> list[Path]:
    return [module.parent for module in modules() if module.name == "__init__.py"]


named = pytest.mark.parametrize("module", modules(), ids=str)


@pytest.mark.parametrize("package", [p for p in packages() if p not in UNORDERED], ids=str)
def test_a_package_lists_each_of_its_modules_once(package: Path) -> None:
    below = {path.parts[len(package.parts)] for path in modules() if package in path.parents}

    assert sorted(order(package)) == sorted(
        name.removesuffix(".py") for name in below - {"__init__.py"}
    )


def test_every_package_is_installed() -> None:
    """An editable installation finds them all, and the one in the plugin's image would not."""
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())
    present = {".".join(module.parts[:-1]) for module in modules()}

    # The benchmarks run in a checkout.
    assert set(project["tool"]["setuptools"]["packages"]) == present - {"benchmarks"}


@named
def test_imports_run_down_the_list_only(module: Path) -> None:
    own = module.with_suffix("").parts
    if module.name == "__init__.py":
        assert module.parent in UNORDERED or list(imports(module)) == []
        return
    for other in own_imports(module):
        if other[0] != own[0]:
            continue
        level = next(n for n, (a, b) in enumerate(zip(own, other, strict=False)) if a != b)
        package = Path(*own[:level])
        lines = order(package)

        assert package in UNORDERED or lines.index(own[level]) < lines.index(other[level]), other
        assert other[:2] != ("plugin", "install") or own[1] in {"install", "__main__"}


@named
def test_the_file_system_knows_nothing_of_docker_and_the_plugin_little_of_it(
    module: Path,
) -> None:
    other = {".".join(parts[1:]) for parts in own_imports(module) if parts[0] != module.parts[0]}

    assert other <= KNOWN_OF_OTHERS[module.parts[0]]


@named
def test_a_foreign_library_has_one_door(module: Path) -> None:
    """And there is no library without one: a new dependency is a decision, made in DOORS."""
    foreign = {name.split(".")[0] for name in imports(module)} - set(PACKAGES)

    assert {name for name in foreign if name in DOORS and str(module) not in DOORS[name]} == set()
    assert foreign - sys.stdlib_module_names <= {*DOORS, *FREE}


@named
def test_nothing_waits_below_the_session(module: Path) -> None:
    """No request comes between a system call and the identity or the count that belongs to it."""
    above = {"session", "worker", "__main__.py"}
    waiting = {
        type(node).__name__
        for node in ast.walk(tree(module))
        if isinstance(node, ast.AsyncFunctionDef | ast.Await | ast.AsyncFor | ast.AsyncWith)
    }

    assert module.parts[0] != "passthrough" or module.parts[1] in above or waiting == set()


def test_every_door_is_used() -> None:
    used = {(name.split(".")[0], str(module)) for module in modules() for name in imports(module)}

    assert {(lib, door) for lib, doors in DOORS.items() for door in doors} <= used


@pytest.mark.parametrize("module", sorted(map(Path, WITHOUT_IO)), ids=str)
def test_what_decides_does_no_io(module: Path) -> None:
    calls = calls_in(tree(module))

    assert {name.split(".")[0] for name in imports(module)} & IO_MODULES == set()
    assert {call for call in calls if call == "open" or call.startswith("os.")} <= PURE_OF_OS


def calls_in(node: ast.AST) -> set[str]:
    return {ast.unparse(call.func) for call in ast.walk(node) if isinstance(call, ast.Call)}


def at_import(node: ast.AST) -> Iterator[ast.AST]:
    """The parts of a module that run when it is imported: all but the bodies of functions."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.If) and ast.unparse(child.test) == "__name__ == '__main__'":
            continue
        if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef):
            for part in [*child.decorator_list, *child.args.defaults, *child.args.kw_defaults]:
                if part is not None:
                    yield from (part, *at_import(part))
        elif not isinstance(child, ast.Lambda):
            yield from (child, *at_import(child))


def test_nobody_understands_options_past_the_administrator() -> None:
    asking = {
        module
        for module in modules()
        for node in ast.walk(tree(module))
        if isinstance(node, ast.Attribute) and ast.unparse(node) == "options.parse"
    }

    assert asking == {Path("plugin/admin/policy.py")}


@named
def test_importing_does_nothing(module: Path) -> None:
    """No file is read, no logging set up, no process changed, before somebody calls a function."""
    parsed = tree(module)
    own = {
        node.name
        for node in parsed.body
        if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef)
    }
    called = {
        ast.unparse(node.func): node.lineno
        for node in at_import(parsed)
        if isinstance(node, ast.Call)
    }

    assert {
        name: line for name, line in called.items() if name not in AT_IMPORT and name not in own
    } == {}


@named
def test_only_what_starts_a_process_configures_logging(module: Path) -> None:
    configuring = {
        name
        for name in calls_in(tree(module))
        if re.search(r"basicConfig|dictConfig|addHandler|setLevel", name)
    }

    allowed = module.stem in {"__main__", "process", "forkserver", "log"}
    assert allowed or configuring == set()


@named
def test_a_file_and_a_function_fit_the_eye(module: Path) -> None:
    assert len((REPOSITORY / module).read_text().splitlines()) <= LONGEST_FILE
    long = {
        node.name: (node.end_lineno or 0) - node.lineno + 1
        for node in ast.walk(tree(module))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        and (node.end_lineno or 0) - node.lineno + 1 > LONGEST_FUNCTION
    }

    assert long == {}
