"""`passfs top`, beside a plugin that runs as a process: in a pipe, as JSON, and on a terminal."""

import codecs
import fcntl
import json
import os
import pty
import re
import select
import signal
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from itertools import islice
from pathlib import Path

import pytest

from plugin.commands.asking import Plugin
from plugin.commands.sampling import Sampler, rankings
from tests.support.tools.commands import passfs, printed, processes_of
from tests.support.tools.processes import cpu_s, wait_until
from tests.support.tools.service import Service, started

pytestmark = pytest.mark.full

# The terminal is that of the process, so that Ctrl-C is a signal to the process.
COMMAND = ("setsid", "--ctty", sys.executable, "-m", "plugin", "top")
LIMIT_S = 30.0
HOME = "\x1b[H"
ESCAPE = re.compile(r"\x1b\[[\d;?]*[A-Za-z]")


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """A plugin with two volumes that are mounted, and one that is not."""
    with started(tmp_path_factory.mktemp("top")) as service:
        for name in ("busy", "calm", "idle"):
            service.call("VolumeDriver.Create", Name=name)
        for name in ("busy", "calm"):
            service.call("VolumeDriver.Mount", Name=name, ID="i")
            wait_until(partial(has_guards, service, name))
        yield service
        for name in ("busy", "calm"):
            service.call("VolumeDriver.Unmount", Name=name, ID="i")


def has_guards(service: Service, volume: str) -> bool:
    return len(processes_of(service, volume)) == 3


def ask(service: Service, volume: str, times: int) -> None:
    """Have *times* requests fail: the kernel keeps no names of attributes."""
    for _ in range(times):
        with pytest.raises(OSError, match="No data"):
            os.getxattr(service.directory / "mounts" / volume, "user.absent")


def sampler(service: Service) -> Sampler:
    return Sampler(Plugin(str(service.directory / "data")))


def test_rates_are_those_of_a_known_number_of_requests(service: Service) -> None:
    found = next(rankings(sampler(service), 1, pause=lambda _: ask(service, "busy", 200)))
    assert found.measured_s is not None
    busy, calm = found.volumes
    assert (busy.name, calm.name, busy.health) == ("busy", "calm", "ok")
    assert busy.errors_per_s is not None
    assert busy.requests_per_s is not None
    assert busy.errors_per_s * found.measured_s == pytest.approx(200)
    # Beside e.g. a FORGET, and the attributes of the root, which the kernel asks for every second.
    requests = busy.requests_per_s * found.measured_s
    assert 200 <= round(requests) <= 202 + found.measured_s
    assert (calm.requests_per_s, calm.errors_per_s, calm.busy) == (0, 0, 0)
    assert busy.busy is not None
    assert 0 < busy.busy < 4
    assert busy.mean_us is not None
    assert busy.mean_us * requests == pytest.approx(busy.busy * found.measured_s * 1e6, rel=0.05)


def test_the_worker_is_that_of_status_with_its_processor_time(service: Service) -> None:
    pid = processes_of(service, "busy")[0]["pid"]

    def keep_busy(_: float) -> None:
        """Ask until the kernel, which counts whole ticks, has counted some."""
        until = cpu_s(pid) + 0.05
        while cpu_s(pid) < until:
            ask(service, "busy", 200)

    busy = next(rankings(sampler(service), 1, pause=keep_busy)).volumes[0]
    assert busy.worker == pid
    assert busy.cpu is not None
    assert 0 < busy.cpu <= 2
    assert busy.memory_bytes is not None
    assert busy.memory_bytes > 2**18


def test_a_worker_that_is_replaced_between_two_samples_breaks_nothing(service: Service) -> None:
    def kill(_: float) -> None:
        ask(service, "busy", 10)
        os.kill(processes_of(service, "busy")[0]["pid"], signal.SIGKILL)
        ask(service, "busy", 10)

    samples = rankings(sampler(service), 1, pause=kill)
    for found in islice(samples, 2):
        assert found.measured_s is not None
        rates = {row.name: row.errors_per_s for row in found.volumes}
        assert rates["busy"] is not None
        assert round(rates["busy"] * found.measured_s) >= 20
    wait_until(partial(has_guards, service, "busy"))


def test_a_volume_may_be_mounted_anew_and_go_between_two_samples(service: Service) -> None:
    def change(_: float) -> None:
        service.call("VolumeDriver.Unmount", Name="busy", ID="i")
        service.call("VolumeDriver.Mount", Name="busy", ID="i")
        ask(service, "busy", 5)

    ask(service, "busy", 50)
    samples = rankings(sampler(service), 1, pause=change)
    for _ in range(2):
        found = next(samples)
        assert found.measured_s is not None
        errors = {row.name: row.errors_per_s for row in found.volumes}
        assert errors["busy"] is not None
        assert errors["busy"] * found.measured_s == pytest.approx(5)
    service.call("VolumeDriver.Unmount", Name="busy", ID="i")
    only = next(rankings(sampler(service), 0)).volumes
    assert [row.name for row in only] == ["calm"]
    service.call("VolumeDriver.Mount", Name="busy", ID="i")
    wait_until(partial(has_guards, service, "busy"))


def test_in_a_pipe_there_is_one_sample_as_plain_text(service: Service) -> None:
    header, *rows = printed(service, "top", "--interval", "0.1").splitlines()
    assert header.split()[:3] == ["NAME", "HEALTH", "REQUESTS/S"]
    assert sorted(row.split()[0] for row in rows) == ["busy", "calm"]
    assert {row.split()[1] for row in rows} == {"ok"}


