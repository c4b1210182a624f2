"""The sandbox of a worker: it needs little, so it keeps little.

`enter` leaves the process with, and only with,

- the source as its root directory, in a mount namespace of its own. What is mounted below the
  source on the host, now or later, is there as well, and leaves when it leaves the host (the mounts
  are slaves of the host's); nothing travels the other way. No mount of passfs is among them: a copy
  of the worker's own would keep it alive after its unmount, and a walk into it would wait for ever.
  One that comes later is not entered (names.py); for that the table of mounts stays open.
  In these mounts no symlink is followed, no device opened, no program executed.
- /proc/self/fd alone of /proc, as its working directory. It is a mount of its own with nothing
  above it, so that `..` does not lead from it to the rest of /proc and the host's settings.
- network, IPC and UTS namespaces of its own, the first without any interface that is up.
- the capabilities of `kept`, for ever, and no way to new privileges; no dumps of its memory; no
  system call of callfilter.py, which would make more of CAP_SYS_ADMIN and user id 0 than they are
  kept for.

A worker that holds files by handle (inode_file_handles) keeps what opens them as well, and no other
does: open_by_handle_at(2) knows no root directory, so that code which got into the process could
open whatever lies on the source's own file system. In the same way, a worker whose requests come
over io_uring may make rings, and no other. Each refuses all commands but those of FUSE. Code that
got into the process could make one that does not: of what callfilter.py refuses, io_uring(7) has
commands for sockets.

Python loads code late, and the C library too: a root directory that a volume's user writes to must
never be where they look. So what may be needed later is loaded first, and the search is ended.

The copy of the source's mounts is made by open_tree(2) before the process leaves the plugin's mount
namespace, because it cannot be made after. No copy of a mount holds a disk that the host unmounts;
only files on it that the kernel remembers for the volume keep the disk busy.
"""

import functools
import linecache
import logging
import os
import sys
from importlib import machinery
from pathlib import Path
from typing import Final

from passthrough.linux import fdpath, mountinfo, privileges, syscalls
from passthrough.linux.mountinfo import FSTYPE
from passthrough.worker import seccomp

log = logging.getLogger(__name__)

# Each capability that a worker keeps, capabilities(7), and what for.
KEPT: Final = {
    "CAP_CHOWN": (0, "chown of any file, as the kernel has allowed the caller to"),
    "CAP_DAC_OVERRIDE": (1, "reach every file: the kernel has checked the caller's permission"),
    "CAP_DAC_READ_SEARCH": (
        2,
        "open_by_handle_at(2), if inode_file_handles is not never",
    ),
    "CAP_FOWNER": (3, "chmod, utimensat, user.* attributes and O_NOATIME on files of any owner"),
    "CAP_FSETID": (4, "keep suid and sgid bits if the caller may set them"),
    "CAP_SETGID": (6, "setfsgid(2): new files belong to the caller's group"),
    "CAP_SETUID": (7, "setfsuid(2): new files belong to the caller"),
    "CAP_SYS_ADMIN": (21, "trusted.* and security.* attributes; callfilter.py refuses the rest"),
    "CAP_MKNOD": (27, "device nodes; the worker's mounts let no process open one"),
    "CAP_SETFCAP": (31, "security.capability attributes, which are file capabilities"),
}
_FOR_HANDLES: Final = "CAP_DAC_READ_SEARCH"
# What the way in needs, and `enter` then drops or not.
_NEEDED: Final = {"CAP_SETPCAP": 8, "CAP_SYS_ADMIN": KEPT["CAP_SYS_ADMIN"][0]}

_NAMESPACES: Final = (
    privileges.CLONE_NEWNS
    | privileges.CLONE_NEWNET
    | privileges.CLONE_NEWIPC
    | privileges.CLONE_NEWUTS
)
_INERT: Final = (
    privileges.MOUNT_ATTR_NOSUID
    | privileges.MOUNT_ATTR_NODEV
    | privileges.MOUNT_ATTR_NOEXEC
    | privileges.MOUNT_ATTR_NOSYMFOLLOW
)
_DIRECTORY: Final = os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC

# Imported by the standard library when it is about to need them, in Python 3.11 to 3.14: by the
# ways to a traceback, above all. What it can do without, such as tracemalloc, is not among them.
_IMPORTED_LATE: Final = (
    *("ast", "tokenize", "unicodedata", "errno", "signal", "warnings"),
    *("encodings.ascii", "encodings.latin_1", "encodings.utf_8"),
    *("_colorize", "_suggestions"),
)


class SandboxError(Exception):
    """The sandbox cannot be had here; the text says what is missing, and what would do."""

    def __init__(self, reason: str) -> None:
        super().__init__(
            f"option 'sandbox': namespace is not possible here: {reason};"
            " sandbox=none serves without a sandbox"
        )


def kept(*, by_handle: bool) -> int:
    """The capabilities that a worker keeps, bit 1 << CAP_* each; *by_handle* it opens files."""
    wanted = (name for name in KEPT if by_handle or name != _FOR_HANDLES)
    return sum(1 << KEPT[name][0] for name in wanted)


