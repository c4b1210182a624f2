"""The words that options choose from; config.py says what each option is."""

import enum


class CachePolicy(enum.StrEnum):
    """How long the kernel may answer from its own memory; cache.py turns it into numbers."""

    NEVER = "never"
    METADATA = "metadata"
    AUTO = "auto"
    ALWAYS = "always"


class Atime(enum.StrEnum):
    """When reading a file moves its access time, mount(8)."""

    RELATIME = "relatime"
    NOATIME = "noatime"
    STRICTATIME = "strictatime"


class InodeFileHandles(enum.StrEnum):
    """Whether inodes are held by kernel file handles, in place of a descriptor each."""

    NEVER = "never"
    PREFER = "prefer"
    MANDATORY = "mandatory"


class Submounts(enum.StrEnum):
    """What becomes of the file systems that are mounted below the source."""

    CROSS = "cross"
    HIDE = "hide"


class SessionKind(enum.StrEnum):
    """What speaks FUSE with the kernel; `auto` takes the best one that there is."""

    AUTO = "auto"
    KERNEL = "kernel"
    LIBFUSE = "libfuse"


class Transport(enum.StrEnum):
    """How requests come from the kernel and answers go; `auto` is /dev/fuse."""

    AUTO = "auto"
    DEV = "dev"
    IO_URING = "io_uring"


class Passthrough(enum.StrEnum):
    """Whether the kernel reads and writes the host's files by itself."""

    AUTO = "auto"
    ON = "on"
    OFF = "off"


class Locks(enum.StrEnum):
    """Where the locks of fcntl(2) and flock(2) are taken."""

    HOST = "host"
    LOCAL = "local"


class Squash(enum.StrEnum):
    """Whose ids are replaced by the anonymous ones, exports(5)."""

    NONE = "none"
    ROOT = "root"
    ALL = "all"


class Sandbox(enum.StrEnum):
    """What the process that serves a volume can see and do; sandbox.py."""

    NAMESPACE = "namespace"
    NONE = "none"
