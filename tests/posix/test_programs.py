"""Programs that users run on volumes: git, SQLite, pip, cp, tar, find, rm, sed, sh."""

import contextlib
import functools
import os
import signal
import sqlite3
import stat
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.tools.callers import Caller, together

PROGRAM_LIMIT_S = 60.0
SECOND_NS = 1_000_000_000


def run(*words: str | Path, cwd: Path, **environment: str) -> str:
    """Run a program in an environment of its own, and return its output; it must succeed."""
    result = subprocess.run(
        words,
        cwd=cwd,
        env={"PATH": os.environ["PATH"], "HOME": str(cwd), "LC_ALL": "C.UTF-8", **environment},
        capture_output=True,
        text=True,
        check=False,
        timeout=PROGRAM_LIMIT_S,
    )
    assert result.returncode == 0, f"{words}: {result.stdout}{result.stderr}"
    return result.stdout


def git(cwd: Path, *words: str | Path) -> str:
    """Run git with a fixed author and without configuration."""
    author = {"NAME": "Author", "EMAIL": "author@example.org"}
    names = {f"GIT_{role}_{key}": author[key] for role in ("AUTHOR", "COMMITTER") for key in author}
    return run(
        "git", *words, cwd=cwd, GIT_CONFIG_NOSYSTEM="1", GIT_CONFIG_GLOBAL=os.devnull, **names
    )


def test_git(directory: Path) -> None:
    """Git makes a repository, commits, clones, packs, and finds no damage: git(1)."""
    repository, clone = directory / "repository", directory / "clone"
    git(directory, "init", "--initial-branch", "main", repository)
    for number in range(20):
        path = repository / f"directory {number % 4}" / f"file {number}"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(os.urandom(3_000))
    (repository / "program").write_text("#!/bin/sh\n")
    (repository / "program").chmod(0o755)
    (repository / "link").symlink_to("program")
    git(repository, "add", ".")
    git(repository, "commit", "--message", "first")
    git(directory, "clone", repository, clone)
    (clone / "program").write_text("#!/bin/sh\ntrue\n")
    git(clone, "commit", "--all", "--message", "second")
    git(repository, "fetch", clone, "main")
    git(repository, "merge", "--ff-only", "FETCH_HEAD")
    git(repository, "gc", "--quiet")
    git(repository, "fsck", "--full", "--strict")

    assert git(repository, "status", "--porcelain") == ""
    assert git(repository, "rev-parse", "HEAD") == git(clone, "rev-parse", "HEAD")
    assert (repository / "program").read_text() == "#!/bin/sh\ntrue\n"
    assert os.readlink(clone / "link") == "program"
    assert os.access(clone / "program", os.X_OK)


@contextlib.contextmanager
def database(path: Path) -> Iterator[sqlite3.Connection]:
    """Open a database with a lock timeout of 30 s; commit if the block raises nothing."""
    with contextlib.closing(sqlite3.connect(path, timeout=30)) as connection, connection:
        yield connection


@pytest.mark.parametrize("mode", ["delete", "truncate", "persist", "wal"])
def test_sqlite(directory: Path, caller: Caller, mode: str) -> None:
    """Processes that write to one database at once lose nothing, in each journal mode."""
    path = directory / "database"
    writers, rows = 2, 25
    with database(path) as connection:
        assert connection.execute(f"pragma journal_mode={mode}").fetchone() == (mode,)
        connection.execute("create table record (writer integer, number integer, content blob)")

    def insert(writer: int) -> None:
        for number in range(rows):
            with database(path) as connection:
                row = (writer, number, bytes(2_000))
                connection.execute("insert into record values (?, ?, ?)", row)

    together(caller.start(functools.partial(insert, writer)) for writer in range(writers))

    with database(path) as connection:
        found = connection.execute("select writer, number from record order by 1, 2").fetchall()
        assert connection.execute("pragma integrity_check").fetchone() == ("ok",)
    assert found == [(writer, number) for writer in range(writers) for number in range(rows)]


