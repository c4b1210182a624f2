"""The documents about metrics: dashboard, alerts and table name what the plugin really shows."""

import json
import os
import re
import signal
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import promql_parser
import pytest
from promql_parser import AggregateExpr, BinaryExpr, Expr, Matcher, MatchOp, VectorSelector

from passthrough.session.abi import Opcode
from plugin.volume import State
from plugin.volumes.health import Word
from tests.support.tools.processes import wait_until
from tests.support.tools.scraping import Scrape, page, scrape
from tests.support.tools.service import Service

ROOT = Path(__file__).parents[3]
DASHBOARD = json.loads((ROOT / "docs" / "grafana" / "passfs.json").read_text())
DOCUMENT = (ROOT / "docs" / "metrics.md").read_text()
COMMANDS = (ROOT / "docs" / "commands.md").read_text()
# Prometheus makes `up` itself; the variables are Grafana's.
OF_PROMETHEUS = {"up"}
VARIABLES = {"$__rate_interval": "5m", "$instance": ".*", "$volume": ".*"}
SUFFIXES = re.compile(r"(_bucket|_count|_sum)$")
# A scraped target has these labels beside those of the plugin.
TARGET = {"instance": "127.0.0.1:9464", "job": "passfs"}
DURATION = "passfs_request_duration_seconds"
# As in plugin/commands/load.py.
WAITING = {Opcode.SETLK, Opcode.SETLKW}
GRID_COLUMNS = 24
LIMIT_S = 20.0


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scrape]:
    """Scrape a plugin with a mounted volume, whose worker has died once, and had an error."""
    directory = tmp_path_factory.mktemp("service")
    address = directory / "m.sock"
    service = Service(directory, environment={"PASSFS_METRICS": str(address)})
    service.start()
    try:
        service.call("VolumeDriver.Create", Name="vol")
        path = service.call("VolumeDriver.Mount", Name="vol", ID="i")["Mountpoint"]
        with pytest.raises(OSError, match="No data"):
            os.getxattr(path, "user.none")
        status = service.call("VolumeDriver.Get", Name="vol")["Volume"]["Status"]
        os.kill(status["worker_pid"], signal.SIGKILL)
        assert os.listdir(path) == []
        wait_until(lambda: "passfs_last_takeover_seconds" in names(address), LIMIT_S)
        yield scrape(address)
        service.call("VolumeDriver.Unmount", Name="vol", ID="i")
    finally:
        service.end(signal.SIGTERM)


def names(address: Path) -> set[str]:
    try:
        return scrape(address).names if page(address, "/health").status == 200 else set()
    except OSError:  # it does not listen yet
        return set()


def panels() -> list[dict[str, Any]]:
    return list(DASHBOARD["panels"])


def substituted(query: str) -> str:
    """Return *query* with values for Grafana's variables."""
    for variable, value in VARIABLES.items():
        query = query.replace(variable, value)
    return query


def shown() -> list[str]:
    """Return the expressions of the dashboard."""
    return [target["expr"] for panel in panels() for target in panel["targets"]]


def alerts() -> dict[str, str]:
    """Return the expressions of the alerts by their names."""
    found = re.findall(r"- alert: (\w+).*\n +expr: (.+)$", DOCUMENT, re.MULTILINE)
    assert len(found) == DOCUMENT.count(" expr: ")
    return dict(found)


def queries() -> list[str]:
    """Return the expressions of the dashboard and of the alerts, with values for variables."""
    return [*map(substituted, [*shown(), *alerts().values()])]


def nodes(query: str) -> list[Expr]:
    """Return the parts of *query*, which must be PromQL: the parser checks types, too."""
    found: list[Expr] = []
    promql_parser.walk(promql_parser.parse(query), found.append)
    return found


def selectors(query: str) -> list[VectorSelector]:
    return [node for node in nodes(query) if isinstance(node, VectorSelector)]


