"""The worker process: serves one volume until its keeper or its mount ends.

With a standby, this process answers INIT and becomes the first guard (standby.py). The worker is
its child then, and a child of that follows each worker that dies.

The fork server forks this process with two descriptors of the keeper, and calls `main`. Tests run
the module as a program. The worker reads a Handover from standard input, writes one Report to
standard output, and logs to standard error. It ends when the file system is unmounted everywhere,
on SIGTERM, or when the keeper closes the other end of standard input. (A parent-death signal would
not do: setfsuid(2) clears it.)
"""

import importlib
import logging
import os
import resource
import sys
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Final, Protocol, cast

import msgspec

from passthrough.core.uring import try_io_uring
from passthrough.identity import credentials
from passthrough.identity.idmap import HostId, why_no_change_allowed
from passthrough.linux import filehandles, kernel_features, memory
from passthrough.options.choices import (
    InodeFileHandles,
    LogLevel,
    Sandbox,
    SessionKind,
    Squash,
    Standby,
    Transport,
)
from passthrough.options.effective import Effective, require_io_uring, resolve
from passthrough.options.owner import with_source
from passthrough.options.table import OptionError
from passthrough.session import kernel
from passthrough.session.negotiation import Began
from passthrough.worker import guarded, sandbox, stderr
from passthrough.worker.handover import Handover, Report, decode_handover, encode
from passthrough.worker.predecessor import Predecessor, RefusedError
from passthrough.worker.record import Record
from passthrough.worker.sandbox import SandboxError

log = logging.getLogger(__name__)

_STDIN: Final = 0
_STDOUT: Final = 1
_PACKAGE: Final = "passthrough"
# A hand-over has only names and numbers, a few KiB at most.
_LONGEST_HANDOVER: Final = 64 * 1024


class Served(Protocol):
    """A volume that a session serves."""

    def close(self) -> object:
        """Close all descriptors."""


class Runner(Protocol):
    """A module that runs a session."""

    def prepare(self, config: Effective, source_fd: int) -> Served:
        """Return a volume on *source_fd*, which it owns, for `run`."""

    def run(
        self,
        fs: Served,
        fuse_fd: int,
        serving: Callable[[Began], object],
        keeper_fd: int | None,
    ) -> None:
        """Serve until the session ends.

        Calls *serving* once requests are answered.
        """


_RUNNERS: Final[Mapping[SessionKind, str]] = {
    SessionKind.KERNEL: "passthrough.session.kernel",
    SessionKind.LIBFUSE: "passthrough.session.libfuse_run",
}


def load(session: SessionKind) -> Runner:
    """Import the module that runs *session*, and no other session."""
    return cast("Runner", importlib.import_module(_RUNNERS[session]))


def main() -> int:
    """Serve the Handover on standard input; return the exit status."""
    log_to_stderr(LogLevel.DEBUG)  # the plugin leaves out what the volume's level excludes
    try:
        handover = decode_handover(_read_line(_STDIN))
    except msgspec.DecodeError as error:
        return _refuse(f"no usable hand-over: {error}")
    return serve_and_report(handover, _STDIN)


def log_to_stderr(level: LogLevel | None, form: logging.Formatter | None = None) -> None:
    """Send the log of this process and its children to standard error, in lines of *form*.

    None is the level `warning`, which libraries have in any case.
    """
    logging.basicConfig(handlers=[stderr.handler(form)], force=True)
    set_level(level or LogLevel.WARNING)


def set_level(level: LogLevel) -> None:
    """Log from *level* on; no change if the fork server has set it.

    A change writes to all loggers. In a worker, these pages would be shared no more.
    """
    logger = logging.getLogger(_PACKAGE)
    if logger.level != level.number:
        logger.setLevel(level.number)


def serve_and_report(handover: Handover, keeper_fd: int | None) -> int:
    """Serve as `serve` does; write the report, or the refusal, to standard output."""
    try:
        return serve(handover, lambda report: os.write(_STDOUT, encode(report)), keeper_fd)
    except (OptionError, SandboxError, RefusedError) as error:
        return _refuse(str(error))
    except OSError as error:
        log.exception("volume %s", handover.volume)
        return _refuse(str(error))


