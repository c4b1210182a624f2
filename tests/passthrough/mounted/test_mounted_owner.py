"""owner: every file shows one user of the container, and all callers act as the source's owner."""

import contextlib
import os
import shutil
import signal
import stat
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path

import pytest

from tests.support.fakes.keeper import LIMIT_S as END_LIMIT_S
from tests.support.tools.callers import OTHER, ROOT, USER, Caller, attempt
from tests.support.tools.files import owner, public_directory
from tests.support.tools.mounted import Mounted, MountFailedError, mounted
from tests.support.tools.rights import (
    ANONYMOUS,
    DIRECTORIES,
    DIRECTORY_OPERATIONS,
    FILE_OPERATIONS,
    FILES,
    STRANGER,
    Case,
    Operation,
    left,
    make,
    place,
    tried,
)

LIMIT_S = 120.0
HOST = Caller("owner on the host", ANONYMOUS, ANONYMOUS)
GIVEN = f"{USER.uid}:{USER.gid}"
CALLERS = (ROOT, USER, OTHER)

SESSIONS: Mapping[str, Mapping[str, str]] = {
    "kernel": {"session": "kernel", "passthrough": "on"},
    "libfuse": {"session": "libfuse"},
}


@contextlib.contextmanager
def volume(options: Mapping[str, str], **more: str) -> Iterator[Mounted]:
    """Serve a directory of the host's user, in which only this user has rights."""
    with public_directory() as base:
        (base / "source").mkdir(mode=0o700)
        os.chown(base / "source", HOST.uid, HOST.gid)
        with mounted(base, {"owner": GIVEN, **options, **more}) as served, served.limited(LIMIT_S):
            yield served


@pytest.fixture(params=SESSIONS)
def by(request: pytest.FixtureRequest) -> Mapping[str, str]:
    """Return the options of one session after the other."""
    options: Mapping[str, str] = SESSIONS[request.param]
    return options


def put(path: Path, uid: int, mode: int, content: bytes = b"content") -> None:
    """Make a file on the host."""
    path.write_bytes(content)
    os.chown(path, uid, uid)
    path.chmod(mode)


def test_every_file_shows_the_given_owner(by: Mapping[str, str]) -> None:
    with volume(by) as served:
        source, seen = served.source, served.mountpoint
        put(source / "own", HOST.uid, 0o600)
        put(source / "of root", 0, 0o644)
        put(source / "of a stranger", STRANGER, 0o644)
        (source / "link").symlink_to("own")
        USER.run((seen / "made").mkdir)
        shown = OTHER.run(lambda: {path.name: owner(path) for path in (seen, *seen.iterdir())})
        with (seen / "own").open("rb") as file:
            status = os.fstat(file.fileno())

    names = (seen.name, "own", "of root", "of a stranger", "link", "made")
    assert shown == dict.fromkeys(names, (USER.uid, USER.gid))
    assert (status.st_uid, status.st_gid) == (USER.uid, USER.gid)


def test_all_callers_create_and_change_as_the_owner_of_the_source(by: Mapping[str, str]) -> None:
    """The source lets only its owner in, and the volume lets every caller in."""
    with volume(by) as served:
        source, seen = served.source, served.mountpoint
        for caller in CALLERS:
            private = seen / caller.name

            def use(caller: Caller = caller, private: Path = private) -> None:
                private.mkdir(mode=0o700)
                (private / "file").write_bytes(caller.name.encode())
                (private / "file").chmod(0o600)
                (private / "link").symlink_to("file")
                os.mkfifo(private / "fifo")
                os.link(private / "file", private / "second")
                os.setxattr(private / "file", "user.test", b"value")

            caller.run(use)
        for caller in CALLERS:
            for other in CALLERS:
                file = seen / caller.name / "file"
                assert other.run(file.read_bytes) == caller.name.encode()
                assert attempt(other, partial(file.write_bytes, caller.name.encode())) == "allowed"
        owners = {owner(path) for path in source.rglob("*")}
        OTHER.run(partial(shutil.rmtree, seen / ROOT.name))

        assert owners == {(HOST.uid, HOST.gid)}
        assert sorted(path.name for path in source.iterdir()) == sorted((USER.name, OTHER.name))


