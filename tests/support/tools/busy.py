"""A container that writes and reads a volume all the time, and notes what fails."""

import time

from docker.models.containers import Container

from tests.support.tools.driver import execute

# Each round writes and reads a file, and notes if that has failed.
ROUNDS = """
touch /tmp/failures /data/more
round=0
while sleep 0.01; do
    round=$((round + 1))
    { echo $round > /data/file && [ "$(cat /data/file)" = $round ]; } 2>> /tmp/failures ||
        echo "round $round" >> /tmp/failures
    echo $round > /tmp/round.new && mv /tmp/round.new /tmp/round
done
"""
MORE = 5
WITHIN_S = 20.0


class Busy:
    """The rounds in *container*, which has the volume at /data."""

    def __init__(self, container: Container) -> None:
        """Begin the rounds."""
        self._container = container
        container.exec_run(["sh", "-c", ROUNDS], detach=True)
        self.go_on()

    def go_on(self) -> None:
        """Wait until MORE rounds have been done, none of which may fail."""
        before, limit = self._rounds(), time.monotonic() + WITHIN_S
        while self._rounds() < before + MORE:
            assert time.monotonic() < limit, "the container hangs"
        assert execute(self._container, "cat /tmp/failures") == ""

    def _rounds(self) -> int:
        return int(execute(self._container, "cat /tmp/round 2>/dev/null || echo 0"))
