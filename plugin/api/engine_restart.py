"""The end of a managed plugin after a restart of its engine.

The engine makes a directory, binds it to itself, and shares it with the plugin: containers reach
the plugin's mounts through it. With live-restore, an engine that ends leaves the plugin running.
But if no container runs, the ending engine unmounts that directory in its own mount namespace
(moby, plugin.Manager.Shutdown; seen with 20.10). The next engine makes the directory again only for
a plugin that it starts. If the next engine does not make the directory, no container sees the
plugin's mounts: a container gets the empty directory beneath, and writes its files there.

No event tells the plugin of the restart. But an engine probes the socket after it has started the
plugin, and also if it finds the plugin running at its own start: it opens a connection and closes
it without sending a byte. The first probe is from the engine that started the plugin. At each later
probe the plugin ends, if no volume is mounted. The engine at once restarts a plugin that has ended,
makes its directory, and repeats the requests that failed meanwhile. If a volume is mounted, a
container was running, and the engine has left the directory as it was.
"""

import logging
import signal
from collections.abc import Callable

log = logging.getLogger(__name__)

# A probe is over at once. The engine also closes unused connections, but after 30 s.
LONGEST_PROBE_S = 10.0


class RestartDetector:
    """Counts the engine's probes; at each one after the first, ends a plugin without mounts.

    It is for a managed plugin only: no engine would start a service on the host again.
    """

    def __init__(self, is_idle: Callable[[], bool]) -> None:
        """*is_idle* returns true if no volume is mounted, and no Mount is in flight."""
        self._is_idle = is_idle
        self._probes = 0

    def note_probe(self, seconds: float) -> None:
        """Count a connection that was closed after *seconds* without a byte sent."""
        if seconds > LONGEST_PROBE_S:
            return
        self._probes += 1
        if self._probes > 1 and self._is_idle():
            log.info("the engine has been restarted; ending, so that it restarts this plugin")
            signal.raise_signal(signal.SIGTERM)
