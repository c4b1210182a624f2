"""The shape of the program: the imports of each module, and the contents that each file may have.

The docstring of each package lists its rooms and modules from the top down, and the docstring of
each room lists the modules in it. A module imports only from lines below its own. The tables here
hold the other rules.

Each rule is a function that returns the violations of one module. The rules cover Cython modules
(.pyx, .pxd). They have no syntax tree here: regular expressions find their imports.
"""

import ast
import re
import sys
import tomllib
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[1]
PACKAGES = ("passthrough", "plugin", "benchmarks")
SUFFIXES = (".py", ".pyx", ".pxd")
LONGEST_FILE, LONGEST_FUNCTION = 400, 50

# The modules of `passthrough` that other packages import. `plugin` imports the options, the
# id maps, the hand-over to a worker and its control page, the names of requests, the features of
# INIT, and the system calls around a mount. `passfs doctor` asks the kernel for its INIT, and knows
# what the sandbox needs. The benchmarks start the programs and read mounts.
KNOWN_OF_OTHERS = {
    "passthrough": set[str](),
    "plugin": {
        *("options.choices", "options.effective", "options.parsing", "options.sessions"),
        *("options.owner", "options.table", "options.timeouts", "options.vocabulary"),
        *("identity.idmap", "session.abi"),
        *("worker.control", "worker.counters", "worker.events", "worker.fuse_mount"),
        *("session.negotiation", "session.probe"),
        *("worker.handover", "worker.live", "worker.sandbox", "worker.seccomp"),
        *("linux.filehandles", "linux.kernel_features", "linux.mountinfo"),
        *("linux.pidfd", "linux.privileges", "linux.syscalls"),
        # `passfs mount` needs no plugin.
        *(f"standalone.{name}" for name in ("background", "foreground", "making")),
        *(f"standalone.{name}" for name in ("statuses", "unmounting", "words")),
    },
    "benchmarks": {
        *("options.choices", "options.parsing", "options.table", "worker.fuse_mount"),
        *("linux.kernel_features", "linux.mountinfo", "linux.syscalls"),
    },
}

# Each foreign library, and the only modules that import it.
DOORS = {
    "pyfuse3": {"passthrough/session/libfuse.py", "passthrough/core/binding.pyx"},
    # The benchmarks count events of the kernel.
    "ctypes": {
        "passthrough/linux/syscalls.py",
        "passthrough/linux/privileges.py",
        "passthrough/linux/memory.py",
        "benchmarks/requests.py",
    },
    "docker": {"plugin/install/engine.py"},
    "h11": {"plugin/api/connection.py"},
    "prometheus_client": {"plugin/metrics/exposition.py"},
    "trio": {
        f"plugin/{name}.py"
        for name in (
            *("app", "api/connection", "api/server", "volumes/driver", "volumes/source_check"),
            *("volumes/changing", "volumes/check", "volumes/creating", "volumes/details"),
            *("metrics/metrics", "metrics/snapshot"),
            *("volumes/volume_locks", "mounting/keeper", "mounting/detaching"),
            *("mounting/succession", "mounting/mount_spec", "mounting/mount"),
            *("mounting/worker", "mounting/standby", "mounting/spawner", "mounting/worker_output"),
            *("mounting/process", "mounting/orphans", "threads"),
        )
    },
    "typer": {
        "passthrough/__main__.py",
        "plugin/cli/app.py",
        "plugin/cli/completion.py",
        "plugin/cli/installing.py",
        "plugin/cli/measuring.py",
        "plugin/cli/machine.py",
        "plugin/cli/mounting.py",
        "plugin/cli/volumes.py",
        "benchmarks/__main__.py",
    },
    "rich": {
        *("plugin/cli/display.py", "plugin/commands/screen.py", "plugin/commands/terminal.py"),
        "benchmarks/__main__.py",
    },
    # The benchmarks run a database in a volume.
    "sqlite3": {
        *(f"plugin/volumes/{name}.py" for name in ("registry", "schema", "database")),
        "benchmarks/work.py",
    },
}

# Any module may import these: msgspec turns text into values, and does nothing else; the others are
# Cython's declarations of C.
FREE = {"msgspec", "cpython", "cython", "libc", "posix"}

