"""The commands about volumes."""

from typing import Annotated

import typer

from plugin.cli import completion
from plugin.cli.app import DATA_DIR, DataDir, Json, Volume, app, refusals, show, within


@app.command("ls")
def list_volumes(*, data_dir: DataDir = DATA_DIR, json: Json = False) -> None:
    """List the volumes: source, cache, users and health."""
    from plugin.commands import inquiry, views  # noqa: PLC0415
    from plugin.commands.asking import Plugin  # noqa: PLC0415

    with refusals("ls"):
        found = inquiry.rows(Plugin(data_dir))
    show(found, views.listing, json=json)


@app.command()
def status(
    volume: Annotated[
        str | None,
        typer.Argument(
            metavar="[VOLUME]",
            help="Name of the volume [the plugin as a whole].",
            autocompletion=completion.volumes,
        ),
    ] = None,
    *,
    interval: Annotated[
        str,
        typer.Option(
            metavar="SECONDS",
            help="Measure rates of requests for 0 to 60 seconds; with 0 show none [1].",
        ),
    ] = "1",
    data_dir: DataDir = DATA_DIR,
    json: Json = False,
) -> None:
    """Show a volume: options, processes, users, requests, errors."""
    from plugin.commands import inquiry, views, volume_view  # noqa: PLC0415
    from plugin.commands.asking import Plugin  # noqa: PLC0415

    plugin, seconds = Plugin(data_dir), within(interval, 0.0, 60.0)
    with refusals("status"):
        if volume is None:
            show(inquiry.plugin_view(plugin), views.plugin_document, json=json)
        else:
            show(inquiry.view(plugin, volume, seconds), volume_view.document, json=json)


@app.command()
def check(
    volume: Annotated[
        str | None,
        typer.Argument(
            metavar="[VOLUME]",
            help="Name of the volume [all].",
            autocompletion=completion.volumes,
        ),
    ] = None,
    *,
    data_dir: DataDir = DATA_DIR,
    json: Json = False,
) -> None:
    """Compare the registry with disk and mounts.

    Each finding says what it means, and how to mend it. The exit status is 1 if there is any.
    """
    from plugin.commands import inquiry, views  # noqa: PLC0415
    from plugin.commands.asking import Plugin  # noqa: PLC0415

    with refusals("check"):
        found = inquiry.findings(Plugin(data_dir), volume)
    show(found, views.finding_document, json=json)
    if found:
        raise typer.Exit(1)


@app.command()
def logs(
    volume: Volume,
    *,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Wait for further lines.")] = False,
    lines: Annotated[
        int | None,
        typer.Option("--lines", "-n", metavar="N", min=1, help="Only the last N lines [all]."),
    ] = None,
    since: Annotated[
        str,
        typer.Option(
            metavar="TIME", help="Only lines since then, such as yesterday or '1 hour ago' [all]."
        ),
    ] = "",
    json: Annotated[bool, typer.Option("--json", help="Print a JSON object on each line.")] = False,
) -> None:
    """Print the lines about a volume in the log."""
    from plugin.commands import journal, terminal  # noqa: PLC0415

    with refusals("logs"):
        for line in journal.lines(volume, follow=follow, since=since, last=lines):
            if json:
                terminal.show_json_line(line)
            else:
                terminal.show_line(f"{line.time} {line.message}")


@app.command("set")
def set_options(
    volume: Volume,
    options: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[OPTION[=VALUE]]...",
            help="Options as for `docker volume create -o`.",
            autocompletion=completion.changes,
        ),
    ] = None,
    *,
    unset: Annotated[
        list[str] | None,
        typer.Option(
            "--unset",
            metavar="OPTION",
            help="Let an option have its default again.",
            autocompletion=completion.changed_options,
        ),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only show the differences, and change nothing.")
    ] = False,
    data_dir: DataDir = DATA_DIR,
    json: Json = False,
) -> None:
    """Change options of a volume, and show the differences.

    Timeouts change at once, and everything else at the next mount.
    """
    from plugin.commands import changes  # noqa: PLC0415
    from plugin.commands.asking import Plugin  # noqa: PLC0415

    plugin = Plugin(data_dir)
    with refusals("set"):
        changed = changes.change(plugin, volume, options or (), unset or (), dry_run=dry_run)
    show(changed, changes.document, json=json)


@app.command("rm")
def remove(
    volume: Volume,
    *,
    force: Annotated[
        bool, typer.Option("--force", help="Remove a volume that the engine has forgotten.")
    ] = False,
    data_dir: DataDir = DATA_DIR,
    json: Json = False,
) -> None:
    """Remove a volume that the engine has forgotten.

    A volume without a source loses its files, as by `docker volume rm`. No file of a source is
    deleted.
    """
    from plugin.commands import inquiry, views  # noqa: PLC0415
    from plugin.commands.asking import Plugin  # noqa: PLC0415

    with refusals("rm"):
        removed = inquiry.remove(Plugin(data_dir), volume, force=force)
    show(removed, views.removal_document, json=json)