SAME = [
    case
    for case in (*FILES, *DIRECTORIES)
    if case.name.endswith(("6 as owner", "4 as group", "6 as other"))
    or "of its own" in case.name
    or "of a stranger" in case.name
]
"""The owner of the source owns some of these files; modes of others admit group or all."""

SHOWING = {"stat", "look up", "list, then look up"}
"""The operations whose result has an owner."""

LACKING = {"get flags", "make unnamed"}
"""The operations that pyfuse3 does not pass on, docs/sessions.md."""


def outcomes(top: Path, caller: Caller, session: str) -> dict[str, object]:
    """Return the result of each operation on each case below *top*, for *caller*."""

    def run() -> dict[str, object]:
        found: dict[str, object] = {}
        for number, case in enumerate(SAME):
            for name, operation in operations(case).items():
                if name not in SHOWING and not (session == "libfuse" and name in LACKING):
                    outcome = tried(top / place(number, name), case, operation)
                    found[f"{case.name}: {name}"] = outcome
                    os.chdir("/")
        return found

    return caller.run(run)


def operations(case: Case) -> Mapping[str, Operation]:
    return FILE_OPERATIONS if case in FILES else DIRECTORY_OPERATIONS


def prepare(top: Path) -> None:
    top.mkdir()
    top.chmod(0o755)
    for number, case in enumerate(SAME):
        for name in {place(number, name) for name in operations(case)}:
            make(top / name, case)


@pytest.mark.slow
@pytest.mark.parametrize("session", SESSIONS)
def test_the_host_decides_for_each_caller_as_for_the_owner_of_the_source(session: str) -> None:
    """Only link(2) differs: the kernel wants the shown owner, docs/squash.md."""
    different = {}
    with volume(SESSIONS[session]) as served:
        for caller in (USER, OTHER):
            bare = served.source.parent / caller.name
            source, seen = served.source / caller.name, served.mountpoint / caller.name
            for top in (bare, source):
                prepare(top)
            wanted, found = outcomes(bare, HOST, session), outcomes(seen, caller, session)
            different[caller.name] = {
                key: (wanted[key], found[key]) for key in found if found[key] != wanted[key]
            }
            states = left(bare), left(source)
            if caller is USER:
                assert states[0] == states[1]
    links = [case.name for case in SAME if "of its own" in case.name and case.mode & 0o111]

    assert different[USER.name] == {}
    assert different[OTHER.name] == {f"{name}: link": (None, "EPERM") for name in links}


def test_chown_succeeds_without_effect_for_files_of_the_owner(by: Mapping[str, str]) -> None:
    """Programs such as tar and npm, and engines, change owners as root, and fail if that fails."""
    with volume(by) as served:
        source, seen = served.source, served.mountpoint
        put(source / "own", HOST.uid, 0o4755)
        put(source / "in another group", HOST.uid, 0o600)
        os.chown(source / "in another group", HOST.uid, STRANGER)
        put(source / "of a stranger", STRANGER, 0o666)
        (source / "link").symlink_to("none")
        os.chown(source / "link", HOST.uid, HOST.gid, follow_symlinks=False)
        before = {path.name: owner(path) for path in source.iterdir()}
        results = {
            (caller.name, name, ids): attempt(
                caller,
                lambda name=name, ids=ids: os.chown(seen / name, *ids, follow_symlinks=False),  # type: ignore[misc]
            )
            for caller in CALLERS
            for name in before
            for ids in ((0, 0), (33, 34), (-1, STRANGER), (USER.uid, -1))
        }
        after = {path.name: owner(path) for path in source.iterdir()}
        shown = {owner(seen / name) for name in before}
        mode = stat.S_IMODE((source / "own").stat().st_mode)

    assert results == {key: "EPERM" if key[1] == "of a stranger" else "allowed" for key in results}
    assert after == before
    assert shown == {(USER.uid, USER.gid)}
    assert mode == 0o755  # as on the host, chown(2) takes the suid bit away


