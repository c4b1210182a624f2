"""The shape of the program: who imports whom, and what each file may hold.

The order of the modules is the list in the docstring of each package, `passthrough/__init__.py`,
`plugin/__init__.py` and `benchmarks/__init__.py`: a module imports only those below itself. The
tables here say the rest.
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

# What each package knows of the others. `plugin` knows the contract with a worker and what
# surrounds a mount; the benchmarks start the programs, and look at mounts.
KNOWN_OF_OTHERS = {
    "passthrough": set[str](),
    "plugin": {
        *("config", "decisions", "filehandles", "handover", "idmap", "mount", "mountinfo"),
        *("running", "syscalls"),
    },
    "benchmarks": {"config", "mount", "mountinfo", "syscalls"},
}

# Each foreign library, and the only modules that know it.
DOORS = {
    "pyfuse3": {"passthrough/session/libfuse.py"},
    # listing.py makes the buffer that getdents64(2) fills, rings.py the one that the kernel puts
    # requests into; neither calls anything.
    "ctypes": {
        "passthrough/syscalls.py",
        "passthrough/filecalls.py",
        "passthrough/privileges.py",
        "passthrough/listing.py",
        "passthrough/memory.py",
        "passthrough/session/rings.py",
        "passthrough/session/uring.py",
    },
    "docker": {"plugin/engine.py"},
    "hypercorn": {"plugin/server.py"},
    "starlette": {"plugin/server.py"},
    "trio": {
        f"plugin/{name}.py"
        for name in (
            *("server", "driver", "survey", "turns", "keeper", "detaching"),
            *("worker", "blocking", "forkserver", "output"),
        )
    },
    "typer": {"passthrough/__main__.py", "plugin/__main__.py", "benchmarks/__main__.py"},
    "rich": {"plugin/__main__.py", "benchmarks/__main__.py"},
    # The benchmarks use it as any program does whose database lies in a volume.
    "sqlite3": {"plugin/registry.py", "plugin/database.py", "benchmarks/work.py"},
}

# The one that any module may use: it makes values of text, and does nothing else.
FREE = {"msgspec"}

# Modules that decide and do nothing else: no system call, no file, no clock.
WITHOUT_IO = {
    "passthrough/cache.py",
    "passthrough/choices.py",
    "passthrough/config.py",
    "passthrough/decisions.py",
    "passthrough/handover.py",
    "passthrough/idmap.py",
    "passthrough/opening.py",
    "passthrough/squashing.py",
    "passthrough/values.py",
    "passthrough/vocabulary.py",
    "plugin/errors.py",
    "plugin/oldnames.py",
    "plugin/options.py",
    "plugin/policy.py",
    "plugin/protocol.py",
    "plugin/settings.py",
    "plugin/status.py",
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


def own_imports(module: Path) -> Iterator[tuple[str, str]]:
    """The (package, module) pairs of our own that *module* imports."""
    for name in imports(module):
        package, *rest = name.split(".")
        if package in PACKAGES and rest:
            yield package, rest[0]


def order(package: str) -> list[str]:
    """The modules of *package* from the top down, as its docstring lists them."""
    text = ast.get_docstring(tree(Path(package, "__init__.py"))) or ""
    return [match[1] for match in re.finditer(r"^ {4}(\w+)(?:\.py|/)? {2,}\S", text, re.MULTILINE)]


def name_in(module: Path) -> str:
    """What the list of its package calls *module*: a package inside stands for its modules."""
    return module.parts[1].removesuffix(".py")


named = pytest.mark.parametrize("module", modules(), ids=str)


@pytest.mark.parametrize("package", PACKAGES)
def test_the_list_of_a_package_has_each_of_its_modules_once(package: str) -> None:
    present = {name_in(path) for path in modules() if path.parts[0] == package} - {"__init__"}

    assert sorted(order(package)) == sorted(present)


def test_every_package_is_installed() -> None:
    """An editable installation finds them all, and the one in the plugin's image would not."""
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())
    present = {".".join(module.parts[:-1]) for module in modules()}

    # The benchmarks run in a checkout.
    assert set(project["tool"]["setuptools"]["packages"]) == present - {"benchmarks"}


@named
def test_imports_run_down_the_list_only(module: Path) -> None:
    package = module.parts[0]
    if module.parts[1:] == ("__init__.py",):
        assert list(imports(module)) == []
        return
    listed = order(package)
    own = name_in(module)
    below = set(listed[listed.index(own) + 1 :])
    if package == "plugin" and own != "__main__":
        below.discard("engine")  # which is the installer's alone

    imported = {name for imported_from, name in own_imports(module) if imported_from == package}

    assert imported - {own} <= below
    assert own not in imported or len(module.parts) > 2


@named
def test_the_file_system_knows_nothing_of_docker_and_the_plugin_little_of_it(
    module: Path,
) -> None:
    other = {name for package, name in own_imports(module) if package != module.parts[0]}

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
    above = {"session", "worker", "__main__", "forkserver"}
    waiting = {
        type(node).__name__
        for node in ast.walk(tree(module))
        if isinstance(node, ast.AsyncFunctionDef | ast.Await | ast.AsyncFor | ast.AsyncWith)
    }

    assert module.parts[0] != "passthrough" or name_in(module) in above or waiting == set()


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

    assert asking == {Path("plugin/policy.py")}


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

    allowed = name_in(module) in {"__main__", "worker", "forkserver", "log"}
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
