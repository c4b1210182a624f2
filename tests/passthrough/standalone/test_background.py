"""`passfs mount`, and the processes that serve the mount."""

import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.fakes.hung import HungSource
from tests.support.tools.callers import OTHER, USER, Caller
from tests.support.tools.mounts import mounts_at, options_at
from tests.support.tools.processes import lives, wait_until
from tests.support.tools.rings import switched_for
from tests.support.tools.standalone import (
    LIMIT_S,
    PASSFS,
    overlaid,
    passfs,
    run,
    serving,
    wait_for_end,
    worker,
)

pytestmark = pytest.mark.full

SESSIONS = {
    "kernel": {"session": "kernel"},
    "io_uring": {"transport": "io_uring"},
    "libfuse": {"session": "libfuse"},
}
# `passfs` that gets a signal when a step of it has just been done.
SIGNALLED = """
import signal
from passthrough.standalone import background, making
from passthrough.worker import fuse_mount
from plugin.start import main

step = {step}

def signalled(*given):
    done = step(*given)
    signal.raise_signal({number})
    return done

{step} = signalled
main()
"""


def read(path: Path, caller: Caller = USER) -> str:
    """Read a file of a mount in a process that can be killed."""
    return caller.run(path.read_text)


@pytest.mark.parametrize("session", SESSIONS)
def test_a_mount_serves_several_users(session: str, source: Path, mountpoint: Path) -> None:
    options = SESSIONS[session]
    words = [f"{name}={value}" for name, value in options.items()]
    with switched_for(options):
        assert passfs("mount", source, mountpoint, "-o", ",".join(words)) == (0, "", "")

    assert read(mountpoint / "file") == "below"
    USER.run(lambda: (mountpoint / "users").write_text("more"))
    assert read(mountpoint / "users", OTHER) == "more"
    assert OTHER.run(lambda: os.access(mountpoint / "users", os.W_OK)) is False
    assert (source / "users").stat().st_uid == USER.uid

    (mounted,) = mounts_at(mountpoint)
    assert (mounted.fstype, mounted.source) == ("fuse.passfs", os.fsencode(source))
    wait_until(lambda: len(serving(mountpoint)) == (3 if session == "kernel" else 1))
    processes = serving(mountpoint)
    assert passfs("unmount", mountpoint) == (0, "", "")
    wait_until(lambda: not any(map(lives, processes)))
    assert mounts_at(mountpoint) == []


def test_the_death_of_a_worker_is_not_noticed(source: Path, mountpoint: Path) -> None:
    passfs("mount", source, mountpoint)
    with (mountpoint / "file").open("r+") as file:
        before = worker(serving(mountpoint))
        os.kill(before, signal.SIGKILL)

        assert read(mountpoint / "file") == "below"
        file.write("after")
        file.flush()
        assert (source / "file").read_text() == "after"
        assert worker(serving(mountpoint)) != before

    assert passfs("unmount", mountpoint) == (0, "", "")


def test_plain_umount_ends_the_processes(source: Path, mountpoint: Path) -> None:
    passfs("mount", source, mountpoint)
    processes = serving(mountpoint)

    assert run("umount", mountpoint) == (0, "", "")

    wait_for_end(processes)


def test_the_processes_keep_nothing_of_the_caller(source: Path, mountpoint: Path) -> None:
    """No terminal, no working directory, no descriptor."""
    reads, writes = os.pipe()
    words = [*PASSFS, "mount", str(source), str(mountpoint), "-o", "sandbox=none"]
    with subprocess.Popen(words, cwd=source, stdout=writes, pass_fds=[writes]) as process:
        os.close(writes)
        assert process.wait(LIMIT_S) == 0
    assert os.read(reads, 1) == b""  # no process has the other end
    os.close(reads)

    for pid in serving(mountpoint):
        assert os.readlink(f"/proc/{pid}/cwd") == "/"
        assert os.getsid(pid) != os.getsid(0)
        assert os.readlink(f"/proc/{pid}/fd/0") == "/dev/null"

    assert passfs("unmount", mountpoint).status == 0


def test_the_end_of_the_callers_shell_ends_no_mount(source: Path, mountpoint: Path) -> None:
    script = '"$@" && kill -HUP 0'
    words = ["sh", "-c", script, "sh", *PASSFS, "mount", str(source), str(mountpoint)]
    with subprocess.Popen(words, start_new_session=True) as shell:
        assert shell.wait(LIMIT_S) == -signal.SIGHUP

    assert read(mountpoint / "file") == "below"
    assert passfs("unmount", mountpoint).status == 0


