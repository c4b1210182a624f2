"""A program with the arguments of `passthrough` that serves as the plugin does: by a keeper.

The keeper has the fork server make the worker. The mount is bound to the mount point, as an engine
binds a volume into a container. The program ends with SIGTERM.
"""

import argparse
import logging
import signal
import subprocess
from pathlib import Path

import trio

from passthrough.linux import kernel_features
from passthrough.options.parsing import parse_options
from plugin.mounting.keeper import keeping
from tests.support.tools.mount_specs import DIRECTORY, NAME, mount_spec
from tests.support.tools.options import resolved


async def serve(source: Path, mountpoint: Path, given: dict[str, str]) -> None:
    """Serve *source* at *mountpoint* until SIGTERM comes."""
    requested = parse_options(given, kernel_features.linux_release(), has_source=True)
    mounts = mountpoint.with_name("mounts")
    with trio.open_signal_receiver(signal.SIGTERM) as signals:
        async with keeping(mounts) as keeper:
            await keeper.mount(mount_spec(source, options=resolved(requested)))
            await _run("mount", "--bind", mounts / DIRECTORY, mountpoint)
            async for _ in signals:
                break
            await _run("umount", "--lazy", mountpoint)
            await keeper.unmount(NAME)


async def _run(*words: str | Path) -> None:
    await trio.to_thread.run_sync(lambda: subprocess.run(words, check=True))


def main() -> None:
    """Serve as the arguments say."""
    logging.basicConfig(format="%(levelname)s %(name)s: %(message)s")
    parser = argparse.ArgumentParser()
    parser.add_argument("--source", type=Path)
    parser.add_argument("--mountpoint", type=Path)
    parser.add_argument("-o", action="append", default=[])
    words = parser.parse_args()
    given = dict(option.split("=", 1) for option in words.o)
    trio.run(serve, words.source, words.mountpoint, given)


if __name__ == "__main__":
    main()