# Modules that compute values: no system call, no file, no clock.
PURE = {
    "passthrough/options/cache_policy.py",
    "passthrough/options/choices.py",
    "passthrough/options/effective.py",
    "passthrough/options/owner.py",
    "passthrough/options/parsing.py",
    "passthrough/options/sessions.py",
    "passthrough/options/table.py",
    "passthrough/options/timeouts.py",
    "passthrough/standalone/words.py",
    "passthrough/worker/handover.py",
    "passthrough/identity/idmap.py",
    "passthrough/options/values.py",
    "passthrough/options/vocabulary.py",
    "plugin/commands/load.py",
    "plugin/counted.py",
    "plugin/commands/units.py",
    "plugin/doctor/finding.py",
    "plugin/errors.py",
    "plugin/volumes/differences.py",
    "plugin/volumes/old_names.py",
    "plugin/volume_options.py",
    "plugin/foreign_options.py",
    "plugin/admin/address.py",
    "plugin/admin/policy.py",
    "plugin/protocol.py",
    "plugin/admin/settings.py",
    "plugin/volumes/health.py",
    "plugin/volumes/status.py",
    "plugin/volume.py",
    "benchmarks/markdown.py",
    "benchmarks/picture.py",
    "benchmarks/plan.py",
    "benchmarks/report.py",
    "benchmarks/table.py",
    "benchmarks/verdict.py",
}
# The standard library as far as pure modules import it, and the calls that they must not make.
PURE_LIBRARY = {
    *("collections", "contextlib", "datetime", "difflib", "enum", "errno", "functools", "hashlib"),
    *(
        "html",
        "ipaddress",
        "itertools",
        "logging",
        "math",
        "operator",
        "os",
        "pathlib",
        "re",
        "stat",
    ),
    *("statistics", "struct", "textwrap", "typing", "urllib"),
}
PURE_OF_OS = {"os.path.normpath", "os.path.join", "os.fsencode", "os.fsdecode", "os.strerror"}
IMPURE_CALLS = re.compile(
    r"open|os\..*|.*\.(now|today|cwd|home|exists|is_dir|is_file|iterdir|mkdir|stat|unlink)"
    r"|.*\.(read|write)_(bytes|text)"
)

# The calls that may run while a module is imported, beside its own classes and functions. They make
# a value, a type or a logger, load the C library, or return the path of the package.
AT_IMPORT = {
    *("re.compile", "struct.Struct", "Struct", "frozenset", "TypeVar", "ParamSpec", "NewType"),
    *("ctypes.byref", "ctypes.c_long", "ctypes.c_size_t", "ctypes.sizeof"),
    *("ctypes.CDLL", "ctypes.PyDLL", "logging.getLogger", "logging.getLevelName"),
    *("contextlib.nullcontext", "FIXED.items", "int"),
    *("typer.Typer", "typer.Option", "typer.Argument", "app.callback", "app.command", "Console"),
    *("Path", "Path(__file__).resolve", "msgspec.field", "values.word"),
    "values.word_or_auto",
    *("Event", "events.refused"),  # rows of the table of events, and a decorator
    *("Line", "cold", "warm", "Peer"),  # rows of the benchmarks' tables
}


def sources() -> list[Path]:
    """Return the paths of all modules, Cython's included, below the repository."""
    return [
        path.relative_to(REPOSITORY)
        for package in PACKAGES
        for path in sorted((REPOSITORY / package).rglob("*"))
        if path.suffix in SUFFIXES
    ]


def modules() -> list[Path]:
    """Return the paths of the modules with a syntax tree."""
    return [module for module in sources() if module.suffix == ".py"]


def text(module: Path) -> str:
    return (REPOSITORY / module).read_text()


def tree(module: Path) -> ast.Module:
    return parsed_file(REPOSITORY / module)


@cache
def parsed_file(path: Path) -> ast.Module:
    return ast.parse(path.read_text(), str(path))


def imports(module: Path) -> list[str]:
    """Return every dotted name that *module* imports, also within functions."""
    if module.suffix != ".py":
        return cython_imports(text(module))
    found = []
    for node in ast.walk(tree(module)):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0
            found += [f"{node.module}.{alias.name}" for alias in node.names]
    return found


