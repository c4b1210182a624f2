"""The path of the file behind a descriptor, for calls that take no O_PATH descriptor.

A link of proc_pid_fd(5) leads to the file of the descriptor without any name lookup. If that file
is a symlink, the call does not follow it. A sandboxed process has no /proc: its working directory
is /proc/self/fd itself, and the path is the number alone. The path also works for calls that take
neither a descriptor nor a directory, such as getxattr(2).

A bind mount of the links inside the root directory would be visible to users of the volume. So the
sandbox makes the links the working directory. The relative path also costs 0.7 us less than the
absolute path.
"""

import os

_links = b"/proc/self/fd/"


def of(fd: int) -> bytes:
    """Return the path of the file behind *fd*, valid in this process while *fd* is open."""
    return b"%s%d" % (_links, fd)


def work_in(links_fd: int) -> None:
    """Make *links_fd*, /proc/self/fd of this process, the working directory; takes it.

    No thread may change its working directory afterwards, because `of` depends on it.
    """
    os.fchdir(links_fd)
    os.close(links_fd)
    will_work_in()


def will_work_in() -> None:
    """Make all paths relative to /proc/self/fd, the future working directory."""
    global _links  # noqa: PLW0603 - belongs to the process, as the working directory does
    _links = b""
