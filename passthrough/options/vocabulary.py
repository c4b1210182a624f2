"""Words of users: other names for options, options of other programs, names for ids."""

import difflib
from collections.abc import Iterable, Mapping
from typing import Final

# Options of other passthrough file systems or drivers that have no meaning here, with the reason.
MEANINGLESS: Final[Mapping[str, str]] = {
    "dax_file_size": "per-file DAX is for virtiofs guests and has no meaning on /dev/fuse",
    "size": "a volume has no size of its own: limit its directory on the host, by a project quota"
    " or a file system of its own",
}

# Options of mount(8): each takes no value, and sets one option to one value.
ALIASES: Final[Mapping[str, tuple[str, str]]] = {
    "ro": ("readonly", "true"),
    "rw": ("readonly", "false"),
    "nosuid": ("suid", "false"),
    "nodev": ("dev", "false"),
    "noexec": ("exec", "false"),
    "relatime": ("atime", "relatime"),
    "noatime": ("atime", "noatime"),
    "strictatime": ("atime", "strictatime"),
    "nodiratime": ("diratime", "false"),
}

NOTHING: Final = "none"
"""The word for the value None."""

# The least similarity (of 1) between a word and the suggested name; a typing error exceeds it.
_SIMILAR: Final = 0.65


def canonical(name: str) -> str:
    """Return the name of an option in lower case, with underscores."""
    return name.strip().lower().replace("-", "_")


def option_of(written: str) -> str:
    """Return the canonical name of the option that *written*, its name or an alias, sets."""
    name = canonical(written)
    return ALIASES[name][0] if name in ALIASES else name


def is_name(text: str) -> bool:
    """Return whether *text* may be the name of a user or group."""
    return (text[:1].isalpha() or text[:1] == "_") and text.lower() != NOTHING


def suggestion(name: str, known: Iterable[str]) -> str:
    """Return the accepted names for the refusal of *name*: the nearest of *known*, or all."""
    names = sorted(known)
    near = difflib.get_close_matches(name, names, n=1, cutoff=_SIMILAR)
    return f"{near[0]}, perhaps" if near else "one of " + ", ".join(names)
