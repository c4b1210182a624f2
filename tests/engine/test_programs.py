"""Real programs in containers, on a volume of each installation."""

import subprocess
from pathlib import Path

from tests.support.tools.driver import Driver

SETUP = """
from setuptools import setup
setup(name="tiny", version="1.0", py_modules=["tiny"])
"""

# Two processes insert at once; each statement waits for the lock of the other process.
SQLITE = """
sql() { sqlite3 -cmd '.timeout 20000' /data/$MODE.db "$@"; }
sql "PRAGMA journal_mode=$MODE" 'CREATE TABLE t (n)' > /dev/null
for writer in 1 2; do
    (for i in $(seq 50); do sql 'INSERT INTO t VALUES (1)'; done) &
done
wait
sql 'PRAGMA integrity_check' 'SELECT count(*) FROM t'
"""


def test_git_clones_a_local_repository_into_a_volume(driver: Driver, source: Path) -> None:
    repository = source / "repository"
    git = ["git", "-c", "user.name=t", "-c", "user.email=t@example.org"]
    subprocess.run([*git, "init", "-q", repository], check=True, timeout=60)
    for number in range(200):
        (repository / f"file-{number}").write_text(f"{number}\n" * number)
    subprocess.run([*git, "add", "."], cwd=repository, check=True, timeout=60)
    subprocess.run([*git, "commit", "-qm", "files"], cwd=repository, check=True, timeout=60)
    with driver.volume() as volume:
        driver.run(
            volume,
            "git config --global --add safe.directory '*';"
            "git clone -q /from/repository /data/clone; cd /data/clone;"
            'git fsck --full; test -z "$(git status --porcelain)"; test $(ls | wc -l) = 200',
            mounts=[_bind(source, "/from")],
        )


def test_pip_installs_a_wheel_into_a_volume(driver: Driver, source: Path) -> None:
    (source / "setup.py").write_text(SETUP)
    (source / "tiny.py").write_text("ANSWER = 42\n")
    with driver.volume() as volume:
        answer = driver.run(
            volume,
            "cp -r /from /tmp/tiny; cd /tmp/tiny; python3 setup.py -q bdist_wheel >/dev/null 2>&1;"
            "pip install -q --root-user-action=ignore --no-index --target /data/lib dist/*.whl;"
            "cd /; export PYTHONPATH=/data/lib;"
            "python3 -c 'import tiny; print(tiny.ANSWER, tiny.__file__)'",
            mounts=[_bind(source, "/from")],
        )
        assert answer == "42 /data/lib/tiny.py\n"


def test_sqlite_works_in_both_journal_modes(driver: Driver) -> None:
    """WAL needs shared memory maps and byte-range locks on the volume."""
    with driver.volume() as volume:
        for mode in ("delete", "wal"):
            assert driver.run(volume, SQLITE, environment={"MODE": mode}) == "ok\n100\n"


def _bind(source: Path, target: str) -> dict[str, object]:
    return {"Type": "bind", "Source": str(source), "Target": target, "ReadOnly": True}