def enter(source_fd: int, *, by_handle: bool, by_ring: bool) -> int:
    """Confine this process to the directory *source_fd*, a descriptor that is taken.

    It may open files *by_handle* afterwards, or not, and make rings of io_uring(7), or not.

    For a process of one thread that has nothing else open that leads to the host. After a failure
    it is confined in part and must end.

    Returns:
        The O_PATH descriptor of the directory inside the sandbox, owned by the caller.

    Raises:
        OSError: *source_fd* is no descriptor.
        SandboxError: the sandbox is not whole.
    """
    os.fstat(source_fd)
    try:
        _check()
        _look_no_further(load())
        links_fd, root_fd = _enter_namespaces(source_fd)
        fdpath.work_in(links_fd)
        _give_up_privileges(by_handle=by_handle, by_ring=by_ring)
    except OSError as error:
        what = "" if error.filename is None else f"{os.fsdecode(error.filename)}: "
        raise SandboxError(f"{what}{error.strerror or error}") from error
    return root_fd


def _check() -> None:
    """Say what is missing before anything is changed."""
    held = privileges.effective_capabilities()
    missing = [name for name, number in _NEEDED.items() if not held >> number & 1]
    if missing:
        raise SandboxError(f"{' and '.join(missing)} missing from the worker's capabilities")
    machine = os.uname().machine
    if machine not in seccomp.MACHINES:
        raise SandboxError(f"the numbers of the system calls of {machine!r} are not known")
    if (threads := len(os.listdir("/proc/self/task"))) > 1:
        raise SandboxError(f"the worker has {threads} threads, of which only one could be confined")


def _enter_namespaces(source_fd: int) -> tuple[int, int]:
    """Give the process namespaces of its own with the source as root.

    Returns:
        The descriptors of /proc/self/fd and of the source, each the root of a mount.
    """
    links_fd = privileges.clone_tree(privileges.AT_FDCWD, b"/proc/self/fd", recursive=False)
    privileges.change_tree(links_fd, 0, privileges.MS_PRIVATE)
    # Of this namespace, to be read in the next: /proc is out of sight by then.
    proc_fd = os.open("/proc/self", _DIRECTORY)
    # The source lies in the namespace that the worker comes from, so it is copied there and then
    # carried over. As a slave from here on, or the detaching below would reach the host.
    root_fd = privileges.clone_tree(source_fd, b"", recursive=True)
    privileges.change_tree(root_fd, _INERT, privileges.MS_SLAVE)
    os.close(source_fd)
    privileges.unshare(_NAMESPACES)
    old_root_fd = os.open("/", _DIRECTORY)
    privileges.change_tree(old_root_fd, 0, privileges.MS_PRIVATE)
    os.close(old_root_fd)
    privileges.attach_tree(root_fd, b"/")
    os.fchdir(root_fd)
    # The old root lands on top of the new one, pivot_root(2), and goes with all that it carries.
    privileges.pivot_root(b".", b".")
    syscalls.umount2(b".", syscalls.MNT_DETACH)
    os.fchdir(proc_fd)
    os.close(proc_fd)
    _detach_own_kind()
    mountinfo.keep("mountinfo")
    return links_fd, root_fd


def _detach_own_kind() -> None:
    """Take every mount of passfs out of this namespace; the working directory is /proc/self."""
    before: list[mountinfo.Mount] = []
    while found := [mount for mount in mountinfo.read("mountinfo") if mount.fstype == FSTYPE]:
        if found == before:
            raise SandboxError(f"the mount of passfs at {os.fsdecode(found[0].target)!r} stays")
        # The first is the outermost, and takes along what lies below it.
        flags = syscalls.MNT_DETACH | syscalls.UMOUNT_NOFOLLOW
        syscalls.umount2(found[0].target, flags)
        before = found


def _give_up_privileges(*, by_handle: bool, by_ring: bool) -> None:
    privileges.forbid_new_privileges()
    privileges.forbid_dumps()
    privileges.limit_capabilities(kept(by_handle=by_handle))
    rules = seccomp.program(os.uname().machine, os.getpid(), by_handle=by_handle, by_ring=by_ring)
    privileges.filter_calls(rules)


@functools.cache
def load() -> dict[str, list[str]]:
    """Load what a worker would look for later; gives the lines of our own modules, by path.

    For a process that forks workers, too: they share it.
    """
    privileges.load_unwinder()
    for name in _IMPORTED_LATE:
        try:
            __import__(name)
        except ModuleNotFoundError:
            log.debug("this version of Python has no module %s", name)
    return {str(path): _lines(path) for path in Path(__file__).parents[1].rglob("*.py")}


def _look_no_further(own: dict[str, list[str]]) -> None:
    """Have nothing looked for from now on.

    A name below the new root is a volume user's to make: a module of Python, which would be run;
    a fifo in the place of a source file, at which a traceback would wait for ever.
    """
    sys.meta_path[:] = [machinery.BuiltinImporter, machinery.FrozenImporter]
    sys.path.clear()
    # Tracebacks show the lines of our own modules, and of others their names and line numbers.
    linecache.cache.clear()
    linecache.cache.update(
        {path: (sum(map(len, lines)), None, lines, path) for path, lines in own.items()}
    )
    linecache.updatecache = _no_lines
    linecache.checkcache = _no_check


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="utf-8").splitlines(keepends=True)
    except (OSError, UnicodeDecodeError):
        return []  # a traceback does without


def _no_lines(filename: str, module_globals: object = None) -> list[str]:  # noqa: ARG001
    return []


def _no_check(filename: str | None = None) -> None:
    """What was read before stays good."""
