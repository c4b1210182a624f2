"""The engine's calls to the plugin for each action of a Docker user, and a fake user.

The table was recorded with an engine (20.10); tests/engine/test_counts.py compares it with a real
one. All calls for a running container have one mount id, also those for copies meanwhile. A copy
to or from a stopped container has an id of its own, and so has the filling of an empty volume.
"""

from collections.abc import Mapping

from tests.support.fakes.dockerd import Answer, Dockerd

CALLS: Mapping[str, tuple[str, ...]] = {
    # The engine finds a driver by its socket, and asks for its kind and scope.
    "create the first volume": ("Activate", "Capabilities", "Get", "Create"),
    "create": ("Get", "Create"),
    "create again": ("Get",),
    "create a container": ("Get",),
    # The engine fills an empty volume with the image's files at the mount point.
    "create a container with content": ("Get", "Get", "Mount", "Get", "Unmount"),
    "start": ("Get", "Mount"),
    "copy in, running": ("Get", "Mount", "Get", "Unmount"),
    "copy out, running": ("Get", "Mount", "Get", "Unmount"),
    "stop": ("Get", "Unmount"),
    "copy in, stopped": ("Get", "Mount", "Get", "Unmount"),
    "copy out, stopped": ("Get", "Mount", "Get", "Unmount"),
    "remove a container": (),
    "run": ("Get", "Get", "Mount", "Get", "Unmount"),
    "inspect": ("Get",),
    "list": ("List",),
    "remove": ("Get", "Get", "Remove"),
    # A restart of the engine, which sends a Get for each volume that it remembers.
    "restart": ("Activate", "Capabilities", "Get"),
    "remove after a restart": ("Get", "Get", "Get", "Remove"),
}

WITHOUT_NAME = {"Activate", "Capabilities", "List"}
WITH_ID = {"Mount", "Unmount"}


class User:
    """A user of Docker, as the plugin sees the user's actions."""

    def __init__(self, dockerd: Dockerd) -> None:
        self._dockerd = dockerd

    async def act(self, action: str, name: str, mount_id: str = "", **options: str) -> None:
        """Do *action*, a row of `CALLS`, with the volume *name*; every call must succeed."""
        verbs = CALLS[action]
        for verb in verbs:
            answer = await self._ask(verb, name, mount_id, options)
            # Before Create, the engine asks for the volume, which is unknown then.
            unknown = verb == "Get" and "Create" in verbs
            assert answer.status == (404 if unknown else 200), (action, verb, answer)

    async def _ask(self, verb: str, name: str, mount_id: str, options: dict[str, str]) -> Answer:
        if verb == "Activate":
            async with self._dockerd.connection() as connection:
                return await connection.request("/Plugin.Activate", b"")
        fields: dict[str, object] = {} if verb in WITHOUT_NAME else {"Name": name}
        if verb in WITH_ID:
            fields["ID"] = mount_id
        if verb == "Create":
            fields["Opts"] = options
        return await self._dockerd.call(verb, **fields)