def serve(
    handover: Handover, answer: Callable[[Report], object], keeper_fd: int | None = None
) -> int:
    """Serve until unmounted, signalled, or until *keeper_fd*, a pipe, has no writer left.

    Takes the descriptors of *handover*. Calls *answer* once requests are answered. A process with
    a sandbox stays confined, so it must end afterwards.

    With a standby, children call *answer*, also if the service does not begin; the worker's log has
    the reason then.

    Returns:
        The exit status.

    Raises:
        OSError: the process lacks a capability, or the session with the kernel failed.
        OptionError: the source lacks a feature that the volume asks for.
        RefusedError: the predecessor serves on.
        SandboxError: the sandbox that the volume asks for is not possible here.
    """
    if handover.predecessor is not None:
        before = Predecessor(handover.predecessor.group, handover.predecessor.control_fd)
        return _go_on(handover, before, answer, keeper_fd)
    top = os.fstat(handover.source_fd)
    requested = with_source(handover.config, top.st_uid, top.st_gid)
    handover = msgspec.structs.replace(handover, config=requested)
    config, without_handles = _in_force(handover)
    _prepare(config)
    # No module can be imported once the process has entered the sandbox.
    session = load(config.session)
    guards = config.standby is Standby.ON and _may_guard(config)
    source_fd, procfs_fd = _confine(config, handover.source_fd, guards=guards)
    if not config.readonly and (why := why_no_change_allowed(config, HostId(top.st_uid))):
        log.warning("%s", why)
    report = Report(serving=True, config=handover.config, without_handles=without_handles)

    def serving(began: Began) -> None:
        answer(msgspec.structs.replace(report, **began._asdict()))

    if guards:
        volume = guarded.Volume(handover, config, answer, serving, keeper_fd, without_handles)
        return guarded.serve(volume, source_fd, procfs_fd)
    guarded.open_page(handover.control_fd)
    fs = session.prepare(config, source_fd)
    try:
        session.run(fs, handover.fuse_fd, serving, keeper_fd)
    finally:
        fs.close()
    return 0


def _in_force(handover: Handover) -> tuple[Effective, str]:
    """Return the options in force for the source, and why no file is held by file handle.

    Raises:
        OptionError: the machine lacks a feature that the volume asks for.
    """
    without_handles = ""
    if handover.config.inode_file_handles is not InodeFileHandles.NEVER:
        without_handles = filehandles.obstacle(handover.source_fd)
    config = resolve(handover.config, kernel_features.linux_release(), without_handles)
    require_io_uring(config, _io_uring_obstacle(config))
    return config, without_handles


def _go_on(
    handover: Handover,
    before: Predecessor,
    answer: Callable[[Report], object],
    keeper_fd: int | None,
) -> int:
    """Serve as `serve` does, in place of another program.

    Raises:
        OptionError, RefusedError: the other program serves on.
    """
    found = before.examine()
    config = resolve(handover.config, kernel_features.linux_release(), found.without_handles)
    if handover.control_fd is None or keeper_fd is None:
        raise RefusedError("nobody keeps the volume")
    if why := _why_not_in_place(config, found):
        raise RefusedError(why)
    _prepare(config)
    report = Report(serving=True, config=handover.config, without_handles=found.without_handles)
    answered = False

    def serving(began: Began) -> None:
        nonlocal answered
        answered = True
        answer(msgspec.structs.replace(report, **began._asdict()))

    try:
        before.stop()
        before.retire()
        fuse_fd, control_fd = before.copy([handover.fuse_fd, handover.control_fd])
        confined = config.sandbox is Sandbox.NAMESPACE
        by_file_handle = config.inode_file_handles is not InodeFileHandles.NEVER
        before.enter(confined=confined, by_file_handle=by_file_handle)
        handover = msgspec.structs.replace(handover, fuse_fd=fuse_fd, control_fd=control_fd)
        volume = guarded.Volume(handover, config, answer, serving, keeper_fd, found.without_handles)
        status = guarded.go_on(volume, keeper_fd, before, found)
    except (OSError, SandboxError) as error:
        raise RefusedError(f"undone: {error}") from error
    finally:
        before.undo()
    if not before.is_replaced and not answered:
        raise RefusedError("undone: the first worker has ended; see the log")
    return status