def cython_imports(source: str) -> list[str]:
    """Return the names behind `import`, `cimport`, `from ... import` and `from ... cimport`."""
    found = []
    for line in re.findall(r"^\s*c?import\s+([^#\n]+)", source, re.MULTILINE):
        found += names(line)
    statement = r"^\s*from\s+([\w.]+)\s+c?import\s+(\([^)]*\)|[^(#\n]+)"
    for origin, line in re.findall(statement, source, re.MULTILINE):
        assert not origin.startswith("."), origin
        found += [f"{origin}.{name}" for name in names(line)]
    return found


def names(line: str) -> list[str]:
    """Return the names in the list *line* of an import, without their aliases and comments."""
    words = re.sub(r"#.*", "", line).strip("() \n").split(",")
    return [word.split()[0] for word in words if word.strip()]


def module_of(name: str) -> Path | None:
    """Return the path of our module that the dotted *name* is, or lies in."""
    parts = tuple(name.split("."))
    if parts[0] not in PACKAGES:
        return None
    while len(parts) > 1:
        for suffix in SUFFIXES:
            if (REPOSITORY / Path(*parts)).with_suffix(suffix).is_file():
                return Path(*parts).with_suffix(suffix)
        parts = parts[:-1]
    return Path(*parts) / "__init__.py"


def own_imports(module: Path) -> set[Path]:
    """Return our modules that *module* imports; a .pyx module reads the .pxd file of its name."""
    found = {module_of(name) for name in imports(module)} - {None}
    return {path for path in found if path and path.with_suffix("") != module.with_suffix("")}


def order(package: Path) -> list[str]:
    """Return the modules and packages in *package*, as its docstring lists them."""
    listed = ast.get_docstring(tree(package / "__init__.py")) or ""
    return re.findall(r"^ {4}(\w+)(?:\.py|/)? {2,}\S", listed, re.MULTILINE)


def packages() -> list[Path]:
    return [module.parent for module in modules() if module.name == "__init__.py"]


def upward_imports(module: Path) -> set[Path]:
    """Return the imports of *module* from its own package that do not run down the list."""
    own = module.with_suffix("").parts
    if module.name == "__init__.py":
        return own_imports(module)
    found = set()
    for path in own_imports(module):
        other = path.with_suffix("").parts
        if other[0] != own[0]:
            continue
        level = next(n for n, (a, b) in enumerate(zip(own, other, strict=False)) if a != b)
        package = Path(*own[:level])
        lines = order(package)
        if lines.index(own[level]) >= lines.index(other[level]):
            found.add(path)
        if other[:2] == ("plugin", "install") and own[1] not in {"install", "doctor", "cli"}:
            found.add(path)
    return found


def foreign_imports(module: Path) -> set[str]:
    """Return the libraries that *module* imports and must not."""
    foreign = {name.split(".")[0] for name in imports(module)} - set(PACKAGES)
    behind_doors = {name for name in foreign if str(module) not in DOORS.get(name, {str(module)})}
    return behind_doors | (foreign - sys.stdlib_module_names - {*DOORS, *FREE})


def waits(module: Path) -> set[str]:
    """Return the words of asynchronous code in *module*."""
    if module.suffix != ".py":
        return set(re.findall(r"\b(?:async|await)\b", text(module)))
    asynchronous = ast.AsyncFunctionDef | ast.Await | ast.AsyncFor | ast.AsyncWith
    nodes = ast.walk(tree(module))
    return {type(node).__name__ for node in nodes if isinstance(node, asynchronous)}


def too_long(module: Path) -> dict[str, int]:
    """Return the lengths in lines of the file and the functions that are too long."""
    lines = len(text(module).splitlines())
    found = {module.name: lines} if lines > LONGEST_FILE else {}
    if module.suffix != ".py":
        return found
    return found | {
        node.name: length
        for node in ast.walk(tree(module))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        and (length := (node.end_lineno or 0) - node.lineno + 1) > LONGEST_FUNCTION
    }


def impurities(module: Path) -> set[str]:
    """Return the imports and calls of *module* that a pure module must not have.

    From a module that is not pure it may import constants, and names for annotations alone. The
    pure modules that it imports obey the same rule, so that no helper hides a system call.
    """
    parsed = tree(module)
    foreign = {name.split(".")[0] for name in imports(module)} - {*PACKAGES, *FREE, *PURE_LIBRARY}
    calls = {call for call in calls_in(parsed) if IMPURE_CALLS.fullmatch(call)} - PURE_OF_OS
    return foreign | calls | (impure_names(parsed) & names_in_use(parsed))


