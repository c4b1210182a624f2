"""listening.py: the plugin's socket, beside a stale socket, a live socket and a file."""

import socket
import stat
from contextlib import closing
from pathlib import Path

import pytest

from plugin.errors import CannotStart
from tests.support.fakes.dockerd import plugin
from tests.support.fakes.worker import command

SERVE = command("serve")


async def test_the_socket_is_for_root_and_its_group_only(tmp_path: Path) -> None:
    async with plugin(tmp_path, SERVE) as dockerd:
        assert stat.S_IMODE(dockerd.socket.stat().st_mode) == 0o660
    assert not dockerd.socket.exists()


async def test_a_stale_socket_is_replaced(tmp_path: Path) -> None:
    with closing(socket.socket(socket.AF_UNIX)) as dead:
        dead.bind(str(tmp_path / "p.sock"))
    async with plugin(tmp_path, SERVE) as dockerd:
        assert await dockerd.names() == set()


async def test_a_live_socket_is_refused(tmp_path: Path) -> None:
    with closing(socket.socket(socket.AF_UNIX)) as live:
        live.bind(str(tmp_path / "p.sock"))
        live.listen()
        with pytest.raises(CannotStart, match="another plugin listens on it; stop it first"):
            async with plugin(tmp_path, SERVE):
                pass
        assert (tmp_path / "p.sock").is_socket()


async def test_a_file_in_place_of_the_socket_is_refused(tmp_path: Path) -> None:
    (tmp_path / "p.sock").write_text("mine")
    with pytest.raises(CannotStart, match=r"cannot use .*/p\.sock: it is no socket; move it away"):
        async with plugin(tmp_path, SERVE):
            pass
    assert (tmp_path / "p.sock").read_text() == "mine"


@pytest.mark.parametrize("replaced", [True, False])
async def test_a_socket_replaced_by_another_process_is_not_removed(
    tmp_path: Path, *, replaced: bool
) -> None:
    async with plugin(tmp_path, SERVE) as dockerd:
        dockerd.socket.unlink()
        if replaced:
            dockerd.socket.write_text("another's")
    assert dockerd.socket.exists() == replaced
