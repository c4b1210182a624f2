"""The `passfs` command: it runs and installs the plugin, and asks it about volumes."""

import inspect
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from typing import Annotated, Any, NoReturn, TypeVar

import typer
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TaskID, TextColumn

from plugin.admin.settings import SETTINGS, Flag, Setting
from plugin.commands.document import Block
from plugin.errors import printable
from plugin.install.installation import TREE, Installation, InstallationError

T = TypeVar("T")

DATA_DIR = SETTINGS["data_dir"].default

app = typer.Typer(
    name="passfs",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,  # rich would read the defaults in brackets as markup
)


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


class Display:
    """Numbered steps, and a bar for a count of bytes; plain lines without a terminal."""

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
        """Show a line of the step."""
        self._console.print(f"   {text}", style="dim")

    def amount(self, done: int, total: int) -> None:
        """Show that *done* of about *total* bytes are done."""
        if self._bar is None:
            columns = (TextColumn("  "), BarColumn(), DownloadColumn())
            self._bar = Progress(*columns, console=self._console)
            self._task = self._bar.add_task("")
            self._bar.start()
        self._bar.update(self._task, completed=done, total=total)

    def close(self) -> None:
        """End the bar, so that the terminal shows a finished step."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = None


@app.command()
def serve(
    *,
    managed: Annotated[
        bool,
        typer.Option(
            "--managed",
            help="Run as an engine's managed plugin: end after a restart of the engine, which then"
            " starts the plugin again.",
        ),
    ] = False,
) -> None:
    """Run the plugin in the foreground. Settings come from the environment (PASSFS_...)."""
    # Imported here, because the other commands need no server.
    from plugin.app import serve_command  # noqa: PLC0415

    raise typer.Exit(serve_command(managed=managed))


_Name = Annotated[
    str, typer.Option(metavar="NAME", help="Name of the plugin, which is the name of the driver.")
]
_Force = Annotated[
    bool, typer.Option("--force", help="Go on although running containers have volumes mounted.")
]


def _with_settings(command: Callable[..., None]) -> Callable[..., None]:
    """Give *command* an option for each setting that has a flag, in place of its `**settings`."""
    own = [
        parameter
        for parameter in inspect.signature(command).parameters.values()
        if parameter.kind is not parameter.VAR_KEYWORD
    ]
    flags = [_option(setting, setting.flag) for setting in SETTINGS.values() if setting.flag]
    # typer makes its options from the signature.
    command.__signature__ = inspect.Signature([*own, *flags])  # type: ignore[attr-defined]
    return command


def _option(setting: Setting, flag: Flag) -> inspect.Parameter:
    text = f"{flag.meaning or setting.meaning} [{setting.default or setting.if_empty}]."
    option = typer.Option(flag.name, metavar=flag.metavar, help=text)
    kind: Any = list[str] if flag.separator else flag.kind
    annotation = Annotated[kind | None, option]
    return inspect.Parameter(
        setting.field, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=annotation
    )


@app.command()
@_with_settings
def install(
    *,
    name: _Name = "passfs",
    ca_bundle: Annotated[
        str | None,
        typer.Option(
            metavar="FILE",
            help="PEM file that pip trusts while the image is built [that of the last install].",
        ),
    ] = None,
    tree: Annotated[
        str | None,
        typer.Option(metavar="DIR", help="Source tree to build from [that of this command]."),
    ] = None,
    force: _Force = False,
    **settings: str | list[str] | None,
) -> None:
    """Build the managed plugin and enable it. Run it again to upgrade; settings stay."""
    from plugin.install import engine, installer  # noqa: PLC0415

    wanted = Installation(
        name=name,
        settings={
            setting.field: setting.flag.text(value)
            for setting in SETTINGS.values()
            if setting.flag and (value := settings[setting.field]) is not None and value != []
        },
        ca_bundle=ca_bundle,
        tree=TREE if tree is None else Path(tree),
        force=force,
    )
    display = Display()
    if tree == "":
        _fail(
            display,
            "install",
            InstallationError("--tree takes the directory of a checkout, not ''."),
        )
    try:
        with engine.connect() as client:
            installer.install(client, wanted, display)
    except InstallationError as error:
        _fail(display, "install", error)
    typer.echo(f"{name} is ready: docker volume create -d {name} demo")


@app.command()
def uninstall(*, name: _Name = "passfs", force: _Force = False) -> None:
    """Disable and remove the managed plugin. Its volumes stay in the data directory."""
    from plugin.install import engine, installer  # noqa: PLC0415

    display = Display()
    try:
        with engine.connect() as client:
            installer.uninstall(client, Installation(name=name, force=force), display)
    except InstallationError as error:
        _fail(display, "uninstall", error)


@app.command()
def upgrade(
    *,
    tree: Annotated[
        str | None,
        typer.Option(
            metavar="DIR", help="Source tree with the systemd unit [that of this command]."
        ),
    ] = None,
    socket: Annotated[
        str,
        typer.Option(
            metavar="PATH", help="Socket of the plugin [that of passfs.socket, or the default]."
        ),
    ] = "",
) -> None:
    """Upgrade the service on the host, and its mounted volumes.

    Running containers do not notice. The exit status is 3 if another program serves a volume on,
    or a mount is lost.
    """
    from plugin.install import upgrade as steps  # noqa: PLC0415

    display = Display()
    wanted = steps.Upgrade(tree=None if tree is None else Path(tree), socket=socket)
    try:
        complete = steps.upgrade(wanted, display)
    except InstallationError as error:
        _fail(display, "upgrade", error)
    if not complete:
        typer.echo("passfs upgrade: this program does not serve all mounted volumes", err=True)
        raise typer.Exit(3)
    typer.echo("this program serves all mounted volumes")


_DataDir = Annotated[
    str,
    typer.Option(
        "--data-dir", metavar="DIR", help=f"Data directory of the plugin on this host [{DATA_DIR}]."
    ),
]
_Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
_Volume = Annotated[str, typer.Argument(metavar="VOLUME", help="Name of the volume.")]


@app.command("ls")
def list_volumes(*, data_dir: _DataDir = DATA_DIR, json: _Json = False) -> None:
    """List the volumes: source, cache, users and health."""
    from plugin.commands import inquiry, views  # noqa: PLC0415
    from plugin.commands.asking import Plugin  # noqa: PLC0415

    with _refusals("ls"):
        found = inquiry.rows(Plugin(data_dir))
    _show(found, views.listing, json=json)


@app.command()
def status(
    volume: Annotated[
        str | None,
        typer.Argument(metavar="[VOLUME]", help="Name of the volume [the plugin as a whole]."),
    ] = None,
    *,
    data_dir: _DataDir = DATA_DIR,
    json: _Json = False,
) -> None:
    """Show a volume: options, processes, users, errors."""
    from plugin.commands import inquiry, views  # noqa: PLC0415
    from plugin.commands.asking import Plugin  # noqa: PLC0415

    plugin = Plugin(data_dir)
    with _refusals("status"):
        if volume is None:
            _show(inquiry.plugin_view(plugin), views.plugin_document, json=json)
        else:
            _show(inquiry.view(plugin, volume), views.document, json=json)


@app.command()
def check(
    volume: Annotated[
        str | None, typer.Argument(metavar="[VOLUME]", help="Name of the volume [all].")
    ] = None,
    *,
    data_dir: _DataDir = DATA_DIR,
    json: _Json = False,
) -> None:
    """Compare the registry with disk and mounts.

    Each finding says what it means, and how to mend it. The exit status is 1 if there is any.
    """
    from plugin.commands import inquiry, views  # noqa: PLC0415
    from plugin.commands.asking import Plugin  # noqa: PLC0415

    with _refusals("check"):
        found = inquiry.findings(Plugin(data_dir), volume)
    _show(found, views.finding_document, json=json)
    if found:
        raise typer.Exit(1)


@app.command()
def logs(
    volume: _Volume,
    *,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Wait for further lines.")] = False,
    json: Annotated[bool, typer.Option("--json", help="Print a JSON object on each line.")] = False,
) -> None:
    """Print the lines about a volume in the log."""
    from plugin.commands import journal, terminal  # noqa: PLC0415

    with _refusals("logs"):
        for line in journal.lines(volume, follow=follow):
            if json:
                terminal.show_json_line(line)
            else:
                terminal.show_line(f"{line.time} {line.message}")


@app.command("rm")
def remove(
    volume: _Volume,
    *,
    force: Annotated[
        bool, typer.Option("--force", help="Remove a volume that the engine has forgotten.")
    ] = False,
    data_dir: _DataDir = DATA_DIR,
    json: _Json = False,
) -> None:
    """Remove a volume that the engine has forgotten.

    A volume without a source loses its files, as by `docker volume rm`. No file of a source is
    deleted.
    """
    from plugin.commands import inquiry, views  # noqa: PLC0415
    from plugin.commands.asking import Plugin  # noqa: PLC0415

    with _refusals("rm"):
        removed = inquiry.remove(Plugin(data_dir), volume, force=force)
    _show(removed, views.removal_document, json=json)


def _show(found: T, document: Callable[[T], Iterable[Block]], *, json: bool) -> None:
    """Print what a command has *found*, as JSON or as its *document*."""
    from plugin.commands import terminal  # noqa: PLC0415

    if json:
        terminal.show_json(found)
    else:
        terminal.show(document(found))


@contextmanager
def _refusals(command: str) -> Iterator[None]:
    """Print a CommandError of the block, and end with the exit status 1."""
    from plugin.commands.asking import CommandError  # noqa: PLC0415

    try:
        yield
    except CommandError as error:
        typer.echo(f"passfs {command}: {printable(str(error))}", err=True)
        raise typer.Exit(1) from error


def _fail(display: Display, command: str, error: Exception) -> NoReturn:
    display.close()
    typer.echo(f"passfs {command}: {error}", err=True)
    raise typer.Exit(1)


if __name__ == "__main__":
    app(prog_name="passfs")
