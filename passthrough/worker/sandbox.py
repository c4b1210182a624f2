"""The sandbox of a worker: `enter` leaves the process only what it needs.

- Root directory: the source, in a mount namespace of the worker's own. Mounts below the source on
  the host, present or later, appear there too, and disappear with the host's (they are slaves of
  the host's mounts). No mount of the worker reaches the host. The worker detaches its copies of
  passfs mounts. A copy of its own mount would keep the mount alive after the unmount, and a lookup
  in the copy would wait for this worker. The worker does not enter later mounts of passfs
  (linux/mountinfo.py); to recognise them, it keeps mountinfo open. In these mounts no symlink is
  followed, no device opened, no program executed. They have the volume's flags for access times,
  also where the kernel reads a file by itself. Later mounts of the host have the host's flags.
- Working directory: /proc/self/fd, as a mount of its own with no parent. So `..` does not lead from
  it to the rest of /proc and the host's settings.
- Network, IPC and UTS namespaces of its own; the network has no interface that is up.
- The capabilities of `kept_capabilities`, for ever, and no new privileges. No memory dumps. No
  system calls that seccomp.py refuses: with them CAP_SYS_ADMIN and user id 0 would permit more than
  a worker needs.

Only a worker that uses file handles (inode_file_handles) keeps CAP_DAC_READ_SEARCH and may call
open_by_handle_at(2). The call ignores the root directory, so malicious code in the process could
open any file of the source's file system. Likewise only a worker with transport=io_uring may make
rings. Its own rings refuse all commands except those of FUSE. But malicious code could make a ring
that refuses none, and io_uring(7) has commands for sockets, which seccomp.py refuses.

Python and the C library load code late, and must never search a root directory that a volume's user
can write to. So `enter` loads all that may be needed later, and then disables the search.

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
from passthrough.options.choices import Atime
from passthrough.worker import seccomp

log = logging.getLogger(__name__)

# The capabilities that a worker keeps, capabilities(7), each with its number and its purpose.
KEPT: Final = {
    "CAP_CHOWN": (0, "chown of any file; the kernel has checked the caller's permission"),
    "CAP_DAC_OVERRIDE": (1, "access to every file; the kernel has checked the caller's permission"),
    "CAP_DAC_READ_SEARCH": (
        2,
        "open_by_handle_at(2), if inode_file_handles is not never",
    ),
    "CAP_FOWNER": (3, "chmod, utimensat, user.* attributes and O_NOATIME on files of every owner"),
    "CAP_FSETID": (4, "keep suid and sgid bits that the caller may set"),
    "CAP_SETGID": (6, "setfsgid(2): new files belong to the caller's group"),
    "CAP_SETUID": (7, "setfsuid(2): new files belong to the caller"),
    "CAP_SYS_ADMIN": (21, "trusted.* and security.* attributes; seccomp.py refuses the rest"),
    "CAP_MKNOD": (27, "device nodes; none can be opened through the worker's mounts"),
    "CAP_SETFCAP": (31, "security.capability attributes, which are file capabilities"),
}
_FOR_FILE_HANDLES: Final = "CAP_DAC_READ_SEARCH"
# The capabilities that `enter` itself needs; it drops those that are not in KEPT.
_NEEDED_TO_ENTER: Final = {"CAP_SETPCAP": 8, "CAP_SYS_ADMIN": KEPT["CAP_SYS_ADMIN"][0]}

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
# Without a row, each mount keeps its own: an administrator may have chosen noatime for a disk.
_ATIME: Final = {
    Atime.NOATIME: privileges.MOUNT_ATTR_NOATIME,
    Atime.STRICTATIME: privileges.MOUNT_ATTR_STRICTATIME,
}
_DIRECTORY: Final = os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC

# Modules that the standard library of Python 3.11 to 3.14 imports on first use, above all to print
# a traceback. Optional ones, such as tracemalloc, are left out.
_IMPORTED_LATE: Final = (
    *("ast", "tokenize", "unicodedata", "errno", "signal", "warnings"),
    *("encodings.ascii", "encodings.latin_1", "encodings.utf_8"),
    *("_colorize", "_suggestions"),
)


class SandboxError(Exception):
    """The sandbox is not possible here; the text says why, and which option avoids it."""

    def __init__(self, reason: str) -> None:
        super().__init__(
            f"option 'sandbox': namespace is not possible here: {reason};"
            " sandbox=none serves without a sandbox"
        )


def kept_capabilities(*, by_file_handle: bool) -> int:
    """Return the capabilities of a worker, with the bit 1 << CAP_* for each capability.

    With *by_file_handle* the worker opens files by kernel file handle.
    """
    wanted = (name for name in KEPT if by_file_handle or name != _FOR_FILE_HANDLES)
    return sum(1 << KEPT[name][0] for name in wanted)


def enter(
    source_fd: int,
    *,
    by_file_handle: bool,
    by_ring: bool,
    atime: Atime = Atime.RELATIME,
    diratime: bool = True,
) -> int:
    """Confine this process to the directory *source_fd*; takes the descriptor.

    With *by_file_handle* the process may still open files by kernel file handle; with *by_ring*,
    make rings of io_uring(7). *atime* and *diratime* are the options of these names.

    The process must have one thread, and no other open descriptor that leads to the host. After a
    failure it is partly confined and must end.

    Returns:
        The O_PATH descriptor of the directory inside the sandbox, owned by the caller.

    Raises:
        OSError: *source_fd* is no descriptor.
        SandboxError: the sandbox is incomplete.
    """
    os.fstat(source_fd)
    try:
        _check()
        _disable_search(preload())
        links_fd, root_fd = _enter_namespaces(source_fd, atime, diratime=diratime)
        fdpath.work_in(links_fd)
        _give_up_privileges(by_file_handle=by_file_handle, by_ring=by_ring)
    except OSError as error:
        what = "" if error.filename is None else f"{os.fsdecode(error.filename)}: "
        raise SandboxError(f"{what}{error.strerror or error}") from error
    return root_fd


def _check() -> None:
    """Raise SandboxError if a requirement is missing, before the process is changed."""
    held = privileges.effective_capabilities()
    missing = [name for name, number in _NEEDED_TO_ENTER.items() if not held >> number & 1]
    if missing:
        raise SandboxError(f"{' and '.join(missing)} missing from the worker's capabilities")
    machine = os.uname().machine
    if machine not in seccomp.MACHINES:
        raise SandboxError(f"the numbers of the system calls of {machine!r} are not known")
    if (threads := len(os.listdir("/proc/self/task"))) > 1:
        raise SandboxError(f"the worker has {threads} threads, of which only one would be confined")


def _enter_namespaces(source_fd: int, atime: Atime, *, diratime: bool) -> tuple[int, int]:
    """Move the process to namespaces of its own with the source as root.

    Returns:
        The descriptors of /proc/self/fd and of the source, each the root of a mount.
    """
    links_fd = privileges.clone_tree(privileges.AT_FDCWD, b"/proc/self/fd", recursive=False)
    privileges.change_tree(links_fd, 0, privileges.MS_PRIVATE)
    # Opened in this namespace, because /proc is out of reach in the next.
    proc_fd = os.open("/proc/self", _DIRECTORY)
    # The source lies in the worker's first namespace, so its mounts are copied there and attached
    # in the next. The copy must be a slave, or _detach_passfs_mounts would unmount on the host too.
    root_fd = privileges.clone_tree(source_fd, b"", recursive=True)
    times = _ATIME.get(atime)
    privileges.change_tree(
        root_fd,
        _INERT | (times or 0) | (0 if diratime else privileges.MOUNT_ATTR_NODIRATIME),
        privileges.MS_SLAVE,
        cleared=0 if times is None else privileges.MOUNT_ATTR__ATIME,
    )
    os.close(source_fd)
    privileges.unshare(_NAMESPACES)
    old_root_fd = os.open("/", _DIRECTORY)
    privileges.change_tree(old_root_fd, 0, privileges.MS_PRIVATE)
    os.close(old_root_fd)
    privileges.attach_tree(root_fd, b"/")
    os.fchdir(root_fd)
    # pivot_root(2) puts the old root on top of the new one; detaching it detaches all its mounts.
    privileges.pivot_root(b".", b".")
    syscalls.umount2(b".", syscalls.MNT_DETACH)
    os.fchdir(proc_fd)
    os.close(proc_fd)
    _detach_passfs_mounts()
    mountinfo.keep("mountinfo")
    return links_fd, root_fd


def _detach_passfs_mounts() -> None:
    """Detach every mount of passfs from this namespace; the working directory is /proc/self."""
    before: list[mountinfo.MountEntry] = []
    while found := [mount for mount in mountinfo.read("mountinfo") if mount.fstype == FSTYPE]:
        if found == before:
            raise SandboxError(
                f"the mount of passfs at {os.fsdecode(found[0].target)!r} cannot be detached"
            )
        # The first is the outermost: detaching it detaches the mounts below it.
        flags = syscalls.MNT_DETACH | syscalls.UMOUNT_NOFOLLOW
        syscalls.umount2(found[0].target, flags)
        before = found


def _give_up_privileges(*, by_file_handle: bool, by_ring: bool) -> None:
    privileges.forbid_new_privileges()
    privileges.forbid_dumps()
    privileges.limit_capabilities(kept_capabilities(by_file_handle=by_file_handle))
    rules = seccomp.program(
        os.uname().machine, os.getpid(), by_file_handle=by_file_handle, by_ring=by_ring
    )
    privileges.filter_calls(rules)


@functools.cache
def preload() -> dict[str, list[str]]:
    """Import the modules that a worker needs later; return the lines of passfs's modules by path.

    A fork server calls this too, so that its workers share the result.
    """
    privileges.load_unwinder()
    for name in _IMPORTED_LATE:
        try:
            __import__(name)
        except ModuleNotFoundError:
            log.debug("this version of Python has no module %s", name)
    return {str(path): _lines(path) for path in Path(__file__).parents[1].rglob("*.py")}


def _disable_search(own: dict[str, list[str]]) -> None:
    """Disable the search for modules and source lines; *own* are the lines of passfs's modules.

    A volume's user can make names below the new root: a Python module, which would be run, or a
    fifo in place of a source file, in which a traceback would wait for ever.
    """
    sys.meta_path[:] = [machinery.BuiltinImporter, machinery.FrozenImporter]
    sys.path.clear()
    # Tracebacks show the lines of passfs's modules, and only line numbers of others.
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
        return []  # tracebacks then lack these lines


def _no_lines(filename: str, module_globals: object = None) -> list[str]:  # noqa: ARG001
    return []


def _no_check(filename: str | None = None) -> None:
    """Keep the cached lines."""
