"""The commands that mount and unmount without Docker."""

from functools import partial
from typing import Annotated, Any

import typer
from typer.core import TyperCommand

from plugin.cli import completion
from plugin.cli.app import Json, app

_WRONG_USE = 2  # the exit status of the library
_WRONG_USE_OF_MOUNT = 1  # mount(8)


class _LikeMount(TyperCommand):
    """A command that ends as mount(8) does after wrong use."""

    def make_context(self, *arguments: Any, **named: Any) -> Any:  # noqa: ANN401 - the library's
        """Parse the arguments of the command."""
        try:
            return super().make_context(*arguments, **named)
        except Exception as error:
            if getattr(error, "exit_code", None) == _WRONG_USE:
                error.exit_code = _WRONG_USE_OF_MOUNT  # type: ignore[attr-defined]
            raise


_Options = Annotated[
    list[str] | None,
    typer.Option(
        "-o",
        "--option",
        metavar="OPTIONS",
        help="Options of volumes, as in /etc/fstab: cache=never,ro.",
        autocompletion=completion.mount_options,
    ),
]


@app.command(cls=_LikeMount)
def mount(
    source: Annotated[str, typer.Argument(metavar="SOURCE", help="The directory to serve.")],
    directory: Annotated[
        str, typer.Argument(metavar="DIRECTORY", help="The mount point: an existing directory.")
    ],
    *,
    option: _Options = None,
    foreground: Annotated[
        bool, typer.Option("--foreground", "-f", help="Serve in this process, until it is ended.")
    ] = False,
    json: Json = False,
) -> None:
    """Mount a directory without Docker.

    Processes in the background serve the mount until it is unmounted. The exit status is that of
    mount(8): 1 after wrong use or a refused option, 32 if there is no mount.
    """
    # All before the service begins: its sandbox finds no module.
    from passthrough.standalone import (  # noqa: PLC0415
        background,
        foreground as own_process,
        making,
        statuses,
        words,
    )
    from plugin.commands import mounts, terminal  # noqa: PLC0415

    program = "passfs mount"

    def step() -> int:
        wanted = making.wanted(source, directory, words.given_options(option or []))
        for note in wanted.options.notes:
            statuses.warn(program, note)
        report = mounts.mounted(wanted)

        def serving() -> None:
            if json:
                terminal.show_json(report)
            elif foreground:
                terminal.show_line(f"serving {source} at {directory}")

        if foreground:
            refuse = partial(statuses.refuse, program)
            return own_process.serve(wanted, serving, refuse)
        background.serve(wanted)
        serving()
        return 0

    raise typer.Exit(statuses.attempt(program, step))


@app.command("umount", cls=_LikeMount, hidden=True)
@app.command(cls=_LikeMount)
def unmount(
    directory: Annotated[str, typer.Argument(metavar="DIRECTORY", help="The mount point.")],
    *,
    lazy: Annotated[
        bool,
        typer.Option("--lazy", "-l", help="Detach a mount in use; its open files stay usable."),
    ] = False,
    json: Json = False,
) -> None:
    """Unmount a mount of `passfs mount`.

    The command waits for the end of its processes. The exit status is that of umount(8): 1 after
    wrong use, 32 if the mount is in use, is that of a volume, or is served on elsewhere.
    """
    from passthrough.standalone import statuses, unmounting  # noqa: PLC0415
    from plugin.commands import mounts, terminal  # noqa: PLC0415

    def step() -> int:
        mount = unmounting.unmount(directory, lazy=lazy)
        if json:
            terminal.show_json(mounts.unmounted(mount))
        return 0

    raise typer.Exit(statuses.attempt("passfs unmount", step))