def matched(selector: VectorSelector, label: str) -> list[Matcher]:
    """Return the matchers of *selector* for *label*."""
    return [matcher for matcher in selector.matchers.matchers if matcher.name == label]


def accepts(matcher: Matcher, value: str) -> bool:
    """Tell if *matcher* selects a series whose label has *value*."""
    is_pattern = matcher.op in (MatchOp.Re, MatchOp.NotRe)
    pattern = matcher.value if is_pattern else re.escape(matcher.value)
    is_found = re.fullmatch(pattern, value) is not None
    return is_found is (matcher.op in (MatchOp.Re, MatchOp.Equal))


def grouped(node: Expr) -> Sequence[str]:
    """Return the labels by which *node* aggregates or matches series."""
    if isinstance(node, AggregateExpr) and node.modifier is not None:
        return node.modifier.labels
    if isinstance(node, BinaryExpr) and node.modifier is not None:
        return [] if node.modifier.matching is None else node.modifier.matching.labels
    return []


@pytest.mark.parametrize("query", queries())
def test_each_query_selects_series_of_the_plugin_by_their_labels(query: str, found: Scrape) -> None:
    by = {label for node in nodes(query) for label in grouped(node)}
    assert selectors(query)
    for selector in selectors(query):
        if selector.name in OF_PROMETHEUS:
            continue
        labels = [TARGET | dict(labels) for name, labels in found.samples if name == selector.name]
        assert labels, selector.name
        for matcher in selector.matchers.matchers:
            assert any(accepts(matcher, each[matcher.name]) for each in labels), matcher
        assert all(by <= each.keys() for each in labels)


@pytest.mark.parametrize("query", shown())
def test_each_panel_tells_machines_apart(query: str, found: Scrape) -> None:
    """Volumes on several machines may have the same name."""
    by_volume = [grouped(node) for node in nodes(substituted(query)) if "volume" in grouped(node)]
    assert all("instance" in labels for labels in by_volume)
    for selector in selectors(query.replace("$__rate_interval", "5m")):
        names = {
            label for name, each in found.samples if name == selector.name for label, _ in each
        }
        chosen = ["instance", "volume"] if "volume" in names else ["instance"]
        for label in ("instance", "volume"):
            expected = [f"${label}"] if label in chosen else []
            assert [matcher.value for matcher in matched(selector, label)] == expected


@pytest.mark.parametrize("target", [target for panel in panels() for target in panel["targets"]])
def test_each_legend_of_a_volume_names_its_machine(target: dict[str, Any]) -> None:
    legend = target["legendFormat"]
    assert ("{{instance}}" in legend) is any(
        part in legend for part in ("{{volume}}", "{{version}}", "the plugin")
    )


@pytest.mark.parametrize(
    "query", [query for query in queries() if re.search(f"{DURATION}_(sum|bucket)", query)]
)
def test_times_of_requests_leave_out_the_waits_for_locks(query: str) -> None:
    """One program that waits for a lock would spoil the mean and the quantiles of all others."""
    for selector in selectors(query):
        left_out = {
            opcode
            for opcode in Opcode
            if not all(accepts(each, opcode.name) for each in matched(selector, "operation"))
        }
        assert left_out == WAITING


def test_the_table_has_a_row_for_each_volume_of_each_machine() -> None:
    """`merge` joins rows by all labels that they share: any other label would keep them apart."""
    [table] = [panel for panel in panels() if panel["type"] == "table"]
    merge, organize = table["transformations"]
    assert merge["id"] == "merge"
    assert [*organize["options"]["indexByName"]][:2] == ["instance", "volume"]
    for target in table["targets"]:
        labels = {label for node in nodes(substituted(target["expr"])) for label in grouped(node)}
        assert labels - {"health"} == {"instance", "volume"}
        assert ("health" in labels) is (target["refId"] == "A")


