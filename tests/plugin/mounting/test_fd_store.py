"""fd_store.py: the socket that systemd passes (by its own tool), and stored descriptors."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

from plugin.mounting import fd_store
from plugin.mounting.fd_store import (
    FdStore,
    Inherited,
    inherited,
    key_of,
    name_of,
    parsed_name,
    turns,
)
from tests.support.fakes.service_manager import ServiceManager
from tests.support.tools.service import RUN, START_S, Service


@contextmanager
def activated(directory: Path, *words: str) -> Iterator[subprocess.Popen[bytes]]:
    """Run the plugin as systemd starts it at the first connection, systemd-socket-activate(1)."""
    variables = {
        "PASSFS_SOCKET": str(directory / "unused.sock"),
        "PASSFS_DATA_DIR": str(directory / "data"),
        "PASSFS_MOUNT_DIR": str(directory / "mounts"),
    }
    settings = [word for key, value in variables.items() for word in ("-E", f"{key}={value}")]
    with (directory / "log").open("wb") as log:
        process = subprocess.Popen(
            ["systemd-socket-activate", *words, *settings, sys.executable, "-c", RUN],
            stdout=log,
            stderr=log,
        )
    try:
        limit = time.monotonic() + START_S
        while (output := (directory / "log").read_text()).count("Listening on") < words.count("-l"):
            assert process.poll() is None, output
            assert time.monotonic() < limit, output
        yield process
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
        process.wait(START_S)


def test_systemd_can_listen_for_the_plugin(tmp_path: Path) -> None:
    """The first connection starts the plugin, which leaves the socket and its mode as they are."""
    path = tmp_path / "p.sock"
    with activated(tmp_path, "-l", str(path)) as process:
        before = path.lstat()
        service = Service(tmp_path)
        assert service.call("VolumeDriver.Create", Name="vol") == {}
        assert service.call("VolumeDriver.List")["Volumes"][0]["Name"] == "vol"
        assert f"serving 0 volumes on {path}" in service.log.read_text()
        assert not (tmp_path / "unused.sock").exists()
        process.send_signal(signal.SIGTERM)
        assert process.wait(START_S) == 0
    assert path.lstat() == before
    assert "WARNING" not in service.log.read_text()


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["-l", "{0}/p.sock", "-l", "{0}/q.sock"], "the service manager passed 2 sockets"),
        (["--seqpacket", "-l", "{0}/p.sock"], "no listening Unix stream socket"),
    ],
)
def test_the_plugin_refuses_a_second_socket_and_one_of_another_kind(
    tmp_path: Path, words: list[str], sentence: str
) -> None:
    kind = socket.SOCK_SEQPACKET if "--seqpacket" in words else socket.SOCK_STREAM
    with (
        activated(tmp_path, *(word.format(tmp_path) for word in words)) as process,
        socket.socket(socket.AF_UNIX, kind) as client,
    ):
        client.connect(str(tmp_path / "p.sock"))
        assert process.wait(START_S) == 1
    output = (tmp_path / "log").read_text()
    assert sentence in output
    assert "Traceback" not in output
    assert (tmp_path / "p.sock").exists()
    assert not (tmp_path / "data").exists(), "the plugin has not written anything"


@contextmanager
def passed(monkeypatch: pytest.MonkeyPatch, *fds: int) -> Iterator[dict[str, str]]:
    """Yield an environment that announces *fds*, which are consecutive numbers."""
    assert list(fds) == list(range(fds[0], fds[0] + len(fds)))
    monkeypatch.setattr(fd_store, "FIRST_FD", fds[0])
    yield {"LISTEN_PID": str(os.getpid()), "LISTEN_FDS": str(len(fds)), "HOME": "/root"}


def at_high_numbers(*fds: int) -> list[int]:
    """Return duplicates of *fds* with consecutive numbers, and close the originals."""
    for number, fd in enumerate(fds, 7000):
        os.dup2(fd, number)
        os.close(fd)
    return list(range(7000, 7000 + len(fds)))


def test_stored_descriptors_come_back_by_their_names(monkeypatch: pytest.MonkeyPatch) -> None:
    """In any order, beside the socket; children get neither the descriptors nor the variables."""
    with closing(socket.socket(socket.AF_UNIX)) as listener:
        listener.bind("")
        listener.listen()
        fds = at_high_numbers(*os.pipe(), os.dup(listener.fileno()), *os.pipe())
    with passed(monkeypatch, *fds) as environment:
        environment["LISTEN_FDNAMES"] = "log7:fuse12:passfs.socket:life7:process12"
        environment |= {"NOTIFY_SOCKET": "@name", "FDSTORE": "4"}
        given = inherited(environment)
    assert environment == {"HOME": "/root"}
    assert given.stored == {
        7: {"log": fds[0], "life": fds[3]},
        12: {"fuse": fds[1], "process": fds[4]},
    }
    assert given.listener is not None
    assert given.listener.fileno() == fds[2]
    assert given.store.exists
    with pytest.raises(OSError, match="stores no more descriptors"):  # it has four
        given.store.add(13, {"fuse": fds[0]})
    assert [os.get_inheritable(fd) for fd in fds] == [False] * 5
    given.listener.close()
    for fd in {*fds} - {fds[2]}:
        os.close(fd)


def test_descriptors_for_another_process_are_ignored() -> None:
    """For example, for the shell that has started the plugin."""
    environment = {"LISTEN_PID": "1", "LISTEN_FDS": "2", "LISTEN_FDNAMES": "a:b"}
    assert inherited(environment)[1:] == Inherited()[1:]
    assert environment == {}


def test_without_a_service_manager_nothing_is_stored() -> None:
    store = inherited({}).store
    assert not store.exists
    store.remove({1: fd_store.KINDS})
    store.notify("READY=1")


@pytest.mark.logs("cannot send a message to the service manager: .*No such file")
def test_a_missing_service_manager_fails_only_the_storing_of_descriptors(tmp_path: Path) -> None:
    store = FdStore(str(tmp_path / "missing"))
    store.remove({1: fd_store.KINDS, 2: fd_store.KINDS})
    with pytest.raises(FileNotFoundError):
        store.add(1, {"fuse": 0})


def test_descriptors_are_stored_on_return_and_removed_by_number(tmp_path: Path) -> None:
    with ServiceManager(tmp_path) as manager:
        store = FdStore(str(tmp_path / "notify.sock"))
        for number in (1, 12):
            store.add(number, {"fuse": 0, "life": 1, "log": 2, "process": 0, "control": 0})
        assert set(manager.stored) == {
            f"{kind}{number}" for kind in fd_store.KINDS for number in (1, 12)
        }
        assert os.path.samestat(os.fstat(manager.stored["life12"]), os.fstat(1))
        store.remove({1: fd_store.KINDS})
        assert manager.wait_for_count(len(fd_store.KINDS))
        assert set(manager.stored) == {f"{kind}12" for kind in fd_store.KINDS}


def test_storing_fails_if_the_service_manager_does_not_answer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fd_store, "ANSWER_TIMEOUT_S", 0.1)
    with ServiceManager(tmp_path) as manager:
        manager.unresponsive = True
        with pytest.raises(TimeoutError):
            FdStore(str(tmp_path / "notify.sock")).add(1, {"fuse": 0})


def test_the_descriptors_of_replaced_processes_have_names_of_their_own(tmp_path: Path) -> None:
    keys = {turn: [key_of(kind, turn) for kind in fd_store.KINDS] for turn in (0, 1, 12)}
    with ServiceManager(tmp_path) as manager:
        store = FdStore(str(tmp_path / "notify.sock"))
        for of_turn in keys.values():
            store.add(7, dict.fromkeys(of_turn[1:], 0))
        names = {"life7", "log7", "process7", "control7"}
        later = {f"{short}7.{turn}" for short in ("li", "lo", "pr", "co") for turn in (1, 12)}
        assert set(manager.stored) == names | later
        assert {parsed_name(name) for name in manager.stored} == {
            (7, key) for of_turn in keys.values() for key in of_turn[1:]
        }
        store.remove({7: keys[1]})
        assert manager.wait_for_count(8)
        assert "li7.12" in manager.stored
        assert "life7" in manager.stored


@pytest.mark.parametrize("name", ["passfs.socket", "fuse", "fuse1.1", "li7", "li7.0", "life7.1"])
def test_other_names_are_of_no_mount(name: str) -> None:
    assert parsed_name(name) is None


def test_stored_descriptors_are_sorted_by_turn() -> None:
    stored = {"fuse": 3, "log": 4, "life": 5, "life.2": 6, "log.10": 7}
    assert [*turns(stored).items()] == [
        (10, {"log": 7}),
        (2, {"life": 6}),
        (0, {"log": 4, "life": 5}),
    ]


@pytest.mark.parametrize("turn", [0, 12])
def test_the_names_of_2000_volumes_fit_into_one_variable(turn: int) -> None:
    """The kernel accepts no string over 128 KiB, execve(2)."""
    keys = ["fuse", *(key_of(kind, turn) for kind in fd_store.KINDS[1:])]
    names = [name_of(key, 10**6 + number) for key in keys for number in range(2000)]
    assert all(map(parsed_name, names))
    assert len("LISTEN_FDNAMES=" + ":".join(names)) < 128 * 1024
