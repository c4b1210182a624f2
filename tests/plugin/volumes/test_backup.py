"""A backup and its restoration, by the very commands of docs/operations.md."""

import os
import re
import subprocess
from pathlib import Path

import pytest

from tests.support.fakes.dockerd import plugin
from tests.support.fakes.worker import command
from tests.support.tools.generated import REPOSITORY
from tests.support.tools.mount_specs import in_thread

SERVE = command("serve")
DOCUMENT = REPOSITORY / "docs" / "operations.md"


def run(heading: str, data: Path, backup: Path) -> None:
    """Run the first script below *heading*, with other directories."""
    section = DOCUMENT.read_text().partition(f"## {heading}\n")[2]
    found = re.search(r"```sh\n(.*?)```", section, re.DOTALL)
    assert found is not None
    script = found[1].replace("/var/lib/passfs", str(data)).replace("/srv/backup", str(backup))
    subprocess.run(["bash", "-euc", script], check=True, timeout=60)


@pytest.mark.logs("volume passed: cannot be mounted: .* does not exist")
async def test_a_backup_of_a_running_plugin_restores_its_volumes(tmp_path: Path) -> None:
    """The second plugin stands for one on another machine, where the source is missing."""
    source, backup = tmp_path / "source", tmp_path / "backup"
    source.mkdir()
    (tmp_path / "new").mkdir()
    async with plugin(tmp_path, SERVE) as dockerd:
        await dockerd.do("Create", Name="own", Opts={"cache": "always", "uid": "7"})
        await dockerd.do("Create", Name="passed", Opts={"source": str(source)})
        await dockerd.do("Mount", Name="own", ID="a")
        file = tmp_path / "data" / "volumes" / "own" / "file"
        file.write_text("kept")
        os.chown(file, 1234, 2345)
        os.setxattr(file, "user.mark", b"1")
        await in_thread(run, "Back up", tmp_path / "data", backup)
        await dockerd.do("Create", Name="later")

    source.rmdir()
    await in_thread(run, "Restore", tmp_path / "new" / "data", backup)
    async with plugin(tmp_path / "new", SERVE) as dockerd:
        assert await dockerd.names() == {"own", "passed"}
        status = (await dockerd.volume("own"))["Status"]
        assert (status["options"]["cache"], status["options"]["uid"]) == ("always", "7")
        assert (await dockerd.call("Mount", Name="passed", ID="a")).status != 200
        await dockerd.do("Mount", Name="own", ID="a")

    restored = tmp_path / "new" / "data" / "volumes" / "own" / "file"
    assert restored.read_text() == "kept"
    assert (restored.stat().st_uid, restored.stat().st_gid) == (1234, 2345)
    assert os.getxattr(restored, "user.mark") == b"1"
    assert (restored.parents[1].stat().st_mode & 0o777) == 0o700
