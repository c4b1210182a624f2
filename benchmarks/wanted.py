"""What the command's options ask for: subjects by name, with their options and commands."""

from collections.abc import Sequence

from benchmarks.plan import BARE, Passfs, Peer
from benchmarks.subjects import KNOWN_PEERS
from passthrough.options.config import OptionError, Session, parse_options


class WantedError(Exception):
    """An option that cannot be understood; the text says which, and what would do."""


def everything() -> list[str]:
    """The names that are known without being told more."""
    return [BARE, *_sessions(), *KNOWN_PEERS]


def passfs(names: Sequence[str], more: Sequence[str], common: Sequence[str]) -> dict[str, Passfs]:
    """Our own subjects: the sessions among *names*, and NAME=K=V,K=V of *more*.

    Raises:
        WantedError: an option that a volume could not have.
    """
    shared = dict(_pair(word, "--option") for text in common for word in text.split(","))
    wanted = {name: {"session": name} for name in names if name in _sessions()}
    for text in more:
        name, options = _pair(text, "--passfs")
        wanted[name] = dict(_pair(word, "--passfs") for word in options.split(","))
    found = {name: Passfs(shared | own) for name, own in wanted.items()}
    try:
        for subject in found.values():
            parse_options(subject.options, has_source=True)
    except OptionError as error:
        raise WantedError(str(error)) from error
    return found


def peers(names: Sequence[str], more: Sequence[str]) -> dict[str, Peer]:
    """The others: those of *names* that are no sessions, and NAME=COMMAND of *more*.

    Raises:
        WantedError: a name that is not known, or a command that would not mount.
    """
    unknown = [name for name in names if name not in everything()]
    if unknown:
        raise WantedError(
            f"--subjects: {unknown[0]!r} is not known; there are {', '.join(everything())},"
            " and what --passfs and --peer add"
        )
    found = {name: KNOWN_PEERS[name] for name in names if name in KNOWN_PEERS}
    for name, command in (_pair(text, "--peer") for text in more):
        if not all(place in command for place in ("{source}", "{mountpoint}")):
            raise WantedError(f"--peer {name}: the command lacks {{source}} or {{mountpoint}}")
        found[name] = Peer(command)
    return found


def _sessions() -> list[str]:
    return [session.value for session in Session if session is not Session.AUTO]


def _pair(text: str, option: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not name or not equals:
        raise WantedError(f"{option} {text}: NAME=VALUE is expected")
    return name, value
