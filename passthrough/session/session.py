"""One mount in service: what its handlers share, and the boundary at which every error ends.

A handler takes a request apart, calls one operation of PassthroughFs, and gives the body of the
answer, or None where the protocol has no answer. What it raises becomes an errno here: that of an
OSError; EINVAL for a number that a system call has no room for, which no kernel sends; EIO, with a
traceback in the log, for anything else, which is a mistake of this program. The mount outlives all.
"""

import contextlib
import errno
import logging
from collections.abc import Callable, Mapping

from passthrough.core.filesystem import PassthroughFs
from passthrough.identity.credentials import ThreadUmask
from passthrough.session.abi import Init, Opcode
from passthrough.session.backing import Backings
from passthrough.session.channel import Channel, Replies
from passthrough.session.negotiation import Agreed, ProtocolError
from passthrough.session.notifications import Notifier
from passthrough.session.request import Request

log = logging.getLogger(__name__)

Handler = Callable[["Session", Request], "bytes | None"]


class Session:
    """What handlers have at hand. Threads share it."""

    __slots__ = (
        *("_handlers", "_squashes", "about_to_block", "agreed", "backings", "broken", "fs"),
        *("let_others_finish", "may_wait", "notifier", "passes_through"),
        "umask",
    )

    def __init__(
        self,
        fs: PassthroughFs,
        channel: Channel,
        handlers: Mapping[int, Handler],
        agreed: Agreed | None = None,
    ) -> None:
        """Serve *fs*, and tell the kernel what it does not ask for through *channel*.

        *agreed* is what a session before this one has negotiated.
        """
        self.fs = fs
        self._squashes = fs.squashes
        self.notifier = Notifier(channel)
        self.backings = Backings(channel, always_direct=not fs.config.allow_direct_io)
        """The host's files that the kernel passes through to."""
        self.passes_through = agreed is not None and bool(agreed.flags & Init.PASSTHROUGH)
        """Whether it does so, where it can."""
        self.agreed = agreed
        """What INIT has brought; None before it has come."""
        self.broken: ProtocolError | None = None
        """Why INIT could not be answered."""
        self.umask = ThreadUmask() if fs.config.posix_acl else None
        """The umask of the caller, if it is this side that applies it."""
        self.let_others_finish: Callable[[Request], bool] = _alone
        """Give way to what was taken from the kernel before a request; whether there was any."""
        self.may_wait: Callable[[Request], bool] = _always
        """Return whether a request may wait for another one: another thread is there to serve."""
        self.about_to_block: Callable[[], None] = _nothing
        """To be called before what is known to wait for the host's disk, or for somebody else."""
        # By plain numbers, which are faster to find than members of an enumeration.
        self._handlers = {int(opcode): handler for opcode, handler in handlers.items()}

    def waiting(self) -> int:
        """How many requests wait for a lock, each in a thread."""
        return len(self.fs.waits)

    def wake_readers(self, count: int) -> bool:
        """Have the kernel send *count* requests that need no answer; return whether it will.

        Each wakes one thread that is blocked in reading /dev/fuse.
        """
        if self.uses(Init.OVER_IO_URING):  # the requests would come over io_uring
            return False
        number = self.fs.inodes.some_file()
        if number is None:
            return False
        try:
            for _ in range(count):
                self.notifier.provoke_request(number)
        except OSError:  # just forgotten, or the connection is at its end
            return False
        return True

    def forget_attributes(self, number: int) -> None:
        """Have the kernel ask for the attributes of inode *number* before it uses them again.

        This takes no lock of the kernel, so that any thread may do it.
        """
        with contextlib.suppress(OSError):  # an inode unknown to the kernel, or the end
            self.notifier.attributes_changed(number)

    def idle(self) -> None:
        """Tidy up while there are no requests."""
        self.fs.inodes.rest()

    def uses(self, feature: Init) -> bool:
        """Whether *feature* has been agreed on."""
        return self.agreed is not None and bool(self.agreed.flags & feature)

    def why_not(self, feature: Init) -> str:
        """Why *feature* is not in use; empty where it is, or has not been wished for."""
        found = () if self.agreed is None else self.agreed.features
        name = str(feature.name).lower()
        return next((f.reason for f in found if f.feature == name and f.wanted and not f.used), "")

    def apply_umask(self, mask: int) -> None:
        """Have the host apply the caller's umask to what this thread creates next.

        Unless the kernel has done so: it does where there are no ACLs, of which a default one takes
        the umask's place.
        """
        if self.umask is not None:
            self.umask.set(mask)

    def _for_caller(self, handler: Handler, request: Request) -> "bytes | None":
        """Have *handler* handle *request* where operations ask who its caller is."""
        with self.fs.asked_by(request.caller()):
            return handler(self, request)

    def answer(self, request: Request, channel: Replies) -> None:
        """Handle what was received into *request* from *channel*, and answer it there."""
        try:
            request.decode()
            handler = self._handlers.get(request.opcode)
            if handler is None:
                channel.fail(request.unique, errno.ENOSYS)
                return
            body = self._for_caller(handler, request) if self._squashes else handler(self, request)
        except OSError as error:
            if request.opcode in WITHOUT_ANSWER:
                log.warning("%s: %s", _named(request.opcode), error)
            else:
                channel.fail(request.unique, error.errno or errno.EIO)
        except OverflowError:
            if request.opcode not in WITHOUT_ANSWER:
                channel.fail(request.unique, errno.EINVAL)
        except Exception:
            log.exception("%s failed by a mistake of this program", _named(request.opcode))
            if request.opcode not in WITHOUT_ANSWER:
                channel.fail(request.unique, errno.EIO)
        else:
            if body is not None:
                channel.reply(request.unique, body)


def _nothing() -> None:
    pass


def _always(_request: Request) -> bool:
    return True


def _alone(_request: Request) -> bool:
    return False


# To answer these would be a mistake: the kernel knows no request of such a number.
WITHOUT_ANSWER = frozenset(
    {0, Opcode.FORGET, Opcode.BATCH_FORGET, Opcode.INTERRUPT, Opcode.NOTIFY_REPLY}
)


def _named(opcode: int) -> str:
    try:
        return Opcode(opcode).name.lower()
    except ValueError:
        return f"a request of unknown kind {opcode}"
