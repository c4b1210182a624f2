"""The checks of the kernel: its release, FUSE, io_uring, and what the sandbox needs."""

import errno
import os
import stat
from typing import Final

from passthrough.linux import kernel_features, privileges, syscalls
from passthrough.options.sessions import FIRST_KERNEL_SESSION, FIRST_SANDBOX
from passthrough.session import abi, negotiation
from passthrough.session.abi import Init
from passthrough.worker import sandbox, seccomp
from plugin.doctor.facts import Facts, is_loaded
from plugin.doctor.finding import Found, State, listed, unchecked

_NO_MOUNT: Final = "no volume can be mounted"
_FUSE_NUMBER: Final = (10, 229)  # Documentation/admin-guide/devices.txt
# Two have checks of their own, and the kernel offers submounts to virtiofs alone.
_LEFT_OUT: Final = Init.PASSTHROUGH | Init.OVER_IO_URING | Init.SUBMOUNTS
_FOR_ALL: Final = 0o006
_SECCOMP: Final = "sys/kernel/seccomp/actions_avail"
_RINGS_FOR_NONE: Final = 2  # kernel.io_uring_disabled, Documentation/admin-guide/sysctl/kernel.rst
_LIMITS: Final = "/proc/sys/user/max_{mnt,net,ipc,uts}_namespaces"


def release(facts: Facts) -> Found:
    """Compare the release of Linux, and the processor, with the needs of passfs."""
    machine = facts.machine
    found = f"Linux {'.'.join(map(str, machine.release))} on {machine.architecture}"
    if machine.release < FIRST_SANDBOX or machine.architecture not in seccomp.MACHINES:
        return Found(
            State.ERROR,
            found,
            "no worker can have a sandbox: no volume is mounted, unless it has sandbox=none",
            f"run Linux 5.14 or newer on {', '.join(seccomp.MACHINES)}",
        )
    if machine.release < FIRST_KERNEL_SESSION:
        return Found(
            State.WARNING,
            found,
            "session=auto takes libfuse: a mount ends with its worker, and the worker reads and"
            " writes all contents",
            "run Linux 6.9 or newer",
        )
    return Found(State.OK, found)


def device(facts: Facts) -> Found:
    """Open /dev/fuse, unless that would load a module."""
    path = facts.machine.fuse
    try:
        found = path.stat()
        number = os.major(found.st_rdev), os.minor(found.st_rdev)
        if not stat.S_ISCHR(found.st_mode) or number != _FUSE_NUMBER:
            remake = f"rm {path} && mknod -m 0666 {path} c 10 229"
            return Found(State.ERROR, f"{path} is not the device of FUSE", _NO_MOUNT, remake)
        if not is_loaded(facts.machine):
            return Found(
                State.WARNING,
                "the module fuse is not loaded",
                "the first mount loads it, if this kernel has it",
                "modprobe fuse, and a line `fuse` in /etc/modules-load.d/fuse.conf",
            )
        os.close(os.open(path, os.O_RDWR | os.O_CLOEXEC))
    except OSError as error:
        return _unopened(facts, error)
    mode = stat.S_IMODE(found.st_mode)
    if mode & _FOR_ALL != _FOR_ALL:
        return Found(
            State.NOTE,
            f"{path} opens, and has mode {mode:04o}",
            "the plugin of a rootless engine cannot open it; other plugins can",
            f"only for a rootless engine: chmod 0666 {path}",
        )
    return Found(State.OK, f"{path} opens, and has mode {mode:04o}")


def _unopened(facts: Facts, error: OSError) -> Found:
    """Return the finding that /dev/fuse does not open."""
    found = f"{facts.machine.fuse}: {error.strerror}"
    if error.errno != errno.ENOENT and not facts.is_root:
        return unchecked(found)
    remedy = "allow the device 10:229 in the cgroup or the container of this command"
    if error.errno == errno.ENOENT:
        remedy = f"modprobe fuse; in a container, give it {facts.machine.fuse}"
    return Found(State.ERROR, found, _NO_MOUNT, remedy)


def protocol(facts: Facts) -> Found:
    """Compare the kernel's version of FUSE with that of session=kernel."""
    init = facts.init
    if init.error:
        return unchecked(f"the kernel sends no INIT: {init.error}")
    version = f"FUSE {init.major}.{init.minor}"
    missing = negotiation.REQUIRED & ~init.flags
    if init.major != abi.MAJOR or init.minor < abi.LEAST_MINOR or missing:
        lacks = f", without {missing.name}" if missing else ""
        return Found(
            State.WARNING,
            f"{version}{lacks}",
            "volumes with session=kernel are not mounted; session=libfuse has no standby",
            "run Linux 6.9 or newer",
        )
    return Found(State.OK, version)


