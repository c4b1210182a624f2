"""`python -m benchmarks`: compare, and write down what came out."""

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

from benchmarks import isolation, markdown, picture, table, wanted
from benchmarks.plan import Plan
from benchmarks.report import Report

# Without markup, so that help shows what stands in brackets.
app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)

FAILED, USAGE, INTERRUPTED = 1, 2, 130
# Where there is no terminal to ask.
WIDTH = 180

Texts = list[str] | None
Subjects = Annotated[
    str | None,
    typer.Option(help="Comma-separated: bare, sessions of passfs, bindfs, mergerfs; all of them."),
]
More = Annotated[
    Texts, typer.Option(metavar="NAME=K=V,K=V", help="One more passfs, with options; repeatable.")
]
Peers = Annotated[
    Texts,
    typer.Option(
        metavar="NAME=COMMAND",
        help="One more to compare with; the command has {source} and {mountpoint}; repeatable.",
    ),
]
Options = Annotated[
    Texts, typer.Option("-o", "--option", metavar="K=V", help="For every passfs; repeatable.")
]
Lines = Annotated[
    Texts, typer.Option(metavar="PATTERN", help="Only lines of such names, '*cold'; repeatable.")
]
Rounds = Annotated[int, typer.Option(min=1, help="How many samples of each line.")]
Size = Annotated[float, typer.Option(min=0.001, help="How much of everything, a factor.")]
Seconds = Annotated[
    float, typer.Option(min=0, help="Repeat a line in a round until it has taken this long.")
]
Busy = Annotated[bool, typer.Option("--busy", help="Load every processor meanwhile.")]
Costs = Annotated[bool, typer.Option(help="Also a request's processor time, memory, Mount.")]
Directory = Annotated[Path | None, typer.Option(help="Where the source shall lie; else on tmpfs.")]
Taken = Annotated[
    Path | None, typer.Option("--from", help="Measure nothing; show what --json wrote.")
]
Json = Annotated[Path | None, typer.Option(help="Write everything there.")]
Svg = Annotated[Path | None, typer.Option(help="Write a drawing there.")]
Page = Annotated[Path | None, typer.Option(help="Write the tables there, as Markdown.")]


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
    busy: Busy = False,
    costs: Costs = True,
    directory: Directory = None,
    taken: Taken = None,
    json: Json = None,
    svg: Svg = None,
    page: Page = None,
) -> None:
    """Compare passfs with the bare directory and with other FUSE file systems; needs root."""
    names = wanted.everything() if subjects is None else subjects.split(",")
    if taken is not None:
        report = msgspec.json.decode(taken.read_bytes(), type=Report)
    else:
        with _refusing(), _stage(directory) as stage:
            plan = Plan(
                passfs=wanted.passfs(names, passfs or [], option or []),
                peers=wanted.peers(names, peer or []),
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
    """Turn what keeps a run from ending well into a sentence and an exit status."""
    try:
        if os.geteuid() != 0:
            raise wanted.WantedError("root is needed, to mount file systems")  # noqa: TRY301
        yield
    except wanted.WantedError as error:
        typer.echo(f"benchmarks: {error}", err=True)
        raise typer.Exit(USAGE) from error
    except isolation.MeasuringFailedError as error:
        raise typer.Exit(error.status) from error
    except KeyboardInterrupt:
        typer.echo("interrupted; nothing is left", err=True)
        raise typer.Exit(INTERRUPTED) from None


@contextmanager
def _stage(directory: Path | None) -> Iterator[str]:
    """An empty directory for the length of a block."""
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
    for failure in report.failures:
        typer.echo(failure, err=True)


if __name__ == "__main__":
    app(prog_name="python -m benchmarks")
