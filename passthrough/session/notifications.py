"""Notifications: messages to the kernel that answer no request, such as cache invalidations.

To drop cached pages, the kernel waits until requests that read or write them are answered. So a
thread may call `data_changed` only if another thread serves meanwhile, or if the file passes
through and so has no cached pages (handlers/locking.py). The other notifications wait for no
request.
"""

from typing import Final

from passthrough.session import wire
from passthrough.session.abi import Notification
from passthrough.session.channel import Channel

_TO_THE_END: Final = 0
_ATTRIBUTES_ONLY: Final = -1
_NOTHING: Final = 0


class Notifier:
    """The notifications of one mount.

    Each method raises the kernel's OSError: ENOENT if the kernel knows no such inode, and so has
    nothing to drop.
    """

    __slots__ = ("_channel",)

    def __init__(self, channel: Channel) -> None:
        self._channel = channel

    def attributes_changed(self, nodeid: int) -> None:
        """Drop the attributes of *nodeid*; its pages stay."""
        body = wire.NOTIFY_INVAL_INODE_OUT.pack(nodeid, _ATTRIBUTES_ONLY, 0)
        self._channel.notify(Notification.INVAL_INODE, (body,))

    def data_changed(self, nodeid: int, offset: int = 0, length: int = _TO_THE_END) -> None:
        """Drop the attributes and the cached pages of *nodeid*; by default all pages."""
        body = wire.NOTIFY_INVAL_INODE_OUT.pack(nodeid, offset, length)
        self._channel.notify(Notification.INVAL_INODE, (body,))

    def provoke_request(self, nodeid: int) -> None:
        """Have the kernel send a request that needs no answer, which wakes one blocked reader.

        The request is NOTIFY_REPLY, with 0 bytes of the cached pages of the regular file *nodeid*.
        """
        body = wire.NOTIFY_RETRIEVE_OUT.pack(_NOTHING, nodeid, _NOTHING, _NOTHING)
        self._channel.notify(Notification.RETRIEVE, (body,))
