"""SquashedFs: the operations of a volume that squashes ids, which act as the caller.

squashing.py decides as whom; here it is done, at the one place around each operation. A session
says in `asked_by` whose request its thread handles. If no caller is known, an operation that would
act as one fails by a RuntimeError, which the session answers with EIO.
"""

import contextlib
import errno
import functools
import os
import stat
import threading
import time
from collections.abc import Callable, Iterator
from typing import Final, NoReturn, TypeVar, cast

from passthrough.core import names
from passthrough.core.filesystem import PassthroughFs
from passthrough.core.inode_file import Inode
from passthrough.core.inodes import ROOT
from passthrough.core.listing import OpenDirectory
from passthrough.core.mount_devices import Place
from passthrough.core.xattrs import FILE_CAPABILITIES
from passthrough.identity import powerless
from passthrough.identity.attributes import (
    NO_CHANGES,
    PRIVILEGES,
    Attributes,
    Changes,
    Entry,
    without_sticky,
)
from passthrough.identity.idmap import Caller, HostId
from passthrough.identity.powerless import Powerless
from passthrough.identity.squashing import (
    ALONE,
    AS_CALLER,
    AS_MEMBER,
    EITHER,
    Squashing,
    group_counts,
    is_execution,
    may_execute,
    membership_tries,
    needs_no_right,
)
from passthrough.linux import fdpath, filecalls, syscalls
from passthrough.linux.errors import os_error
from passthrough.options.choices import SessionKind, Squash
from passthrough.options.effective import Effective

R = TypeVar("R")

_ACL: Final = b"system.posix_acl_access"
_NOW: Final = (0, syscalls.UTIME_NOW)
# Longer than a request takes, and than a second's fraction that is left out.
_RECENT_S: Final = 2
_AS_WORKER: Final = contextlib.nullcontext()
_WITHOUT_ACL: Final = frozenset({errno.ENODATA, errno.EOPNOTSUPP})


def filesystem_of(config: Effective, source_fd: int) -> PassthroughFs:
    """Return the operations on *source_fd*, which they own, for a volume with *config*."""
    kind = PassthroughFs if config.squash is Squash.NONE else SquashedFs
    return kind(config, source_fd)


class _Asking(threading.local):
    """The caller whose request this thread handles."""

    caller: Caller | None = None


