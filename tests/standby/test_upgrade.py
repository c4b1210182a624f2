"""Upgrades of the service under load: no load notices them.

Ten upgrades, by hand, with a report of the pauses:

    PASSFS_UPGRADES=10 make test ARGS='tests/standby/test_upgrade.py -rP'
"""

import re
import signal
import time
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.plugin.test_upgrade import UPGRADES, upgraded
from tests.standby.load import Place, Running
from tests.standby.test_standby import ALL, ONLY, SEED
from tests.support.fakes.service_manager import ServiceManager
from tests.support.tools.callers import OTHER, USER
from tests.support.tools.driver import restricted
from tests.support.tools.service import Service

LIMIT_S = 60.0
BETWEEN_S = 1.0
PAUSE = re.compile(r"after ([0-9.]+) ms without service")


@pytest.mark.slow
@pytest.mark.timeout(300 + 30 * UPGRADES)
@pytest.mark.parametrize("passthrough", ["on", "off"])
def test_no_load_notices_an_upgrade(base: Path, passthrough: str) -> None:
    """Workers do not die, and each keeps the descriptors of the one before."""
    for name in ("source", "twins"):
        (base / name).mkdir()
    with ServiceManager(base) as manager:
        service = Service(base, manager, within=restricted())
        service.start()
        try:
            wrong, steps = loaded(service, {"passthrough": passthrough})
            assert manager.wait_for_count(0), manager.stored
        finally:
            service.end(signal.SIGTERM)
    pauses = PAUSE.findall(service.log.read_text())
    if wrong:
        print(service.log.read_text())  # noqa: T201 - says which upgrade it was
    print(f"pauses of {pauses} ms; steps: {steps}")  # noqa: T201 - shown by -rP
    assert wrong == []
    assert len(pauses) == UPGRADES


def loaded(service: Service, options: dict[str, str]) -> tuple[list[str], dict[str, int]]:
    """Upgrade the service while loads use a volume; return wrong results and the steps."""
    base = service.directory
    opts = {"source": str(base / "source"), "standby": "on", **options}
    service.call("VolumeDriver.Create", Name="vol", Opts=opts)
    target = Path(service.call("VolumeDriver.Mount", Name="vol", ID="i")["Mountpoint"])
    target.parent.chmod(0o755)  # other users use the mount here, not in a container
    loads = {}
    for kind in ALL:
        name = kind.__name__
        if not ONLY or name in ONLY:
            place = Place(target / name, base / "source" / name, base / "twins" / name)
            loads[name] = kind(place, (USER, OTHER), SEED)
    with ExitStack() as stack:
        running = Running(stack, loads)
        for number in range(UPGRADES):
            time.sleep(BETWEEN_S)
            service.end(signal.SIGKILL if number % 2 else signal.SIGTERM)
            served = upgraded(service, f"program {number}")
            assert served["Older"] == "", service.log.read_text()
            if running.ended():  # by an error, which `finish` returns
                break
        time.sleep(BETWEEN_S)
        wrong = running.finish(LIMIT_S)
        steps = running.steps()
    service.call("VolumeDriver.Unmount", Name="vol", ID="i")
    return wrong, steps
