"""Users of a volume that maps ids see their own ids, and the kernel checks permissions by them."""

import os
from pathlib import Path

from tests.support.tools.callers import MEMBER, TEAM_GID, USER, attempt
from tests.support.tools.files import owner
from tests.support.tools.mounted import mounted

LIMIT_S = 30.0


def test_users_of_a_mounted_volume_see_their_own_ids(base: Path) -> None:
    """The kernel checks permissions by these ids, groups included."""
    options = {"map_uid": "0:100000:50000", "map_gid": "0:200000:50000+60000:60000:1"}
    (base / "source").mkdir()
    os.chown(base / "source", 100_000, 200_000)
    with mounted(base, options) as served, served.limited(LIMIT_S):
        team = served.mountpoint / "team"
        team.mkdir()
        os.chown(team, 0, TEAM_GID)
        team.chmod(0o2770)

        MEMBER.run(lambda: bool((team / "file").write_text("mine")))
        MEMBER.run(lambda: (team / "file").chmod(0o600))

        assert owner(served.mountpoint) == (0, 0)
        assert owner(team / "file") == (MEMBER.uid, TEAM_GID)
        assert owner(served.source / "team" / "file") == (
            100_000 + MEMBER.uid,
            200_000 + TEAM_GID,
        )
        assert MEMBER.run((team / "file").read_text) == "mine"
        assert attempt(USER, lambda: os.listdir(team)) == "EACCES"
