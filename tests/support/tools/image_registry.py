"""An image registry of a test, in the network of the test's engine."""

import contextlib
import json
import os
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

from tests.support.tools.own_engine import within

COMMAND = os.environ.get("PASSFS_TEST_REGISTRY", "docker-registry")
# No other program listens in this network. Engines use plain HTTP for addresses of their machine.
ADDRESS = "127.0.0.1:5000"
START_S = 20


@contextlib.contextmanager
def registry(directory: Path, network: int) -> Iterator[str]:
    """Run a registry that keeps its images in *directory*; give its address."""
    settings = directory / "registry.yml"
    storage = {"filesystem": {"rootdirectory": str(directory / "images")}}
    # JSON is YAML.
    settings.write_text(json.dumps({"version": 0.1, "storage": storage, "http": {"addr": ADDRESS}}))
    log = directory / "registry.log"
    command = [*within(network), COMMAND, "serve", str(settings)]
    with log.open("wb") as said, subprocess.Popen(command, stdout=said, stderr=said) as process:
        try:
            deadline = time.monotonic() + START_S
            while b"listening on" not in log.read_bytes():
                assert process.poll() is None, log.read_text()
                assert time.monotonic() < deadline, log.read_text()
                time.sleep(0.02)
            yield ADDRESS
        finally:
            process.terminate()
