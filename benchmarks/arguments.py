"""The subjects that the command's options ask for, with their options and commands."""

import shutil
from collections.abc import Sequence

from benchmarks.plan import BARE, Passfs, Peer
from benchmarks.subjects import KNOWN_PEERS
from passthrough.linux.kernel_features import linux_release
from passthrough.options.choices import SessionKind
from passthrough.options.parsing import parse_options
from passthrough.options.table import OptionError


class ArgumentError(Exception):
    """A wrong option. The text names the option, its value, and what is accepted."""


def known_names() -> list[str]:
    """Return the names that --subjects accepts."""
    return [BARE, *_sessions(), *KNOWN_PEERS]


def installed_names() -> list[str]:
    """Return the known names without those of peers that are not installed."""
    return [n for n in known_names() if n not in KNOWN_PEERS or not _missing(KNOWN_PEERS[n])]


def passfs(names: Sequence[str], more: Sequence[str], common: Sequence[str]) -> dict[str, Passfs]:
    """Return the passfs subjects: the sessions among *names*, and NAME=K=V,K=V of *more*.

    Raises:
        ArgumentError: an option that a volume does not accept.
    """
    shared = dict(_pair(word, "--option") for text in common for word in text.split(","))
    wanted = {name: {"session": name} for name in names if name in _sessions()}
    for text in more:
        name, options = _pair(text, "--passfs")
        wanted[name] = dict(_pair(word, "--passfs") for word in options.split(","))
    found = {name: Passfs(shared | own) for name, own in wanted.items()}
    try:
        for subject in found.values():
            parse_options(subject.options, linux_release(), has_source=True)
    except OptionError as error:
        raise ArgumentError(str(error)) from error
    return found


def peers(names: Sequence[str], more: Sequence[str]) -> dict[str, Peer]:
    """Return the peers: those of *names* that are no sessions, and NAME=COMMAND of *more*.

    Raises:
        ArgumentError: an unknown name, a program that is not installed, or a command without
            {source} or {mountpoint}.
    """
    unknown = [name for name in names if name not in known_names()]
    if unknown:
        raise ArgumentError(
            f"--subjects: {unknown[0]!r} is not known; accepted: {', '.join(known_names())};"
            " --passfs and --peer add others"
        )
    found = {name: KNOWN_PEERS[name] for name in names if name in KNOWN_PEERS}
    for name, peer in found.items():
        if lacking := _missing(peer):
            raise ArgumentError(
                f"--subjects: {name!r} needs {' and '.join(lacking)}, not installed here;"
                " docs/performance.md names the packages"
            )
    for name, command in (_pair(text, "--peer") for text in more):
        if not all(place in command for place in ("{source}", "{mountpoint}")):
            raise ArgumentError(f"--peer {name}: {command!r} lacks {{source}} or {{mountpoint}}")
        found[name] = Peer(command)
    return found


def _missing(peer: Peer) -> list[str]:
    """Return the programs that *peer* needs and that are not installed."""
    return [name for name in (peer.program, *peer.needs) if not shutil.which(name)]


def _sessions() -> list[str]:
    return [session.value for session in SessionKind if session is not SessionKind.AUTO]


def _pair(text: str, option: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not name or not equals:
        raise ArgumentError(f"{option}: {text!r} is not accepted; NAME=VALUE is expected")
    return name, value
