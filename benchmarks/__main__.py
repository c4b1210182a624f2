"""`python -m benchmarks`: measure, show the results, write them to files."""

import os
import random
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import msgspec
import typer
from rich.console import Console
from rich.table import Table as RichTable

from benchmarks import arguments, isolation, markdown, picture, table, verdict
from benchmarks.plan import Plan
from benchmarks.report import Report

# Markup would hide words in brackets from the help.
app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)

FAILED, USAGE, INTERRUPTED = 1, 2, 130
WIDTH = 180  # columns, if the output is no terminal

Texts = list[str] | None
Subjects = Annotated[
    str | None, typer.Option(help="Comma-separated known names. Default: all that are installed.")
]
More = Annotated[
    Texts, typer.Option(metavar="NAME=K=V,K=V", help="Add a passfs with these options; repeatable.")
]
Peers = Annotated[
    Texts,
    typer.Option(
        metavar="NAME=COMMAND",
        help="Add a file system; the command contains {source} and {mountpoint}; repeatable.",
    ),
]
Options = Annotated[
    Texts, typer.Option("-o", "--option", metavar="K=V", help="Set for every passfs; repeatable.")
]
Lines = Annotated[
    Texts,
    typer.Option(
        metavar="PATTERN",
        help="Run only lines of matching names, like '*cold', or a group, like work; repeatable.",
    ),
]
Rounds = Annotated[int, typer.Option(min=1, help="Samples of each line.")]
Size = Annotated[float, typer.Option(min=0.001, help="Factor for all counts and sizes.")]
Seconds = Annotated[
    float,
    typer.Option(min=0, help="Repeat each line but real work for at least this long, in seconds."),
]
Busy = Annotated[
    int, typer.Option(min=0, help="Let this many processes compute on each processor meanwhile.")
]
Costs = Annotated[bool, typer.Option(help="Measure processor time of requests, memory and Mount.")]
Directory = Annotated[
    Path | None, typer.Option(help="Put the source below this directory. Default: a tmpfs.")
]
Taken = Annotated[
    Path | None, typer.Option("--from", help="Measure nothing; show a file written by --json.")
]
Json = Annotated[Path | None, typer.Option(help="Write all results to this file.")]
Svg = Annotated[Path | None, typer.Option(help="Write a drawing to this file.")]
Page = Annotated[Path | None, typer.Option(help="Write the tables to this file, as Markdown.")]


@app.command()
def main(  # noqa: PLR0917 - options are given by name
    subjects: Subjects = None,
    passfs: More = None,
    peer: Peers = None,
    option: Options = None,
    lines: Lines = None,
    rounds: Rounds = 5,
    size: Size = 1,
    seconds: Seconds = 0.1,
    busy: Busy = 0,
    costs: Costs = True,
    directory: Directory = None,
    taken: Taken = None,
    json: Json = None,
    svg: Svg = None,
    page: Page = None,
) -> None:
    """Compare passfs with the bare directory and with other FUSE file systems.

    It needs root, except with --from.
    """
    names = arguments.installed_names() if subjects is None else subjects.split(",")
    if taken is not None:
        report = msgspec.json.decode(taken.read_bytes(), type=Report)
    else:
        with _refusing(), _stage(directory) as stage:
            plan = Plan(
                passfs=arguments.passfs(names, passfs or [], option or []),
                peers=arguments.peers(names, peer or []),
                rounds=rounds,
                size=size,
                least_s=seconds,
                lines=tuple(lines or ["*"]),
                busy=busy,
                costs=costs,
                stage=stage,
                on_tmpfs=directory is None,
                seed=random.SystemRandom().randrange(1 << 32),
            )
            report = isolation.measure(plan)
    for path, text in (
        (json, msgspec.json.format(msgspec.json.encode(report)).decode()),
        (svg, picture.picture(report)),
        (page, markdown.page(report)),
    ):
        if path is not None:
            path.write_text(text, encoding="utf-8")
    _show(report)
    if report.failures:
        raise typer.Exit(FAILED)


@contextmanager
def _refusing() -> Iterator[None]:
    """Turn the errors of a run into a message and an exit status."""
    try:
        if os.geteuid() != 0:
            raise arguments.ArgumentError("run as root, to mount file systems")  # noqa: TRY301
        yield
    except arguments.ArgumentError as error:
        typer.echo(f"benchmarks: {error}", err=True)
        raise typer.Exit(USAGE) from error
    except isolation.MeasuringFailedError as error:
        raise typer.Exit(error.status) from error
    except KeyboardInterrupt:
        typer.echo("interrupted; mounts and processes are gone", err=True)
        raise typer.Exit(INTERRUPTED) from None


@contextmanager
def _stage(directory: Path | None) -> Iterator[str]:
    """Provide an empty directory for the length of a block."""
    stage = tempfile.mkdtemp(prefix="passfs-benchmarks-", dir=directory)
    try:
        yield stage
    finally:
        shutil.rmtree(stage)


def _show(report: Report) -> None:
    console = Console(width=None if sys.stdout.isatty() else WIDTH, highlight=False)
    console.print(table.summary(report), style="dim")
    for shown in table.tables(report):
        drawn = RichTable(caption=shown.note, caption_justify="left")
        for index, head in enumerate(shown.heads):
            drawn.add_column(head, justify="right" if index else "left", no_wrap=not index)
        for index, row in enumerate(shown.rows):
            drawn.add_row(*row, style="bold" if index in shown.bold else "")
        console.print(f"\n{shown.title}", style="bold")
        console.print(drawn)
    for sentence in verdict.sentences(report):
        console.print(f"\n{sentence}")
    for failure in report.failures:
        typer.echo(failure, err=True)


if __name__ == "__main__":
    app(prog_name="python -m benchmarks")
