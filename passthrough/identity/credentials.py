"""Credentials of the worker process, changed before its threads start."""

import errno
import os

from passthrough.linux import syscalls


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
