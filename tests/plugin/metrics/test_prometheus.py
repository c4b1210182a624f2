"""The documents about metrics before a real Prometheus: it scrapes, queries and alerts.

The scrape configuration and the alerts are those of docs/metrics.md, the queries those of
docs/grafana/passfs.json.
"""

import math
import os
import re
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from plugin.admin.address import TcpAddress
from tests.plugin.metrics.test_dashboard import DASHBOARD, DOCUMENT, shown, substituted
from tests.support.tools.processes import kill_all, wait_until
from tests.support.tools.prometheus import Prometheus, prometheus
from tests.support.tools.scraping import free_port, page
from tests.support.tools.service import Service

pytestmark = [pytest.mark.full, pytest.mark.slow]

SCRAPED = "127.0.0.1:9464"
GLOBAL = "global: {scrape_interval: 1s, evaluation_interval: 1s}\n"
HOLDS = {"pending", "firing"}
VOLUMES = ("calm", "vol")
# A rate needs two samples.
SCRAPES = 3


class Watched(NamedTuple):
    """A plugin with two volumes, and the Prometheus that scrapes it."""

    service: Service
    server: Prometheus
    target: str


@pytest.fixture(scope="module")
def watched(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Watched]:
    """Scrape a plugin before and after requests, errors, and a death; the first volume is calm."""
    directory = tmp_path_factory.mktemp("service")
    address = TcpAddress("127.0.0.1", free_port())
    target = f"{address.host}:{address.port}"
    service = Service(directory, environment={"PASSFS_METRICS": str(address)})
    service.start()
    scratch = tmp_path_factory.mktemp("prometheus")
    (scratch / "alerts.yml").write_text(block("groups:"))
    configuration = (
        GLOBAL + block("scrape_configs:").replace(SCRAPED, target) + "rule_files: [alerts.yml]\n"
    )
    try:
        for name in VOLUMES:
            service.call("VolumeDriver.Create", Name=name)
            mountpoint = Path(service.call("VolumeDriver.Mount", Name=name, ID="i")["Mountpoint"])
            use(mountpoint)
        with prometheus(scratch, configuration) as server:
            scraped(server)
            use(mountpoint)
            os.kill(worker_of(service), signal.SIGKILL)
            use(mountpoint)
            scraped(server)
            yield Watched(service, server, target)
        for name in VOLUMES:
            service.call("VolumeDriver.Unmount", Name=name, ID="i")
    finally:
        service.end(signal.SIGTERM)


def block(begins: str) -> str:
    """Return the block of YAML in the document that begins so."""
    (found,) = re.findall(rf"```yaml\n({re.escape(begins)}\n.*?)```", DOCUMENT, re.DOTALL)
    return str(found)


def use(mountpoint: Path) -> None:
    """Write, read, and ask for an attribute that there is not."""
    file = mountpoint / "file"
    file.write_text("content")
    assert file.read_text() == "content"
    with pytest.raises(OSError, match="No data"):
        os.getxattr(file, "user.none")


def in_table() -> list[str]:
    """Return the queries of the table of volumes."""
    [table] = [panel for panel in DASHBOARD["panels"] if panel["type"] == "table"]
    return [target["expr"] for target in table["targets"]]


def worker_of(service: Service) -> int:
    return int(service.call("VolumeDriver.Get", Name="vol")["Volume"]["Status"]["worker_pid"])


def scraped(server: Prometheus) -> None:
    """Wait for some more scrapes."""
    before = scrapes(server)
    wait_until(lambda: scrapes(server) >= before + SCRAPES)


def scrapes(server: Prometheus) -> int:
    return sum(int(each["value"][1]) for each in server.query("count_over_time(up[10m])"))


@pytest.mark.parametrize("query", shown())
def test_each_panel_has_a_number(query: str, watched: Watched) -> None:
    found = watched.server.query(substituted(query))
    assert any(float(each["value"][1]) >= 0 for each in found), found


@pytest.mark.parametrize("query", in_table())
def test_no_cell_of_the_table_is_nan(query: str, watched: Watched) -> None:
    """A volume without a request in the interval has no mean time."""
    found = watched.server.query(substituted(query))
    assert {each["metric"]["volume"] for each in found} >= {"vol"}
    assert [each for each in found if math.isnan(float(each["value"][1]))] == []


def test_the_variables_of_the_dashboard_have_machines_and_volumes(watched: Watched) -> None:
    variables = {each["name"]: each for each in DASHBOARD["templating"]["list"]}
    for name, values in {"instance": {watched.target}, "volume": {*VOLUMES}}.items():
        query = substituted(variables[name]["query"]["query"])
        (selector, label), *_ = re.findall(r"^label_values\((.+), (\w+)\)$", query)
        assert watched.server.values(label, selector) == values


def test_the_linter_of_prometheus_finds_no_fault(watched: Watched) -> None:
    host, _, port = watched.target.rpartition(":")
    text = page(TcpAddress(host, int(port))).text
    words = ["promtool", "check", "metrics"]
    done = subprocess.run(words, input=text, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_the_alerts_tell_of_the_death_of_a_worker_and_of_a_lost_volume(watched: Watched) -> None:
    assert raised(watched.server) == {"PassfsWorkerDied"}

    kill_all(worker_of(watched.service))

    wait_until(lambda: raised(watched.server) == {"PassfsWorkerDied", "PassfsVolumeLost"})


def raised(server: Prometheus) -> set[str]:
    """Return the alerts whose condition holds."""
    return {name for name, state in server.alerts().items() if state in HOLDS}
