"""The requests to a Docker engine: its plugins, and the containers that use their volumes.

The only module that imports docker-py. Each function raises InstallationError if the engine
refuses the request, with the engine's own reason.
"""

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeAlias

import docker
from docker.errors import APIError, DockerException, NotFound

from plugin.install.installation import InstallationError

Client: TypeAlias = docker.APIClient

FAILURES = (DockerException, OSError)
"""The errors of docker-py, and those of the library `requests`, which are OSErrors."""

_TIMEOUT = 180  # seconds; the engine itself gives a plugin 120 for Create and Mount


def connect(limit_s: float = _TIMEOUT) -> Client:
    """Return a client of the engine that DOCKER_HOST names, else of the local one.

    The caller closes the client. *limit_s* is for each answer.

    Raises:
        InstallationError: no engine answers.
    """
    try:
        return Client(**docker.utils.kwargs_from_env(), version="auto", timeout=limit_s)
    except DockerException as error:
        address = os.environ.get("DOCKER_HOST", "unix:///var/run/docker.sock")
        raise InstallationError(
            f"no Docker engine answers at {address} ({error}). Is it installed and running, "
            "and may you use it?"
        ) from error


@contextmanager
def request(action: str, hint: str = "") -> Iterator[None]:
    """Turn a failed request into a sentence: *action*, and the engine's reason.

    Raises:
        InstallationError: the block has raised one of FAILURES.
    """
    try:
        yield
    except FAILURES as error:
        message = f"the engine could not {action}: {reason(error)}"
        raise InstallationError(f"{message}. {hint}".rstrip()) from error


def reason(error: Exception) -> str:
    """Return the engine's explanation of *error*, else its text."""
    explanation = error.explanation if isinstance(error, APIError) else None
    return str(explanation or error).rstrip(". \n")


def info(client: Client) -> Mapping[str, Any]:
    """Return the engine's description of itself (`docker info`)."""
    with request("describe itself"):
        answer: Mapping[str, Any] = client.info()
    return answer


def version(client: Client) -> Mapping[str, Any]:
    """Return the engine's version, and that of its API (`docker version`)."""
    with request("tell its version"):
        answer: Mapping[str, Any] = client.version()
    return answer


def plugins(client: Client) -> list[dict[str, Any]]:
    """Return the descriptions of all managed plugins."""
    with request("list its plugins"):
        answer: list[dict[str, Any]] = client.plugins()
    return answer


def containers_with_volumes(client: Client, name: str) -> list[str]:
    """Return the names of the running containers that have a volume of the plugin *name*."""
    drivers = {name, name if ":" in name.rpartition("/")[2] else f"{name}:latest"}
    with request("list its containers"):
        running = client.containers()
    return sorted(
        container["Names"][0].lstrip("/")
        for container in running
        if any(mount.get("Driver") in drivers for mount in container["Mounts"])
    )


def inspect(client: Client, name: str) -> dict[str, Any] | None:
    """Return the description of the plugin *name*, or None if there is no such plugin."""
    with request(f"inspect the plugin {name}"):
        try:
            plugin: dict[str, Any] = client.inspect_plugin(name)
        except NotFound:
            return None
    return plugin


def create(client: Client, name: str, directory: Path, settings: Mapping[str, str]) -> None:
    """Create the plugin *name* from *directory*, with *settings*; it is disabled."""
    with request(f"create the plugin {name}"):
        client.create_plugin(name, str(directory))
    configure(client, name, settings)


def configure(client: Client, name: str, settings: Mapping[str, str]) -> None:
    """Give the disabled plugin *name* new *settings*."""
    with request(f"configure the plugin {name}"):
        client.configure_plugin(name, dict(settings))


def enable(client: Client, name: str) -> None:
    """Start the plugin *name*."""
    hint = "The messages of the plugin are in the engine's log (journalctl -u docker)."
    with request(f"enable the plugin {name}", hint):
        client.enable_plugin(name, timeout=0)  # 0: the engine's own limits for each call


def disable(client: Client, plugin: Mapping[str, Any]) -> None:
    """Stop the inspected *plugin*, unless it is disabled."""
    if plugin["Enabled"]:
        # By force, because the engine counts each volume that exists as a use, mounted or not.
        with request(f"disable the plugin {plugin['Name']}"):
            client.disable_plugin(plugin["Name"], force=True)


def remove(client: Client, name: str) -> None:
    """Disable and remove the plugin *name*."""
    with request(f"remove the plugin {name}"):
        disable(client, client.inspect_plugin(name))
        client.remove_plugin(name, force=True)
