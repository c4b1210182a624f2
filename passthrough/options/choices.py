"""The words that options accept; table.py describes each option."""

import enum
import logging


class CachePolicy(enum.StrEnum):
    """The policy of the kernel's cache.

    - timeouts.py: the timeouts that are not given.
    - cache_policy.py: the flags of opens, which the handlers of both sessions send. `always` keeps
      cached pages, `metadata` drops attributes.
    - effective.py: conflicts of `never` with writeback, of `metadata` with passthrough, and of all
      but `always` with no_open.
    - session/negotiation.py: the kernel drops cached pages if a file's times change, but not with
      `always`.
    - plugin/admin/network.py: a refusal if the source is on a network file system.
    """

    NEVER = "never"
    METADATA = "metadata"
    AUTO = "auto"
    ALWAYS = "always"


class Atime(enum.StrEnum):
    """The updates of access times, mount(8)."""

    RELATIME = "relatime"
    NOATIME = "noatime"
    STRICTATIME = "strictatime"


class InodeFileHandles(enum.StrEnum):
    """The use of kernel file handles for inodes, in place of a descriptor each."""

    NEVER = "never"
    PREFER = "prefer"
    MANDATORY = "mandatory"


class Submounts(enum.StrEnum):
    """The view of file systems that are mounted below the source."""

    CROSS = "cross"
    HIDE = "hide"


class SessionKind(enum.StrEnum):
    """The implementation of the FUSE protocol; `auto` takes the best that the kernel allows."""

    AUTO = "auto"
    KERNEL = "kernel"
    LIBFUSE = "libfuse"


class Transport(enum.StrEnum):
    """The channel of requests and replies; `auto` is /dev/fuse."""

    AUTO = "auto"
    DEV = "dev"
    IO_URING = "io_uring"


class Passthrough(enum.StrEnum):
    """FUSE passthrough: the kernel reads and writes the host's files by itself."""

    AUTO = "auto"
    ON = "on"
    OFF = "off"


class Locks(enum.StrEnum):
    """The place of the locks of fcntl(2) and flock(2)."""

    HOST = "host"
    LOCAL = "local"


class Squash(enum.StrEnum):
    """The callers that act with the anonymous ids, exports(5)."""

    NONE = "none"
    ROOT = "root"
    ALL = "all"


class Standby(enum.StrEnum):
    """Processes that make the worker anew when it dies, worker/standby.py."""

    ON = "on"
    OFF = "off"


class LogLevel(enum.StrEnum):
    """The least severe level of the lines that are logged; the names are those of `logging`."""

    DEBUG = "debug"
    INFO = "info"
    WARNING = "warning"
    ERROR = "error"

    @property
    def number(self) -> int:
        """The level as in `logging`."""
        return logging.getLevelNamesMapping()[self.name]


class Sandbox(enum.StrEnum):
    """The confinement of the worker, worker/sandbox.py."""

    NAMESPACE = "namespace"
    NONE = "none"
