"""`python -m benchmarks`: compare, and write down what came out."""

import os
import random
import shutil
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import msgspec
import typer
from rich.console import Console
from rich.table import Table as RichTable

from benchmarks import isolation, markdown, picture, table
from benchmarks.plan import BARE, Passfs, Peer, Plan
from benchmarks.report import Report
from benchmarks.subjects import KNOWN_PEERS
from passthrough.config import OptionError, Session, parse_options

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)

SESSIONS = tuple(session.value for session in Session if session is not Session.AUTO)
USAGE, FAILED, INTERRUPTED = 2, 1, 130


@app.command()
def main(  # noqa: PLR0917 - options are given by name
    subjects: Annotated[
        str, typer.Option(help="Comma-separated: sessions of passfs, bindfs, mergerfs.")
    ] = ",".join((*SESSIONS, *KNOWN_PEERS)),
    passfs: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=K=V,K=V", help="One more passfs, with options; repeatable."),
    ] = None,
    peer: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=COMMAND",
            help="One more to compare with; the command has {source} and {mountpoint}; repeatable.",
        ),
    ] = None,
    option: Annotated[
        list[str] | None,
        typer.Option("-o", "--option", metavar="K=V", help="For every passfs; repeatable."),
    ] = None,
    lines: Annotated[
        list[str] | None,
        typer.Option(metavar="PATTERN", help="Only lines of such names, as '*cold'; repeatable."),
    ] = None,
    rounds: Annotated[int, typer.Option(min=1, help="How many samples of each line.")] = 5,
    size: Annotated[float, typer.Option(min=0.001, help="How much of everything, a factor.")] = 1,
    seconds: Annotated[
        float, typer.Option(min=0, help="Repeat a line in a round until it took this long.")
    ] = 0.1,
    busy: Annotated[bool, typer.Option("--busy", help="Load every processor meanwhile.")] = False,
    costs: Annotated[
        bool, typer.Option(help="Also requests' processor time, memory, Mount.")
    ] = True,
    directory: Annotated[
        Path | None, typer.Option(help="Where the source shall lie, in place of a tmpfs.")
    ] = None,
    taken: Annotated[
        Path | None, typer.Option("--from", help="Measure nothing; show what --json wrote.")
    ] = None,
    json: Annotated[Path | None, typer.Option(help="Write everything there.")] = None,
    svg: Annotated[Path | None, typer.Option(help="Write a drawing there.")] = None,
    page: Annotated[Path | None, typer.Option(help="Write the tables there, as Markdown.")] = None,
) -> None:
    """Compare passfs with the bare directory and with other FUSE file systems; needs root."""
    if taken is not None:
        report = msgspec.json.decode(taken.read_bytes(), type=Report)
    else:
        with _stage(directory) as stage:
            plan = Plan(
                passfs=_passfs(subjects, passfs or [], option or []),
                peers=_peers(subjects, peer or []),
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
            report = _measure(plan)
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


def _measure(plan: Plan) -> Report:
    if os.geteuid() != 0:
        raise _usage("needs root: it mounts file systems")
    try:
        return isolation.measure(plan)
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


def _passfs(subjects: str, more: Sequence[str], common: Sequence[str]) -> dict[str, Passfs]:
    """Our own subjects by name."""
    shared = dict(_pair(word, "--option") for text in common for word in text.split(","))
    wanted = {name: {"session": name} for name in subjects.split(",") if name in SESSIONS}
    for text in more:
        name, options = _pair(text, "--passfs")
        wanted[name] = dict(_pair(word, "--passfs") for word in options.split(","))
    found = {name: Passfs(shared | own) for name, own in wanted.items()}
    try:
        for subject in found.values():
            parse_options(subject.options, has_source=True)
    except OptionError as error:
        raise _usage(str(error)) from error
    return found


def _peers(subjects: str, more: Sequence[str]) -> dict[str, Peer]:
    """The others by name; here is also where a name that is neither is refused."""
    others = [name for name in subjects.split(",") if name not in {"", BARE, *SESSIONS}]
    for name in others:
        if name not in KNOWN_PEERS:
            known = ", ".join((BARE, *SESSIONS, *KNOWN_PEERS))
            raise _usage(f"--subjects: {name!r} is not known; there are {known}")
    peers = {name: KNOWN_PEERS[name] for name in others}
    for name, command in (_pair(text, "--peer") for text in more):
        if not all(place in command for place in ("{source}", "{mountpoint}")):
            raise _usage(f"--peer {name}: the command lacks {{source}} or {{mountpoint}}")
        peers[name] = Peer(command)
    return peers


def _pair(text: str, option: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not name or not equals:
        raise _usage(f"{option} {text}: NAME=VALUE is expected")
    return name, value


def _usage(sentence: str) -> typer.Exit:
    typer.echo(f"benchmarks: {sentence}", err=True)
    return typer.Exit(USAGE)


def _show(report: Report) -> None:
    console = Console(width=None if sys.stdout.isatty() else 160, highlight=False)
    console.print(table.summary(report), style="dim")
    for shown in table.tables(report):
        drawn = RichTable(title=shown.title, caption=shown.note, title_justify="left")
        for index, head in enumerate(shown.heads):
            drawn.add_column(head, justify="right" if index else "left", no_wrap=not index)
        for index, row in enumerate(shown.rows):
            drawn.add_row(*row, style="bold" if index in shown.bold else "")
        console.print(drawn)
    for failure in report.failures:
        typer.echo(failure, err=True)


if __name__ == "__main__":
    app(prog_name="python -m benchmarks")