def test_the_log_goes_to_the_systems_log(source: Path, mountpoint: Path, tmp_path: Path) -> None:
    with overlaid(Path("/dev"), tmp_path), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as log:
        log.bind("/dev/log")
        log.settimeout(LIMIT_S)
        passfs("mount", source, mountpoint)
        os.kill(worker(serving(mountpoint)), signal.SIGKILL)

        line = log.recv(4096).decode()
        assert passfs("unmount", mountpoint).status == 0

    assert line.startswith("<28>")  # daemon.warning
    assert f"passfs: {mountpoint}: passthrough.worker.events: worker" in line
    assert line.endswith("was killed by SIGKILL")


def test_without_logger_a_mount_is_served_nevertheless(source: Path, mountpoint: Path) -> None:
    done = run(*PASSFS, "mount", source, mountpoint, environment={"PATH": "/nowhere"})

    assert done == (0, "", "")
    assert passfs("unmount", mountpoint).status == 0


def test_options_are_those_of_volumes(source: Path, mountpoint: Path) -> None:
    words = ["-o", "ro,noexec,nofail,x-systemd.automount", "-o", "fsname=server:/data", "--json"]
    done = passfs("mount", source, mountpoint, *words)

    shown = json.loads(done.out)
    assert (shown["source"], shown["mountpoint"]) == (str(source), str(mountpoint))
    assert (shown["options"]["readonly"], shown["notes"]) == ("true", [])
    assert {"ro", "noexec", "nosuid", "nodev"} <= options_at(mountpoint)
    assert mounts_at(mountpoint)[0].source == b"server:/data"

    unmounted = passfs("umount", mountpoint, "--json")
    assert json.loads(unmounted.out) == {"source": "server:/data", "mountpoint": str(mountpoint)}


def test_a_note_about_an_option_is_a_warning(source: Path, mountpoint: Path) -> None:
    done = passfs("mount", source, mountpoint, "-o", "cache=never,writeback")

    assert done.status == 0
    assert done.err.startswith("passfs mount: warning: ")
    assert "writeback" in done.err
    assert passfs("unmount", mountpoint).status == 0


def test_relative_paths_and_symbolic_links_are_resolved(source: Path, mountpoint: Path) -> None:
    (source.parent / "link").symlink_to(".")
    (source.parent / "to the mount point").symlink_to(mountpoint)

    done = passfs("mount", "link/source", "to the mount point", cwd=source.parent)

    assert done == (0, "", "")
    assert mounts_at(mountpoint)[0].source == os.fsencode(source)
    assert passfs("unmount", "to the mount point", cwd=source.parent) == (0, "", "")


def test_any_name_of_a_directory_will_do(base: Path) -> None:
    """The name is in the table of mounts, in the log and in ps(1)."""
    names = [b"a b\n,c", b"\xff", "ü".encode()]
    for name in names:
        source = os.path.join(os.fsencode(base), name)
        target = source + b"-"
        os.mkdir(source)
        os.mkdir(target)

        assert passfs("mount", os.fsdecode(source), os.fsdecode(target), "--json").status == 0
        (mounted,) = mounts_at(Path(os.fsdecode(target)))
        assert mounted.source == source
        assert passfs("unmount", os.fsdecode(target), "--json").status == 0


def test_the_same_mount_is_not_made_twice(source: Path, mountpoint: Path) -> None:
    passfs("mount", source, mountpoint)

    again = passfs("mount", source, mountpoint)

    message = f"passfs mount: {mountpoint}: {source} is mounted there already\n"
    assert again == (32, "", message)
    assert passfs("unmount", mountpoint).status == 0


