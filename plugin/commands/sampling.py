"""Samples of the load of all volumes, by the plugin's counters and the host's /proc."""

import time
from collections.abc import Callable, Collection, Iterator, Mapping

from plugin.commands import processes, views
from plugin.commands.asking import Plugin
from plugin.commands.load import Reading
from plugin.commands.ranking import CountedMounts, Measured, Ranking, Sample, ranking
from plugin.commands.views import ListedVolumes
from plugin.volumes.health import health


class Sampler:
    """Takes samples of the volumes of one plugin, which may be replaced meanwhile."""

    def __init__(self, plugin: Plugin) -> None:
        self._plugin = plugin
        self._wanted = (0, frozenset[int]())  # the plugin, and its process ids of workers
        self._found: Mapping[int, int] = {}

    def take(self) -> Sample:
        """Return a sample.

        Raises:
            CommandError: no plugin answers.
        """
        counted = self._plugin.ask("/counters", CountedMounts)
        listed = self._plugin.ask("/volumes", ListedVolumes)
        statuses = {volume.name: views.status_of(volume) for volume in listed.volumes}
        pids = self._on_host({each.worker for each in counted.volumes if each.worker})
        return Sample(
            counted.at_ns,
            {
                each.name: Measured(
                    Reading(counted.at_ns, each.counters, each.mount),
                    health(statuses[each.name]),
                    processes.usage(pids[each.worker]) if each.worker in pids else None,
                )
                for each in counted.volumes
                if each.name in statuses  # not removed between the two answers
            },
        )

    def _on_host(self, workers: Collection[int]) -> Mapping[int, int]:
        """Return the ids of *workers* on the host; look for them only if there are others."""
        wanted = (self._plugin.pid, frozenset(workers))
        if wanted != self._wanted:
            self._wanted, self._found = wanted, processes.on_host(*wanted)
        return self._found


def rankings(
    sampler: Sampler, interval_s: float, pause: Callable[[float], object] = time.sleep
) -> Iterator[Ranking]:
    """Yield the volumes by their load, each time after a *pause* of *interval_s*, without end.

    Raises:
        CommandError: no plugin answers.
    """
    before = sampler.take()
    while True:
        pause(interval_s)
        after = sampler.take()
        yield ranking(before, after)
        before = after
