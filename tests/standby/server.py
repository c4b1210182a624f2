"""PostgreSQL with pgbench(1): no failed transaction, equal sums, and a right checksum in each page.

The programs are those of Debian's package `postgresql-N`; its user `postgres` runs them.
"""

import contextlib
import os
import pwd
import re
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

from tests.soak.model import WrongError, expect
from tests.standby.load import Load, Task
from tests.support.tools.callers import Caller

LIMIT_S = 120.0
SECONDS = 1
SHOWN = 2_000
"""Characters of the server's log in a report."""
CLIENTS = 2
BATCH = ("-n", "-c", str(CLIENTS), "-T", str(SECONDS))
SUMS = """
SELECT (SELECT sum(abalance) FROM pgbench_accounts), (SELECT sum(tbalance) FROM pgbench_tellers),
       (SELECT sum(bbalance) FROM pgbench_branches), (SELECT sum(delta) FROM pgbench_history),
       (SELECT count(*) FROM pgbench_history)
"""
_PROCESSED = re.compile(r"transactions actually processed: (\d+)")
_FAILED = re.compile(r"number of failed transactions: (\d+)")
# Small, and with the checks that find lost and torn writes.
SETTINGS = (
    *("shared_buffers=4MB", "listen_addresses=", "full_page_writes=on", "fsync=on"),
    *("max_wal_size=64MB", "checkpoint_timeout=30s", "autovacuum_naptime=1s", "log_statement=none"),
)


def programs() -> Path | None:
    """Return the directory of the programs, or None if they are not installed."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
    return found[-1].parent if found else None


def owner() -> Caller:
    """Return the user that runs the programs."""
    entry = pwd.getpwnam("postgres")
    return Caller("postgres", entry.pw_uid, entry.pw_gid)


class Server(Load):
    """A server on the mount, and its clients."""

    SHORT = False

    def prepare(self) -> None:
        """Make an empty cluster, and a directory outside of the mount for the socket."""
        self.place.beneath.chmod(0o700)
        caller = owner()
        os.chown(self.place.beneath, caller.uid, caller.gid)
        words = ("initdb", "-D", str(self.place.beneath), "-k", "-N", "-A", "trust", "--no-locale")
        caller.run(lambda: run(*words))

    def tasks(self) -> Sequence[tuple[Caller, Callable[[], Task]]]:
        """Return the process that starts the server, and then runs pgbench."""
        return [(owner(), lambda: _Clients(self))]

    def wrong(self, results: Sequence[object]) -> list[str]:
        """Check the pages of the stopped server on the host."""
        del results
        try:
            owner().run(lambda: run("pg_checksums", "--check", "-D", str(self.place.beneath)))
        except WrongError as error:
            return [str(error)]
        return []


def run(program: str, *words: str) -> str:
    """Run a program of PostgreSQL, and return its output.

    Raises:
        WrongError: the program has failed.
    """
    directory = programs()
    assert directory is not None
    done = subprocess.run(
        [directory / program, *words],
        cwd="/",
        env={"PATH": os.defpath, "LC_ALL": "C"},
        capture_output=True,
        stdin=subprocess.DEVNULL,
        timeout=LIMIT_S,
        check=False,
        text=True,
    )
    if done.returncode:
        raise WrongError(f"{program}: exit status {done.returncode}\n{done.stdout}{done.stderr}")
    return done.stdout


class _Clients:
    def __init__(self, load: Server) -> None:
        self.steps = load.steps(0)
        self._data = str(load.place.seen)
        self._log = f"{self._data}/server.log"
        self._socket = tempfile.mkdtemp(prefix="passfs-postgres-")
        self._processed = 0
        settings = " ".join(f"-c {setting}" for setting in SETTINGS)
        options = f"{settings} -k {self._socket}"
        started = False
        try:
            run("pg_ctl", "start", "-w", "-s", "-D", self._data, "-l", self._log, "-o", options)
            started = True
            run("pgbench", "-h", self._socket, "-i", "-q", "-s", "1", "postgres")
        except BaseException as error:
            with contextlib.suppress(OSError):
                error.add_note(Path(self._log).read_text(errors="replace")[-SHOWN:])
            self._stop(started=started)
            raise

    def step(self) -> None:
        """Run transactions of several clients for a second, and compare the sums."""
        try:
            output = run("pgbench", "-h", self._socket, *BATCH, "postgres")
            failed, processed = _FAILED.search(output), _PROCESSED.search(output)
            expect("failed transactions", failed and failed[1], "0")
            self._processed += int(processed[1]) if processed else 0
            self._compare()
        except BaseException:
            self._stop(started=True)
            raise

    def _compare(self) -> None:
        words = ("-X", "-A", "-t", "-F", " ", "-h", self._socket, "-d", "postgres", "-c", SUMS)
        *sums, count = run("psql", *words).split()
        expect("number of sums", len(sums), 4)
        expect("sums of all tables", sums, [sums[0]] * 4)
        expect("transactions", int(count), self._processed)

    def end(self) -> int:
        """Stop the server; return the number of transactions."""
        if not self._processed:
            self.step()
        try:
            run(
                "pg_amcheck",
                "-h",
                self._socket,
                "-d",
                "postgres",
                "--install-missing",
                "--heapallindexed",
            )
            log = Path(self._log).read_text(errors="replace")
            if "PANIC" in log or "ERROR" in log:
                raise WrongError(f"the server has logged:\n{log[-SHOWN:]}")
        finally:
            self._stop(started=True)
        return self._processed

    def _stop(self, *, started: bool) -> None:
        if started:
            with contextlib.suppress(WrongError):
                run("pg_ctl", "stop", "-m", "fast", "-w", "-s", "-D", self._data)
        shutil.rmtree(self._socket, ignore_errors=True)
