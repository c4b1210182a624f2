"""Lines: real programs over a tree of files, one after the other, as a user would run them.

Each program finds the files and the kernel's caches as the one before has left them. So if a plan
asks for one of these lines, all of them run.
"""

import io
import os
import random
import sqlite3
import subprocess
import tarfile
from contextlib import closing

from benchmarks.lines import Line, Site

_FILES = 3000
_PER_DIRECTORY = 25
_TRANSACTIONS = 400
_WORDS = ("the", "kernel", "sends", "a", "request", "and", "worker", "answers", "with", "error")
_TIME = 1_700_000_000

# The result depends neither on a user's settings nor on the clock.
_ENVIRONMENT = {
    "PATH": os.defpath,
    "HOME": "/nonexistent",
    "LC_ALL": "C",
    "GIT_CONFIG_GLOBAL": "/dev/null",
    "GIT_CONFIG_NOSYSTEM": "1",
    "GIT_CONFIG_COUNT": "1",
    "GIT_CONFIG_KEY_0": "gc.auto",
    "GIT_CONFIG_VALUE_0": "0",
    **{
        f"GIT_{role}_{field}": value
        for role in ("AUTHOR", "COMMITTER")
        for field, value in (("NAME", "n"), ("EMAIL", "n@example"), ("DATE", f"{_TIME} +0000"))
    },
}


def _run(at: Site, *words: str) -> int:
    """Run a program in the mount.

    Raises:
        subprocess.CalledProcessError: it failed; has its standard error.
    """
    subprocess.run(
        words,
        cwd=at.mount,
        env=_ENVIRONMENT,
        check=True,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )
    return 1


def _archive(at: Site) -> None:
    """Make the tree as an archive in scratch: the same bytes each time, file sizes like sources."""
    path = f"{at.scratch}/tree.tar"
    if os.path.exists(path):
        return
    chance = random.Random(2)  # noqa: S311 - reproducible, not secret
    with tarfile.open(path, "w") as archive:
        for n in range(at.scaled(_FILES)):
            group = n // _PER_DIRECTORY
            member = tarfile.TarInfo(f"tree/part{group % 12}/unit{group}/file{n}.txt")
            length = min(int(chance.lognormvariate(8, 1.2)), 1 << 18)
            words = " ".join(chance.choices(_WORDS, k=200))
            text = (f"file {n}\n{words}\n".encode() * (length // 800 + 1))[:length]
            member.size, member.mtime, member.mode = length, _TIME, 0o644
            archive.addfile(member, io.BytesIO(text))


def _unprepared(_at: Site) -> None:
    """Do nothing: the line before has left the files that are needed."""


def _unpack(at: Site) -> int:
    return _run(at, "tar", "-xf", f"{at.scratch}/tree.tar")


def _walk(at: Site) -> int:
    return _run(at, "find", "tree", "-type", "f", "-size", "+0")


def _grep(at: Site) -> int:
    return _run(at, "grep", "-r", "-l", "file 1$", "tree")


def _add(at: Site) -> int:
    _run(at, "git", "init", "-q", "tree")
    return _run(at, "git", "-C", "tree", "add", "-A")


def _commit(at: Site) -> int:
    return _run(at, "git", "-C", "tree", "commit", "-q", "-m", "all")


def _status(at: Site) -> int:
    return _run(at, "git", "-C", "tree", "status", "--porcelain")


def _copy(at: Site) -> int:
    return _run(at, "cp", "-a", "tree", "copy")


def _remove(at: Site) -> int:
    return _run(at, "rm", "-rf", "tree", "copy")


def _database(at: Site, mode: str) -> int:
    """Run transactions as a small service does: insert a row, update one, select one."""
    path = f"{at.mount}/{mode}.db"
    with closing(sqlite3.connect(path, isolation_level=None)) as database:
        set_to = database.execute(f"PRAGMA journal_mode={mode}").fetchone()[0]
        if set_to != mode:
            raise OSError(f"SQLite keeps journal_mode={set_to} in place of {mode}")
        database.execute("CREATE TABLE entries (id INTEGER PRIMARY KEY, name TEXT, size INTEGER)")
        database.execute("CREATE INDEX by_name ON entries (name)")
        for n in range(at.scaled(_TRANSACTIONS)):
            database.execute("BEGIN IMMEDIATE")
            database.execute("INSERT INTO entries VALUES (?, ?, ?)", (n, f"name {n * 7919}", n))
            database.execute("UPDATE entries SET size = size + 1 WHERE id = ?", (n // 2,))
            database.execute("COMMIT")
            database.execute("SELECT size FROM entries WHERE name = ?", (f"name {n}",)).fetchall()
    return 1


def _rollback_journal(at: Site) -> int:
    return _database(at, "delete")


def _write_ahead_log(at: Site) -> int:
    return _database(at, "wal")


LINES = (
    Line("unpack", "work", "run", _archive, _unpack),
    Line("walk", "work", "run", _unprepared, _walk),
    Line("grep", "work", "run", _unprepared, _grep),
    Line("git add", "work", "run", _unprepared, _add),
    Line("git commit", "work", "run", _unprepared, _commit),
    Line("git status", "work", "run", _unprepared, _status),
    Line("cp -a", "work", "run", _unprepared, _copy),
    Line("SQLite, rollback journal", "work", "run", _unprepared, _rollback_journal),
    Line("SQLite, write-ahead log", "work", "run", _unprepared, _write_ahead_log),
    Line("rm -rf", "work", "run", _unprepared, _remove),
)
