"""The commands that measure volumes."""

import signal
import sys
from typing import Annotated

import typer

from plugin.cli.app import DATA_DIR, DataDir, Json, Volume, app, refusals, show


@app.command()
def bench(
    volume: Volume,
    *,
    rounds: Annotated[
        int, typer.Option(metavar="N", min=1, max=1000, help="Measurements of each workload.")
    ] = 5,
    size: Annotated[
        float,
        typer.Option(
            metavar="F", min=0.01, max=100, help="Factor for the numbers of files and bytes."
        ),
    ] = 1.0,
    data_dir: DataDir = DATA_DIR,
    json: Json = False,
) -> None:
    """Measure a volume against its own source.

    The command mounts the volume if need be, and works as its user on new files in a directory of
    its own, which it removes at the end.
    """
    from plugin.commands import bench as steps  # noqa: PLC0415
    from plugin.commands.asking import Plugin  # noqa: PLC0415

    def progress(workload: str) -> None:
        if sys.stderr.isatty():
            typer.echo(f"measuring: {workload}", err=True)

    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _end)
    with refusals("bench"):
        result = steps.bench(Plugin(data_dir), volume, rounds, size, progress)
    show(result, steps.document, json=json)


def _end(number: int, _: object) -> None:
    """End on a signal, so that files and reference of the command are removed first."""
    sys.exit(128 + number)
