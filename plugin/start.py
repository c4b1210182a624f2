"""The entry point of the `passfs` program: `serve` loads no module of another command.

At its start the engine waits for the plugin, and typer with rich would delay it.
"""

import sys


def main() -> None:
    """Run the command that the arguments of the process name, and exit."""
    match sys.argv[1:]:
        case ["serve", *rest] if rest in ([], ["--managed"]):
            from plugin.app import serve_command  # noqa: PLC0415

            sys.exit(serve_command(managed=bool(rest)))
        case _:
            from plugin.__main__ import app  # noqa: PLC0415

            app(prog_name="passfs")