@pytest.mark.parametrize("target", [target for panel in panels() for target in panel["targets"]])
def test_each_legend_shows_a_label_of_its_series(target: dict[str, Any], found: Scrape) -> None:
    labels = re.findall(r"\{\{(\w+)\}\}", target["legendFormat"])
    for label in labels:
        assert any(label in TARGET | dict(each) for _, each in found.samples)
        by = [grouped(node) for node in nodes(substituted(target["expr"])) if grouped(node)]
        assert not by or label in by[0]


def test_the_table_of_the_document_has_the_metrics_of_the_plugin(found: Scrape) -> None:
    rows = re.findall(r"^\| ((?:`\w+`(?:, )?)+) \| (.*?) ?\|", DOCUMENT, re.MULTILINE)
    documented = {name for names, _ in rows for name in re.findall(r"`(\w+)`", names)}
    assert documented == {SUFFIXES.sub("", name) for name in found.names}
    for names, labels in rows:
        for name in re.findall(r"`(\w+)`", names):
            shown = {
                label
                for own, each in found.samples
                if SUFFIXES.sub("", own) == name
                for label, _ in each
            }
            assert {*re.findall(r"\w+", labels)} == shown - {"volume"}, name


def test_the_dashboard_asks_for_its_data_source_machines_and_volumes() -> None:
    variables = {variable["name"]: variable for variable in DASHBOARD["templating"]["list"]}
    assert variables["datasource"]["query"] == "prometheus"
    assert [*variables] == ["datasource", "instance", "volume"]  # each may ask for those before it
    asked = {name: variables[name]["query"]["query"] for name in ("instance", "volume")}
    assert asked == {
        "instance": "label_values(passfs_build_info, instance)",
        "volume": 'label_values(passfs_references{instance=~"$instance"}, volume)',
    }
    for name, query in asked.items():
        assert variables[name]["definition"] == query
        assert variables[name]["multi"]
        assert variables[name]["includeAll"]
    for panel in panels():
        assert panel["targets"], panel["title"]
        for each in (panel, *panel["targets"]):
            assert each["datasource"] == {"type": "prometheus", "uid": "${datasource}"}


def test_no_panel_covers_another() -> None:
    taken = [
        (x, y)
        for place in (panel["gridPos"] for panel in panels())
        for x in range(place["x"], place["x"] + place["w"])
        for y in range(place["y"], place["y"] + place["h"])
    ]
    assert len(taken) == len({*taken})
    assert max(x for x, _ in taken) < GRID_COLUMNS
    assert len({panel["id"] for panel in panels()}) == len(panels())


def test_the_words_for_health_and_state_are_those_of_the_plugin(found: Scrape) -> None:
    words = found.labelled("passfs_volume_health", "health")
    assert words == {word.value: float(word is Word.OK) for word in Word}
    states = found.labelled("passfs_volumes", "state")
    assert {*states} == {state.name.lower() for state in State if state is not State.REMOVED}
    for word in (*words, *states):
        assert f"`{word}`" in DOCUMENT + COMMANDS


def test_each_bad_health_has_an_alert_of_its_own() -> None:
    """A restart of the containers helps a lost volume, but not one whose source is missing."""
    fired = {
        word: [
            name
            for name, query in alerts().items()
            for selector in selectors(query)
            for matcher in matched(selector, "health")
            if accepts(matcher, word)
        ]
        for word in Word
    }
    assert fired == {
        Word.OK: [],
        Word.IDLE: [],
        Word.BUSY: ["PassfsVolumeDegraded"],
        Word.DEGRADED: ["PassfsVolumeDegraded"],
        Word.LOST: ["PassfsVolumeLost"],
        Word.ERROR: ["PassfsVolumeError"],
    }


def test_the_series_to_drop_are_those_of_the_plugin(found: Scrape) -> None:
    dropped = re.findall(r"^ +regex: (.+)$", DOCUMENT, re.MULTILINE)
    assert dropped == [f"{DURATION}_bucket"]
    assert {*dropped} <= found.names
