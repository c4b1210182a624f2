"""The plugin as a whole: its parts, each built on the one before, its start and its end.

    settings   from the environment
    storage    the data directory
    registry   the records; its lock keeps a second plugin away from the parts below
    listener   the socket; connections wait in its queue until the server accepts them
    control    the control socket in the data directory
    metrics    the address of the metrics, if there is one
    inventory  finishes or undoes the removals that an earlier plugin left half done
    keeper     adopts the mounts of an earlier plugin, or clears them away
    driver     the nine verbs
    server     HTTP

At the end they are taken down in the reverse order.
"""

import logging
import os
import resource
import signal
import socket
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from functools import partial

import trio

from passthrough.linux import kernel_features
from plugin import log as logs, threads
from plugin.admin import host
from plugin.admin.host import HostFacts
from plugin.admin.settings import LogFormat, Settings
from plugin.admin.source import HostView
from plugin.api.answers import Answers
from plugin.api.engine_restart import RestartDetector
from plugin.api.listening import controlling, exporting, listening
from plugin.api.server import control, export, serve
from plugin.errors import CannotStart, InvalidSetting
from plugin.metrics.metrics import Metrics, Render
from plugin.mounting.fd_store import NOTHING_INHERITED, Inherited, inherited
from plugin.mounting.keeper import Keeper, keeping
from plugin.mounting.process import PROC
from plugin.mounting.program import identity
from plugin.mounting.spawner import COMMAND
from plugin.volumes.changing import Changing
from plugin.volumes.check import Check
from plugin.volumes.details import Details
from plugin.volumes.driver import Driver
from plugin.volumes.inventory import Inventory
from plugin.volumes.registry import Registry
from plugin.volumes.storage import Storage

log = logging.getLogger(__name__)

# For the facts about the host: microseconds, unless they lie behind a dead file server.
HOST_DEADLINE_S = 1.0


def serve_command(*, managed: bool) -> int:
    """Run the plugin with the settings in the environment; return the exit status."""
    try:
        run(Settings.from_environment(os.environ), managed=managed)
    except CannotStart as error:
        sys.stderr.write(f"passfs serve: {error}\n")
        return 2 if isinstance(error, InvalidSetting) else 1
    return 0


def run(settings: Settings, *, managed: bool = False) -> None:
    """Run the plugin until SIGTERM or SIGINT; if *managed*, also until its engine is restarted.

    At the end no mount, worker or socket is left, except those that a service manager keeps for the
    next plugin. The function removes the variables of sd_listen_fds(3) from the environment of the
    process.

    Raises:
        CannotStart: says what is in the way.
    """
    logs.configure(settings.log_level, as_json=settings.log_format is LogFormat.JSON)
    if managed:
        settings.check_managed()
    _raise_descriptor_limit()
    try:
        trio.run(partial(_run, settings, inherited(os.environ), managed=managed))
    except OSError as error:
        raise CannotStart(f"cannot start: {error}") from error


def _raise_descriptor_limit() -> None:
    """Raise the soft limit of descriptors to the hard one: a mounted volume takes half a dozen.

    Most processes start with a lower soft limit for the sake of select(2), which is not used here.
    """
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


async def _run(
    settings: Settings, passed: Inherited = NOTHING_INHERITED, *, managed: bool = False
) -> None:
    async def signalled() -> None:
        number = await anext(signals)
        log.info("ending on %s", signal.Signals(number).name)
        passed.store.notify("STOPPING=1")
        keeper.note_end()

    with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
        async with composed(settings, passed=passed) as (driver, keeper, listener):
            passed.store.notify("READY=1")
            on_probe = RestartDetector(driver.is_idle).note_probe if managed else lambda _: None
            await serve(driver, listener, signalled, on_probe)
    log.info("ended")


@asynccontextmanager
async def composed(
    settings: Settings,
    fork_server: Sequence[str] = COMMAND,
    passed: Inherited = NOTHING_INHERITED,
) -> AsyncIterator[tuple[Driver, Keeper, socket.socket]]:
    """Build driver, keeper and listening socket from *settings*; take all of it down at the end.

    *fork_server* is the command that forks workers; *passed* comes from the service manager.

    Raises:
        CannotStart: says what is in the way.
        OSError: a directory cannot be made or read.
    """
    release, host_view = kernel_features.linux_release(), _host(settings)
    policy = settings.policy(release)
    storage = Storage(settings.data_dir, settings.owner)
    storage.prepare()
    with (
        # The lock comes first: the steps below clear away files and mounts of a live plugin.
        Registry.open(settings.data_dir) as registry,
        listening(settings.socket, passed.listener) as listener,
        controlling(settings.data_dir) as control_listener,
        exporting(settings.metrics) as metrics_listener,
    ):
        inventory = Inventory(registry, storage)
        inventory.settle()
        machine = await _machine(settings)
        storage.set_host_path(machine.data_dir)
        left = registry.mount_records, inventory.mount_points_in_use()
        program = await trio.to_thread.run_sync(identity)
        async with (
            keeping(
                *(settings.mount_dir, fork_server, passed, *left),
                proc=machine.proc or PROC,
                reserve=registry.reserve,
                program=program,
            ) as keeper,
            trio.open_nursery() as background,
        ):
            parts = (registry, storage, keeper, host_view)
            driver = Driver(*parts, machine=machine, policy=policy, nursery=background)
            changing = Changing(driver, keeper, registry, policy, host_view)
            details = Details(driver, keeper, release)
            answers = Answers(driver, details, Check(driver, keeper, storage), changing)
            background.start_soon(_control, answers, control_listener)
            background.start_soon(_export, driver, keeper, details, metrics_listener)
            log.info("serving %d volumes on %s", len(registry.records), listener.getsockname())
            yield driver, keeper, listener
            background.cancel_scope.cancel()


async def _control(answers: Answers, listener: socket.socket | None) -> None:
    """Answer on the control socket, if there is one."""
    if listener is not None:
        await control(answers, listener)


async def _export(
    driver: Driver, keeper: Keeper, details: Details, listener: socket.socket | None
) -> None:
    """Answer at the address of the metrics, if there is one."""
    if listener is not None:
        render = await trio.to_thread.run_sync(_renderer)
        log.info("metrics at %s", listener.getsockname())
        await export(Metrics(driver, keeper, details, render), listener)


def _renderer() -> Render:
    """Load the library of Prometheus, which a plugin without metrics does without."""
    from plugin.metrics.exposition import render  # noqa: PLC0415

    return render


def _host(settings: Settings) -> HostView:
    return HostView(
        root=settings.host_root,
        directory=settings.host_dir,
        mount_dir=settings.mount_dir,
        data_dir=settings.data_dir,
        allowed=settings.allowed_sources,
    )


async def _machine(settings: Settings) -> HostFacts:
    """Return the facts about the host, or none of them if a file system does not answer in time."""
    read_facts = partial(host.facts, settings.data_dir, settings.host_root, settings.host_dir)
    with trio.move_on_after(HOST_DEADLINE_S):
        return await threads.call(read_facts, trio.CapacityLimiter(1), lambda _: None)
    return HostFacts()
