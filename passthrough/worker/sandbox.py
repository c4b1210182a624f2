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
  it to the rest of /proc and the host's settings. The directory is that of the process that made
  the mount: another process cannot use it.
- Network, IPC and UTS namespaces of its own; the network has no interface that is up.
- The capabilities of `kept_capabilities`, for ever, and no new privileges. No memory dumps. Only
  the system calls that seccomp.py allows: with others CAP_SYS_ADMIN and user id 0 would permit more
  than a worker needs.

With a standby, the first process is a guard (`enter_as_guard`), and each worker is its child
(`enter_as_worker`). The guard's root directory is mounted on a read-only copy of /proc, which no
path reaches: the guard has it as its working directory, and in no descriptor. A fresh worker makes
its own mount of /proc/self/fd from the copy, changes into it, and puts the strict filter on top of
the guard's. From then on it can reach the copy no more.

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
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib import machinery
from pathlib import Path
from typing import Final, TypeAlias

from passthrough.linux import fdpath, mountinfo, privileges, syscalls
from passthrough.linux.mountinfo import FSTYPE
from passthrough.options.choices import Atime
from passthrough.worker import seccomp

log = logging.getLogger(__name__)

_Source: TypeAlias = tuple[int, None, list[str], str]
"""An entry of linecache.cache: the size of a file, no date, so that it stays, lines and path."""

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
NEEDED_TO_ENTER: Final = {"CAP_SETPCAP": 8, "CAP_SYS_ADMIN": KEPT["CAP_SYS_ADMIN"][0]}
# chroot(2) is for a guard alone.
NEEDED_BY_GUARD: Final = {"CAP_SYS_CHROOT": 18}

NAMESPACES: Final = (
    privileges.CLONE_NEWNS
    | privileges.CLONE_NEWNET
    | privileges.CLONE_NEWIPC
    | privileges.CLONE_NEWUTS
)
# Without a row, each mount keeps its own: an administrator may have chosen noatime for a disk.
_ATIME: Final = {
    Atime.NOATIME: privileges.MOUNT_ATTR_NOATIME,
    Atime.STRICTATIME: privileges.MOUNT_ATTR_STRICTATIME,
}
_READ_ONLY: Final = (
    privileges.MOUNT_ATTR_RDONLY
    | privileges.MOUNT_ATTR_NOSUID
    | privileges.MOUNT_ATTR_NODEV
    | privileges.MOUNT_ATTR_NOEXEC
)
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
    with _reported():
        _prepare()
        root_fd = _enter_namespaces(source_fd, atime, diratime=diratime, procfs_fd=None)
        _give_up_privileges(by_file_handle=by_file_handle, by_ring=by_ring)
    return root_fd


def enter_as_guard(
    source_fd: int, *, by_file_handle: bool, atime: Atime, diratime: bool
) -> tuple[int, int]:
    """Confine this process as `enter` does, but for what a guard needs.

    Returns:
        The descriptor of the directory, as of `enter`, and one of /proc for `work_as_guard`.

    Raises:
        OSError: *source_fd* is no descriptor.
        SandboxError: the sandbox is incomplete.
    """
    os.fstat(source_fd)
    with _reported():
        _prepare()
        procfs_fd = privileges.clone_tree(privileges.AT_FDCWD, b"/proc", recursive=False)
        privileges.change_tree(procfs_fd, _READ_ONLY, privileges.MS_PRIVATE)
        root_fd = _enter_namespaces(source_fd, atime, diratime=diratime, procfs_fd=procfs_fd)
        _give_up_privileges(by_file_handle=by_file_handle, by_ring=False, by_guard=True)
        _rules(by_file_handle=by_file_handle, by_ring=False, by_guard=False)  # for the workers
    return root_fd, procfs_fd


def enter_as_next_guard(process_fd: int, procfs_fd: int, *, by_file_handle: bool) -> None:
    """Enter the sandbox of a guard of another program, and confine this process as that is.

    *process_fd* is its process descriptor, *procfs_fd* its working directory; takes the latter.

    Raises:
        SandboxError: the sandbox is incomplete.
    """
    with _reported():
        _prepare()
        privileges.enter_namespaces(process_fd, NAMESPACES)
        work_as_guard(procfs_fd)
        fdpath.will_work_in()  # the workers do
        mountinfo.keep("self/mountinfo")
        _give_up_privileges(by_file_handle=by_file_handle, by_ring=False, by_guard=True)
        _rules(by_file_handle=by_file_handle, by_ring=False, by_guard=False)  # for the workers


def work_as_guard(procfs_fd: int) -> None:
    """Make the hidden copy of /proc the working directory; takes *procfs_fd*.

    No worker exists yet: it would share the descriptor.
    """
    os.fchdir(procfs_fd)
    os.close(procfs_fd)


def enter_as_worker(*, by_file_handle: bool) -> None:
    """Confine this process, a child of a guard, as `enter` does.

    Raises:
        SandboxError: the sandbox is incomplete; the process must end.
    """
    with _reported():
        fdpath.work_in(privileges.clone_tree(privileges.AT_FDCWD, b"self/fd", recursive=False))
        _filter_calls(by_file_handle=by_file_handle, by_ring=False, by_guard=False)


def lacks_for_guard() -> str:
    """Return the capability that a guard needs and this process lacks, or an empty text."""
    return _missing(NEEDED_BY_GUARD)


@contextmanager
def _reported() -> Iterator[None]:
    """Raise an OSError of this block as SandboxError."""
    try:
        yield
    except OSError as error:
        what = "" if error.filename is None else f"{os.fsdecode(error.filename)}: "
        raise SandboxError(f"{what}{error.strerror or error}") from error


