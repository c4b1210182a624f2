"""`mount.fuse.passfs`, the helper by which mount(8) mounts the type fuse.passfs.

mount(8) calls /sbin/mount.fuse.passfs, and gives the exit status on.
"""

import argparse
import sys
from collections.abc import Sequence
from typing import Final, NoReturn

from passthrough.linux.mountinfo import FSTYPE
from passthrough.standalone import background, making, statuses
from passthrough.standalone.words import given_options

PROGRAM: Final = f"mount.{FSTYPE}"
# mount(8) adds it unless `ro` is given.
_IMPLIED: Final = ("rw",)


class _Parser(argparse.ArgumentParser):
    """A parser whose errors have the exit status of mount(8)."""

    def error(self, message: str) -> NoReturn:
        """Show *message*, and exit."""
        self.print_usage(sys.stderr)
        self.exit(statuses.USAGE, f"{self.prog}: {message}\n")


def main() -> None:
    """Mount as the arguments of the process say, and exit."""
    arguments = _arguments(sys.argv[1:])
    sys.exit(statuses.attempt(PROGRAM, lambda: _mount(arguments)))


def _arguments(words: Sequence[str]) -> argparse.Namespace:
    """Return the arguments in *words*, which mount(8) lists under "external helpers"."""
    parser = _Parser(prog=PROGRAM, description="Serve a directory by passfs, for mount(8).")
    parser.add_argument("source", help="the directory to serve")
    parser.add_argument("directory", help="the mount point")
    parser.add_argument("-s", dest="sloppy", action="store_true", help="ignore unknown options")
    parser.add_argument("-f", dest="fake", action="store_true", help="check, and do not mount")
    parser.add_argument("-n", dest="no_table", action="store_true", help="ignored: no mtab is kept")
    parser.add_argument("-v", dest="verbose", action="store_true", help="say what is done")
    parser.add_argument("-N", dest="namespace", help="refused: run mount(8) in that namespace")
    parser.add_argument("-o", dest="options", action="append", default=[], help="options")
    parser.add_argument("-t", dest="type", default=FSTYPE, help=f"the type, {FSTYPE}")
    arguments = parser.parse_args(words)
    if arguments.type != FSTYPE:
        parser.error(f"-t: {arguments.type!r} is not accepted; expected {FSTYPE}")
    if arguments.namespace is not None:
        parser.error("-N is not accepted: enter the mount namespace by nsenter(1) before mount(8)")
    return arguments


def _mount(arguments: argparse.Namespace) -> int:
    given = given_options(arguments.options, implied=_IMPLIED, sloppy=arguments.sloppy)
    wanted = making.wanted(arguments.source, arguments.directory, given)
    for note in wanted.options.notes:
        statuses.warn(PROGRAM, note)
    if not arguments.fake:
        background.serve(wanted)
    if arguments.verbose:
        statuses.tell(PROGRAM, f"{arguments.source} mounted on {arguments.directory}.")
    return 0
