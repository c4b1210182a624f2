"""Containers that start, use a volume and end, one after the other, in a thread."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

import docker.errors
from docker.models.volumes import Volume

from tests.support.tools.driver import TOOLS_IMAGE, Driver
from tests.support.tools.processes import wait_until

LIMIT_S = 60.0
# An engine that has lost a volume would make one of its own under that name.
COMMAND = """
grep -q ' /data fuse.passfs ' /proc/mounts
echo $HOSTNAME > /data/own; mv /data/own /data/last; [ "$(cat /data/last)" = $HOSTNAME ]
"""


class Starts:
    """The containers; `begun` of them were started, `done` have ended with status 0."""

    def __init__(
        self, driver: Driver, volume: Volume, is_expected: Callable[[str], bool] = lambda _: False
    ) -> None:
        """Prepare for containers with *volume*; errors of the engine may be expected."""
        self.done = 0
        self.refused: list[str] = []
        """Expected errors of the engine."""
        self.wrong: list[str] = []
        """Errors that are not expected; no container follows."""
        self._driver = driver
        self._volume = volume
        self._is_expected = is_expected
        self._enough = threading.Event()

    def go_on(self, more: int = 1) -> None:
        """Wait until *more* containers have ended; fail at the first error."""
        before = self.done
        wait_until(lambda: self.done >= before + more or bool(self.wrong), LIMIT_S)
        assert not self.wrong, self.wrong

    @contextmanager
    def running(self) -> Iterator[None]:
        """Start containers during the block; wait for the last one."""
        thread = threading.Thread(target=self._run)
        thread.start()
        try:
            yield
        finally:
            self._enough.set()
            thread.join()

    def _run(self) -> None:
        while not self._enough.is_set() and not self.wrong:
            try:
                self._run_one()
            except docker.errors.APIError as error:
                text = str(error.explanation)
                (self.refused if self._is_expected(text) else self.wrong).append(text)
            except Exception as error:  # noqa: BLE001 - reported by the thread that waits
                self.wrong.append(repr(error))
            else:
                self.done += 1

    def _run_one(self) -> None:
        container = self._driver.client.containers.create(
            TOOLS_IMAGE,
            ["sh", "-euc", COMMAND],
            volumes={self._volume.name: {"bind": "/data", "mode": "rw"}},
            network_mode="none",
        )
        try:
            container.start()
            status = container.wait()["StatusCode"]
            if status:
                self.wrong.append(f"status {status}: {container.logs().decode()}")
        finally:
            with suppress(docker.errors.NotFound):
                container.remove(force=True)
