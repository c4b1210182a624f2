"""Serve a directory from the command line, in the foreground, without Docker.

A child process serves, inside the sandbox. This process stays outside to unmount at the end. The
child ends when the pipe between the two does. If the child is a guard and dies, others go on
(standby.py): they become children of this process then.
"""

import errno
import logging
import os
import signal
import stat
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Annotated

import typer

from passthrough.linux import kernel_features, mountinfo, privileges
from passthrough.options.effective import Effective, require_io_uring, resolve
from passthrough.options.parsing import OF_A_SOURCE, parse_options
from passthrough.options.table import OptionError, text_of
from passthrough.worker import control, fuse_mount, process, stderr
from passthrough.worker.handover import Handover, Report
from passthrough.worker.sandbox import SandboxError

log = logging.getLogger(__name__)
# Without markup, because help texts have brackets.
app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)


@app.command()
def main(
    source: Annotated[str, typer.Option(help="The directory to serve.")],
    mountpoint: Annotated[str, typer.Option(help="The mount point: an existing directory.")],
    option: Annotated[
        list[str] | None,
        typer.Option("-o", "--option", metavar="KEY=VALUE", help="A volume option; repeatable."),
    ] = None,
) -> None:
    """Serve SOURCE at MOUNTPOINT until it is unmounted or this process gets SIGINT or SIGTERM."""
    logging.basicConfig(stream=sys.stderr, format="%(levelname)s %(name)s: %(message)s")
    try:
        directories = _directory("source", source), _directory("mountpoint", mountpoint)
        status = _serve(*directories, _options(option or []))
    except (OptionError, OSError) as error:
        status = _refuse(error)
    raise typer.Exit(status)


def _directory(option: str, text: str) -> Path:
    """Return *text* as a path; refuse an empty text, which Path takes for the working directory."""
    if not text:
        raise OptionError(option, text, "a directory; '.' is the working directory")
    return Path(text)


def _options(given_options: list[str]) -> Effective:
    """Return the options in force for `-o a=b -o c,d=e`, split as mount(8) does."""
    given: dict[str, str] = {}
    for word in (word for options in given_options for word in options.split(",") if word):
        name, _, value = word.partition("=")
        if given.setdefault(name, value) != value:
            raise OptionError(name, value, f"one value only, and it was {given[name]!r}")
    release = kernel_features.linux_release()
    # All refusals come before the mount.
    requested = parse_options(given, release, has_source=True)
    for name in OF_A_SOURCE:
        if value := getattr(requested, name):
            accepted, reason = "--source with the directory itself", "is for volumes of the plugin"
            raise OptionError(name, text_of(name, value), accepted, reason)
    options = resolve(requested, release)
    require_io_uring(options, kernel_features.io_uring_obstacle())
    return options


def _refuse(error: Exception) -> int:
    typer.echo(f"passthrough: {error}", err=True)
    return 1


def _serve(source: Path, mountpoint: Path, options: Effective) -> int:
    """Mount, have a child process serve, unmount; return the exit status."""
    source_fd = os.open(source, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    target = mountpoint.resolve()
    _check_apart(source_fd, target)
    # Until _serve_in_child sets its handler, SIGTERM raises KeyboardInterrupt: `finally` unmounts.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    control_fd = control.make()
    fuse_fd = fuse_mount.mount(target, options)
    is_mounted = _watch(target)
    handover = Handover(
        volume=str(source),
        config=options.requested,
        fuse_fd=fuse_fd,
        source_fd=source_fd,
        control_fd=control_fd,
    )
    try:
        return _serve_in_child(
            handover, control_fd, lambda _: typer.echo(f"serving {source} at {mountpoint}")
        )
    finally:
        if is_mounted():
            fuse_mount.unmount(target)


def _serve_in_child(
    handover: Handover, control_fd: int, serving: Callable[[Report], object]
) -> int:
    """Have a child serve until it ends or this process is signalled; return the exit status.

    The child cannot leave its sandbox, so this process stays outside to unmount.
    """
    childs_end, our_end = os.pipe()
    to_close = [our_end]

    def stop(*_: object) -> None:
        while to_close:
            os.close(to_close.pop())

    _on_signal(stop)
    privileges.adopt_orphans()
    child = os.fork()
    if child == 0:
        status = 1
        try:
            # Ctrl-C signals the child too. Until the session handles signals (shutdown.py), the
            # child ignores them and ends with the pipe.
            _on_signal(signal.SIG_IGN)
            stop()
            status = _child(handover, serving, childs_end)
        finally:
            os._exit(status)
    for fd in (childs_end, handover.fuse_fd, handover.source_fd):
        os.close(fd)
    _, status = os.waitpid(child, 0)
    end_status = _wait_for_others(control_fd)
    if end_status is not None:
        return end_status
    if os.WIFSIGNALED(status):
        return _refuse(ChildProcessError(f"killed by {signal.Signals(os.WTERMSIG(status)).name}"))
    return os.waitstatus_to_exitcode(status)


def _wait_for_others(control_fd: int) -> int | None:
    """Return the exit status in the control page, once no process serves; None: there is none."""
    if not control.read(control_fd).ended:
        with suppress(ChildProcessError):
            while True:
                os.wait()
    state = control.read(control_fd)
    return state.end_status if state.ended else None


def _on_signal(handler: signal.Handlers | Callable[..., object]) -> None:
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, handler)


def _child(handover: Handover, serving: Callable[[Report], object], parent_fd: int) -> int:
    logging.basicConfig(handlers=[stderr.handler()], force=True)
    try:
        return process.serve(handover, serving, parent_fd)
    except (OSError, OptionError, SandboxError) as error:
        return _refuse(error)
    except Exception:
        log.exception("volume %s", handover.volume)
        return 1


def _watch(target: Path) -> Callable[[], bool]:
    """Return a function that tells whether the present mount at *target* is still mounted."""

    def uppermost() -> tuple[int, int] | None:
        at_target = [m for m in mountinfo.read() if m.target == os.fsencode(target)]
        return (at_target[-1].mount_id, at_target[-1].device) if at_target else None

    ours = uppermost()
    return lambda: ours is not None and uppermost() == ours


def _check_apart(source_fd: int, target: Path) -> None:
    """Refuse a mount point inside its source: a lookup there by the worker would wait for it."""
    target_fd = os.open(target, os.O_PATH | os.O_CLOEXEC)
    try:
        if not stat.S_ISDIR(os.fstat(target_fd).st_mode):
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(target))
        if mountinfo.contains(mountinfo.read(), source_fd, target_fd):
            raise OptionError("mountpoint", str(target), "a directory outside of the source")
    except LookupError:
        raise OptionError(
            "source", str(target), "directories on mounted file systems", "one is being unmounted"
        ) from None
    finally:
        os.close(target_fd)


if __name__ == "__main__":
    app(prog_name="python -m passthrough")
