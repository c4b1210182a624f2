"""What the engine asks of the plugin when a user of Docker does something, and a user to do it.

The table was recorded from an engine (20.10); tests/engine/test_counts.py holds it against one. The
calls for one container have one mount id, from start to stop and in what is copied meanwhile; each
copy to or from a stopped container has an id of its own, and so has the filling of an empty volume.
"""

from collections.abc import Mapping

from tests.support.fakes.dockerd import Answer, Dockerd

CALLS: Mapping[str, tuple[str, ...]] = {
    # The engine finds a driver by its socket, and asks what it is.
    "create the first volume": ("Activate", "Capabilities", "Get", "Create"),
    "create": ("Get", "Create"),
    "create again": ("Get",),
    "create a container": ("Get",),
    # An empty volume is filled with what the image has at its place.
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
    # Of the engine; a Get for each volume that it remembers.
    "restart": ("Activate", "Capabilities", "Get"),
    "remove after a restart": ("Get", "Get", "Get", "Remove"),
}

WITHOUT_NAME = {"Activate", "Capabilities", "List"}
WITH_ID = {"Mount", "Unmount"}


class User:
    """Someone who uses Docker, seen from the plugin."""

    def __init__(self, dockerd: Dockerd) -> None:
        self._dockerd = dockerd

    async def act(self, action: str, name: str, mount_id: str = "", **options: str) -> None:
        """Do *action*, a row of `CALLS`, with the volume *name*; nothing in it may be refused."""
        verbs = CALLS[action]
        for verb in verbs:
            answer = await self._ask(verb, name, mount_id, options)
            # Whether there is such a volume the engine asks before it makes one.
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