def _why_not_in_place(config: Effective, found: Record) -> str:
    """Return why this program cannot go on with a volume, or an empty text."""
    if config.session is not SessionKind.KERNEL or config.standby is not Standby.ON:
        return "this program serves its options without a standby"
    if not _may_guard(config):
        return "this process lacks capabilities of a guard"
    try:
        kernel.agreed_again(config, found.begun)
    except OSError as error:
        return str(error.strerror)
    return ""


def _prepare(config: Effective) -> None:
    """Log the notes of *config*, and set what all processes of the volume have in common."""
    for note in config.notes:
        log.warning("%s", note)
    _raise_limits()
    memory.use_one_arena()
    # The kernel has applied the caller's umask already; the worker's own must not apply again.
    os.umask(0)
    if config.squash is not Squash.NONE:
        credentials.drop_groups()


def _may_guard(config: Effective) -> bool:
    """Return whether this process can be a guard; log why not."""
    confined = config.sandbox is Sandbox.NAMESPACE
    if confined and (missing := sandbox.lacks_for_guard()):
        log.warning("standby is off: %s missing from the worker's capabilities", missing)
        return False
    return True


def _io_uring_obstacle(config: Effective) -> str:
    """Return why io_uring is not available, if the options ask for it; tries to make a ring."""
    if config.transport is not Transport.IO_URING:
        return ""
    if reason := kernel_features.io_uring_obstacle():
        return reason
    try:
        if number := try_io_uring():
            return os.strerror(number)
        kernel_features.possible_processors()  # cached for later, when /sys is out of reach
    except OSError as error:
        return str(error.strerror)
    return ""


def _confine(config: Effective, source_fd: int, *, guards: bool) -> tuple[int, int | None]:
    """Drop the privileges that a worker, or one that *guards*, does not need.

    Returns:
        The source's new descriptor, and one of /proc for a guard with a sandbox.
    """
    if config.sandbox is Sandbox.NONE:
        credentials.keep_capabilities()
        return source_fd, None
    by_file_handle = config.inode_file_handles is not InodeFileHandles.NEVER
    if guards:
        return sandbox.enter_as_guard(
            source_fd,
            by_file_handle=by_file_handle,
            atime=config.atime,
            diratime=config.diratime,
        )
    root_fd = sandbox.enter(
        source_fd,
        by_file_handle=by_file_handle,
        by_ring=config.transport is Transport.IO_URING,
        atime=config.atime,
        diratime=config.diratime,
    )
    return root_fd, None


def _raise_limits() -> None:
    """Raise the limits of descriptors and of the size of files to their maxima.

    Each inode that the kernel knows holds a descriptor, unless a kernel file handle replaces it.
    The usual soft limit of 1,024 exists only for programs that use select(2). The size of files is
    a limit of callers, which the kernel checks; here it would refuse the memory of the tables.
    """
    with open("/proc/sys/fs/nr_open", "rb") as file:
        most = int(file.read())
    _raise_limit(resource.RLIMIT_NOFILE, most)
    _raise_limit(resource.RLIMIT_FSIZE, resource.RLIM_INFINITY)


def _raise_limit(limit: int, most: int) -> None:
    """Raise *limit* to *most*; without CAP_SYS_RESOURCE, only to its hard limit."""
    _, hard = resource.getrlimit(limit)
    try:
        resource.setrlimit(limit, (most, most))
    except ValueError:  # Python's error for EPERM here
        resource.setrlimit(limit, (hard, hard))


def _read_line(fd: int) -> bytes:
    """Read up to the first newline; the keeper sends nothing after it."""
    line = b""
    while not line.endswith(b"\n") and len(line) < _LONGEST_HANDOVER:
        byte = os.read(fd, 1)
        if not byte:
            break
        line += byte
    return line


def _refuse(error: str) -> int:
    with suppress(BrokenPipeError):
        os.write(_STDOUT, encode(Report(serving=False, error=error)))
    return 1


if __name__ == "__main__":
    sys.exit(main())
