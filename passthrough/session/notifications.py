"""Notifications: messages to the kernel that answer no request, such as cache invalidations.

The kernel may lock the inode or directory of a notification. So a thread that serves a request for
that inode or directory must not send one, except for attributes alone.
"""

from typing import Final

from passthrough.session import abi, wire
from passthrough.session.abi import Notification
from passthrough.session.channel import Channel

_TO_THE_END: Final = 0
_ATTRIBUTES_ONLY: Final = -1
_NOTHING: Final = 0


class Notifier:
    """The notifications of one mount.

    Each method raises the kernel's OSError: ENOENT if the kernel knows no such inode or name, and
    so has nothing to forget.
    """

    __slots__ = ("_channel",)

    def __init__(self, channel: Channel) -> None:
        self._channel = channel

    def attributes_changed(self, number: int) -> None:
        """Drop the attributes of inode *number*; its pages stay."""
        body = wire.NOTIFY_INVAL_INODE_OUT.pack(number, _ATTRIBUTES_ONLY, 0)
        self._channel.notify(Notification.INVAL_INODE, (body,))

    def data_changed(self, number: int, offset: int = 0, length: int = _TO_THE_END) -> None:
        """Drop the attributes and the cached pages of inode *number*; by default all pages."""
        body = wire.NOTIFY_INVAL_INODE_OUT.pack(number, offset, length)
        self._channel.notify(Notification.INVAL_INODE, (body,))

    def entry_changed(self, parent: int, name: bytes, *, expire_only: bool = False) -> None:
        """Drop the entry *name* in *parent*; with *expire_only*, look it up before its next use.

        An entry that only expires keeps the files that are open, and the mounts, below it.
        """
        flags = abi.EXPIRE_ONLY if expire_only else 0
        body = wire.NOTIFY_INVAL_ENTRY_OUT.pack(parent, len(name), flags)
        self._channel.notify(Notification.INVAL_ENTRY, (body, name, b"\0"))

    def deleted(self, parent: int, child: int, name: bytes) -> None:
        """Report that the host has deleted *child*, the entry *name* in *parent*, to watchers."""
        body = wire.NOTIFY_DELETE_OUT.pack(parent, child, len(name))
        self._channel.notify(Notification.DELETE, (body, name, b"\0"))

    def resend(self) -> None:
        """Have requests sent again that were read from this connection and not answered.

        A successor needs them after a crash of its predecessor.
        """
        self._channel.notify(Notification.RESEND, ())

    def provoke_request(self, number: int) -> None:
        """Have the kernel send a request that needs no answer, which wakes one blocked reader.

        The request is NOTIFY_REPLY, with 0 bytes of the cached pages of the regular file *number*.
        """
        body = wire.NOTIFY_RETRIEVE_OUT.pack(_NOTHING, number, _NOTHING, _NOTHING)
        self._channel.notify(Notification.RETRIEVE, (body,))