def test_sqlite_rolls_back(directory: Path, caller: Caller) -> None:
    """SQLite undoes the transaction of a killed process by its journal."""
    path = directory / "database"
    with database(path) as connection:
        connection.execute("create table record (number integer)")
        connection.execute("insert into record values (1)")
    reader, writer = os.pipe()

    def die_inside() -> None:
        with contextlib.closing(sqlite3.connect(path)) as connection:
            connection.execute("pragma cache_size=1")
            connection.executemany(
                "insert into record values (?)", ((number,) for number in range(2, 50_000))
            )
            os.write(writer, b"!")
            signal.pause()

    with caller.start(die_inside) as dying:
        assert os.read(reader, 1) == b"!"
        assert (directory / "database-journal").exists()
        dying.kill()
    os.close(reader)
    os.close(writer)

    with database(path) as connection:
        assert connection.execute("select number from record").fetchall() == [(1,)]
        assert connection.execute("pragma integrity_check").fetchone() == ("ok",)


def wheel(path: Path) -> None:
    """Make the wheel of a distribution with one module and one command."""
    information = "sample-1.0.dist-info"
    files = {
        "sample.py": "def main():\n    print('sample works')\n",
        f"{information}/METADATA": "Metadata-Version: 2.1\nName: sample\nVersion: 1.0\n",
        f"{information}/WHEEL": "Wheel-Version: 1.0\nGenerator: hand\n"
        "Root-Is-Purelib: true\nTag: py3-none-any\n",
        f"{information}/entry_points.txt": "[console_scripts]\nsample = sample:main\n",
    }
    record = "".join(f"{name},,\n" for name in [*files, f"{information}/RECORD"])
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in {**files, f"{information}/RECORD": record}.items():
            archive.writestr(name, content)


@pytest.mark.privileged
@pytest.mark.large
def test_venv_and_pip(directory: Path) -> None:
    """A virtual environment on the mount takes a wheel, and its command runs: venv, pip."""
    archive, environment = directory / "sample-1.0-py3-none-any.whl", directory / "environment"
    wheel(archive)
    run(sys.executable, "-m", "venv", "--without-pip", environment, cwd=directory)
    pip = (sys.executable, "-m", "pip", "--python", environment / "bin" / "python")
    options = (
        "--no-index",
        "--no-deps",
        "--disable-pip-version-check",
        "--root-user-action=ignore",
    )
    run(*pip, "install", *options, archive, cwd=directory)

    assert run(environment / "bin" / "sample", cwd=directory) == "sample works\n"


def varied_tree(top: Path) -> None:
    """Make a tree with files of every type and attribute that an archive must keep."""
    (top / "directory" / "inner").mkdir(parents=True)
    (top / "directory").chmod(0o750)
    (top / "file").write_bytes(os.urandom(100_000))
    (top / "hard link").hardlink_to(top / "file")
    (top / "program").write_text("#!/bin/sh\n")
    (top / "program").chmod(0o755)
    (top / "empty").touch(0o600)
    (top / "symlink").symlink_to("directory/inner")
    (top / "dangling").symlink_to("nowhere")
    os.mkfifo(top / "fifo")
    (top / "fifo").chmod(0o620)
    (top / os.fsdecode(b"n\xe4me")).touch()
    with (top / "sparse").open("wb") as file:
        file.truncate(1 << 20)
    os.setxattr(top / "file", "user.name", b"value")
    for number, path in enumerate(sorted(top.rglob("*"), reverse=True)):
        times = (SECOND_NS * number, SECOND_NS * (1_000 + number) + 123_456_789)
        os.utime(path, ns=times, follow_symlinks=False)


