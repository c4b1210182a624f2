"""The kinds of session: the one that `session=auto` stands for, and the options that each lacks."""

from collections.abc import Mapping
from typing import Final, NamedTuple, TypeAlias

from passthrough.options.choices import Passthrough, SessionKind, Transport

Release: TypeAlias = tuple[int, int]
"""The first two numbers of a release of Linux, uname(2)."""

# Linux 6.9 brought FUSE 7.40.
FIRST_KERNEL_SESSION: Final[Release] = (6, 9)
"""The first release on which `session=auto` stands for `kernel`."""


FIRST_SANDBOX: Final[Release] = (5, 14)
"""The first release with the sandbox: mount_setattr(2) with nosymfollow."""

FIRST_IDMAP: Final[Release] = (6, 12)
"""The first release with idmapped mounts of FUSE."""


class Automatic(NamedTuple):
    """The kind of session that `session=auto` stands for, with the reason."""

    session: SessionKind
    reason: str


def automatic(release: Release) -> Automatic:
    """Return the kind of session that `auto` stands for on Linux *release*.

    The release decides, because Create refuses the options that the session lacks. INIT, with the
    version of the protocol, comes only with a mount.
    """
    text = ".".join(map(str, release))
    if release < FIRST_KERNEL_SESSION:
        return Automatic(SessionKind.LIBFUSE, f"Linux {text} is older than 6.9")
    return Automatic(SessionKind.KERNEL, f"Linux {text} has FUSE passthrough")


def kind_of(requested: SessionKind, release: Release) -> SessionKind:
    """Return the kind of session that serves if *requested* is given on Linux *release*."""
    return automatic(release).session if requested is SessionKind.AUTO else requested


class Lack(NamedTuple):
    """An option that a session cannot have."""

    reason: str
    without: object = None
    """A second accepted value, which does not ask for the feature.

    None if only the default is accepted.
    """


LACKING: Final[Mapping[SessionKind, Mapping[str, Lack]]] = {
    SessionKind.LIBFUSE: {
        "no_open": Lack("pyfuse3 passes reads and writes the fh of an open file, but no nodeid"),
        "no_opendir": Lack("pyfuse3 passes listings the fh of an open directory, but no nodeid"),
        "killpriv_v2": Lack(
            "pyfuse3 does not negotiate HANDLE_KILLPRIV_V2, so that the kernel clears the bits"
            " itself",
            without=False,
        ),
        "posix_acl": Lack(
            "pyfuse3 does not negotiate DONT_MASK, so that the kernel applies the umask where a"
            " default ACL should stand in its place",
            without=False,
        ),
        "idmap": Lack("pyfuse3 does not negotiate ALLOW_IDMAP"),
        "transport": Lack("pyfuse3 reads /dev/fuse itself", without=Transport.DEV),
        "passthrough": Lack("pyfuse3 does not negotiate PASSTHROUGH", without=Passthrough.OFF),
    },
}
"""The options that each kind of session lacks; volumes that give them are refused."""


def lack(session: SessionKind, option: str) -> str:
    """Return why *session* lacks *option*, or an empty text if it has it."""
    found = LACKING.get(session, {}).get(option)
    return found.reason if found else ""