def impure_names(parsed: ast.Module) -> set[str]:
    """Return the names that a module imports from impure ones of our own, without constants."""
    return {
        alias.asname or alias.name
        for node in ast.walk(parsed)
        if isinstance(node, ast.Import | ast.ImportFrom)
        for alias in node.names
        if not alias.name.isupper()
        and (path := module_of(f"{getattr(node, 'module', '')}.{alias.name}".strip(".")))
        and str(path) not in PURE
    }


def names_in_use(parsed: ast.Module) -> set[str]:
    """Return the names that a module loads outside of annotations."""
    annotations = [
        annotation
        for node in ast.walk(parsed)
        for field in ("annotation", "returns")
        if isinstance(annotation := getattr(node, field, None), ast.AST)
    ]
    within = {id(node) for annotation in annotations for node in ast.walk(annotation)}
    loaded = (node for node in ast.walk(parsed) if isinstance(node, ast.Name))
    return {node.id for node in loaded if id(node) not in within}


def calls_in(node: ast.AST) -> set[str]:
    return {ast.unparse(call.func) for call in ast.walk(node) if isinstance(call, ast.Call)}


def at_import(node: ast.AST) -> Iterator[ast.AST]:
    """Yield the parts of a module that run when it is imported: all but the bodies of functions."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.If) and ast.unparse(child.test) == "__name__ == '__main__'":
            continue
        if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef):
            for part in [*child.decorator_list, *child.args.defaults, *child.args.kw_defaults]:
                if part is not None:
                    yield from (part, *at_import(part))
        elif not isinstance(child, ast.Lambda):
            yield from (child, *at_import(child))


each_source = pytest.mark.parametrize("module", sources(), ids=str)
each_module = pytest.mark.parametrize("module", modules(), ids=str)


@pytest.mark.parametrize("package", packages(), ids=str)
def test_a_package_lists_each_of_its_modules_once(package: Path) -> None:
    below = {path.parts[len(package.parts)] for path in sources() if package in path.parents}

    assert sorted(order(package)) == sorted({Path(name).stem for name in below} - {"__init__"})


def test_every_package_is_installed() -> None:
    """An editable installation finds a package that is not listed; the plugin's image does not."""
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())
    present = {".".join(module.parts[:-1]) for module in modules()}

    # The benchmarks run in a checkout.
    assert set(project["tool"]["setuptools"]["packages"]) == present - {"benchmarks"}


@each_source
def test_imports_run_down_the_list_only(module: Path) -> None:
    assert upward_imports(module) == set()


@each_source
def test_packages_know_little_of_each_other(module: Path) -> None:
    """The file system knows nothing of Docker, and the plugin little of the file system."""
    other = {
        ".".join(path.with_suffix("").parts[1:])
        for path in own_imports(module)
        if path.parts[0] != module.parts[0]
    }

    assert other <= KNOWN_OF_OTHERS[module.parts[0]]


@each_source
def test_only_listed_modules_import_a_foreign_library(module: Path) -> None:
    """A new library needs a row in DOORS."""
    assert foreign_imports(module) == set()


@each_source
def test_no_code_below_the_session_is_asynchronous(module: Path) -> None:
    """At an await, another request could run as the user that the thread acts as."""
    above = {"session", "worker/process.py", "worker/forkserver.py", "__main__.py"}
    exempt = {Path("passthrough", name) for name in above} & {module, *module.parents}

    assert module.parts[0] != "passthrough" or exempt or waits(module) == set()


def test_every_door_is_used() -> None:
    used = {(name.split(".")[0], str(module)) for module in sources() for name in imports(module)}

    assert {(lib, door) for lib, doors in DOORS.items() for door in doors} <= used


@pytest.mark.parametrize("module", sorted(map(Path, PURE)), ids=str)
def test_a_pure_module_does_no_io_by_itself_or_through_helpers(module: Path) -> None:
    assert impurities(module) == set()