def test_acls_of_the_host_hold_and_no_caller_sets_one(by: Mapping[str, str]) -> None:
    """For another caller than root and the shown owner, the kernel refuses before it asks."""
    with volume(by) as served:
        for name, entry in (("shared", f"u:{HOST.uid}:rw"), ("barred", f"u:{HOST.uid}:-")):
            put(served.source / name, STRANGER, 0o644)
            command = ["setfacl", "-m", entry, str(served.source / name)]
            subprocess.run(command, check=True, timeout=END_LIMIT_S)
        (served.source / "own").touch()
        os.chown(served.source / "own", HOST.uid, HOST.gid)
        acl = os.getxattr(served.source / "shared", "system.posix_acl_access")
        set_acl = partial(os.setxattr, served.mountpoint / "own", "system.posix_acl_access", acl)

        assert {
            (caller.name, name): attempt(
                caller,
                lambda name=name: (served.mountpoint / name).open("r+b").close(),  # type: ignore[misc]
            )
            for caller in CALLERS
            for name in ("shared", "barred")
        } == {
            (caller.name, name): answer
            for caller in CALLERS
            for name, answer in (("shared", "allowed"), ("barred", "EACCES"))
        }
        assert [attempt(caller, set_acl) for caller in CALLERS] == ["ENOTSUP", "ENOTSUP", "EPERM"]


def test_no_program_of_the_volume_runs_as_the_shown_owner(by: Mapping[str, str]) -> None:
    """Any caller may make a program with a suid bit, which would run as the shown owner."""
    with volume(by, owner="0:0") as served:
        program = served.mountpoint / "program"

        def use() -> bytes:
            shutil.copy("/usr/bin/id", program)
            program.chmod(0o6755)
            return subprocess.run(
                [program, "-u"], check=True, capture_output=True, timeout=END_LIMIT_S
            ).stdout

        output = OTHER.run(use)

    assert int(output) == OTHER.uid


def test_the_owner_is_that_of_the_source_when_it_is_mounted(by: Mapping[str, str]) -> None:
    with public_directory() as base:
        source = base / "source"
        source.mkdir()
        made = []
        for number, uid in enumerate((41_301, 41_302)):
            os.chown(source, uid, uid)
            source.chmod(0o777)
            with mounted(base, {**by, "owner": GIVEN}) as served, served.limited(LIMIT_S):
                os.chown(source, STRANGER, STRANGER)
                USER.run((served.mountpoint / str(number)).touch)
            made.append(owner(source / str(number)))

    assert made == [(41_301, 41_301), (41_302, 41_302)]


def test_no_caller_acts_as_root_unless_the_options_say_so(by: Mapping[str, str]) -> None:
    with public_directory() as base:
        refused = pytest.raises(MountFailedError, match="would let any user of a container act as")
        with refused, mounted(base, {**by, "owner": GIVEN}):
            pass
        as_root = {"anon_uid": "0", "anon_gid": "0"}
        with mounted(base, {**by, "owner": GIVEN, **as_root}) as served, served.limited(LIMIT_S):
            USER.run((served.mountpoint / "file").touch)

            assert owner(served.source / "file") == (0, 0)
            assert owner(served.mountpoint / "file") == (USER.uid, USER.gid)


def test_no_caller_opens_a_device_node(by: Mapping[str, str]) -> None:
    """The kernel opens it by itself, and knows no permissions."""
    with volume(by, dev="true") as served:
        os.mknod(served.source / "null", stat.S_IFCHR | 0o600, os.makedev(1, 3))
        found = {attempt(caller, (served.mountpoint / "null").read_bytes) for caller in CALLERS}

    assert found == {"EACCES"}


def test_the_next_worker_shows_and_acts_as_the_one_before() -> None:
    with volume(SESSIONS["kernel"]) as served:
        worker = served.worker_pid
        os.chown(served.source, STRANGER, STRANGER)
        served.source.chmod(0o777)
        os.kill(worker, signal.SIGKILL)
        USER.run((served.mountpoint / "file").touch)

        assert served.worker_pid != worker
        assert owner(served.source / "file") == (HOST.uid, HOST.gid)
        assert owner(served.mountpoint / "file") == (USER.uid, USER.gid)


# Programs.


