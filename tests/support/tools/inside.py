"""A worker that runs probes of a test inside its own process, as injected code would run.

It is the real worker with one addition. To read the attribute `user.inside.PROBE:ARGUMENT` of a
file of the mount runs the probe of that name in the worker; the value is its result.
"""

import ctypes
import errno
import functools
import json
import logging
import os
import resource
import signal
import socket
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import cast

from passthrough.linux import fdpath, privileges, syscalls
from passthrough.worker import fuse_mount, process
from tests.passthrough.core.probe_inside import answer, block, end
from tests.support.tools import host_calls
from tests.support.tools.callers import ROOT

PREFIX = "user.inside."
PROBE_LIMIT_S = 10.0
HIGHEST = 256  # above every descriptor of a worker in a test
PR_GET_DUMPABLE = 3

_libc = ctypes.CDLL(None, use_errno=True)
_libc.syscall.restype = ctypes.c_long


def probe(mountpoint: Path, name: str, argument: str = "") -> object:
    """Run a probe inside the worker that serves *mountpoint*, and return its result.

    A request that a worker has read survives even the death of its caller. So if the worker does
    not answer within PROBE_LIMIT_S, the mount is aborted and the call fails.
    """
    attribute = f"{PREFIX}{name}:{argument}"
    abort = functools.partial(fuse_mount.unmount, mountpoint, abort=True)
    watchdog = threading.Timer(PROBE_LIMIT_S, abort)
    watchdog.start()
    try:
        return json.loads(ROOT.run(lambda: os.getxattr(mountpoint, attribute)))
    finally:
        watchdog.cancel()
        watchdog.join()


def _tried(attempt: Callable[[], object]) -> str:
    """Return the name of the error, or an empty string if *attempt* succeeded."""
    try:
        attempt()
    except OSError as error:
        return errno.errorcode[error.errno or 0]
    return ""


def _open(path: str) -> str:
    flags = os.O_RDONLY | os.O_NONBLOCK
    return _tried(lambda: os.close(os.open(path, flags)))


def _above(_: str) -> list[list[str]]:
    """List the top directory above each descriptor, the working directory and the root."""
    found = []
    descriptors = [*range(HIGHEST), os.open(".", os.O_PATH), os.open("/", os.O_PATH)]
    for descriptor in descriptors:
        try:
            at = os.open("..", os.O_PATH | os.O_DIRECTORY, dir_fd=descriptor)
        except OSError:
            continue
        for _step in range(64):
            above = os.open("..", os.O_PATH | os.O_DIRECTORY, dir_fd=at)
            os.close(at)
            at = above
        top = os.open(".", os.O_RDONLY, dir_fd=at)
        found.append(sorted(os.listdir(top)))
        os.close(top)
        os.close(at)
    for descriptor in descriptors[HIGHEST:]:
        os.close(descriptor)
    return found


def _connect(port: str) -> str:
    def connecting() -> None:
        with socket.socket() as client:
            client.connect(("127.0.0.1", int(port)))

    return _tried(connecting)


def _import(name: str) -> str:
    try:
        __import__(name)
    except ImportError as error:
        return type(error).__name__
    return ""


def _execute(path: str) -> str:
    return _tried(lambda: os.execv(path, [path]))  # noqa: S606


def _regain(capability: str) -> str:
    return _tried(lambda: host_calls.raise_capability(int(capability)))


def _by_handle(_: str) -> str:
    """Open the root directory by its file handle, which would open up its whole file system."""
    root = os.open("/", os.O_RDONLY)
    try:
        handle = syscalls.name_to_handle_at(root)[1]
        return _tried(lambda: os.close(syscalls.open_by_handle_at(root, handle, os.O_PATH)))
    finally:
        os.close(root)


def _call(words: str) -> str:
    """Make a system call; *words* has its number and its arguments, all integers."""
    number, *arguments = map(int, words.split())
    return _tried(lambda: _checked(_libc.syscall(number, *map(ctypes.c_uint64, arguments))))


def _checked(result: int) -> int:
    if result < 0:
        raise OSError(ctypes.get_errno(), "")
    return result


def _fork(number: str) -> str:
    """Make a process by the system call *number* with the flags of fork(2); it ends at once."""

    def forking() -> None:
        pid = _checked(_libc.syscall(int(number), ctypes.c_uint64(signal.SIGCHLD), 0, 0, 0, 0))
        if pid == 0:
            os._exit(0)
        os.waitpid(pid, 0)

    return _tried(forking)


def _new_process(_: str) -> str:
    def forking() -> None:
        if (pid := os.fork()) == 0:
            os._exit(0)
        os.waitpid(pid, 0)

    return _tried(forking)


def _new_thread(_: str) -> str:
    done: list[int] = []
    thread = threading.Thread(target=lambda: done.append(threading.get_native_id()))
    thread.start()
    thread.join()
    return "" if done[0] not in {0, threading.get_native_id()} else "no thread"


def _fail(_: str) -> object:
    return fdpath.of(cast("int", "no number"))


def _undecodable(_: str) -> object:
    logging.getLogger("tests.inside").warning("a name of no known %s", os.fsdecode(b"\xff"))
    return "\N{SNOWMAN}".encode("ascii", "backslashreplace").decode("latin-1")


PROBES: dict[str, Callable[[str], object]] = {
    "open": _open,
    "list": lambda path: sorted(os.listdir(path)),
    "above": _above,
    "connect": _connect,
    "import": _import,
    "execute": _execute,
    "regain": _regain,
    "fail": _fail,
    "text": _undecodable,
    "dumpable": lambda _: _libc.prctl(PR_GET_DUMPABLE, 0, 0, 0, 0),
    "descriptors": lambda _: resource.getrlimit(resource.RLIMIT_NOFILE),
    "mount": lambda _: _tried(lambda: syscalls.mount(b"none", b"/", b"tmpfs", 0, b"")),
    "umount": lambda _: _tried(lambda: syscalls.umount2(b"/", syscalls.MNT_DETACH)),
    "pivot_root": lambda _: _tried(lambda: privileges.pivot_root(b"/", b"/")),
    "clone_tree": lambda _: _tried(
        lambda: os.close(privileges.clone_tree(privileges.AT_FDCWD, b"/", recursive=True))
    ),
    "chroot": lambda _: _tried(lambda: os.chroot("/")),
    "by_handle": _by_handle,
    "call": _call,
    "fork": _fork,
    "new_process": _new_process,
    "new_thread": _new_thread,
    "raise": lambda _: _tried(lambda: signal.raise_signal(signal.SIGURG)),
    "fault": lambda _: ctypes.string_at(0),
    "block": lambda _: block(),
    "end": lambda _: end(),
    "unshare": lambda flags: _tried(lambda: privileges.unshare(int(flags))),
}


def _answer(name: bytes) -> bytes:
    probe, _, argument = os.fsdecode(name).partition(":")
    return json.dumps(PROBES[probe](argument)).encode()


if __name__ == "__main__":
    answer(_answer)
    sys.exit(process.main())
