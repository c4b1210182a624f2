"""PostgreSQL with pgbench(1) in a container, on the volume at /data.

All commands run as Debian's user `postgres`. The server's log and the clients' output are in the
container, and not on the volume. Two groups of clients work at once. One runs pgbench's own
transactions. The other makes, fills, vacuums and drops tables, so that files come and go.
"""

import re
import time
from typing import NamedTuple

from docker.models.containers import Container

from tests.support.tools.driver import execute

LIMIT_S = 60.0
CLUSTER, SOCKET, LOG = "/data/cluster", "/tmp", "/tmp/server.log"
CLIENTS = 4
# Small, so that pages are read and written all the time; with fsync and full pages, as by default.
SETTINGS = (
    *("shared_buffers=4MB", "listen_addresses=", f"unix_socket_directories={SOCKET}"),
    *("max_wal_size=64MB", "checkpoint_timeout=30s", "autovacuum_naptime=1s"),
)
TABLES = """
CREATE TABLE t_:client_id AS SELECT n, md5(n::text) AS text FROM generate_series(1, 500) AS n;
CREATE INDEX ON t_:client_id (text);
UPDATE t_:client_id SET text = text || n WHERE n % 3 = 0;
VACUUM t_:client_id;
CHECKPOINT;
DROP TABLE t_:client_id;
"""
# Batch after batch until /tmp/enough is there. A batch that fails is the last one.
BATCHES = """
while [ ! -e /tmp/enough ]; do
    pgbench -h /tmp -n -T 1 $WORDS postgres || { echo FAILED; exit; }
done >> /tmp/$NAME 2>&1
echo DONE >> /tmp/$NAME
"""
SUMS = """
SELECT (SELECT sum(abalance) FROM pgbench_accounts), (SELECT sum(tbalance) FROM pgbench_tellers),
       (SELECT sum(bbalance) FROM pgbench_branches), (SELECT sum(delta) FROM pgbench_history),
       (SELECT count(*) FROM pgbench_history)
"""
GROUPS = {"bank": f"-c {CLIENTS}", "tables": "-c 2 -f /tmp/tables.sql"}
_PROCESSED = re.compile(r"number of transactions actually processed: (\d+)")
_FAILED = re.compile(r"number of failed transactions: (\d+)")
_ALARMING = re.compile(r"\b(WARNING|ERROR|FATAL|PANIC)\b|could not|was terminated")


class Transactions(NamedTuple):
    """The numbers of transactions of the two groups."""

    bank: int
    tables: int


class Postgres:
    """A server and its clients."""

    def __init__(self, container: Container) -> None:
        """Make a cluster with checksums, and start its server and the clients."""
        self._container = container
        execute(container, f"install -d -o postgres -g postgres -m 0700 {CLUSTER}")
        self._run(f"initdb -D {CLUSTER} -N --data-checksums -A trust --no-locale -E UTF8")
        self._start()
        self._run(f"pgbench -h {SOCKET} -i -q -s 1 postgres")
        self._run(f"cat > /tmp/tables.sql <<'END'{TABLES}END")
        for name, words in GROUPS.items():
            container.exec_run(
                ["bash", "-c", BATCHES],
                user="postgres",
                environment={"NAME": name, "WORDS": words},
                detach=True,
            )

    def finish(self) -> Transactions:
        """End the clients, check all that the server has, and return the numbers of transactions.

        The server ends without a checkpoint, so that the next one replays its log from the volume.
        """
        execute(self._container, "touch /tmp/enough")
        done = Transactions(*(self._processed(name) for name in GROUPS))
        sums = self._sums()
        assert sums == [*[sums[0]] * 4, str(done.bank)]
        self._run(f"pg_ctl stop -D {CLUSTER} -m immediate -w -s")
        self._start()
        assert self._sums() == sums
        self._run(f"pg_amcheck -h {SOCKET} -d postgres --install-missing --heapallindexed")
        self._run(f"pg_ctl stop -D {CLUSTER} -m fast -w -s")
        self._run(f"pg_checksums --check -D {CLUSTER}")
        complaints = self.complaints()
        assert not complaints, complaints
        return done

    def complaints(self) -> list[str]:
        """Return the lines of the server's log and of the clients that tell of anything wrong."""
        text = execute(self._container, f"cat {LOG} {' '.join(f'/tmp/{name}' for name in GROUPS)}")
        return [line for line in text.splitlines() if _ALARMING.search(line)]

    def _start(self) -> None:
        options = " ".join(f"-c {setting}" for setting in SETTINGS)
        self._run(f"pg_ctl start -D {CLUSTER} -l {LOG} -w -s -o '{options}'")

    def _processed(self, name: str) -> int:
        """Wait for the end of a group of clients; return the number of its transactions."""
        limit = time.monotonic() + LIMIT_S
        while not (text := execute(self._container, f"cat /tmp/{name}")).endswith("DONE\n"):
            assert "FAILED" not in text, f"{text}\n{self.complaints()}"
            assert time.monotonic() < limit, f"the clients hang: {text[-1000:]}"
            time.sleep(0.05)
        assert set(_FAILED.findall(text)) == {"0"}
        return sum(map(int, _PROCESSED.findall(text)))

    def _sums(self) -> list[str]:
        """Return the sum of each table of pgbench, and the number of rows of its history."""
        return self._run(f"psql -X -A -t -F ' ' -h {SOCKET} -d postgres -c '{SUMS}'").split()

    def _run(self, command: str) -> str:
        path = 'PATH="$(echo /usr/lib/postgresql/*/bin):$PATH"'
        return execute(self._container, f"export {path}; cd /tmp; {command}", user="postgres")
