"""The words for options beside their names: aliases, and what other programs call options."""

import difflib
from collections.abc import Iterable, Mapping
from typing import Final

# Options of the same file system, or of other drivers, that can have no meaning here, and why.
MEANINGLESS: Final[Mapping[str, str]] = {
    "dax_file_size": "per-file DAX is for virtiofs guests and has no meaning on /dev/fuse",
    "size": "a volume has no size of its own: limit its directory on the host, by a project quota"
    " or a file system of its own",
}

# The words of mount(8) for the same options: each stands alone and sets one option to one value.
ALIASES: Final[Mapping[str, tuple[str, str]]] = {
    "ro": ("readonly", "true"),
    "rw": ("readonly", "false"),
    "nosuid": ("suid", "false"),
    "nodev": ("dev", "false"),
    "noexec": ("exec", "false"),
    "relatime": ("atime", "relatime"),
    "noatime": ("atime", "noatime"),
    "strictatime": ("atime", "strictatime"),
}

# How much of a word, of 1, must agree with a name that is suggested for it: a slip of the pen does.
_SIMILAR: Final = 0.65


def canonical(name: str) -> str:
    """Return the one spelling of an option's name: lower case, with underscores."""
    return name.strip().lower().replace("-", "_")


def suggestion(name: str, known: Iterable[str]) -> str:
    """Return what a refusal of *name* names as accepted: the nearest of *known*, or all."""
    names = sorted(known)
    near = difflib.get_close_matches(name, names, n=1, cutoff=_SIMILAR)
    return f"{near[0]}, perhaps" if near else "one of " + ", ".join(names)
