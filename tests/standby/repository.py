"""A git repository: commits, branches, clones and collections, with a check of every object."""

import os
import shutil
import subprocess
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from tests.soak.model import WrongError, expect
from tests.standby.load import Load, Task
from tests.support.tools.callers import Caller

FILES = 40
LIMIT_S = 120.0
_ENVIRONMENT: Mapping[str, str] = {
    "PATH": os.defpath,
    "HOME": "/nonexistent",
    "LC_ALL": "C",
    "GIT_CONFIG_GLOBAL": "/dev/null",
    "GIT_CONFIG_NOSYSTEM": "1",
    "GIT_CONFIG_COUNT": "2",
    "GIT_CONFIG_KEY_0": "gc.auto",
    "GIT_CONFIG_VALUE_0": "0",
    "GIT_CONFIG_KEY_1": "safe.directory",
    "GIT_CONFIG_VALUE_1": "*",
    **{
        f"GIT_{role}_{field}": value
        for role in ("AUTHOR", "COMMITTER")
        for field, value in (("NAME", "n"), ("EMAIL", "n@example"))
    },
}


def git(directory: Path, *words: str) -> str:
    """Run git in *directory*, and return its output.

    Raises:
        WrongError: git has failed, or has written to its standard error.
    """
    done = subprocess.run(
        ["git", *words],
        cwd=directory,
        env=_ENVIRONMENT,
        capture_output=True,
        stdin=subprocess.DEVNULL,
        timeout=LIMIT_S,
        check=False,
        text=True,
    )
    if done.returncode or done.stderr:
        raise WrongError(f"git {' '.join(words)}: exit status {done.returncode}\n{done.stderr}")
    return done.stdout


class Repository(Load):
    """One user of git."""

    SHORT = False

    def tasks(self) -> Sequence[tuple[Caller, Callable[[], Task]]]:
        """Return the process that runs git."""
        return [(self.caller(0), lambda: _User(self))]

    def wrong(self, results: Sequence[object]) -> list[str]:
        """Check all objects on the host, and compare the files of the last commit."""
        repository = self.place.beneath / "work"
        found = []
        for right in (result for result in results if isinstance(result, dict)):
            try:
                git(repository, "fsck", "--full", "--strict", "--no-progress", "--no-dangling")
                for name, content in right.items():
                    expect(name, (repository / name).read_bytes(), content)
                    expect(
                        f"{name}, committed",
                        git(repository, "show", f"HEAD:{name}"),
                        content.decode(),
                    )
            except (OSError, WrongError) as error:
                found.append(str(error))
        return found


class _User:
    def __init__(self, load: Repository) -> None:
        self.steps = load.steps(0)
        self._top = load.place.seen
        self._work = load.place.seen / "work"
        self._files: dict[str, bytes] = {}
        self._commits: list[tuple[str, dict[str, bytes]]] = []
        git(self._top, "init", "-q", "-b", "main", "work")
        self._commit()

    def _commit(self) -> None:
        """Change some files, and commit them."""
        rng = self.steps.rng
        for _ in range(rng.randint(1, 10)):
            name = f"part{rng.randrange(4)}/file{rng.randrange(FILES)}"
            path = self._work / name
            if name in self._files and rng.random() < 0.2:
                path.unlink()
                del self._files[name]
                continue
            path.parent.mkdir(exist_ok=True)
            self._files[name] = rng.randbytes(rng.randrange(1, 3_000)).hex().encode()
            path.write_bytes(self._files[name])
        git(self._work, "add", "-A")
        git(self._work, "commit", "-q", "--allow-empty", "-m", "changed")
        commit = git(self._work, "rev-parse", "HEAD").strip()
        self._commits.append((commit, dict(self._files)))

    def step(self) -> None:
        """Commit, or do something with the commits; then compare the files."""
        operations = (self._commit, self._commit, self._look_back, self._clone, self._collect)
        operation = self.steps.rng.choice(operations)
        self.steps.note(operation.__name__)
        operation()
        expect("git status", git(self._work, "status", "--porcelain"), "")

    def _look_back(self) -> None:
        """Check an old commit out, compare its files, and go back."""
        commit, files = self.steps.rng.choice(self._commits)
        git(self._work, "checkout", "-q", commit)
        _compare(self._work, files)
        git(self._work, "checkout", "-q", "main")
        _compare(self._work, self._files)

    def _clone(self) -> None:
        git(self._top, "clone", "-q", "--no-local", "work", "copy")
        _compare(self._top / "copy", self._files)
        git(self._top / "copy", "fsck", "--full", "--no-progress")
        shutil.rmtree(self._top / "copy")

    def _collect(self) -> None:
        git(self._work, "gc", "-q", "--prune=now")
        git(self._work, "fsck", "--full", "--strict", "--no-progress", "--no-dangling")

    def end(self) -> dict[str, bytes]:
        """Return the files of the last commit."""
        return self._files


def _compare(directory: Path, files: Mapping[str, bytes]) -> None:
    """Check that *directory* has these files and no others."""
    seen = {
        str(path.relative_to(directory)): path.read_bytes()
        for path in directory.rglob("*")
        if path.is_file() and ".git" not in path.relative_to(directory).parts
    }
    expect("files checked out", sorted(seen), sorted(files))
    for name, content in files.items():
        expect(name, seen[name], content)
