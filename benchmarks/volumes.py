"""The costs of a volume: processor time of a request, memory while idle, time of Mount."""

import contextlib
import http.client
import json
import os
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

from benchmarks import processes
from benchmarks.lines import Site
from benchmarks.plan import Plan
from benchmarks.report import Amount, Cost
from benchmarks.rounds import in_child
from benchmarks.subjects import REPOSITORY, Directories, Subject, SubjectError, mounted

_REQUESTS = 100_000
_NEW, _KNOWN = 10_000, 1000
_VOLUMES = 100
_MOUNTS = 21
_PLUGIN_START_S, _SETTLING_S, _POLL_S = 20.0, 5.0, 0.01
_US, _MS, _MIB = 1e6, 1e3, 1 << 20
_WITH_FORK_SERVER = "idle volume and its share of the fork server"

_Work = Callable[[Site], Iterator[Callable[[], int]]]
"""Prepares a site, and yields batches: functions that cause requests and return their number."""


# Processor time


def request_costs(plan: Plan, fuse: list[Subject], at: Directories) -> list[Cost]:
    """Return the processor time of the serving processes for one LOOKUP and one GETATTR."""
    new = Cost(name="LOOKUP, new to the worker", unit="µs", of={})
    known = Cost(name="LOOKUP, known to the worker", unit="µs", of={})
    attributes = Cost(name="GETATTR", unit="µs", of={})
    for subject in fuse:
        runs = [(new, subject, _look_up_new)]
        if subject.name in plan.passfs:
            # With this timeout of 0 the kernel sends this request each time, and no other.
            runs += [
                (known, subject.with_options(entry_timeout="0"), _look_up_known),
                (attributes, subject.with_options(attr_timeout="0"), _get_attributes),
            ]
        for cost, variant, work in runs:
            try:
                cost.of[subject.name] = _cost(plan, variant, at, work)
            except SubjectError as error:
                cost.failures[subject.name] = str(error)
    return [new, known, attributes]


def _cost(plan: Plan, subject: Subject, at: Directories, work: _Work) -> Amount:
    with mounted(subject, at) as servers:
        site = Site(str(at.source), str(at.mountpoint), str(at.scratch), servers, plan.scaled)
        result: Any = list(in_child(lambda send: send(_measure(site, work))))[-1]
    if isinstance(result, str):
        raise SubjectError(result)
    requests, cpu, user, system = result
    return Amount(
        value=cpu * _US / requests,
        count=int(requests),
        user=user * _US / requests,
        system=system * _US / requests,
    )


def _measure(at: Site, work: _Work) -> list[float]:
    """Return the number of requests, and the servers' processor seconds: all, user, system."""
    sums = [0.0] * 4
    for batch in work(at):
        processes.settle(at.servers)
        before = [processes.cpu_seconds(at.servers), *processes.user_and_system(at.servers)]
        requests = batch()
        after = [processes.cpu_seconds(at.servers), *processes.user_and_system(at.servers)]
        spent = [now - then for now, then in zip(after, before, strict=True)]
        sums = [one + more for one, more in zip(sums, [requests, *spent], strict=True)]
    return sums


def _paths(at: Site, count: int) -> list[str]:
    """Make *count* files in the source, and return their paths through the mount."""
    names = [f"{n // _KNOWN:03}/{n % _KNOWN:03}" for n in range(count)]
    for name in names:
        os.makedirs(os.path.dirname(f"{at.source}/requests/{name}"), exist_ok=True)
        with open(f"{at.source}/requests/{name}", "wb"):
            pass
    return [f"{at.mount}/requests/{name}" for name in names]