def _prepare() -> None:
    """Do what must be done while the process sees the host's files."""
    _check()
    _disable_search(preload())


def _check() -> None:
    """Raise SandboxError if a requirement is missing, before the process is changed."""
    if missing := _missing(NEEDED_TO_ENTER):
        raise SandboxError(f"{missing} missing from the worker's capabilities")
    machine = os.uname().machine
    if machine not in seccomp.MACHINES:
        raise SandboxError(f"the numbers of the system calls of {machine!r} are not known")
    if (threads := len(os.listdir("/proc/self/task"))) > 1:
        raise SandboxError(f"the worker has {threads} threads, of which only one would be confined")


def _missing(needed: Mapping[str, int]) -> str:
    held = privileges.effective_capabilities()
    return " and ".join(name for name, number in needed.items() if not held >> number & 1)


def _clone_links() -> int:
    """Return a descriptor of /proc/self/fd as the root of a mount."""
    links_fd = privileges.clone_tree(privileges.AT_FDCWD, b"/proc/self/fd", recursive=False)
    privileges.change_tree(links_fd, 0, privileges.MS_PRIVATE)
    return links_fd


def _enter_namespaces(
    source_fd: int, atime: Atime, *, diratime: bool, procfs_fd: int | None
) -> int:
    """Move the process to namespaces of its own with the source as root.

    It works in /proc/self/fd then. If *procfs_fd* is given, the root lies on this mount.

    Returns:
        The descriptor of the source, the root of a mount.
    """
    # Both of this namespace, because /proc is out of reach in the next.
    links_fd = _clone_links()
    proc_fd = os.open("/proc/self", _DIRECTORY)
    # The source lies in the worker's first namespace, so its mounts are copied there and attached
    # in the next. The copy must be a slave, or _detach_passfs_mounts would unmount on the host too.
    root_fd = privileges.clone_tree(source_fd, b"", recursive=True)
    times = _ATIME.get(atime)
    privileges.change_tree(
        root_fd,
        privileges.INERT | (times or 0) | (0 if diratime else privileges.MOUNT_ATTR_NODIRATIME),
        privileges.MS_SLAVE,
        cleared=0 if times is None else privileges.MOUNT_ATTR__ATIME,
    )
    os.close(source_fd)
    privileges.unshare(NAMESPACES)
    old_root_fd = os.open("/", _DIRECTORY)
    privileges.change_tree(old_root_fd, 0, privileges.MS_PRIVATE)
    os.close(old_root_fd)
    lowest_fd = root_fd if procfs_fd is None else procfs_fd
    privileges.attach_tree(lowest_fd, b"/")
    os.fchdir(lowest_fd)
    # pivot_root(2) puts the old root on top of the new one; detaching it detaches all its mounts.
    privileges.pivot_root(b".", b".")
    syscalls.umount2(b".", syscalls.MNT_DETACH)
    if procfs_fd is not None:
        privileges.attach_tree(root_fd, b"/")
        os.fchdir(root_fd)
        os.chroot(".")
    os.fchdir(proc_fd)
    os.close(proc_fd)
    _detach_passfs_mounts()
    mountinfo.keep("mountinfo")
    fdpath.work_in(links_fd)
    return root_fd


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


def _give_up_privileges(*, by_file_handle: bool, by_ring: bool, by_guard: bool = False) -> None:
    privileges.forbid_new_privileges()
    privileges.forbid_dumps()
    privileges.limit_capabilities(kept_capabilities(by_file_handle=by_file_handle))
    _filter_calls(by_file_handle=by_file_handle, by_ring=by_ring, by_guard=by_guard)


def _filter_calls(*, by_file_handle: bool, by_ring: bool, by_guard: bool) -> None:
    rules = _rules(by_file_handle=by_file_handle, by_ring=by_ring, by_guard=by_guard)
    privileges.filter_calls(rules)


def _rules(*, by_file_handle: bool, by_ring: bool, by_guard: bool) -> bytes:
    """Return the filter for this process; the second time, it takes microseconds."""
    return seccomp.program(
        os.uname().machine,
        os.getpid(),
        by_file_handle=by_file_handle,
        by_ring=by_ring,
        by_guard=by_guard,
    )


@functools.cache
def preload() -> dict[str, _Source]:
    """Import the modules that a worker needs later; return passfs's modules by path.

    A fork server calls this too, so that its workers share the result.
    """
    privileges.load_unwinder()
    for name in _IMPORTED_LATE:
        try:
            __import__(name)
        except ModuleNotFoundError:
            log.debug("this version of Python has no module %s", name)
    return {str(path): _source(path) for path in Path(__file__).parents[1].rglob("*.py")}


def _disable_search(own: dict[str, _Source]) -> None:
    """Disable the search for modules and source lines; *own* are the lines of passfs's modules.

    A volume's user can make names below the new root: a Python module, which would be run, or a
    fifo in place of a source file, in which a traceback would wait for ever.

    To look at each line, or to drop lines that the fork server has cached, would give each worker a
    copy of their memory: 0.6 MiB, with session=libfuse 2.1 MiB.
    """
    sys.meta_path[:] = [machinery.BuiltinImporter, machinery.FrozenImporter]
    sys.path.clear()
    # Tracebacks show the lines of passfs's modules, and of others only what is cached.
    linecache.cache.update(own)
    linecache.updatecache = _no_lines
    linecache.checkcache = _no_check


def _source(path: Path) -> _Source:
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        text = ""  # tracebacks then lack these lines
    return len(text), None, text.splitlines(keepends=True), str(path)


def _no_lines(filename: str, module_globals: object = None) -> list[str]:  # noqa: ARG001
    return []


def _no_check(filename: str | None = None) -> None:
    """Keep the cached lines."""