def test_with_json_each_sample_is_an_object_on_a_line(service: Service) -> None:
    lines = printed(service, "top", "--json", "--interval", "0.2", "--count", "3").splitlines()
    assert len(lines) == 3
    for line in lines:
        found = json.loads(line)
        assert 0.2 <= found["measured_s"] < LIMIT_S
        assert {row["name"] for row in found["volumes"]} == {"busy", "calm"}


@pytest.mark.parametrize("seconds", ["0", "0.09", "3601", "-1", "nan", "soon"])
def test_an_interval_out_of_bounds_is_refused(service: Service, seconds: str) -> None:
    done = passfs(service, "top", "--interval", seconds)
    assert done.returncode == 2
    assert f"'{seconds}' is not accepted; expected 0.1 to 3600 seconds" in done.stderr


def test_without_a_plugin_the_message_says_so(tmp_path: Path) -> None:
    done = passfs(Service(tmp_path), "top", "--json")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("passfs top: no plugin listens at ")


class Terminal:
    """A terminal on which `passfs top` runs."""

    def __init__(self, ours: int, process: subprocess.Popen[bytes]) -> None:
        self.ours = ours
        self.process = process
        self.output = ""
        self._returned = 0
        self._decoder = codecs.getincrementaldecoder("utf-8")()

    def read_until(self, text: str) -> str:
        """Return the output after what was returned before, up to *text*."""
        end = time.monotonic() + LIMIT_S
        while (at := self.output.find(text, self._returned)) < 0:
            left = end - time.monotonic()
            assert select.select([self.ours], [], [], max(0, left))[0], self.output
            self.output += self._decoder.decode(os.read(self.ours, 65536))
        begin, self._returned = self._returned, at + len(text)
        return self.output[begin : self._returned]

    def lines(self) -> list[str]:
        """Return the lines of all that was drawn, without colours."""
        return re.split(r"[\r\n]+", ESCAPE.sub("", self.output.replace(HOME, "\n")))

    def end(self, typed: bytes = b"q") -> int:
        """Type, and return the exit status, once the terminal is back."""
        os.write(self.ours, typed)
        return self.restored()

    def restored(self) -> int:
        """Return the exit status; the last output has given the terminal back."""
        self.read_until("\x1b[?1049l")
        return self.process.wait(LIMIT_S)


@contextmanager
def on_terminal(
    service: Service, *arguments: str, rows: int = 24, columns: int = 80
) -> Iterator[Terminal]:
    """Run `passfs top` on a terminal of so many rows and columns, which it must give back."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
    before = termios.tcgetattr(theirs)
    environment = {
        key: value for key, value in os.environ.items() if key not in {"COLUMNS", "LINES"}
    }
    data = str(service.directory / "data")
    process = subprocess.Popen(
        [*COMMAND, *arguments, "--data-dir", data],
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        env=environment | {"TERM": "xterm"},
    )
    terminal = Terminal(ours, process)
    try:
        terminal.read_until("\x1b[?1049h")
        yield terminal
        assert termios.tcgetattr(theirs) == before
        assert "\x1b[?25h" in terminal.output  # the cursor
    finally:
        process.kill()
        process.wait()
        os.close(ours)
        os.close(theirs)


def test_on_a_terminal_the_table_is_live_and_q_ends_it(service: Service) -> None:
    with on_terminal(service, "--interval", "0.2") as terminal:
        terminal.read_until("requests/s")
        ask(service, "busy", 20)
        shown = terminal.read_until("MEMORY")
        assert "\x1b[31m" not in shown
        assert terminal.end() == 0
    assert max(map(len, terminal.lines())) <= 80


@pytest.mark.parametrize(("typed", "status"), [(b"\x03", 0), (b"Q", 0)], ids=["Ctrl-C", "Q"])
def test_keys_end_it(service: Service, typed: bytes, status: int) -> None:
    with on_terminal(service, "--interval", "3600") as terminal:
        terminal.read_until("calm")
        assert terminal.end(typed) == status


def test_a_signal_ends_it(service: Service) -> None:
    with on_terminal(service, "--interval", "3600") as terminal:
        terminal.read_until("calm")
        terminal.process.terminate()
        assert terminal.restored() == 128 + signal.SIGTERM


def test_count_ends_it(service: Service) -> None:
    with on_terminal(service, "--interval", "0.1", "--count", "2") as terminal:
        assert terminal.restored() == 0


def test_a_small_terminal_has_what_fits(service: Service) -> None:
    with on_terminal(service, "--interval", "0.2", rows=3, columns=20) as terminal:
        shown = terminal.read_until("2 more")
        assert "MEMORY" not in shown
        assert terminal.end() == 0
    assert max(map(len, terminal.lines())) <= 20


def test_another_size_is_drawn_before_the_next_sample(service: Service) -> None:
    with on_terminal(service, "--interval", "3600", columns=20) as terminal:
        terminal.read_until("calm")
        size = struct.pack("HHHH", 24, 100, 0, 0)
        fcntl.ioctl(terminal.ours, termios.TIOCSWINSZ, size)
        terminal.read_until("MEMORY")
        assert terminal.end() == 0


def test_a_plugin_that_ends_is_waited_for(tmp_path: Path) -> None:
    with started(tmp_path) as service:
        service.call("VolumeDriver.Create", Name="vol")
        service.call("VolumeDriver.Mount", Name="vol", ID="i")
        with on_terminal(service, "--interval", "0.1", columns=200) as terminal:
            terminal.read_until("vol")
            service.end(signal.SIGTERM)
            terminal.read_until("waiting: no plugin listens")
            service.start()
            terminal.read_until("mounts: 0")
            assert terminal.end() == 0
