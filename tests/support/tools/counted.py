"""A proxy between an engine and the plugin, which records the requests in order."""

import contextlib
import http.client
import http.server
import json
import socket
import socketserver
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

# Longer than the plugin takes for any request.
ANSWER_S = 60


class EngineRequest(NamedTuple):
    """One request of the engine."""

    verb: str
    """The last part of the path, such as `Get` or `Mount`."""
    fields: dict[str, Any]


class _ToPlugin(http.client.HTTPConnection):
    def __init__(self, path: Path) -> None:
        super().__init__("plugin", timeout=ANSWER_S)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(ANSWER_S)
        self.sock.connect(str(self._path))


class Counted(socketserver.ThreadingMixIn, socketserver.UnixStreamServer):
    """Listens on a socket that the engine finds; `requests` has the requests received."""

    daemon_threads = True

    def __init__(self, path: Path, plugin: Path) -> None:
        self.plugin = plugin
        self.requests: list[EngineRequest] = []
        super().__init__(str(path), _Handler)

    def take(self) -> list[EngineRequest]:
        """Return the requests since the last call."""
        requests, self.requests = self.requests, []
        return requests


class _Handler(http.server.BaseHTTPRequestHandler):
    server: Counted
    protocol_version = "HTTP/1.1"  # which keeps connections, as the plugin does

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", "0")))
        self.server.requests.append(
            EngineRequest(self.path.rpartition(".")[2], json.loads(body or b"{}"))
        )
        with contextlib.closing(_ToPlugin(self.server.plugin)) as plugin:
            plugin.request("POST", self.path, body)
            answer = plugin.getresponse()
            content = answer.read()
        self.send_response(answer.status)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the library's name
        """Print nothing; the library would print each request."""


@contextlib.contextmanager
def counted(path: Path, plugin: Path) -> Iterator[Counted]:
    """Listen on *path* and pass requests on to the socket *plugin*; remove *path* at the end."""
    with Counted(path, plugin) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()
            path.unlink()
