"""How the managed plugin learns that its engine has been started anew, and why it may end then.

The engine reaches our mounts by a directory that it has bound to itself, shared with us. With
live-restore an engine that ends leaves us running; but if no container ran, it unmounts that
directory on its side (moby, plugin.Manager.Shutdown), and the next engine makes it again only for a
plugin that it starts. What we mount then reaches nobody: a container gets the empty directory
beneath, and what it writes goes there.

Nothing on our side tells. But an engine that has started, or found us running when it was started
itself, opens our socket once and closes it without a word. The first such greeting is of the engine
that started us. At the next one we end, if nothing is mounted: the engine starts a plugin that has
ended anew, at once, directory included, and asks again what it could not ask meanwhile. Where a
volume is mounted a container has been running, and the engine has left everything as it was.
"""

import logging
import os
import signal
from collections.abc import Callable
from pathlib import Path

from passthrough.linux import mountinfo

log = logging.getLogger(__name__)

# A greeting is over at once. Clients may also open a connection, not need it and close it later:
# the engine does so after 30 s.
GREETING_S = 10.0


class Greetings:
    """Counts the engine's greetings, and ends the plugin when an engine is new to it."""

    def __init__(self, mount_dir: Path, idle: Callable[[], bool]) -> None:
        """Listen to what is said of *mount_dir*; *idle* tells that nothing is mounted there."""
        # In the managed plugin it is a mount, the engine's. A service on the host mounts in a
        # directory that is there whatever engines do, and nobody starts it again.
        target = os.fsencode(mount_dir.resolve())
        self._renewable = any(entry.target == target for entry in mountinfo.read())
        self._idle = idle
        self._heard = 0

    def hear(self, seconds: float) -> None:
        """Take note of a connection that was closed without a word after *seconds*."""
        if not self._renewable or seconds > GREETING_S:
            return
        self._heard += 1
        if self._heard > 1 and self._idle():
            log.info("the engine has been started anew; ending, so that it starts this plugin anew")
            signal.raise_signal(signal.SIGTERM)
