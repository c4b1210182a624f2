"""What is compared with a bare directory: each session, with the options that change how it works.

Not in the table are options whose purpose is to differ from a bare directory: ids that are mapped,
files that cannot grow, directories that list as empty, changes that are refused.
"""

from collections.abc import Mapping
from dataclasses import dataclass

Options = Mapping[str, str]

# The mount's flags as the host's: what suid programs and device nodes do is compared, too. With
# passthrough the worker moves no data; rows of their own have that, whatever the default is.
_ALWAYS = {"suid": "true", "dev": "true", "passthrough": "off"}
_RAMFS = "ramfs"


@dataclass(frozen=True, slots=True)
class Ways:
    """How to mount, and on what: *host* is the type of the file system that both sides lie on.

    Where it is empty, that is the one that temporary files lie on.
    """

    options: Options
    host: str = ""


_POLICIES: Mapping[str, Ways] = {
    "never": Ways({"cache": "never"}),
    "auto": Ways({"cache": "auto"}),
    "metadata": Ways({"cache": "metadata"}),
    "always": Ways({"cache": "always"}),
}

_OPTIONS: Mapping[str, Ways] = {
    "writeback": Ways({"cache": "auto", "writeback": "true"}),
    "writeback, always": Ways({"cache": "always", "writeback": "true"}),
    "names, no attributes": Ways({"cache": "always", "attr_timeout": "0"}),
    "attributes, no names": Ways({"cache": "always", "entry_timeout": "0"}),
    "use_host_ino, descriptors": Ways(
        {"cache": "metadata", "use_host_ino": "true", "inode_file_handles": "never"}
    ),
    "file handles": Ways({"cache": "auto", "inode_file_handles": "mandatory"}),
    "tmpfs": Ways({"cache": "always"}, "tmpfs"),
    # A host without extended attributes is what such a mount is like.
    "no xattr": Ways({"cache": "metadata", "xattr": "false"}, _RAMFS),
    "unopened": Ways({"cache": "always", "no_open": "true", "no_opendir": "true"}),
    "acl": Ways({"cache": "metadata", "posix_acl": "true"}),
    "over io_uring": Ways({"cache": "auto", "transport": "io_uring"}),
    "passed through": Ways({"cache": "auto", "passthrough": "on"}),
    "passed through, always": Ways({"cache": "always", "passthrough": "on"}),
}

# What the options do is done below the sessions, by the same code for both, and what a session adds
# of its own shows with every policy. So the one that does more has every row, and the other has
# the policies alone: there is a minute for all of them, and less than four seconds find nothing.
_SESSIONS: Mapping[str, Mapping[str, Ways]] = {
    "kernel": {**_POLICIES, **_OPTIONS},
    "libfuse": _POLICIES,
}

WAYS: Mapping[str, Ways] = {
    f"{session}, {name}": Ways({"session": session, **_ALWAYS, **ways.options}, ways.host)
    for session, rows in _SESSIONS.items()
    for name, ways in rows.items()
}
"""By name; each gets an equal part of the time."""