def description(top: Path) -> dict[str, tuple[object, ...]]:
    """Return name -> content and attributes that a copy with metadata must preserve."""
    found: dict[str, tuple[object, ...]] = {}
    for path in sorted(top.rglob("*")):
        status = path.lstat()
        kind = stat.S_IFMT(status.st_mode)
        content: object = None
        if kind == stat.S_IFREG:
            content = path.read_bytes()
        elif kind == stat.S_IFLNK:
            content = os.readlink(path)
        attributes = os.listxattr(path, follow_symlinks=False)
        found[str(path.relative_to(top))] = (
            *(oct(status.st_mode), status.st_uid, status.st_gid, status.st_mtime_ns),
            *(status.st_nlink if kind == stat.S_IFREG else None, content, sorted(attributes)),
        )
    return found


def test_cp_preserves(directory: Path) -> None:
    """A copy by `cp -a` has all files with mode, owner, times, links and attributes: cp(1)."""
    (directory / "source").mkdir()
    varied_tree(directory / "source")
    run("cp", "-a", "source", "copy", cwd=directory)

    assert description(directory / "copy") == description(directory / "source")


def test_tar_preserves(directory: Path) -> None:
    """Tar unpacks an archive with the same content and attributes: tar(1)."""
    (directory / "source").mkdir()
    (directory / "copy").mkdir()
    varied_tree(directory / "source")
    options = ("--xattrs", "--format=posix", "--file", "archive.tar")
    run("tar", "--create", *options, "--sparse", "--directory", "source", ".", cwd=directory)
    run("tar", "--extract", *options, "--preserve-permissions", "-C", "copy", cwd=directory)
    run("tar", "--compare", *options, "-C", "copy", cwd=directory)

    assert description(directory / "copy") == description(directory / "source")


def test_find(directory: Path) -> None:
    """Find selects files by type, size, time, owner and link count of stat(2): find(1)."""
    varied_tree(directory)

    def found(*words: str) -> set[str]:
        output = run("find", ".", *words, "-printf", "%P\\0", cwd=directory)
        return set(filter(None, output.split("\0")))

    assert found("-type", "d") == {"directory", "directory/inner"}
    assert found("-type", "p") == {"fifo"}
    assert found("-type", "l") == {"symlink", "dangling"}
    assert found("-xtype", "l") == {"dangling"}
    assert found("-type", "f", "-links", "2") == {"file", "hard link"}
    assert found("-samefile", "file") == {"file", "hard link"}
    assert found("-size", "+90k") == {"file", "hard link", "sparse"}
    assert found("-perm", "620") == {"fifo"}
    assert found("-newermt", "@2000") == set()
    assert found("!", "-uid", str(os.geteuid())) == set()


def test_rm_of_a_tree(directory: Path) -> None:
    """`rm -rf` removes a tree with files of every type: rm(1)."""
    top = directory / "top"
    top.mkdir()
    varied_tree(top)
    for number in range(50):
        path = top / "directory" / str(number % 7) / str(number)
        path.mkdir(parents=True)
        (path / "file").touch()
    run("rm", "-rf", "top", cwd=directory)

    assert os.listdir(directory) == []


def test_script_edits_in_place(directory: Path) -> None:
    """An edit in place replaces a file by a new one with the same mode: sed(1)."""
    path = directory / "file"
    path.write_text("one\ntwo\n")
    path.chmod(0o640)
    before = path.stat().st_ino
    run("sed", "-i", "s/two/three/", "file", cwd=directory)

    assert path.read_text() == "one\nthree\n"
    assert stat.S_IMODE(path.stat().st_mode) == 0o640
    assert path.stat().st_ino != before
    assert os.listdir(directory) == ["file"]


def test_shell_redirections(directory: Path) -> None:
    """A shell creates, appends, reads and pipes: sh(1)."""
    script = "echo one > a; echo two >> a; cat < a > b; sort -r a | tee c > d; ls"

    assert run("sh", "-c", script, cwd=directory).split() == ["a", "b", "c", "d"]
    assert (directory / "b").read_text() == "one\ntwo\n"
    assert (directory / "c").read_text() == (directory / "d").read_text() == "two\none\n"
