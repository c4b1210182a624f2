"""One mount in service: what its handlers share, and the boundary at which every error ends.

A handler takes a request apart, calls one operation of PassthroughFs, and gives the body of the
answer, or None where the protocol has no answer. What it raises becomes an errno here: that of an
OSError; EIO, with a traceback in the log, for anything else, which is a mistake of this program.
The mount outlives both.
"""

import errno
import logging
from collections.abc import Callable, Mapping

from passthrough.credentials import ThreadUmask
from passthrough.filesystem import PassthroughFs
from passthrough.session.abi import Init, Opcode
from passthrough.session.channel import Channel
from passthrough.session.negotiation import Agreed, ProtocolError
from passthrough.session.notifications import Notifier
from passthrough.session.request import Request

log = logging.getLogger(__name__)

Handler = Callable[["Session", Request], "bytes | None"]


class Session:
    """What handlers have at hand. Threads share it."""

    __slots__ = (
        "_handlers",
        *("about_to_block", "agreed", "broken", "fs", "notifier", "umask"),
    )

    def __init__(
        self,
        fs: PassthroughFs,
        channel: Channel,
        handlers: Mapping[int, Handler],
        agreed: Agreed | None = None,
    ) -> None:
        """Serve *fs*, and notify through *channel*.

        *agreed* is what a session before this one has negotiated.
        """
        self.fs = fs
        self.notifier = Notifier(channel)
        self.agreed = agreed
        """What INIT has brought; None before it has come."""
        self.broken: ProtocolError | None = None
        """Why INIT could not be answered."""
        self.umask = ThreadUmask() if fs.config.posix_acl else None
        """The umask of the caller, if it is this side that applies it."""
        self.about_to_block: Callable[[], None] = _nothing
        """To be called before what is known to wait for the host's disk, or for somebody else."""
        self._handlers = handlers

    def waiting(self) -> int:
        """How many requests wait for a lock, each in a thread."""
        return len(self.fs.waits)

    def uses(self, feature: Init) -> bool:
        """Whether *feature* has been agreed on."""
        return self.agreed is not None and bool(self.agreed.flags & feature)

    def apply_umask(self, mask: int) -> None:
        """Have the host apply the caller's umask to what this thread creates next.

        Unless the kernel has done so: it does where there are no ACLs, of which a default one takes
        the umask's place.
        """
        if self.umask is not None:
            self.umask.set(mask)

    def answer(self, request: Request, channel: Channel) -> None:
        """Handle what was received into *request* from *channel*, and answer it there."""
        try:
            request.decode()
            handler = self._handlers.get(request.opcode)
            if handler is None:
                channel.fail(request.unique, errno.ENOSYS)
                return
            body = handler(self, request)
        except OSError as error:
            if request.opcode in WITHOUT_ANSWER:
                log.warning("%s: %s", _named(request.opcode), error)
            else:
                channel.fail(request.unique, error.errno or errno.EIO)
        except Exception:
            log.exception("%s failed by a mistake of this program", _named(request.opcode))
            if request.opcode not in WITHOUT_ANSWER:
                channel.fail(request.unique, errno.EIO)
        else:
            if body is not None:
                channel.reply(request.unique, body)


def _nothing() -> None:
    pass


# To answer these would be a mistake: the kernel knows no request of such a number.
WITHOUT_ANSWER = frozenset(
    {0, Opcode.FORGET, Opcode.BATCH_FORGET, Opcode.INTERRUPT, Opcode.NOTIFY_REPLY}
)


def _named(opcode: int) -> str:
    try:
        return Opcode(opcode).name.lower()
    except ValueError:
        return f"a request of unknown kind {opcode}"
