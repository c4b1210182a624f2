"""INIT: the features that the kernel offers and the volume's options want.

Each feature is a row, with the reason why it is requested, or left out. The result says for each
row whether the feature is in use, and if not, why.
"""

import errno
from collections.abc import Callable
from typing import Final, NamedTuple

from passthrough.options.choices import CachePolicy, Locks, Passthrough, Transport
from passthrough.options.effective import Effective
from passthrough.session import abi
from passthrough.session.abi import Init


class ProtocolError(OSError):
    """The session does not support the kernel's version of FUSE."""

    def __init__(self, reason: str) -> None:
        super().__init__(
            errno.EPROTO, f"{reason}; session=kernel needs Linux 6.9, session=libfuse does not"
        )


class Feature(NamedTuple):
    """One flag of INIT, and the options that want it."""

    flag: Init
    wanted: Callable[[Effective], bool]
    reason: str
    """The benefit of the feature, and the options that it depends on."""


class Offer(NamedTuple):
    """The kernel's INIT request."""

    major: int
    minor: int
    max_readahead: int
    flags: int


class FeatureState(NamedTuple):
    """The state of a feature after INIT."""

    feature: str
    wanted: bool
    used: bool
    reason: str
    """The reason of the row, or that the kernel does not offer the feature that is wanted."""


class Began(NamedTuple):
    """A session that has begun to answer requests, as its worker reports it."""

    without_passthrough: str = ""
    """The reason why the worker copies data; empty with kernel passthrough, or if it is off."""
    offered: int = 0
    """The flags of INIT that the kernel offers; 0 with libfuse, whose binding hides them."""
    used: int = 0
    """The flags that INIT has agreed on; 0 with libfuse."""


class Agreed(NamedTuple):
    """The result of INIT, valid until the mount ends."""

    minor: int
    flags: Init
    max_readahead: int
    features: tuple[FeatureState, ...]


def _always(_: Effective) -> bool:
    return True


def _never(_: Effective) -> bool:
    return False


# Linux 6.9 offers all of these. INIT_EXT and SETXATTR_EXT determine the layout of requests that
# the core knows. MAX_PAGES and BIG_WRITES make requests of 1 MiB possible.
REQUIRED: Final = Init.INIT_EXT | Init.MAX_PAGES | Init.BIG_WRITES | Init.SETXATTR_EXT