class SquashedFs(PassthroughFs):
    """The operations on one source directory, each as the ids that squashing leaves its caller."""

    squashes = True

    def __init__(self, config: Effective, source_fd: int) -> None:
        """As of PassthroughFs."""
        super().__init__(config, source_fd)
        self._asking = _Asking()
        self._squashing = Squashing(self.config)
        self._openers: dict[OpenDirectory, Powerless] = {}
        for name, nodes in AS_CALLER.items():
            setattr(self, name, self._wrapped(getattr(self, name), nodes))

    @contextlib.contextmanager
    def asked_by(self, caller: Caller) -> Iterator[None]:
        """A guard: inside it, this thread handles a request of *caller*."""
        before, self._asking.caller = self._asking.caller, caller
        try:
            yield
        finally:
            self._asking.caller = before

    def setattr(
        self,
        number: int,
        changes: Changes,
        handle: int | None = None,
        *,
        clear_privileges: bool = False,
        caller: Caller | None = None,
    ) -> Attributes:
        """As of PassthroughFs."""
        # chown(2) without an owner: what comes before a write looks the same.
        asks = changes == NO_CHANGES and not self.open_for_writing(number)
        clears, more = clear_privileges or asks, self._squashing.new_group(changes.gid)
        how = membership_tries(changes.mode, directory=self.inodes[number].kind == stat.S_IFDIR)
        if how == AS_MEMBER:
            more = *more, self.inodes[number].stat().st_gid

        def change() -> Attributes:
            allowed = self._without_mode(number, changes)
            return super(SquashedFs, self).setattr(
                *(number, allowed, handle), clear_privileges=clears, caller=caller
            )

        if needs_no_right(changes, handle) and not asks:
            return change()
        try:
            return self._as_caller(change, (number,), more, how)
        except PermissionError:
            if not self._touches(changes):
                raise
        now = NO_CHANGES._replace(atime=_NOW, mtime=_NOW)
        touch = functools.partial(super().setattr, number, now)
        return self._as_caller(touch, (number,))

    def rename(  # noqa: PLR0917 - what the request carries
        self,
        parent: int,
        name: bytes,
        new_parent: int,
        new_name: bytes,
        flags: int,
        caller: Caller,
    ) -> None:
        """As of PassthroughFs; a directory that gets another parent is written to itself."""
        moved = *self._group_of(parent, name), *self._group_of(new_parent, new_name)
        call = super().rename
        words = (parent, name, new_parent, new_name, flags, caller)
        self._as_caller(lambda: call(*words), (parent, new_parent), moved)

    def mknod(self, parent: int, name: bytes, mode: int, rdev: int, caller: Caller) -> Entry:
        """As of PassthroughFs."""
        return super().mknod(parent, name, self._without_sgid(parent, mode), rdev, caller)

    def create(
        self, parent: int, name: bytes, mode: int, flags: int, caller: Caller
    ) -> tuple[Entry, int]:
        """As of PassthroughFs."""
        return super().create(parent, name, self._without_sgid(parent, mode), flags, caller)

    def tmpfile(self, parent: int, mode: int, flags: int, caller: Caller) -> tuple[Entry, int]:
        """As of PassthroughFs."""
        return super().tmpfile(parent, self._without_sgid(parent, mode), flags, caller)

    def open(
        self,
        number: int,
        flags: int,
        *,
        clear_privileges: bool = False,
        caller: Caller | None = None,
    ) -> int:
        """As of PassthroughFs; what is executed need not be readable."""
        if powerless.ids() is None or not is_execution(flags):
            return super().open(number, flags, clear_privileges=clear_privileges, caller=caller)
        inode = self.inodes[number]
        with inode.opened() as fd:
            if inode.kind != stat.S_IFREG or not _may_execute(fd):
                raise os_error(errno.EACCES)
        with powerless.as_itself():
            return super().open(number, flags)

    def opendir(self, number: int) -> int:
        """As of PassthroughFs; its names are looked up as a squashed caller that opens it."""
        handle = super().opendir(number)
        ids = powerless.ids()
        if ids is not None and self._squashed_asks():
            self._openers[self.directories[handle]] = Powerless(ids)
        return handle

    def releasedir(self, handle: int) -> None:
        """As of PassthroughFs."""
        self._openers.pop(self.directories[handle], None)
        super().releasedir(handle)

    def access(self, number: int, mask: int, caller: Caller) -> bool:
        """As of PassthroughFs, but by the host's own judgement."""
        if powerless.ids() is None:
            return super().access(number, mask, caller)
        inode = self.inodes[number]
        with inode.opened() as fd:
            if inode.kind == stat.S_IFREG and mask & os.X_OK:
                if not _may_execute(fd):
                    return False
                mask &= ~os.X_OK
            return filecalls.may_access(fdpath.of(fd), mask)

    def removexattr(self, number: int, name: bytes) -> None:
        """As of PassthroughFs; file capabilities go with content, which takes no CAP_SETFCAP."""
        if name == FILE_CAPABILITIES and powerless.ids() is not None:
            with self.inodes.opened(number) as fd:
                if self._writes(number, fd, truncates=True):
                    with powerless.as_itself():
                        return super().removexattr(number, name)
        return super().removexattr(number, name)

    def unopened(self, number: int) -> NoReturn:  # noqa: ARG002
        """Refuse data to a caller that has opened nothing, and so was asked for no right."""
        raise os_error(errno.EBADF)

    def unopened_stream(self, number: int) -> NoReturn:  # noqa: ARG002
        """Refuse names to a caller that has opened nothing, and so was asked for no right."""
        raise os_error(errno.EBADF)

    def _without_mode(self, number: int, changes: Changes) -> Changes:
        """Return *changes* with what is to become of the mode here, as the caller.

        Without HANDLE_KILLPRIV_V2, the kernel itself takes suid and sgid bits away before a caller
        changes the content, which takes a right to write and not to chmod(2). The sticky bit of a
        directory, where it is not shown, stays.
        """
        mode = changes.mode
        if mode is None or powerless.ids() is None:
            return changes
        with self.inodes.opened(number) as fd:
            attributes = os.fstat(fd)
            present = stat.S_IMODE(attributes.st_mode)
            if stat.S_ISDIR(attributes.st_mode) and self._squashing.squashes_all:
                return changes._replace(mode=mode | present & stat.S_ISVTX)
            takes = mode != present and not mode & ~present and not present & ~mode & ~PRIVILEGES
            if takes and self._writes(number, fd, truncates=changes.size is not None):
                if changes.size is not None:
                    self._check_sealed()
                self._changing(number)  # before the first change
                with powerless.as_itself():
                    os.chmod(fdpath.of(fd), mode)
                return changes._replace(mode=None)
        return changes

    def _touches(self, changes: Changes) -> bool:
        """Return whether *changes* may be those of utimensat(2) without a time, by pyfuse3."""
        # The right to write is enough for it. pyfuse3 fills the time of the moment in.
        seconds, _ = changes.atime
        alone = changes == NO_CHANGES._replace(atime=changes.atime, mtime=changes.atime)
        recent = abs(time.time() - seconds) < _RECENT_S
        return self.config.session is SessionKind.LIBFUSE and alone and recent

    def _squashed_asks(self) -> bool:
        """Return whether the caller is one that squashing takes."""
        caller = self._asking.caller
        return caller is not None and self._squashing.squashes(caller)

    def _writes(self, number: int, fd: int, *, truncates: bool) -> bool:
        """Return whether what takes power from inode *number* may come before a change of content.

        That is one through an open file, or one by path, for which the caller needs the right.
        """
        if self.open_for_writing(number):
            return True
        return truncates and filecalls.may_access(fdpath.of(fd), os.W_OK)

    def _without_sgid(self, parent: int, mode: int) -> int:
        """Return *mode* of a new file as the host would for a caller in one group alone."""
        if not mode & stat.S_ISGID or not powerless.groups():
            return mode
        inherits = self.inodes[parent].stat().st_mode & stat.S_ISGID
        return mode & ~stat.S_ISGID if inherits else mode

    def _keeps_sgid(self, attributes: os.stat_result, caller: Caller | None) -> bool:
        """As of PassthroughFs; a squashed caller is in one group, whatever the kernel knows."""
        asking = self._asking.caller
        if asking is not None and self._squashing.squashes(asking):
            return self._squashing.acts_as(asking).gid == attributes.st_gid
        return super()._keeps_sgid(attributes, caller)

    def _wrapped(self, operation: Callable[..., R], nodes: tuple[int, ...]) -> Callable[..., R]:
        """Return *operation* as the caller; *nodes* says which arguments are inode numbers."""

        @functools.wraps(operation)
        def acting(*args: object, **kwargs: object) -> R:
            numbers = tuple(cast("int", args[node]) for node in nodes)
            return self._as_caller(functools.partial(operation, *args, **kwargs), numbers)

        return acting

    def _as_caller(
        self,
        operation: Callable[[], R],
        numbers: tuple[int, ...],
        more: tuple[int, ...] = (),
        how: tuple[bool, ...] = EITHER,
    ) -> R:
        """Do *operation* as the caller, if a squashed one can reach the inodes *numbers* at all.

        With squash=all each caller is the one for which the kernel remembers names. For a caller
        that squashing leaves alone, *how* says if it is a member of the groups of these inodes
        and of *more*: another try follows one that the host has refused.
        """
        caller = self._asking.caller
        if caller is None:
            raise RuntimeError("an operation acts as its caller, and no session has said who asks")
        ids = self._squashing.acts_as(caller)
        if powerless.ids() == ids:  # inside of another operation
            return operation()
        squashed = self._squashing.squashes(caller)
        if squashed or how != AS_MEMBER:
            try:
                with Powerless(ids):
                    if squashed and not self._squashing.squashes_all:
                        for number in numbers:
                            self._check_reachable(number)
                    return operation()
            except PermissionError:
                if squashed or how == ALONE:
                    raise
        with Powerless(ids, self._memberships(numbers, more)):
            return operation()

    def _memberships(self, numbers: tuple[int, ...], more: tuple[int, ...]) -> tuple[HostId, ...]:
        """Return the groups that could give a caller a right to the inodes *numbers*."""
        found = [self.inodes[number].stat() for number in numbers]
        helping = [attributes.st_gid for attributes in found if group_counts(attributes.st_mode)]
        return self._squashing.possible_groups((*helping, *more))

    def _group_of(self, parent: int, name: bytes) -> tuple[int, ...]:
        """Return the group of *name*, if there is one that can be looked at."""
        names.check(name)
        try:
            fd = self.inodes[parent].find(name)
        except OSError:  # which the operation will meet, and report
            return ()
        if fd == syscalls.MOUNT_POINT:
            return ()
        try:
            return (os.fstat(fd).st_gid,)
        finally:
            os.close(fd)

    def _check_reachable(self, number: int) -> None:
        if number != ROOT:
            with self.inodes.opened(ROOT) as root, self.inodes.opened(number) as fd:
                names.check_reachable(root, fd)

    def _entry(self, directory: OpenDirectory, place: Place, name: bytes) -> Entry:
        with self._openers.get(directory, _AS_WORKER):
            return super()._entry(directory, place, name)

    def _grant(self, fd: int, place: Place | None) -> Entry:
        entry = super()._grant(fd, place)
        if self._squashing.squashes_all:
            entry.stat = without_sticky(entry.stat)
        return entry

    def _attributes(self, inode: Inode) -> Attributes:
        attributes = super()._attributes(inode)
        if self._squashing.squashes_all:
            attributes.stat = without_sticky(attributes.stat)
        return attributes

    def _reopen(self, inode: Inode, kind: int, flags: int) -> int:
        """As of PassthroughFs: as the caller asks for it, then with what the options add to that.

        The options' O_NOATIME is the owner's to use; writeback reads what surrounds a write.
        """
        if powerless.ids() is None:
            return super()._reopen(inode, kind, flags)
        if inode.kind != kind:
            raise os_error(errno.EBADF)
        asked, wanted = self._flags.asked(flags), self._flags.existing(flags)
        with inode.opened() as fd:
            opened = os.open(fdpath.of(fd), asked)
        if asked == wanted:
            return opened
        try:
            with powerless.as_itself():
                return os.open(fdpath.of(opened), wanted & ~os.O_TRUNC)
        finally:
            os.close(opened)


def _may_execute(fd: int) -> bool:
    """Return whether this thread's ids may execute the regular file behind *fd*."""
    ids = powerless.ids()
    if ids is None:
        raise RuntimeError("a thread with capabilities asks what its ids may execute")
    attributes = os.fstat(fd)
    try:
        acl = os.getxattr(fdpath.of(fd), _ACL)
    except OSError as error:
        if error.errno not in _WITHOUT_ACL:
            raise
        acl = b""
    owner = attributes.st_uid, attributes.st_gid
    return may_execute(attributes.st_mode, owner, acl, ids, powerless.groups())