def work(directory: Path, config: Path) -> str:
    """Make a repository, commit to it and check it, with *config*; return git's errors."""
    directory.mkdir()
    (directory / "file").write_text("content")
    names = {"GIT_CONFIG_NOSYSTEM": "1", "GIT_CONFIG_GLOBAL": str(config), "HOME": os.devnull}
    git = ["git", "-c", "user.name=t", "-c", "user.email=t@example.org"]
    words = (("init", "-q"), ("add", "."), ("commit", "-qm", "first"), ("gc", "-q"), ("fsck",))
    errors = [
        subprocess.run(
            [*git, *command],
            cwd=directory,
            env=os.environ | names,
            capture_output=True,
            text=True,
            check=False,
            timeout=LIMIT_S,
        ).stderr
        for command in words
    ]
    return "".join(errors)


def test_git_takes_a_tree_for_that_of_the_given_user(by: Mapping[str, str]) -> None:
    """Other users of the container need git's safe.directory: git compares owner and user."""
    with volume(by) as served:
        top, safe = served.mountpoint, served.source.parent / "config"
        safe.write_text("[safe]\n\tdirectory = *\n")

        assert USER.run(lambda: work(top / "own", Path(os.devnull))) == ""
        assert "dubious ownership" in OTHER.run(lambda: work(top / "no", Path(os.devnull)))
        assert OTHER.run(lambda: work(top / "safe", safe)) == ""
        assert owner(served.source / "own" / ".git" / "HEAD") == (HOST.uid, HOST.gid)


def archive(directory: Path) -> Path:
    """Return an archive with files of several owners, one of them with a suid bit."""
    path = directory / "files.tar"
    with tarfile.open(path, "w") as tar:
        for name, uid, mode in (("a", 0, 0o644), ("b", 33, 0o600), ("c", 34, 0o4755)):
            member = tarfile.TarInfo(name)
            member.uid = member.gid = uid
            member.mode = mode
            tar.addfile(member)
    path.chmod(0o644)
    return path


@pytest.mark.parametrize("caller", [ROOT, USER], ids=lambda caller: caller.name)
def test_tar_and_cp_keep_what_they_can(by: Mapping[str, str], caller: Caller) -> None:
    """As root, both change the owner of each file."""
    with volume(by) as served:
        source = archive(served.source.parent)
        top = served.mountpoint / "top"

        def use() -> None:
            top.mkdir()
            for words in (("tar", "-xpf", str(source)), ("cp", "-a", ".", "../copy")):
                subprocess.run(words, cwd=top, check=True, timeout=LIMIT_S)

        caller.run(use)
        modes = [(served.source / "copy" / name).stat().st_mode & 0o7777 for name in "abc"]

        assert modes == [0o644, 0o600, 0o4755]
        assert {owner(path) for path in served.source.rglob("*")} == {(HOST.uid, HOST.gid)}


def wheel(directory: Path) -> Path:
    """Return a package for pip, with a program."""
    path = directory / "sample-1.0-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("sample.py", "def main():\n    print('works')\n")
        info = "sample-1.0.dist-info"
        file.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\nName: sample\nVersion: 1.0\n")
        file.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any\n")
        file.writestr(f"{info}/entry_points.txt", "[console_scripts]\nsample = sample:main\n")
        file.writestr(f"{info}/RECORD", "")
    return path


def test_pip_installs_a_package() -> None:
    with volume(SESSIONS["kernel"], owner="0:0") as served:
        package = wheel(served.source.parent)
        place_of = served.mountpoint / "site"
        pip = [sys.executable, "-m", "pip", "-q", "--disable-pip-version-check", "install"]
        pip += ["--no-index", "--no-deps", "--root-user-action=ignore"]
        command = [*pip, f"--target={place_of}", str(package)]
        subprocess.run(command, check=True, timeout=LIMIT_S)
        output = subprocess.run(
            [sys.executable, str(place_of / "bin" / "sample")],
            env=os.environ | {"PYTHONPATH": str(place_of)},
            check=True,
            capture_output=True,
            text=True,
            timeout=LIMIT_S,
        ).stdout

        assert output == "works\n"
        assert {owner(path) for path in served.source.rglob("*")} == {(HOST.uid, HOST.gid)}
