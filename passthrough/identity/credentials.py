"""Acting as the caller while something is created, so that it belongs to the caller.

Only the creating operations do so (mkdir, mknod, symlink, create); the kernel has checked the
caller's permissions by then (default_permissions), with all of its groups. What switches is the
file system uid and gid of the one thread, setfsuid(2). Its capabilities stay (`keep_capabilities`):
without them the host would check again, with the primary group alone, and refuse who may create
through a supplementary group.

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

# Whoever supervises the worker can tell this end from every other, sysexits(3): EX_NOPERM.
EXIT_IDENTITY_LOST: Final = 77
_OWN_ID: Final = 0
_ITSELF: Final = (_OWN_ID, _OWN_ID)
_AS_ITSELF: Final = contextlib.nullcontext()


def keep_capabilities() -> None:
    """Let this process's capabilities survive a change of file system uid, capabilities(7).

    To be called once, before threads start; they inherit it.

    Raises:
        OSError: EPERM without CAP_SETPCAP.
    """
    syscalls.set_securebits(syscalls.SECBIT_NO_SETUID_FIXUP)


def drop_groups() -> None:
    """Leave this process without supplementary groups, setgroups(2), before threads start.

    Raises:
        OSError: EPERM without CAP_SETGID, or in a user namespace that does not allow it.
    """
    if not os.getgroups():
        return
    try:
        os.setgroups(())
    except PermissionError:
        text = "option 'squash': this process cannot give its supplementary groups up; setgroups(2)"
        raise OSError(errno.EPERM, text) from None


class Thread(threading.local):
    """What each thread knows of itself, for powerless.py."""

    powerless: HostIds | None = None
    """The ids that it acts as without capabilities; None if it is itself."""
    groups: tuple[HostId, ...] = ()
    """Its supplementary groups meanwhile."""
    powers: privileges.EffectiveCapabilities | None = None
    """The capabilities that it has otherwise."""


thread: Final = Thread()


def acting_as(ids: HostIds) -> AbstractContextManager[None]:
    """A guard: inside it, what this thread creates belongs to *ids*.

    For root, whom every thread is outside of such a guard, there is nothing to switch: four system
    calls less, which are a quarter of a creation. A powerless thread acts as *ids* already.
    """
    if thread.powerless is not None:
        if thread.powerless != ids:
            raise RuntimeError(f"acts as {thread.powerless}, and not as {ids}")
        return _AS_ITSELF
    return _AS_ITSELF if ids == _ITSELF else ActingAs(ids)


class ActingAs:
    """A guard: inside it, what this thread creates belongs to *ids*.

    Group first, undone in reverse. The calls report no failure but return the id before them, so
    that undoing shows whether each switch took place. If one did not, nobody can say who owns what
    was just created, or whom the next request would act as: the process ends at once.
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
    """The umask of each thread, which otherwise is that of the whole process, unshare(2)."""

    def __init__(self) -> None:
        """Give the calling thread one of its own; runs once in each thread that uses it."""
        privileges.unshare(privileges.CLONE_FS)
        self._mask = os.umask(0)
        os.umask(self._mask)

    def set(self, mask: int) -> None:
        """Apply *mask* to what this thread creates, until it is set again."""
        if mask != self._mask:
            os.umask(mask)
            self._mask = mask


class _Switches(threading.local):
    """The switches of each thread, by the capabilities that they switch.

    Made at their first use: the main thread has more capabilities when this module is loaded.
    """

    def __init__(self) -> None:
        self.made: dict[tuple[int, ...], syscalls.CapabilitySwitch] = {}


_switches = _Switches()


class Without:
    """A guard: inside it, this thread goes without some of its capabilities.

    Not to be nested, nor entered inside ActingAs. The thread's other capabilities are to stay what
    they were when it first went without the same ones. A powerless thread has none to go without.
    """

    __slots__ = ("_capabilities", "_switch")

    def __init__(self, *capabilities: int) -> None:
        """Take numbers of capabilities, CAP_*."""
        self._capabilities = capabilities

    def __enter__(self) -> None:
        self._switch: syscalls.CapabilitySwitch | None = None
        if thread.powerless is not None:
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
        except BaseException as error:  # noqa: BLE001 - there is no way on
            end_process(f"cannot take its capabilities back: {error}")


class ClearingPrivileges(Without):
    """A guard: inside it, a file whose content this thread changes loses its suid and sgid bits.

    As it does for everyone without CAP_FSETID, which this process has, capabilities(7). Not to be
    nested.

    An sgid bit without group execution gives no right, and goes only where the caller is outside of
    the file's group, inode(7). With *group*, the file's, the thread counts as inside, else as
    outside.
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
                end_process(f"has the group {present}, and cannot take its own back")
        super().__exit__()


@contextlib.contextmanager
def acting_without(ids: HostIds, *capabilities: int) -> Iterator[None]:
    """A guard: inside it, this thread acts as *ids*, and without *capabilities*, CAP_*."""
    with Without(*capabilities), acting_as(ids):
        yield


def end_process(why: str) -> NoReturn:
    """End the process: no request may meet a thread that is not what it was."""
    try:
        log.critical("the process ends, because a thread %s", why)
    finally:
        os._exit(EXIT_IDENTITY_LOST)
