"""Serve a directory from the command line, in the foreground, without Docker."""

import logging
import sys
from typing import Annotated

import typer

from passthrough.options.table import OptionError
from passthrough.standalone import foreground, making
from passthrough.standalone.words import given_options

# Without markup, because help texts have brackets.
app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)


@app.command()
def main(
    source: Annotated[str, typer.Option(help="The directory to serve.")],
    mountpoint: Annotated[str, typer.Option(help="The mount point: an existing directory.")],
    option: Annotated[
        list[str] | None,
        typer.Option("-o", "--option", metavar="KEY=VALUE", help="A volume option; repeatable."),
    ] = None,
) -> None:
    """Serve SOURCE at MOUNTPOINT until it is unmounted or this process gets SIGINT or SIGTERM."""
    logging.basicConfig(stream=sys.stderr, format="%(levelname)s %(name)s: %(message)s")

    def serving() -> None:
        typer.echo(f"serving {source} at {mountpoint}")

    try:
        wanted = making.wanted(source, mountpoint, given_options(option or []))
        status = foreground.serve(wanted, serving, _refuse)
    except (OptionError, OSError) as error:
        status = _refuse(error)
    raise typer.Exit(status)


def _refuse(error: Exception) -> int:
    typer.echo(f"passthrough: {error}", err=True)
    return 1


if __name__ == "__main__":
    app(prog_name="python -m passthrough")
