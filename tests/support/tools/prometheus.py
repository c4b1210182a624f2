"""A Prometheus server of a test: it scrapes a plugin, and evaluates queries and alerts."""

import json
import subprocess
import time
import urllib.parse
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from tests.support.tools.scraping import free_port

_HOST: Final = "127.0.0.1"
_START_S: Final = 60.0
_STOP_S: Final = 30.0


class Prometheus:
    """A server that listens at a port of this machine."""

    def __init__(self, port: int) -> None:
        self._address = f"http://{_HOST}:{port}"

    def query(self, expression: str) -> list[dict[str, Any]]:
        """Return the series that an expression selects now, each with `metric` and `value`."""
        found = self._data("query", query=expression)
        assert found["resultType"] == "vector", expression
        return list(found["result"])

    def values(self, label: str, selector: str) -> set[str]:
        """Return the values of a label of the series that a selector selects."""
        return {*self._data(f"label/{label}/values", **{"match[]": selector})}

    def alerts(self) -> dict[str, str]:
        """Return the state of each alert: `inactive`, `pending` or `firing`."""
        (group,) = self._data("rules")["groups"]
        assert all(not rule["lastError"] for rule in group["rules"] if "lastError" in rule), group
        return {rule["name"]: rule["state"] for rule in group["rules"]}

    def is_up(self) -> bool:
        """Return whether the server answers."""
        try:
            self._data("status/flags")
        except OSError:
            return False
        return True

    def _data(self, page: str, **words: str) -> Any:
        url = f"{self._address}/api/v1/{page}?{urllib.parse.urlencode(words)}"
        with urllib.request.urlopen(url, timeout=_STOP_S) as answer:  # noqa: S310 - http
            body = json.load(answer)
        assert body["status"] == "success", body
        return body["data"]


@contextmanager
def prometheus(directory: Path, configuration: str) -> Iterator[Prometheus]:
    """Run a server with this configuration, and with *directory* for its files."""
    file = directory / "prometheus.yml"
    file.write_text(configuration)
    port = free_port()
    words = [
        *("prometheus", f"--config.file={file}", f"--storage.tsdb.path={directory / 'data'}"),
        f"--web.listen-address={_HOST}:{port}",
    ]
    server = Prometheus(port)
    with (directory / "log").open("wb") as log, subprocess.Popen(words, stderr=log) as process:
        try:
            until = time.monotonic() + _START_S
            while not server.is_up():
                text = (directory / "log").read_text()
                assert process.poll() is None, text
                assert time.monotonic() < until, text
                time.sleep(0.05)
            yield server
        finally:
            process.terminate()
            try:
                process.wait(_STOP_S)
            finally:
                process.kill()
