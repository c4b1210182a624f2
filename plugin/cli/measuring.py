"""The commands that measure volumes."""

import signal
import sys
from contextlib import suppress
from itertools import islice
from typing import Annotated

import typer

from plugin.cli.app import DATA_DIR, DataDir, Json, Volume, app, refusals, show, within


@app.command()
def top(
    *,
    interval: Annotated[
        str, typer.Option(metavar="SECONDS", help="Time between samples, 0.1 to 3600 [1].")
    ] = "1",
    count: Annotated[
        int | None,
        typer.Option(
            metavar="N", min=1, help="End after so many samples [none on a terminal, else 1]."
        ),
    ] = None,
    data_dir: DataDir = DATA_DIR,
    json: Annotated[
        bool, typer.Option("--json", help="Print a JSON object for each sample.")
    ] = False,
) -> None:
    """Show the volumes with most load, live on a terminal.

    The key q ends it.
    """
    from plugin.commands import screen, terminal  # noqa: PLC0415
    from plugin.commands.asking import Plugin  # noqa: PLC0415
    from plugin.commands.ranking import ranking_document  # noqa: PLC0415
    from plugin.commands.sampling import Sampler, rankings  # noqa: PLC0415

    seconds, sampler = within(interval, 0.1, 3600.0), Sampler(Plugin(data_dir))
    with refusals("top"), suppress(KeyboardInterrupt):
        if screen.is_possible() and not json:
            screen.follow(sampler, seconds, count)
            return
        for number, found in enumerate(islice(rankings(sampler, seconds), count or 1)):
            if json:
                terminal.show_json_line(found)
                continue
            if number:
                typer.echo()
            terminal.show(ranking_document(found))


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

    for number in steps.ENDING:
        signal.signal(number, _end)
    with refusals("bench"):
        result = steps.bench(Plugin(data_dir), volume, rounds, size, progress)
    show(result, steps.document, json=json)


def _end(number: int, _: object) -> None:
    """End on a signal, so that files and reference of the command are removed first."""
    sys.exit(128 + number)
