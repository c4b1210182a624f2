"""The mounts that are compared with a bare directory: sessions and options.

The table leaves out options that intend a difference from a bare directory: mapped ids, files that
cannot grow, directories that list as empty, refused changes.
"""

from collections.abc import Mapping
from dataclasses import dataclass

Options = Mapping[str, str]

# The mount has suid and dev like the host, so that suid programs and device nodes are compared,
# too. With passthrough the worker moves no data, so rows of their own have passthrough.
_ALWAYS = {"suid": "true", "dev": "true", "passthrough": "off"}
_RAMFS = "ramfs"


@dataclass(frozen=True, slots=True)
class Variant:
    """Options of a mount, and *host*: the type of the file system for both sides.

    If *host* is empty, both lie on the file system of temporary files.
    """

    options: Options
    host: str = ""


_POLICIES: Mapping[str, Variant] = {
    "never": Variant({"cache": "never"}),
    "auto": Variant({"cache": "auto"}),
    "metadata": Variant({"cache": "metadata"}),
    "always": Variant({"cache": "always"}),
}

_OPTIONS: Mapping[str, Variant] = {
    "writeback": Variant({"cache": "auto", "writeback": "true"}),
    "writeback, always": Variant({"cache": "always", "writeback": "true"}),
    "names, no attributes": Variant({"cache": "always", "attr_timeout": "0"}),
    "attributes, no names": Variant({"cache": "always", "entry_timeout": "0"}),
    "use_host_ino, descriptors": Variant(
        {"cache": "metadata", "use_host_ino": "true", "inode_file_handles": "never"}
    ),
    "file handles": Variant({"cache": "auto", "inode_file_handles": "mandatory"}),
    "tmpfs": Variant({"cache": "always"}, "tmpfs"),
    # Such a mount is compared with a host without extended attributes.
    "no xattr": Variant({"cache": "metadata", "xattr": "false"}, _RAMFS),
    "unopened": Variant({"cache": "always", "no_open": "true", "no_opendir": "true"}),
    "acl": Variant({"cache": "metadata", "posix_acl": "true"}),
    "over io_uring": Variant({"cache": "auto", "transport": "io_uring"}),
    "passed through": Variant({"cache": "auto", "passthrough": "on"}),
    "passed through, always": Variant({"cache": "always", "passthrough": "on"}),
}

# The code of the options lies below the sessions and is the same for both, and each policy tests
# the code of a session. So `kernel`, which does more, has every row, and `libfuse` the policies
# alone: all rows share PASSFS_FUZZ_SECONDS, and a row with less than 4 s finds nothing.
_SESSIONS: Mapping[str, Mapping[str, Variant]] = {
    "kernel": {**_POLICIES, **_OPTIONS},
    "libfuse": _POLICIES,
}

VARIANTS: Mapping[str, Variant] = {
    f"{session}, {name}": Variant({"session": session, **_ALWAYS, **variant.options}, variant.host)
    for session, rows in _SESSIONS.items()
    for name, variant in rows.items()
}
"""By name; each gets an equal share of the time."""
