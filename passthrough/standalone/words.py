"""The words of `-o`, as mount(8) splits them, and those that are for other programs; no I/O."""

import re
from collections.abc import Iterable, Iterator
from typing import Final

from passthrough.options.table import OPTIONS, OptionError
from passthrough.options.vocabulary import ALIASES, canonical

# Words for mount(8), its callers and systemd.mount(5), and those that say what is so anyway. Some
# have a value.
_OF_OTHERS: Final = frozenset(
    {
        *("defaults", "auto", "noauto", "nofail", "_netdev", "comment", "uhelper", "helper"),
        *("user", "nouser", "users", "nousers", "group", "nogroup", "noowner"),
        *("async", "nomand", "nolazytime", "loud", "silent"),
    }
)
_COMMENTS: Final = ("x-", "X-")

# A comma between quotes does not end a word.
_WORD: Final = re.compile(r'(?:[^,"]|"[^"]*"?)+')


def given_options(
    texts: Iterable[str], *, implied: Iterable[str] = (), sloppy: bool = False
) -> dict[str, str]:
    """Return the options in *texts*, each from one `-o`, without the words for other programs.

    The words *implied* are those that the caller adds by itself, and count only without a text of
    their own. With *sloppy*, unknown options are left out.

    Raises:
        OptionError: an option has two values, or asks for another mount than a new one.
    """
    given: dict[str, str] = {}
    for word in _words(texts):
        written, _, value = word.partition("=")
        if word in implied or _is_for_others(written) or (sloppy and not _is_known(written)):
            continue
        if written == "remount":
            reason = "is refused: the options of a mount cannot be changed"
            raise OptionError(written, value, "an unmount, and a mount with other options", reason)
        if given.setdefault(written, value) != value:
            raise OptionError(written, value, f"one value only, and it was {given[written]!r}")
    return given


def _words(texts: Iterable[str]) -> Iterator[str]:
    for text in texts:
        for word in _WORD.findall(text):
            yield word.replace('"', "")


def _is_for_others(written: str) -> bool:
    return written in _OF_OTHERS or written.startswith(_COMMENTS)


def _is_known(written: str) -> bool:
    return written == "remount" or canonical(written) in {*OPTIONS, *ALIASES}
