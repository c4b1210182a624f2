"""Runs calls of a thread with the ids of another user and without capabilities, for squashing.

setfsuid(2), setfsgid(2) and capset(2) affect the calling thread alone, and so does setgroups(2) as
`privileges.set_groups` calls it. The host then checks each call of the thread as a call of that
user. The worker has no supplementary groups (`credentials.drop_groups`), so that the thread has
only the given ones. For calls of its own, such as opening an inode by its file handle, the worker
uses `as_itself`.

The guard checks the switch before and after each call. If a switch fails, the reply is EIO; if it
cannot be undone, the process ends. Without `squash` the cost is one attribute test for each
request.
"""

import contextlib
import errno
import logging
from contextlib import AbstractContextManager
from typing import Final

from passthrough.identity import credentials
from passthrough.identity.credentials import end_process
from passthrough.identity.idmap import NO_ID, HostId, HostIds
from passthrough.linux import privileges, syscalls
from passthrough.linux.errors import os_error

log = logging.getLogger(__name__)

_OWN_ID: Final = 0
_NO_SWITCH: Final = contextlib.nullcontext()


def ids() -> HostIds | None:
    """Return the ids of this thread inside of `Powerless`; None outside."""
    return credentials.thread_state.powerless


def groups() -> tuple[HostId, ...]:
    """Return the supplementary groups that this thread has inside of `Powerless`."""
    return credentials.thread_state.groups


def as_itself() -> AbstractContextManager[None]:
    """Return a guard: inside it, this thread has the worker's ids and capabilities again."""
    acting = credentials.thread_state.powerless
    return _NO_SWITCH if acting is None else _AsItself(Powerless(acting, groups()))


class Powerless:
    """A guard: inside it, this thread acts as *ids* without capabilities. Do not nest it.

    *groups* are the supplementary groups of the thread. After the first guard, the thread's
    capabilities outside of guards must not change.
    """

    __slots__ = ("_groups", "_ids")

    def __init__(self, ids: HostIds, groups: tuple[HostId, ...] = ()) -> None:
        self._ids = ids
        self._groups = groups

    def __enter__(self) -> None:
        """Switch to *ids*, and check the switch, because setfsuid(2) reports no failure.

        Raises:
            OSError: EPERM, one of *ids* is NO_ID; EIO, the kernel has not switched.
        """
        state = credentials.thread_state
        if state.powerless is not None:
            raise RuntimeError(f"acts as {state.powerless}, and not as {self._ids}")
        if NO_ID in self._ids:
            raise os_error(errno.EPERM)
        capabilities = state.capabilities
        if capabilities is None:
            capabilities = state.capabilities = privileges.EffectiveCapabilities()
        try:
            if self._groups:
                privileges.set_groups(self._groups)
            syscalls.setfsgid(self._ids.gid)
            syscalls.setfsuid(self._ids.uid)
            capabilities.drop()
            switched = _present_ids() == self._ids
        except BaseException:
            _restore(capabilities, self._groups)
            raise
        if not switched:
            _restore(capabilities, self._groups)
            log.error("the kernel does not let this process act as %d:%d", *self._ids)
            raise os_error(errno.EIO)
        state.powerless, state.groups = self._ids, self._groups

    def __exit__(self, *_: object) -> None:
        state = credentials.thread_state
        present, capabilities = _present_ids(), state.capabilities
        if capabilities is None or present != self._ids:
            end_process(f"acted as {present} in place of {self._ids}")
        _restore(capabilities, self._groups)
        state.powerless, state.groups = None, ()


class _AsItself:
    """A guard that leaves the `Powerless` guard around it, and enters that guard again."""

    __slots__ = ("_around",)

    def __init__(self, around: Powerless) -> None:
        self._around = around

    def __enter__(self) -> None:
        self._around.__exit__()

    def __exit__(self, *_: object) -> None:
        try:
            self._around.__enter__()
        except BaseException as error:  # noqa: BLE001 - the process must end
            end_process(f"cannot act as another user again: {error}")


def _present_ids() -> tuple[int, int]:
    return syscalls.setfsuid(NO_ID), syscalls.setfsgid(NO_ID)


def _restore(capabilities: privileges.EffectiveCapabilities, groups: tuple[HostId, ...]) -> None:
    """Restore the worker's ids, groups and capabilities in this thread, or end the process."""
    try:
        capabilities.restore()
        syscalls.setfsuid(_OWN_ID)
        syscalls.setfsgid(_OWN_ID)
        if groups:
            privileges.set_groups(())
        present = _present_ids()
    except BaseException as error:  # noqa: BLE001 - the process must end
        end_process(f"cannot restore its ids: {error}")
    if present != (_OWN_ID, _OWN_ID):
        end_process(f"acts as {present}, and cannot restore its ids")
