"""The commands about the machine."""

from typing import Annotated

import typer

from plugin.cli.app import DATA_DIR, DataDir, Json, app, show


@app.command()
def doctor(
    *,
    strict: Annotated[
        bool, typer.Option("--strict", help="Take a warning for an error in the exit status.")
    ] = False,
    data_dir: DataDir = DATA_DIR,
    json: Json = False,
) -> None:
    """Examine the machine, the engine and the plugin.

    Each finding says what it means, and how to mend it. The exit status is 1 if there is an error:
    a volume cannot work.
    """
    from plugin.doctor import examination, report  # noqa: PLC0415
    from plugin.doctor.facts import Machine  # noqa: PLC0415

    findings = examination.examine(Machine.own(data_dir))
    show(findings, report.document, json=json)
    if not report.is_well(findings, strict=strict):
        raise typer.Exit(1)
