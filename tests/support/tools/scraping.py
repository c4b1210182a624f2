"""Scrapes of the plugin's metrics, as Prometheus does them."""

import http.client
import socket
from collections.abc import Mapping
from contextlib import closing
from pathlib import Path
from typing import Final, NamedTuple

from prometheus_client.parser import text_string_to_metric_families

from plugin.admin.address import Address

LIMIT_S: Final = 30.0


class Page(NamedTuple):
    """An answer at the address of the metrics."""

    status: int
    content_type: str
    text: str


class _Unix(http.client.HTTPConnection):
    def __init__(self, path: Path) -> None:
        super().__init__("localhost", timeout=LIMIT_S)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(LIMIT_S)
        try:
            self.sock.connect(str(self._path))
        except OSError:
            self.sock.close()
            raise


def page(
    address: Address, path: str = "/metrics", accept: str = "", *, method: str = "GET"
) -> Page:
    """Return the page *path* at *address*."""
    if isinstance(address, Path):
        client: http.client.HTTPConnection = _Unix(address)
    else:
        client = http.client.HTTPConnection(address.host, address.port, timeout=LIMIT_S)
    with closing(client):
        client.request(method, path, headers={"Accept": accept} if accept else {})
        answer = client.getresponse()
        return Page(answer.status, answer.headers["Content-Type"], answer.read().decode())


class Scrape(NamedTuple):
    """The samples of one scrape."""

    samples: Mapping[tuple[str, frozenset[tuple[str, str]]], float]
    """By name and labels."""

    @property
    def names(self) -> set[str]:
        """Return the names of all samples."""
        return {name for name, _ in self.samples}

    def value(self, name: str, **labels: str) -> float | None:
        """Return the value of one sample, or None if there is none."""
        return self.samples.get((name, frozenset(labels.items())))

    def labelled(self, name: str, label: str) -> dict[str, float]:
        """Return the values of the samples *name* by the value of *label*."""
        return {
            dict(labels)[label]: value
            for (own, labels), value in self.samples.items()
            if own == name and label in dict(labels)
        }


def parsed(text: str) -> Scrape:
    """Return the samples of *text*; each may occur once."""
    found = [
        ((sample.name, frozenset(sample.labels.items())), sample.value)
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    ]
    assert len(dict(found)) == len(found)
    return Scrape(dict(found))


def scrape(address: Address) -> Scrape:
    """Return the metrics at *address*."""
    found = page(address)
    assert found.status == http.client.OK, found
    return parsed(found.text)


def free_port(host: str = "127.0.0.1") -> int:
    """Return a TCP port of *host* that no program uses at this moment."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.create_server((host, 0), family=family) as listener:
        port = listener.getsockname()[1]
    assert isinstance(port, int)
    return port