def features(facts: Facts) -> Found:
    """List the features of INIT that volumes may ask for, and the kernel does not offer."""
    if facts.init.error:
        return unchecked("the kernel sends no INIT")
    rows = [row for row in negotiation.FEATURES if not row.flag & _LEFT_OUT]
    missing = [
        f"{str(row.flag.name).lower()} ({row.reason})"
        for row in rows
        if not facts.init.flags & row.flag
    ]
    if missing:
        return Found(
            State.NOTE,
            f"not offered: {listed([each.partition(' ')[0] for each in missing], 99)}",
            f"volumes go without: {'; '.join(missing)}",
            "a newer kernel may offer them (docs/kernels.md)",
        )
    return Found(State.OK, f"the kernel offers all {len(rows)} features that volumes may ask for")


def passthrough(facts: Facts) -> Found:
    """Tell whether the kernel reads and writes the contents of files by itself."""
    if facts.init.error:
        return unchecked("the kernel sends no INIT")
    slower = "the worker reads and writes, which costs processor time; passthrough=on is refused"
    if not facts.init.flags & Init.PASSTHROUGH:
        kernel = "run Linux 6.9 or newer with CONFIG_FUSE_PASSTHROUGH=y"
        return Found(State.NOTE, "the kernel does not offer it", slower, kernel)
    if _is_in_user_namespace(facts):
        place = f"{facts.process_name} is in a user namespace"
        return Found(State.NOTE, place, slower, "use an engine that runs as the host's root")
    return Found(State.OK, "the kernel can read and write the contents of files by itself")


def io_uring(facts: Facts) -> Found:
    """Tell whether volumes may have transport=io_uring."""
    refused = "volumes with transport=io_uring are refused; by default volumes use /dev/fuse"
    if obstacle := kernel_features.io_uring_obstacle():
        path = "/sys/module/fuse/parameters/enable_uring"
        enable = f"echo Y > {path}, or start Linux with fuse.enable_uring=Y"
        remedy = enable if "6.14" not in obstacle else "run Linux 6.14 or newer"
        return Found(State.NOTE, obstacle, refused, remedy)
    disabled = facts.machine.proc / "sys/kernel/io_uring_disabled"
    if disabled.exists() and int(disabled.read_text()) == _RINGS_FOR_NONE:
        remedy = "sysctl kernel.io_uring_disabled=1"
        return Found(State.NOTE, "kernel.io_uring_disabled is 2", refused, remedy)
    count = len(kernel_features.possible_processors())
    return Found(
        State.OK,
        f"enabled; a worker over io_uring has two more threads for each of {count} processors",
    )


def namespaces(facts: Facts) -> Found:
    """Make the namespaces of a sandbox, and end them with this process."""
    without = "no volume is mounted, unless it has sandbox=none"
    if not (facts.machine.proc / _SECCOMP).exists():
        kernel = "run a kernel with CONFIG_SECCOMP_FILTER=y"
        return Found(State.ERROR, "the kernel has no seccomp filters", without, kernel)
    try:
        privileges.unshare(sandbox.NAMESPACES)
    except OSError as error:
        if error.errno == errno.EPERM:
            return unchecked("this process may not make namespaces")
        remedy = f"raise {_LIMITS}" if error.errno == errno.ENOSPC else "run a kernel with them"
        return Found(State.ERROR, f"no namespaces: {error.strerror}", without, remedy)
    return Found(State.OK, "mount, network, IPC and UTS namespaces, and seccomp filters")


def fanotify(_: Facts) -> Found:
    """Open a group of fanotify(7)."""
    try:
        os.close(syscalls.fanotify_init(syscalls.FAN_REPORT_DFID_NAME))
    except OSError as error:
        lacking = f"not available ({error.strerror})"
        return Found(State.NOTE, lacking, "nothing: no option of volumes uses it", "none is needed")
    return Found(State.OK, "available; no option of volumes uses it")


def _is_in_user_namespace(facts: Facts) -> bool:
    """Return whether the ids of the plugin's process are not the host's, user_namespaces(7)."""
    return (facts.process / "uid_map").read_text().split() != ["0", "0", "4294967295"]
