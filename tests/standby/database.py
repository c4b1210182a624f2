"""SQLite: transactions of several processes in two databases, one for each kind of journal."""

import sqlite3
from collections.abc import Callable, Sequence
from contextlib import closing
from functools import partial

from tests.soak.model import WrongError, expect
from tests.standby.load import Load, Task
from tests.support.tools.callers import Caller

PROCESSES = 2
JOURNALS = ("delete", "wal")
ACCOUNTS = 20
BALANCE = 1_000
BUSY_S = 60.0

_TABLES = """
CREATE TABLE accounts (id INTEGER PRIMARY KEY, balance INTEGER NOT NULL);
CREATE TABLE entries (writer INTEGER, number INTEGER, note TEXT, PRIMARY KEY (writer, number));
CREATE INDEX by_note ON entries (note);
CREATE TABLE lasting (number INTEGER PRIMARY KEY, content TEXT NOT NULL);
"""
LASTING = [(number, f"{number} " * 100) for number in range(200)]
"""Rows that no process changes."""


class Database(Load):
    """Processes that move amounts between accounts, and note each move."""

    def prepare(self) -> None:
        """Make the databases, which all users may write."""
        for journal in JOURNALS:
            path = self.place.beneath / f"{journal}.db"
            with closing(sqlite3.connect(path, isolation_level=None)) as database:
                database.execute(f"PRAGMA journal_mode={journal}")
                database.executescript(_TABLES)
                rows = [(number, BALANCE) for number in range(ACCOUNTS)]
                database.executemany("INSERT INTO accounts VALUES (?, ?)", rows)
                database.execute("BEGIN")
                database.executemany("INSERT INTO lasting VALUES (?, ?)", LASTING)
                database.execute("COMMIT")
            path.chmod(0o666)

    def tasks(self) -> Sequence[tuple[Caller, Callable[[], Task]]]:
        """Return the processes. All have one caller, the owner of the files beside a database."""
        return [(self.caller(0), partial(_Writer, self, n)) for n in range(PROCESSES)]

    def wrong(self, results: Sequence[object]) -> list[str]:
        """Check the databases, by the mount and on the host."""
        found = []
        for side in dict.fromkeys((self.place.seen, self.place.beneath)):
            for journal in JOURNALS:
                path = f"{side}/{journal}.db"
                try:
                    with closing(sqlite3.connect(path, timeout=BUSY_S)) as database:
                        _check(database, journal, results)
                except (sqlite3.Error, WrongError) as error:
                    found.append(f"{path}: {error}")
        return found


def _check(database: sqlite3.Connection, journal: str, results: Sequence[object]) -> None:
    expect("integrity", database.execute("PRAGMA integrity_check").fetchall(), [("ok",)])
    expect("lasting rows", database.execute("SELECT * FROM lasting").fetchall(), LASTING)
    ((total,),) = database.execute("SELECT sum(balance) FROM accounts").fetchall()
    expect("sum of all accounts", total, ACCOUNTS * BALANCE)
    for writer, counts in enumerate(results):
        rows = database.execute(
            "SELECT number FROM entries WHERE writer = ? ORDER BY number", (writer,)
        )
        right = counts[journal] if isinstance(counts, dict) else 0
        expect(f"entries of {writer}", [number for (number,) in rows], list(range(right)))


class _Writer:
    def __init__(self, load: Database, number: int) -> None:
        self.steps = load.steps(number)
        self._number = number
        self._done = dict.fromkeys(JOURNALS, 0)
        self._databases = {
            journal: sqlite3.connect(
                load.place.seen / f"{journal}.db", timeout=BUSY_S, isolation_level=None
            )
            for journal in JOURNALS
        }

    def step(self) -> None:
        """Move an amount from one account to another, and note it, in one transaction."""
        rng = self.steps.rng
        journal = rng.choice(JOURNALS)
        database, number = self._databases[journal], self._done[journal]
        one, two, amount = rng.randrange(ACCOUNTS), rng.randrange(ACCOUNTS), rng.randrange(100)
        self.steps.note(journal, number, one, two, amount)
        database.execute("BEGIN IMMEDIATE")
        ((total,),) = database.execute("SELECT sum(balance) FROM accounts").fetchall()
        expect("sum of all accounts", total, ACCOUNTS * BALANCE)
        for account, change in ((one, -amount), (two, amount)):
            words = "UPDATE accounts SET balance = balance + ? WHERE id = ?"
            database.execute(words, (change, account))
        note = rng.randbytes(rng.randrange(300)).hex()
        database.execute("INSERT INTO entries VALUES (?, ?, ?)", (self._number, number, note))
        if rng.random() < 0.1:
            database.execute("ROLLBACK")
            return
        database.execute("COMMIT")
        self._done[journal] += 1

    def end(self) -> dict[str, int]:
        """Close the databases; return the number of transactions in each."""
        for database in self._databases.values():
            database.close()
        return self._done
