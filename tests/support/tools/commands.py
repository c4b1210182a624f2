"""The commands about volumes, run in this process beside a plugin that runs as a process."""

import json
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

from typer.testing import CliRunner

from plugin.__main__ import app
from tests.support.tools.service import Service


@contextmanager
def using(service: Service, volume: str) -> Iterator[int]:
    """Have a process with a mount namespace of its own use *volume*, as a container; yield its id.

    Its mount point is the directory `inner` of the service.
    """
    target = service.directory / "inner"
    target.mkdir(exist_ok=True)
    bind = f"mount --bind {service.directory}/mounts/{volume} {target} && echo && read end"
    command = ["unshare", "--mount", "sh", "-c", bind]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        yield process.pid


class Done(NamedTuple):
    """A command that has ended."""

    returncode: int
    stdout: str
    stderr: str


def passfs(service: Service, *arguments: str) -> Done:
    """Run a command that asks the plugin of *service*."""
    return run(*arguments, "--data-dir", str(service.directory / "data"))


def run(*arguments: str, **environment: str) -> Done:
    """Run a command with more variables in its *environment*."""
    result = CliRunner(env=environment).invoke(app, arguments)
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exc_info
    return Done(result.exit_code, result.stdout, result.stderr)


def status(service: Service, volume: str) -> Any:
    """Return the JSON of `passfs status` about *volume*, without rates of requests."""
    return json.loads(printed(service, "status", volume, "--interval", "0", "--json"))


def processes_of(service: Service, volume: str) -> list[dict[str, Any]]:
    """Return the processes of *volume* in `passfs status`."""
    found: list[dict[str, Any]] = status(service, volume)["processes"]
    return found


def printed(service: Service, *arguments: str) -> str:
    """Return the output of a command that succeeds."""
    done = passfs(service, *arguments)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout
