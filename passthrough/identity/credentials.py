"""Switches a thread's file system ids to the caller's, so that new files belong to the caller.

Operations that create switch: mkdir, mknod, symlink, create, tmpfile, and rename with a whiteout.
The kernel has checked the caller's permissions before (default_permissions), with all of the
caller's groups. setfsuid(2) and setfsgid(2) affect one thread. The thread keeps its capabilities
(`keep_capabilities`). Without them the host would check again, with the primary group alone, and
refuse a caller that may create only by a supplementary group.

Suid and sgid bits need three more switches. With a map or squashing, chmod(2) of these bits acts as
the caller without CAP_FOWNER, and the creation of a file with the sgid bit lacks CAP_FSETID
(ownership.py). A call that must clear the bits lacks CAP_FSETID, and has another file system gid
(`ClearingPrivileges`).

If a switch cannot be undone, the process ends.
"""

import contextlib
import errno
import logging
import os
import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager
from typing import Final, NoReturn

from passthrough.identity.idmap import NO_FILES_ID, NO_ID, HostId, HostIds
from passthrough.linux import privileges, syscalls

log = logging.getLogger(__name__)

# EX_NOPERM, sysexits(3): no other end of the worker has this status.
EXIT_IDENTITY_LOST: Final = 77
_OWN_ID: Final = 0
_ROOT: Final = (_OWN_ID, _OWN_ID)
_NO_SWITCH: Final = contextlib.nullcontext()


def keep_capabilities() -> None:
    """Keep this process's capabilities through a change of file system uid, capabilities(7).

    Call this once before threads start; threads inherit the setting.

    Raises:
        OSError: EPERM without CAP_SETPCAP.
    """
    syscalls.set_securebits(syscalls.SECBIT_NO_SETUID_FIXUP)


def drop_groups() -> None:
    """Drop the supplementary groups of this process, setgroups(2), before threads start.

    Raises:
        OSError: EPERM without CAP_SETGID, or in a user namespace that denies setgroups(2).
    """
    if not os.getgroups():
        return
    try:
        os.setgroups(())
    except PermissionError:
        text = "option 'squash': this process cannot drop its supplementary groups; setgroups(2)"
        raise OSError(errno.EPERM, text) from None


class ThreadState(threading.local):
    """The state of each thread, for powerless.py."""

    powerless: HostIds | None = None
    """The ids of a thread inside a `Powerless` guard, otherwise None."""
    groups: tuple[HostId, ...] = ()
    """The supplementary groups of a thread inside a `Powerless` guard."""
    capabilities: privileges.EffectiveCapabilities | None = None
    """The capabilities of the thread outside of a `Powerless` guard."""


thread_state: Final = ThreadState()


def acting_as(ids: HostIds) -> AbstractContextManager[None]:
    """Return a guard: inside it, files that this thread creates belong to *ids*.

    Outside of a guard every thread acts as root, so that the guard for root switches nothing. This
    saves four system calls, a quarter of a creation. A powerless thread acts as *ids* already.
    """
    if thread_state.powerless is not None:
        if thread_state.powerless != ids:
            raise RuntimeError(f"acts as {thread_state.powerless}, and not as {ids}")
        return _NO_SWITCH
    return _NO_SWITCH if ids == _ROOT else ActingAs(ids)


class ActingAs:
    """A guard: inside it, files that this thread creates belong to *ids*.

    The guard sets the group first, and restores in reverse order. setfsuid(2) and setfsgid(2)
    report no failure, but return the previous id. So the restoring calls return the switched ids,
    if each switch succeeded. If a switch failed, the owner of the new file and the ids of the next
    request are unknown: the process ends at once.
    """

    __slots__ = ("_gid", "_uid")

    def __init__(self, ids: HostIds) -> None:
        self._uid, self._gid = ids

    def __enter__(self) -> None:
        if NO_ID in {self._uid, self._gid}:
            raise PermissionError(errno.EPERM, "a caller without an id in this user namespace")
        syscalls.setfsgid(self._gid)
        syscalls.setfsuid(self._uid)

    def __exit__(self, *_: object) -> None:
        uid = syscalls.setfsuid(_OWN_ID)
        gid = syscalls.setfsgid(_OWN_ID)
        if (uid, gid) != (self._uid, self._gid):
            log.critical("acted as %d:%d in place of %d:%d", uid, gid, self._uid, self._gid)
            os._exit(EXIT_IDENTITY_LOST)


class ThreadUmask(threading.local):
    """An umask for each thread: without unshare(2) all threads share one."""

    def __init__(self) -> None:
        """Give the calling thread an umask of its own; runs once in each thread."""
        privileges.unshare(privileges.CLONE_FS)
        self._mask = os.umask(0)
        os.umask(self._mask)

    def set(self, mask: int) -> None:
        """Set the umask of this thread to *mask*."""
        if mask != self._mask:
            os.umask(mask)
            self._mask = mask


class _Switches(threading.local):
    """The capability switches of each thread, by the capabilities that they switch.

    A switch is made at its first use: when this module is loaded, the main thread still has
    capabilities that it drops later.
    """

    def __init__(self) -> None:
        self.made: dict[tuple[int, ...], syscalls.CapabilitySwitch] = {}


_switches = _Switches()


class Without:
    """A guard: inside it, this thread lacks some of its capabilities.

    Do not nest it, or enter it inside `ActingAs`. After the first guard for a set of capabilities,
    the thread's other capabilities must not change. A powerless thread lacks all of them already.
    """

    __slots__ = ("_capabilities", "_switch")

    def __init__(self, *capabilities: int) -> None:
        """Remove *capabilities*, CAP_*."""
        self._capabilities = capabilities

    def __enter__(self) -> None:
        self._switch: syscalls.CapabilitySwitch | None = None
        if thread_state.powerless is not None:
            return
        switch = _switches.made.get(self._capabilities)
        if switch is None:
            switch = syscalls.CapabilitySwitch(*self._capabilities)
            _switches.made[self._capabilities] = switch
        self._switch = switch
        switch.set(wanted=False)

    def __exit__(self, *_: object) -> None:
        if self._switch is None:
            return
        try:
            self._switch.set(wanted=self._switch.had)
        except BaseException as error:  # noqa: BLE001 - the process must end
            end_process(f"cannot restore its capabilities: {error}")


class ClearingPrivileges(Without):
    """A guard: inside it, each file that this thread writes to loses its suid and sgid bits.

    The kernel clears the bits for a thread without CAP_FSETID, capabilities(7). Do not nest it.

    An sgid bit without group execution gives no right. The kernel clears this bit only if the
    thread is outside of the file's group, inode(7). To keep the bit, pass the file's *group*; the
    default clears it.
    """

    __slots__ = ("_group",)

    def __init__(self, group: int = NO_FILES_ID) -> None:
        super().__init__(syscalls.CAP_FSETID)
        self._group = group

    def __enter__(self) -> None:
        super().__enter__()
        if self._switch is not None and self._group != _OWN_ID:
            syscalls.setfsgid(self._group)

    def __exit__(self, *_: object) -> None:
        if self._switch is not None and self._group != _OWN_ID:
            syscalls.setfsgid(_OWN_ID)
            if (present := syscalls.setfsgid(NO_ID)) != _OWN_ID:
                end_process(f"has the group {present}, and cannot restore its own")
        super().__exit__()


@contextlib.contextmanager
def acting_without(ids: HostIds, *capabilities: int) -> Iterator[None]:
    """Return a guard: inside it, this thread acts as *ids* and lacks *capabilities*, CAP_*."""
    with Without(*capabilities), acting_as(ids):
        yield


def end_process(why: str) -> NoReturn:
    """End the process: a thread with other ids or capabilities must serve no request."""
    try:
        log.critical("the process ends, because a thread %s", why)
    finally:
        os._exit(EXIT_IDENTITY_LOST)