FEATURES: Final = (
    Feature(Init.INIT_EXT, _always, "a second word of flags"),
    Feature(Init.MAX_PAGES, _always, "reads and writes of up to 1 MiB in one request"),
    Feature(Init.BIG_WRITES, _always, "writes of more than a page in one request"),
    Feature(Init.SETXATTR_EXT, _always, "whether setting an ACL takes the sgid bit away"),
    Feature(Init.ASYNC_READ, _always, "several reads of one file at once"),
    Feature(Init.ASYNC_DIO, _always, "several direct reads and writes of one file at once"),
    Feature(Init.PARALLEL_DIROPS, _always, "several lookups and listings in one directory at once"),
    Feature(
        Init.ATOMIC_O_TRUNC,
        lambda config: not config.no_open,
        "O_TRUNC in the request that opens; with no_open there is none",
    ),
    Feature(Init.DO_READDIRPLUS, _always, "listings with attributes, if the caller uses them"),
    Feature(
        Init.READDIRPLUS_AUTO, _always, "listings without attributes, if the caller needs none"
    ),
    Feature(Init.CACHE_SYMLINKS, _always, "the text of a symlink never changes"),
    Feature(
        Init.NO_OPEN_SUPPORT,
        lambda config: config.no_open,
        "files that are opened without a request, with no_open",
    ),
    Feature(
        Init.NO_OPENDIR_SUPPORT,
        lambda config: config.no_opendir,
        "directories that are opened without a request, with no_opendir",
    ),
    Feature(
        Init.HANDLE_KILLPRIV_V2,
        lambda config: bool(config.killpriv_v2),
        "no request for security.capability before each write, with killpriv_v2",
    ),
    Feature(
        Init.DONT_MASK,
        lambda config: config.posix_acl,
        "the caller's umask, which the host applies unless there is a default ACL, with posix_acl",
    ),
    Feature(
        Init.POSIX_ACL,
        lambda config: config.posix_acl,
        "access checks by POSIX ACLs, with posix_acl",
    ),
    Feature(
        Init.ALLOW_IDMAP,
        lambda config: config.idmap,
        "idmapped mounts; the kernel then hides the callers' ids but in creation, with idmap",
    ),
    Feature(
        Init.AUTO_INVAL_DATA,
        lambda config: config.cache is not CachePolicy.ALWAYS,
        "cached pages are dropped if the host has changed the file; cache=always keeps them",
    ),
    Feature(
        Init.EXPLICIT_INVAL_DATA,
        lambda config: config.cache is CachePolicy.ALWAYS,
        "cached pages stay if a file's times change, with cache=always",
    ),
    Feature(
        Init.WRITEBACK_CACHE,
        lambda config: config.writeback,
        "writes that the kernel buffers, with writeback",
    ),
    Feature(
        Init.PASSTHROUGH,
        lambda config: config.passthrough is not Passthrough.OFF,
        "reads and writes of the host's file inside the kernel, with passthrough",
    ),
    Feature(
        Init.POSIX_LOCKS,
        lambda config: config.locks is Locks.HOST,
        "locks of fcntl(2) that are taken on the host's files, with locks=host",
    ),
    Feature(
        Init.FLOCK_LOCKS,
        lambda config: config.locks is Locks.HOST,
        "locks of flock(2) that are taken on the host's files, with locks=host",
    ),
    # Up to 6.18 Linux offers it to virtiofs alone.
    Feature(Init.SUBMOUNTS, _always, "a device number of its own for each mount below the source"),
    Feature(
        Init.HAS_EXPIRE_ONLY,
        _always,
        "the flag EXPIRE_ONLY of INVAL_ENTRY, a notification that the session does not send",
    ),
    Feature(
        Init.HAS_RESEND,
        _always,
        "the notification RESEND, which the session does not send",
    ),
    Feature(
        Init.NO_EXPORT_SUPPORT,
        _always,
        "no file handles of the mount: NFS cannot export it, and nothing keeps its inodes for them",
    ),
    Feature(
        Init.OVER_IO_URING,
        lambda config: config.transport is Transport.IO_URING,
        "requests over io_uring, on the processor where they are made, with transport=io_uring",
    ),
    Feature(
        Init.CREATE_SUPP_GROUP,
        _never,
        "not needed: the worker's capabilities let it create files in every group",
    ),
    Feature(
        Init.SECURITY_CTX,
        _never,
        "not needed: the host's own policy labels files",
    ),
)

_FLAG_WORD_BITS: Final = 32


def offer(fields: tuple[int, ...]) -> Offer:
    """Return the fields of INIT_IN, with both words of flags as one number."""
    major, minor, max_readahead, flags, more = fields
    return Offer(major, minor, max_readahead, flags | more << _FLAG_WORD_BITS)


def agree(offered: Offer, config: Effective) -> Agreed:
    """Return the answer to *offered* for a volume with *config*.

    Raises:
        ProtocolError: the kernel speaks FUSE older than 7.40, or lacks a feature of `REQUIRED`.
    """
    if offered.major != abi.MAJOR or offered.minor < abi.LEAST_MINOR:
        version = f"{offered.major}.{offered.minor}"
        raise ProtocolError(f"the kernel speaks FUSE {version}, not {abi.MAJOR}.{abi.LEAST_MINOR}")
    if missing := REQUIRED & ~offered.flags:
        raise ProtocolError(f"the kernel does not offer {missing.name}")
    flags = Init(0)
    if config.passthrough is Passthrough.ON and not offered.flags & Init.PASSTHROUGH:
        raise ProtocolError("option 'passthrough': 'on' cannot be had: this kernel has none")
    if config.idmap and not offered.flags & Init.ALLOW_IDMAP:
        raise ProtocolError("option 'idmap': 'true' cannot be had: this kernel has none")
    for flag, wanted, _ in FEATURES:
        if wanted(config) and offered.flags & flag:
            flags |= flag
    minor = min(offered.minor, abi.MINOR)
    features = states(offered.flags, int(flags), config)
    return Agreed(minor, flags, offered.max_readahead, features)


def states(offered: int, used: int, config: Effective) -> tuple[FeatureState, ...]:
    """Return the state of each feature of a volume with *config*, by the flags of its INIT."""
    found = []
    for flag, wanted, reason in FEATURES:
        is_wanted, is_used = wanted(config), bool(used & flag)
        missing = is_wanted and not is_used and not offered & flag
        why = "the kernel does not offer it" if missing else reason
        found.append(FeatureState(str(flag.name).lower(), is_wanted, is_used, why))
    return tuple(found)