def test_only_the_policy_parses_the_options_of_volumes() -> None:
    parsing = {
        module
        for module in modules()
        for node in ast.walk(tree(module))
        if isinstance(node, ast.Attribute) and ast.unparse(node) == "volume_options.parse"
    }

    assert parsing == {Path("plugin/admin/policy.py")}


@each_module
def test_importing_a_module_has_no_effect(module: Path) -> None:
    """An import reads no file, sets up no logging and changes no process."""
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


@each_module
def test_only_a_module_that_starts_a_process_configures_logging(module: Path) -> None:
    configuring = {
        name
        for name in calls_in(tree(module))
        if re.search(r"basicConfig|dictConfig|addHandler|setLevel", name)
    }

    allowed = module.stem in {"__main__", "process", "forkserver", "log"}
    assert allowed or configuring == set()


@each_source
def test_files_and_functions_are_short(module: Path) -> None:
    assert too_long(module) == {}


CYTHON = """
cimport cython, libc.errno as errno  # of C
import trio
from libc.stdint cimport (
    uint32_t,  # a nodeid's half
    uint64_t as u64,
)
from passthrough.worker.process import main
cdef extern from "linux/fuse.h":
    int FUSE_ROOT_ID
cdef class Table:
    def look_up(self):
        from passthrough.linux import syscalls
"""


def test_the_imports_of_a_cython_module_are_found() -> None:
    assert sorted(cython_imports(CYTHON)) == [
        *("cython", "libc.errno", "libc.stdint.uint32_t", "libc.stdint.uint64_t"),
        *("passthrough.linux.syscalls", "passthrough.worker.process.main", "trio"),
    ]


@pytest.fixture
def repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A repository of one package, with a Cython module that breaks each rule for one."""
    core, worker = tmp_path / "passthrough" / "core", tmp_path / "passthrough" / "worker"
    for package, listed in (
        (core.parent, "    worker/  starts\n    core/  serves\n    linux  calls"),
        (core, "    table  nodeids\n"),
        (worker, "    process  runs\n"),
    ):
        package.mkdir(exist_ok=True)
        (package / "__init__.py").write_text(f'"""A package:\n\n{listed}\n\nThat is all.\n"""\n')
    (core.parent / "linux.py").write_text("")
    (worker / "process.py").write_text("")
    (core / "table.pyx").write_text(CYTHON + "async def wait(): pass\n" + "\n" * LONGEST_FILE)
    (core / "table.pxd").write_text("from passthrough.worker cimport process\n")
    monkeypatch.setattr(sys.modules[__name__], "REPOSITORY", tmp_path)
    return tmp_path


@pytest.mark.usefixtures("repository")
def test_the_rules_hold_for_cython_modules() -> None:
    source, header = Path("passthrough/core/table.pyx"), Path("passthrough/core/table.pxd")

    assert {source, header} <= set(sources())
    above = {Path("passthrough/worker/process.py")}
    assert upward_imports(source) == upward_imports(header) == above
    assert foreign_imports(source) == {"trio"}
    assert waits(source) == {"async"}
    assert list(too_long(source)) == ["table.pyx"]


@pytest.mark.parametrize(
    ("line", "impurity"),
    [
        ("from passthrough.linux import memory\nmemory.use_one_arena()", "memory"),
        ("from passthrough.linux.kernel_features import linux_release as r\nr()", "r"),
        ("from passthrough.session.rare import Rare\nclass A(Rare): ...", "Rare"),
        ("import time", "time"),
        ("open('/proc/version')", "open"),
        ("os.getpid()", "os.getpid"),
        ("datetime.now(UTC)", "datetime.now"),
        ("path.read_text()", "path.read_text"),
    ],
)
def test_an_impurity_is_found(line: str, impurity: str, tmp_path: Path) -> None:
    module = tmp_path / "module.py"
    module.write_text(line)

    (found,) = impurities(module)
    assert found == impurity


def test_a_constant_or_a_type_makes_a_module_no_less_pure(tmp_path: Path) -> None:
    module = tmp_path / "module.py"
    module.write_text(
        "from passthrough.linux.mountinfo import FSTYPE, MountEntry\n"
        "def is_ours(mount: MountEntry) -> bool:\n"
        "    return mount.fstype == FSTYPE\n"
    )

    assert impurities(module) == set()
