"""What the session tells the kernel unasked: what to forget of what it remembers.

The kernel may take its own locks on the inode or directory meanwhile. So no thread that answers a
request for the same inode or directory may send one, but for the attributes alone.
"""

from typing import Final

from passthrough.session import abi, wire
from passthrough.session.abi import Notification
from passthrough.session.channel import Channel

_TO_THE_END: Final = 0
_ATTRIBUTES_ONLY: Final = -1
_NOTHING: Final = 0


class Notifier:
    """Notifications of one mount.

    Each method raises OSError as the kernel reports it: ENOENT where it knows no such inode or
    name, which then needs no forgetting.
    """

    __slots__ = ("_channel",)

    def __init__(self, channel: Channel) -> None:
        self._channel = channel

    def attributes_changed(self, number: int) -> None:
        """Forget the attributes of inode *number*; its pages stay."""
        body = wire.NOTIFY_INVAL_INODE_OUT.pack(number, _ATTRIBUTES_ONLY, 0)
        self._channel.notify(Notification.INVAL_INODE, (body,))

    def data_changed(self, number: int, offset: int = 0, length: int = _TO_THE_END) -> None:
        """Forget attributes and cached pages of inode *number*; of all of it unless told."""
        body = wire.NOTIFY_INVAL_INODE_OUT.pack(number, offset, length)
        self._channel.notify(Notification.INVAL_INODE, (body,))

    def entry_changed(self, parent: int, name: bytes, *, expire_only: bool = False) -> None:
        """Forget where *name* in *parent* leads; with *expire_only*, look before using it again.

        A name that only expires keeps what is open or mounted below it.
        """
        flags = abi.EXPIRE_ONLY if expire_only else 0
        body = wire.NOTIFY_INVAL_ENTRY_OUT.pack(parent, len(name), flags)
        self._channel.notify(Notification.INVAL_ENTRY, (body, name, b"\0"))

    def deleted(self, parent: int, child: int, name: bytes) -> None:
        """The host has deleted *child*, known as *name* in *parent*; watchers are told."""
        body = wire.NOTIFY_DELETE_OUT.pack(parent, child, len(name))
        self._channel.notify(Notification.DELETE, (body, name, b"\0"))

    def resend(self) -> None:
        """Send again what was taken from this connection and not answered, as after a crash."""
        self._channel.notify(Notification.RESEND, ())

    def nudge(self, number: int) -> None:
        """Have the kernel send a request that wants no answer: it wakes one thread that waits.

        NOTIFY_REPLY, with the cached bytes of the regular file *number* that were asked for: none.
        """
        body = wire.NOTIFY_RETRIEVE_OUT.pack(_NOTHING, number, _NOTHING, _NOTHING)
        self._channel.notify(Notification.RETRIEVE, (body,))
