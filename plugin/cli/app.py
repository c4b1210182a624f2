"""The program `passfs` without its commands, and what they share."""

import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from importlib import metadata
from typing import Annotated, Any, TypeVar

import typer
from typer.core import TyperGroup

from plugin.admin.settings import SETTINGS
from plugin.cli import completion
from plugin.commands.document import Block
from plugin.errors import printable

T = TypeVar("T")

DATA_DIR = SETTINGS["data_dir"].default


class _Program(TyperGroup):
    """A program that completes words with a `=` in bash as well."""

    def main(self, *arguments: Any, **named: Any) -> Any:  # noqa: ANN401 - the library's
        """Run the command of the arguments, or answer the script of a shell."""
        with completion.whole_words(os.environ):
            return super().main(*arguments, **named)


app = typer.Typer(
    name="passfs",
    cls=_Program,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,  # rich would read the defaults in brackets as markup
)

DataDir = Annotated[
    str,
    typer.Option(
        "--data-dir", metavar="DIR", help=f"Data directory of the plugin on this host [{DATA_DIR}]."
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Volume = Annotated[
    str,
    typer.Argument(metavar="VOLUME", help="Name of the volume.", autocompletion=completion.volumes),
]


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"passfs {metadata.version('passfs')}")
        raise typer.Exit


@app.callback()
def _general(
    *,
    version: Annotated[
        bool,
        typer.Option(
            "--version", help="Print the version.", is_eager=True, callback=_print_version
        ),
    ] = False,
) -> None:
    """Docker volumes that pass a host directory through FUSE."""
    del version


def show(found: T, document: Callable[[T], Iterable[Block]], *, json: bool) -> None:
    """Print what a command has *found*, as JSON or as its *document*."""
    from plugin.commands import terminal  # noqa: PLC0415

    if json:
        terminal.show_json(found)
    else:
        terminal.show(document(found))


def within(interval: str, least: float, most: float) -> float:
    """Return *interval* in seconds; refuse one that is not *least* to *most*."""
    with suppress(ValueError):
        if least <= (seconds := float(interval)) <= most:
            return seconds
    raise typer.BadParameter(
        f"{interval!r} is not accepted; expected {least:g} to {most:g} seconds",
        param_hint="'--interval'",
    )


@contextmanager
def refusals(command: str) -> Iterator[None]:
    """Print a CommandError of the block, and end with the exit status 1."""
    from plugin.commands.asking import CommandError  # noqa: PLC0415

    try:
        yield
    except CommandError as error:
        typer.echo(f"passfs {command}: {printable(str(error))}", err=True)
        raise typer.Exit(1) from error