def _look_up_new(at: Site) -> Iterator[Callable[[], int]]:
    """Look up the same names repeatedly, with the caches dropped before each batch.

    One batch stays below any limit of open files.
    """
    paths = _paths(at, at.scaled(_NEW))

    def look_up() -> int:
        for path in paths:
            os.stat(path)
        return len(paths)

    for _ in range(_REQUESTS // _NEW):
        at.drop()
        yield look_up


def _look_up_known(at: Site) -> Iterator[Callable[[], int]]:
    directory = os.path.dirname(_paths(at, _KNOWN)[0])
    names = sorted(os.listdir(directory))
    # Paths relative to a descriptor spare the lookups of the directories above.
    fd = os.open(directory, os.O_RDONLY)

    def look_up() -> int:
        for name in names:
            os.stat(name, dir_fd=fd)
        return len(names)

    look_up()
    for _ in range(max(1, at.scaled(_REQUESTS) // len(names))):
        yield look_up


def _get_attributes(at: Site) -> Iterator[Callable[[], int]]:
    fd = os.open(_paths(at, 1)[0], os.O_RDONLY)
    count = at.scaled(_REQUESTS)

    def get() -> int:
        for _ in range(count):
            os.fstat(fd)
        return count

    yield get


# Memory and Mount


def volume_costs(plan: Plan, passfs: list[Subject], at: Directories) -> list[Cost]:
    """Measure through the plugin's socket, with one volume and with many."""
    many = plan.scaled(_VOLUMES, least=2)
    costs: dict[int, list[Cost]] = {
        count: [
            Cost(name=f"idle volume, {count} mounted", unit="MiB PSS", of={}),
            Cost(name=f"{_WITH_FORK_SERVER}, {count} mounted", unit="MiB PSS", of={}),
            Cost(name=f"Mount, {count} mounted", unit="ms", of={}),
        ]
        for count in (1, many)
    }
    for subject in passfs:
        with _plugin(at.scratch) as plugin:
            for count, rows in costs.items():
                try:
                    amounts = _volumes(plan, plugin, count, subject.options)
                except SubjectError as error:
                    for cost in rows:
                        cost.failures[subject.name] = str(error)
                    continue
                for cost, amount in zip(rows, amounts, strict=True):
                    cost.of[subject.name] = amount
    return [cost for row in zip(*costs.values(), strict=True) for cost in row]


def _volumes(
    plan: Plan, plugin: "_Plugin", count: int, options: Mapping[str, str]
) -> tuple[Amount, Amount, Amount]:
    """Return the amounts for *count* volumes: memory without and with the fork server, and Mount.

    The memory of a volume is that of its worker and of the worker's guards, a process group.
    """
    plugin.mount_up_to(count, options)
    deadline = time.monotonic() + _SETTLING_S
    while True:
        started = processes.descendants(plugin.pid)
        # The fork server shares its memory with these processes and has no mount.
        of_volumes = set(processes.serving()) & set(started)
        if len(processes.groups(of_volumes)) == count or time.monotonic() > deadline:
            break  # the processes of unmounted volumes have ended
        time.sleep(_POLL_S)
    processes.settle(started)
    memory = [processes.proportional_bytes(pids) / _MIB / count for pids in (of_volumes, started)]
    times = [plugin.time_mount(options) for _ in range(plan.scaled(_MOUNTS, least=3))]
    return (
        Amount(value=memory[0], count=count),
        Amount(value=memory[1], count=count),
        Amount(value=statistics.median(times) * _MS, count=len(times)),
    )


class _Plugin:
    """A running plugin, with a client of its socket in place of dockerd."""

    def __init__(self, socket_path: Path, pid: int) -> None:
        self.pid = pid
        self._socket_path = socket_path
        self._mounted = 0

    def mount_up_to(self, count: int, options: Mapping[str, str]) -> None:
        while self._mounted < count:
            name = f"volume{self._mounted}"
            self.call("Create", Name=name, Opts=dict(options))
            self.call("Mount", Name=name, ID="one")
            self._mounted += 1

    def time_mount(self, options: Mapping[str, str]) -> float:
        """Return the seconds from Mount's request to its answer, and unmount the volume."""
        self.call("Create", Name="timed", Opts=dict(options))
        before = time.perf_counter()
        self.call("Mount", Name="timed", ID="one")
        seconds = time.perf_counter() - before
        self.call("Unmount", Name="timed", ID="one")
        return seconds

    def call(self, verb: str, **fields: object) -> None:
        client = http.client.HTTPConnection("plugin")
        client.sock = socket.socket(socket.AF_UNIX)
        with closing(client):
            client.sock.connect(str(self._socket_path))
            client.request("POST", f"/VolumeDriver.{verb}", json.dumps(fields))
            answer = client.getresponse()
            body = answer.read().decode()
        if answer.status != http.HTTPStatus.OK:
            raise SubjectError(f"the plugin's {verb} failed: {body}")


@contextmanager
def _plugin(scratch: Path) -> Iterator[_Plugin]:
    own = scratch / "plugin"
    own.mkdir()
    environment = os.environ | {
        "PASSFS_SOCKET": str(own / "socket"),
        "PASSFS_DATA_DIR": str(own / "data"),
        "PASSFS_MOUNT_DIR": str(own / "mounts"),
        "PASSFS_LOG_LEVEL": "warning",
    }
    process = subprocess.Popen(
        [sys.executable, "-m", "plugin", "serve"], cwd=REPOSITORY, env=environment
    )
    try:
        plugin = _Plugin(own / "socket", process.pid)
        _wait_until_serving(plugin, process)
        yield plugin
    finally:
        process.terminate()
        process.wait()
        subprocess.run(["rm", "-rf", "--one-file-system", own], check=True)


def _wait_until_serving(plugin: _Plugin, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + _PLUGIN_START_S
    while time.monotonic() < deadline and process.poll() is None:
        with contextlib.suppress(FileNotFoundError, ConnectionRefusedError):
            plugin.call("Capabilities")
            return
        time.sleep(_POLL_S)
    raise SubjectError("the plugin does not start")
