"""creating.py: names of users, as Create and later requests see them."""

from pathlib import Path

from tests.support.fakes.dockerd import plugin
from tests.support.fakes.worker import command

SERVE = command("serve")


async def test_names_are_looked_up_once_when_the_volume_is_created(tmp_path: Path) -> None:
    etc = tmp_path / "host" / "etc"
    etc.mkdir(parents=True)
    (etc / "passwd").write_text("alice:x:1000:1100::/:/bin/sh\n")
    (etc / "group").write_text("staff:x:50:\n")
    seen = {"PASSFS_HOST_ROOT": str(tmp_path / "host")}
    opts = {"uid": "alice", "gid": "staff", "anon_uid": "alice"}
    async with plugin(tmp_path, SERVE, **seen) as dockerd:
        await dockerd.do("Create", Name="vol", Opts=opts)
        await dockerd.do("Create", Name="vol", Opts=opts)
        refused = await dockerd.call("Create", Name="other", Opts={"uid": "bob"})
        (etc / "passwd").write_text("alice:x:7:7::/:/bin/sh\n")
        options = (await dockerd.volume("vol"))["Status"]["options"]
        again = await dockerd.call("Create", Name="vol", Opts=opts)
    made = (tmp_path / "data" / "volumes" / "vol").stat()

    assert (options["uid"], options["gid"], options["anon_uid"]) == ("1000", "50", "1000")
    assert (made.st_uid, made.st_gid) == (1000, 50)
    assert "option 'uid': 'bob' is no user in the host's /etc/passwd" in refused.error
    assert "uid is '1000' and '7' was asked for" in again.error
