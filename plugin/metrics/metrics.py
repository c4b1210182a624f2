"""The answers at the address of the metrics."""

from collections.abc import Callable
from functools import partial
from typing import TypeAlias

import trio

from plugin.metrics import snapshot
from plugin.metrics.pages import Exposition, Liveness
from plugin.metrics.snapshot import Snapshot
from plugin.mounting.keeper import Keeper
from plugin.mounting.program import version
from plugin.protocol import Reply
from plugin.volumes.details import Details
from plugin.volumes.driver import Driver

Render: TypeAlias = Callable[[Snapshot, str], Exposition]
"""Return the text of a snapshot in a format that an Accept header takes; it may take a second."""


class Metrics:
    """The metrics of the plugin and of all volumes."""

    def __init__(self, driver: Driver, keeper: Keeper, details: Details, render: Render) -> None:
        self._driver = driver
        self._keeper = keeper
        self._details = details
        self._render = render
        self._version = version("passfs")
        # However many clients scrape, requests compete with one thread for the interpreter.
        self._scraping = trio.Lock()
        self._threads = trio.CapacityLimiter(1)

    async def scrape(self, accept: str) -> Reply:
        """Return the metrics, in a format of the Accept header *accept*; empty for any format."""
        async with self._scraping:
            taken = await snapshot.take(self._driver, self._keeper, self._version)
            render = partial(self._render, taken, accept)
            return await trio.to_thread.run_sync(
                render, limiter=self._threads, abandon_on_cancel=True
            )

    async def health(self) -> Reply:
        """Report that the plugin answers; volumes are counted, and do not make it unhealthy."""
        found = await self._details.health()
        return Liveness(
            version=self._version,
            program=found.program,
            volumes=found.volumes,
            mounted=found.mounted,
            lost=found.lost,
        )
