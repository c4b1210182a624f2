"""The `passfs` command: `serve` runs the plugin; `install` and `uninstall` keep it in an engine."""

import os
from enum import StrEnum
from pathlib import Path
from typing import Annotated, NoReturn

import typer
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TaskID, TextColumn

from plugin.errors import CannotStart, InvalidSetting
from plugin.install.installation import TREE, Installation, InstallationError

app = typer.Typer(
    name="passfs",
    help="Docker volumes that pass a host directory through FUSE.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,  # so that help shows what stands in brackets
)


class LogLevel(StrEnum):
    """What PASSFS_LOG_LEVEL takes."""

    DEBUG = "debug"
    INFO = "info"
    WARNING = "warning"
    ERROR = "error"


class Display:
    """Numbered steps, and a bar for what is counted in bytes; plain lines without a terminal."""

    def __init__(self) -> None:
        self._console = Console(highlight=False, soft_wrap=True, markup=False)
        self._steps = 0
        self._bar: Progress | None = None
        self._task = TaskID(0)

    def step(self, title: str) -> None:
        """Begin the next step."""
        self.close()
        self._steps += 1
        self._console.print(f"{self._steps}. {title}", style="bold")

    def line(self, text: str) -> None:
        """Say something within the step."""
        self._console.print(f"   {text}", style="dim")

    def amount(self, done: int, total: int) -> None:
        """Tell how many bytes of about `total` are done."""
        if self._bar is None:
            columns = (TextColumn("  "), BarColumn(), DownloadColumn())
            self._bar = Progress(*columns, console=self._console)
            self._task = self._bar.add_task("")
            self._bar.start()
        self._bar.update(self._task, completed=done, total=total)

    def close(self) -> None:
        """Leave the terminal as a finished step looks."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = None


@app.command()
def serve() -> None:
    """Run the plugin in the foreground. Settings come from the environment (PASSFS_...)."""
    # Here, as below: the server has no use for docker-py, nor the installer for the server.
    from plugin.admin.settings import Settings  # noqa: PLC0415
    from plugin.app import run  # noqa: PLC0415

    try:
        run(Settings.from_environment(os.environ))
    except CannotStart as error:
        typer.echo(f"passfs serve: {error}", err=True)
        raise typer.Exit(2 if isinstance(error, InvalidSetting) else 1) from error


_Name = Annotated[str, typer.Option(help="Name of the plugin, that is of the volume driver.")]
_Force = Annotated[
    bool, typer.Option("--force", help="Go on although running containers have volumes mounted.")
]


# What an administrator decides for all volumes.
_Sources = Annotated[
    list[str] | None,
    typer.Option(help="Directory that sources may lie in; repeatable [all of --host-dir]."),
]
_Defaults = Annotated[
    str | None, typer.Option(help="Options of volumes that do not give them: a=b,c [none].")
]
_Forbidden = Annotated[
    str | None, typer.Option(help="Options or values that volumes may not give: a,b=c [none].")
]


@app.command()
def install(
    *,
    name: _Name = "passfs",
    host_dir: Annotated[
        str | None, typer.Option(help="Host directory below which sources may lie [/].")
    ] = None,
    data_dir: Annotated[
        str | None, typer.Option(help="Host directory for records and data [/var/lib/passfs].")
    ] = None,
    allow_source: _Sources = None,
    default_options: _Defaults = None,
    forbid_options: _Forbidden = None,
    log_level: Annotated[LogLevel | None, typer.Option(help="What the plugin logs [info].")] = None,
    ca_bundle: Annotated[
        str | None,
        typer.Option(help="PEM file that pip trusts while the image is built [the last one]."),
    ] = None,
    tree: Annotated[
        str | None, typer.Option(help="Checkout to build from, if not the one this runs from.")
    ] = None,
    force: _Force = False,
) -> None:
    """Build the managed plugin and enable it. Run it again to upgrade; settings stay."""
    from plugin.install import engine  # noqa: PLC0415

    wanted = Installation(
        name=name,
        host_dir=host_dir,
        data_dir=data_dir,
        allowed_sources=allow_source or None,
        default_options=default_options,
        forbidden_options=forbid_options,
        log_level=log_level,
        ca_bundle=ca_bundle,
        tree=TREE if tree is None else Path(tree),
        force=force,
    )
    display = Display()
    if tree == "":
        _fail(display, "install", InstallationError("--tree takes a checkout's directory, not ''."))
    try:
        with engine.connect() as client:
            engine.install(client, wanted, display)
    except InstallationError as error:
        _fail(display, "install", error)
    typer.echo(f"{name} is ready: docker volume create -d {name} demo")


@app.command()
def uninstall(*, name: _Name = "passfs", force: _Force = False) -> None:
    """Disable and remove the managed plugin. Its volumes stay in the data directory."""
    from plugin.install import engine  # noqa: PLC0415

    display = Display()
    try:
        with engine.connect() as client:
            engine.uninstall(client, Installation(name=name, force=force), display)
    except InstallationError as error:
        _fail(display, "uninstall", error)


def _fail(display: Display, command: str, error: Exception) -> NoReturn:
    display.close()
    typer.echo(f"passfs {command}: {error}", err=True)
    raise typer.Exit(1)


if __name__ == "__main__":
    app(prog_name="passfs")