@pytest.mark.parametrize(
    ("words", "status", "message"),
    [
        (["{base}/missing", "{target}"], 32, "{base}/missing: No such file or directory"),
        (["{source}/file", "{target}"], 32, "{source}/file: Not a directory"),
        (["{source}", "{base}/missing"], 32, "{base}/missing: No such file or directory"),
        (["{source}", "{source}/file"], 32, "{source}/file: Not a directory"),
        (["{source}", "{base}/loop"], 32, "{base}/loop: Too many levels of symbolic links"),
        (
            ["{source}", "{source}"],
            1,
            "option 'mountpoint': '{source}' is not accepted; expected a directory outside of the",
        ),
        (["", "{target}"], 1, "option 'source': '' is not accepted; expected a directory"),
        (["{source}", "{target}", "-o", "cahce=auto"], 1, "option 'cahce': is not known, given"),
        (["{source}", "{target}", "-o", "remount,ro"], 1, "option 'remount': is refused"),
        (["{source}", "{target}", "-o", "subpath=a"], 1, "option 'subpath': is for volumes of"),
    ],
)
def test_a_mount_is_refused(
    source: Path, mountpoint: Path, words: list[str], status: int, message: str
) -> None:
    places = {"base": source.parent, "source": source, "target": mountpoint}
    (source.parent / "loop").symlink_to("loop")

    done = passfs("mount", *(word.format(**places) for word in words))

    assert (done.status, done.out) == (status, "")
    assert done.err.startswith(f"passfs mount: {message.format(**places)}")
    assert len(done.err.splitlines()) == 1
    assert mounts_at(mountpoint) == mounts_at(source) == []


@pytest.mark.parametrize("words", [["mount"], ["mount", "/srv"], ["unmount"], ["mount", "--no"]])
def test_wrong_use_has_the_status_of_mount(words: list[str]) -> None:
    done = passfs(*words)

    assert (done.status, done.out) == (1, "")
    assert "Usage: passfs" in done.err


@pytest.mark.parametrize("command", ["mount", "unmount"])
def test_only_root_may_mount(source: Path, mountpoint: Path, command: str) -> None:
    words = [source, mountpoint] if command == "mount" else [mountpoint]
    user = ["setpriv", f"--reuid={USER.uid}", f"--regid={USER.gid}", "--clear-groups"]

    done = run(*user, *PASSFS, command, *words)

    assert done == (1, "", f"passfs {command}: only root can mount and unmount\n")


def test_a_worker_that_cannot_serve_leaves_nothing(source: Path, mountpoint: Path) -> None:
    """Without CAP_SETPCAP the worker cannot drop capabilities; it fails after the mount."""
    done = run("setpriv", "--bounding-set", "-setpcap", *PASSFS, "mount", source, mountpoint)

    assert (done.status, done.out) == (32, "")
    reason = "option 'sandbox': namespace is not possible here: CAP_SETPCAP missing"
    assert done.err.startswith(f"passfs mount: {reason}")
    assert mounts_at(mountpoint) == []


def test_a_signal_undoes_a_mount_that_is_not_served_yet(source: Path, mountpoint: Path) -> None:
    """A source that hangs delays the worker, and does not hold the command."""
    with HungSource(source):
        words = [*PASSFS, "mount", str(source), str(mountpoint)]
        with subprocess.Popen(words, stderr=subprocess.PIPE, text=True) as process:
            wait_until(lambda: len(mounts_at(mountpoint)) == 1)
            process.terminate()
            _, errors = process.communicate(timeout=LIMIT_S)

    assert (process.returncode, errors) == (32, "passfs mount: interrupted\n")
    assert mounts_at(mountpoint) == []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=lambda each: each.name)
@pytest.mark.parametrize("options", [[], ["--foreground"]], ids=["background", "foreground"])
@pytest.mark.parametrize("step", ["fuse_mount.mount", "making.make"])
def test_a_signal_right_after_a_step_undoes_the_mount(
    step: str,
    options: list[str],
    number: signal.Signals,
    source: Path,
    mountpoint: Path,
) -> None:
    """The signal comes once mount(2) has returned, or once its undo has another owner."""
    script = SIGNALLED.format(step=step, number=number.value)
    words = ["mount", *options, str(source), str(mountpoint)]

    done = run(sys.executable, "-c", script, *words)

    assert done == (32, "", "passfs mount: interrupted\n")
    assert mounts_at(mountpoint) == []


def test_a_signal_after_the_start_of_the_service_comes_too_late(
    source: Path, mountpoint: Path
) -> None:
    script = SIGNALLED.format(step="background.serve", number=signal.SIGTERM.value)

    assert run(sys.executable, "-c", script, "mount", source, mountpoint) == (0, "", "")

    assert read(mountpoint / "file") == "below"
    assert passfs("unmount", mountpoint) == (0, "", "")


def test_a_mount_may_be_served_in_the_foreground(source: Path, mountpoint: Path) -> None:
    words = [*PASSFS, "mount", "--foreground", str(source), str(mountpoint)]
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == f"serving {source} at {mountpoint}\n"
        assert read(mountpoint / "file") == "below"
        process.terminate()
        assert process.wait(LIMIT_S) == 0

    assert mounts_at(mountpoint) == []
