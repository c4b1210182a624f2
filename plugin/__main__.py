"""The `passfs` command: it runs and installs the plugin, and asks it about volumes."""

# The list of commands in the help has the order of these imports.
from plugin.cli import installing, machine, measuring, mounting, volumes
from plugin.cli.app import app

__all__ = ["app", "installing", "machine", "measuring", "mounting", "volumes"]

if __name__ == "__main__":
    app(prog_name="passfs")
