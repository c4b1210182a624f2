"""The commands that run, install and upgrade the plugin."""

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer

from plugin.admin.settings import SETTINGS, Flag, Setting
from plugin.cli.app import Json, app
from plugin.cli.display import Display
from plugin.install.installation import TREE, Installation, InstallationError


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
    json: Json = False,
    **settings: str | list[str] | None,
) -> None:
    """Build the managed plugin and enable it. Run it again to upgrade; settings stay."""
    from plugin.commands import terminal  # noqa: PLC0415
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
    with _steps("install", json=json) as display:
        _check_tree(tree)
        with engine.connect() as client:
            installed = installer.install(client, wanted, display)
    if json:
        terminal.show_json(installed)
    else:
        typer.echo(f"{name} is ready: docker volume create -d {name} demo")


@app.command()
def uninstall(*, name: _Name = "passfs", force: _Force = False, json: Json = False) -> None:
    """Disable and remove the managed plugin. Its volumes stay in the data directory."""
    from plugin.commands import terminal  # noqa: PLC0415
    from plugin.install import engine, installer  # noqa: PLC0415

    with _steps("uninstall", json=json) as display, engine.connect() as client:
        removed = installer.uninstall(client, Installation(name=name, force=force), display)
    if json:
        terminal.show_json(removed)


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
    json: Json = False,
) -> None:
    """Upgrade the service on the host, and its mounted volumes.

    Running containers do not notice. The exit status is 3 if another program serves a volume on,
    or a mount is lost.
    """
    from plugin.commands import terminal  # noqa: PLC0415
    from plugin.install import upgrade as steps  # noqa: PLC0415

    wanted = steps.Upgrade(tree=None if tree is None else Path(tree), socket=socket)
    with _steps("upgrade", json=json) as display:
        _check_tree(tree)
        upgraded = steps.upgrade(wanted, display)
    if json:
        terminal.show_json(upgraded)
    if not upgraded.complete:
        typer.echo("passfs upgrade: this program does not serve all mounted volumes", err=True)
        raise typer.Exit(3)
    if not json:
        typer.echo("this program serves all mounted volumes")


def _check_tree(tree: str | None) -> None:
    if tree == "":  # Path takes it for the working directory
        raise InstallationError("--tree takes the directory of a checkout, not ''.")


@contextmanager
def _steps(command: str, *, json: bool) -> Iterator[Display]:
    """Yield the display of *command*; print an InstallationError, and end with the status 1."""
    display = Display(stderr=json)
    try:
        yield display
    except InstallationError as error:
        display.close()
        typer.echo(f"passfs {command}: {error}", err=True)
        raise typer.Exit(1) from error
