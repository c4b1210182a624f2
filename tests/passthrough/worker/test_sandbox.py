"""sandbox.py: the capabilities, files, processes and calls that a worker keeps."""

import json
import os
import re
import resource
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path

import pytest

from passthrough.linux import mountinfo, privileges, syscalls
from passthrough.options.choices import InodeFileHandles, Sandbox, Standby
from passthrough.options.table import Requested
from passthrough.worker import calls, sandbox, seccomp
from passthrough.worker.handover import encode
from tests.support.fakes.keeper import LIMIT_S, REPOSITORY, Keeper, ended, on_mount, report_of
from tests.support.tools.callers import ROOT
from tests.support.tools.driver import unit
from tests.support.tools.inside import PROBES, probe
from tests.support.tools.mounts import MS_BIND, mounted_on, mounts_at
from tests.support.tools.processes import descriptors, threads, wait_until

pytestmark = pytest.mark.full

INSIDE = "tests.support.tools.inside"
CAP_SYS_PTRACE = 19  # capabilities(7)
CLONE_FS, CLONE_NEWUSER, CLONE_NEWNS = 0x200, 0x1000_0000, 0x2_0000  # unshare(2)
NR_OPEN = int(Path("/proc/sys/fs/nr_open").read_text())
OPTION = "option 'sandbox': namespace is not possible here: "
PROC_DEVICE = Path("/proc").stat().st_dev
KEPT = sandbox.kept_capabilities(by_file_handle=True)
# The engine gives these to every container and plugin by default.
DOCKERS_OWN = (
    *("CAP_CHOWN", "CAP_DAC_OVERRIDE", "CAP_FSETID", "CAP_FOWNER", "CAP_MKNOD", "CAP_NET_RAW"),
    *("CAP_SETGID", "CAP_SETUID", "CAP_SETFCAP", "CAP_SETPCAP", "CAP_NET_BIND_SERVICE"),
    *("CAP_SYS_CHROOT", "CAP_KILL", "CAP_AUDIT_WRITE"),
)
MAY_BE_USED = {
    *("CAP_CHOWN", "CAP_DAC_OVERRIDE", "CAP_DAC_READ_SEARCH", "CAP_FOWNER", "CAP_FSETID"),
    *("CAP_SETGID", "CAP_SETUID", "CAP_SYS_ADMIN", "CAP_MKNOD", "CAP_SETFCAP"),
}


class OfSuccessor(Keeper):
    """A keeper that kills its first worker, so that the second one serves."""

    def serve(self, within: Sequence[str] = ()) -> subprocess.Popen[bytes]:
        process = super().serve(within)
        first = self.worker_pid
        os.kill(first, signal.SIGKILL)
        wait_until(lambda: self.worker_pid != first)
        on_mount("ls", str(self.mountpoint))
        wait_until(lambda: len(self.state.guard_pids) == 2)
        return process


@pytest.fixture(params=["alone", "a successor"])
def keeper(
    request: pytest.FixtureRequest, source: Path, mountpoint: Path, tmp_path: Path
) -> Iterator[Keeper]:
    log = tmp_path / "stderr"
    if request.param == "alone":
        keeper = Keeper(source, mountpoint, log, Requested(standby=Standby.OFF), INSIDE)
    else:
        keeper = OfSuccessor(source, mountpoint, log, Requested(standby=Standby.ON), INSIDE)
    yield keeper
    keeper.close()


@pytest.fixture
def ask(keeper: Keeper, mountpoint: Path) -> Callable[..., object]:
    """Run a probe inside a worker."""
    keeper.serve()
    return lambda name, argument="": probe(mountpoint, name, argument)


def status(pid: int) -> list[dict[str, str]]:
    """Return /proc/PID/status of each thread."""
    texts = threads(pid, "status").values()
    return [dict(re.findall(r"^(\w+):\t(.*)$", text, re.MULTILINE)) for text in texts]


def in_force(capabilities: int) -> int:
    """Return the effective ones of a thread: it raises CAP_FSETID only to keep suid and sgid."""
    return capabilities & ~(1 << sandbox.KEPT["CAP_FSETID"][0])


def mounts_of(pid: int) -> list[mountinfo.MountEntry]:
    return mountinfo.read(f"/proc/{pid}/mountinfo")


def test_each_capability_has_its_number_and_its_reason() -> None:
    header = Path("/usr/include/linux/capability.h")
    numbers = dict(re.findall(r"^#define (CAP_\w+)\s+(\d+)$", header.read_text(), re.MULTILINE))

    assert set(sandbox.KEPT) == MAY_BE_USED
    assert {name: int(numbers[name]) for name in sandbox.KEPT} == {
        name: number for name, (number, _) in sandbox.KEPT.items()
    }
    assert all(len(reason) > 20 for _, reason in sandbox.KEPT.values())


def test_a_worker_keeps_only_the_listed_capabilities(keeper: Keeper, mountpoint: Path) -> None:
    keeper.serve()
    pid = keeper.worker_pid
    on_mount("ls", str(mountpoint))

    for thread in status(pid):
        assert {name: int(thread[name], 16) for name in ("CapPrm", "CapEff", "CapBnd")} == {
            "CapPrm": KEPT,
            "CapEff": in_force(KEPT),
            "CapBnd": KEPT,
        }
        assert int(thread["CapInh"], 16) == int(thread["CapAmb"], 16) == 0
        assert thread["NoNewPrivs"] == "1"
        assert thread["Seccomp"] == "2"


@pytest.mark.parametrize(("handles", "error"), [("never", "EPERM"), ("prefer", "")])
def test_only_a_worker_with_file_handles_can_open_them(
    source: Path, mountpoint: Path, tmp_path: Path, handles: str, error: str
) -> None:
    config = Requested(inode_file_handles=InodeFileHandles(handles))
    keeper = Keeper(source, mountpoint, tmp_path / "stderr", config, INSIDE)
    keeper.serve()
    opened = probe(mountpoint, "by_handle")
    keeper.close()

    assert opened == error


def test_a_source_without_file_handles_drops_the_capability(
    source: Path, mountpoint: Path, tmp_path: Path
) -> None:
    with mounted_on(source, "ramfs"):
        keeper = Keeper(source, mountpoint, tmp_path / "stderr", module=INSIDE)
        process = keeper.start(encode(keeper.handover), keeper.passed_fds)
        report = report_of(process)
        kept = {int(thread["CapEff"], 16) for thread in status(keeper.worker_pid)}
        on_mount("touch", f"{mountpoint}/file")
        keeper.close()

    assert report.serving
    assert report.without_handles.startswith("the file system has no file handles")
    assert kept == {in_force(sandbox.kept_capabilities(by_file_handle=False))}
    assert (
        sandbox.kept_capabilities(by_file_handle=True)
        - sandbox.kept_capabilities(by_file_handle=False)
        == 1 << 2
    )
    assert "inode_file_handles is never: the file system has no" in keeper.log.read_text()


@pytest.mark.parametrize(("held", "error"), [(False, "EPERM"), (True, "")])
def test_the_filter_alone_refuses_to_open_by_handle(*, held: bool, error: str) -> None:
    """The test process has the capability, so only the filter can refuse."""

    def opening() -> str:
        rules = seccomp.program(os.uname().machine, os.getpid(), by_file_handle=held, by_ring=False)
        privileges.filter_calls(rules)
        return str(PROBES["by_handle"](""))

    assert ROOT.run(opening) == error


def test_dropped_privileges_cannot_be_regained(ask: Callable[..., object]) -> None:
    assert ask("regain", str(CAP_SYS_PTRACE)) == "EPERM"
    assert ask("execute", "/proc/self/exe") == "EPERM"
    assert ask("dumpable") == 0


def test_the_limit_of_descriptors_is_the_maximum(keeper: Keeper, mountpoint: Path) -> None:
    keeper.serve(within=("sh", "-c", 'ulimit -S -n 100; exec "$@"', "sh"))
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)

    allowed = probe(mountpoint, "descriptors")

    assert soft >= 100
    assert allowed in ([hard, hard], [NR_OPEN, NR_OPEN])


def test_a_worker_has_namespaces_of_its_own(keeper: Keeper) -> None:
    keeper.serve()
    pid = keeper.worker_pid
    own = {kind: os.readlink(f"/proc/self/ns/{kind}") for kind in ("mnt", "net", "ipc", "uts")}

    assert {
        kind: link for kind, link in own.items() if os.readlink(f"/proc/{pid}/ns/{kind}") == link
    } == {}


def test_a_worker_has_no_network(keeper: Keeper, ask: Callable[..., object]) -> None:
    table = Path(f"/proc/{keeper.worker_pid}/net/dev").read_text()
    with socket.create_server(("127.0.0.1", 0)) as server:
        assert ask("connect", str(server.getsockname()[1])) == "EPERM"

    assert set(re.findall(r"^ *(\w+):", table, re.MULTILINE)) <= {"lo", "sit0", "tunl0"}


def test_a_worker_sees_only_the_source(
    keeper: Keeper, source: Path, ask: Callable[..., object]
) -> None:
    (source / "etc").mkdir()
    (source / "etc" / "own").touch()
    (mount,) = mounts_of(keeper.worker_pid)

    assert mount.target == b"/"
    assert ask("list", "/") == ["etc"]
    assert ask("list", "/etc") == ["own"]
    assert ask("open", "/etc/passwd") == "ENOENT"
    assert ask("open", "/proc/self/root/etc/passwd") == "ENOENT"


def test_the_rest_of_proc_is_out_of_reach(
    keeper: Keeper, source: Path, ask: Callable[..., object]
) -> None:
    """A guard has all of /proc as its working directory, below the root directory of both."""
    (source / "dir").mkdir()
    links = ask("list", ".")
    first = keeper.processes[0].pid

    assert isinstance(links, list)
    assert all(name.isdigit() for name in links)
    wait_until(lambda: ask("list", "..") == ask("list", "."))  # descriptors come and go
    for place in ("", "/", "../", "/../", "/dir/../", "/dir/../../"):
        assert ask("open", f"{place}self/status") == "ENOENT"
        assert ask("open", f"{place}{first}/status") == "ENOENT"
        assert ask("open", f"{place}sys/kernel/hostname") == "ENOENT"
    for link in links:
        assert ask("open", f"{link}/self/status") in {"ENOENT", "ENOTDIR"}
        assert ask("open", f"{link}/../self/status") in {"ENOENT", "ENOTDIR"}


def test_a_guard_has_no_descriptor_of_proc(keeper: Keeper) -> None:
    """A worker shares the descriptors of its guards."""
    keeper.serve()
    pid = keeper.processes[0].pid
    of_proc = []
    for fd, target in descriptors(pid).items():
        with suppress(FileNotFoundError):  # the worker may close it meanwhile
            if os.stat(f"/proc/{pid}/fd/{fd}").st_dev == PROC_DEVICE:
                of_proc.append(target.rpartition("/")[2])

    assert of_proc == ["mountinfo"]


@pytest.mark.parametrize("call", ["mount", "umount", "pivot_root", "clone_tree", "chroot"])
def test_calls_that_leave_the_sandbox_are_refused(ask: Callable[..., object], call: str) -> None:
    assert ask(call) == "EPERM"


def test_a_thread_may_have_its_own_umask_but_no_namespace(ask: Callable[..., object]) -> None:
    assert ask("unshare", str(CLONE_FS)) == ""
    assert ask("unshare", str(CLONE_NEWNS)) == "EPERM"
    assert ask("unshare", str(CLONE_NEWUSER | CLONE_FS)) == "EPERM"


# Without the filter these calls would take effect in a worker, or fail with another error: -1 is no
# descriptor. PROCESS stands for a process that a worker must not touch.
FIFREEZE, FS_IOC_SHUTDOWN, XFS_IOC_OPEN_BY_HANDLE = 0xC004_5877, 0x8004_587D, 0x4038_586B
TIOCSTI, FIONREAD, UPPER = 0x5412, 0x541B, 1 << 32
BAD_FD, PROCESS, RLIMIT_CORE = (1 << 64) - 1, -1, 4
STRAY: dict[str, tuple[str, tuple[int, ...]]] = {
    "fanotify_init": ("fanotify_init", (0, 0)),
    "fanotify_mark": ("fanotify_mark", (BAD_FD, 1, 2, BAD_FD, 0)),
    "kill": ("kill", (PROCESS, 0)),
    "a whole group": ("kill", (0, 0)),
    "tkill": ("tkill", (PROCESS, 0)),
    "tgkill": ("tgkill", (PROCESS, PROCESS, 0)),
    "tgkill in the upper half": ("tgkill", (PROCESS | UPPER, PROCESS, 0)),
    "rt_sigqueueinfo": ("rt_sigqueueinfo", (PROCESS, 0, 0)),
    "rt_tgsigqueueinfo": ("rt_tgsigqueueinfo", (PROCESS, PROCESS, 0, 0)),
    "pidfd_open": ("pidfd_open", (PROCESS, 0)),
    "pidfd_getfd": ("pidfd_getfd", (BAD_FD, 0, 0)),
    "pidfd_send_signal": ("pidfd_send_signal", (BAD_FD, 0, 0, 0)),
    "prlimit64": ("prlimit64", (PROCESS, RLIMIT_CORE, 0, 0)),
    "setpriority": ("setpriority", (0, PROCESS, 0)),
    "ioprio_set": ("ioprio_set", (1, PROCESS, 2 << 13)),
    "sched_setscheduler": ("sched_setscheduler", (PROCESS, 0, 0)),
    "sched_setaffinity": ("sched_setaffinity", (PROCESS, 0, 0)),
    "signals of files": ("fcntl", (0, seccomp.F_SETOWN, PROCESS)),
    "freeze": ("ioctl", (BAD_FD, FIFREEZE, 0)),
    "freeze with upper bits": ("ioctl", (BAD_FD, FIFREEZE | UPPER, 0)),
    "shut down": ("ioctl", (BAD_FD, FS_IOC_SHUTDOWN, 0)),
    "by handle of XFS": ("ioctl", (BAD_FD, XFS_IOC_OPEN_BY_HANDLE, 0)),
    "terminal input": ("ioctl", (BAD_FD, TIOCSTI, 0)),
    "any other ioctl": ("ioctl", (BAD_FD, FIONREAD, 0)),
    "a thread with a namespace": ("clone", (0x3D_0F00 | CLONE_NEWNS, 0, 0, 0, 0)),
    "userfaultfd": ("userfaultfd", (1,)),
    "keyctl": ("keyctl", (0, 0, 0)),
    "syslog": ("syslog", (10, 0, 0)),
    "socket": ("socket", (1, 1, 0)),
    "listmount": ("listmount", (0, 0, 0, 0)),
    "io_uring_setup": ("io_uring_setup", (1, 0)),
}
NUMBERS = (
    calls.REFUSED | calls.BY_RING | calls.BY_GUARD | {"clone3": (435, 435), "shmget": (29, 194)}
)
NUMBERS |= {"splice": calls.ALLOWED["splice"]}
NUMBERS |= {name: check.numbers for name, check in seccomp.CHECKED.items()}


def number_of(name: str) -> int:
    """Return the number of a system call on this machine."""
    number = NUMBERS[name][seccomp.MACHINES[os.uname().machine].column]
    assert number is not None
    return number


def calling(name: str, arguments: tuple[int, ...], process: int) -> str:
    """Return the argument of the probe `call`; *process* replaces PROCESS."""
    settled = (
        process if one == PROCESS else UPPER | process if one == PROCESS | UPPER else one
        for one in arguments
    )
    return " ".join(map(str, (number_of(name), *settled)))


@pytest.mark.parametrize("stray", STRAY)
def test_other_processes_and_the_host_s_file_systems_are_out_of_reach(
    ask: Callable[..., object], stray: str
) -> None:
    with subprocess.Popen(["sleep", "60"]) as other:
        tried = ask("call", calling(*STRAY[stray], process=other.pid))
        other.kill()

    assert tried == "EPERM"


@pytest.mark.parametrize(
    ("name", "arguments", "error"),
    [
        ("tgkill", (PROCESS, PROCESS, 0), ""),
        ("prlimit64", (PROCESS, RLIMIT_CORE, 0, 0), ""),
        ("prlimit64", (0, RLIMIT_CORE, 0, 0), ""),
        ("ioctl", (BAD_FD, seccomp.FS_IOC_GETFLAGS, 0), "EBADF"),
        ("splice", (BAD_FD, 0, BAD_FD, 0, 1, 0), "EBADF"),
        ("clone3", (0, 0), "ENOSYS"),
        ("shmget", (0, 4096, 0o600), "ENOSYS"),
    ],
)
def test_a_worker_may_call_what_it_needs(
    keeper: Keeper, ask: Callable[..., object], name: str, arguments: tuple[int, ...], error: str
) -> None:
    own = keeper.worker_pid

    assert ask("call", calling(name, arguments, own)) == error
    assert ask("raise") == ""


def test_calls_by_the_numbers_of_x32_are_refused(ask: Callable[..., object]) -> None:
    """A kernel without that ABI answers ENOSYS."""
    assert ask("call", f"{0x4000_0000 | number_of('kill')} 0 0") == "EPERM"


def test_a_worker_starts_threads_and_no_process(ask: Callable[..., object]) -> None:
    assert ask("new_process") == "EPERM"
    assert ask("fork", str(number_of("clone"))) == "EPERM"
    assert ask("new_thread") == ""


def test_dot_dot_never_leads_to_the_host(
    keeper: Keeper, source: Path, mountpoint: Path, ask: Callable[..., object]
) -> None:
    """`..` leads to the host from no directory of the source, and from no open descriptor."""
    (source / "a" / "b").mkdir(parents=True)
    with subprocess.Popen(["sleep", "60"], cwd=mountpoint / "a" / "b") as user:
        tops = ask("above")
        user.kill()

    assert isinstance(tops, list)
    links = [top for top in tops if top != ["a"]]
    assert len(tops) - len(links) >= 3
    assert all(name.isdigit() for top in links for name in top)
    assert keeper.processes[0].poll() is None


def test_a_bug_is_logged_with_its_lines_and_the_mount_lives(
    keeper: Keeper, source: Path, mountpoint: Path, ask: Callable[..., object]
) -> None:
    (source / "file").write_text("alive")

    with pytest.raises(OSError, match="Input/output error"):
        ask("fail")

    log = keeper.log.read_text()
    assert "getxattr failed by a mistake of this program" in log
    assert "TypeError: " in log
    assert 'return b"%s%d" % (_links, fd)' in log, "the lines of our own modules"
    assert "Logging error" not in log
    assert on_mount("cat", f"{mountpoint}/file") == "alive"


def test_all_codecs_still_work(keeper: Keeper, ask: Callable[..., object]) -> None:
    assert ask("text") == "\\u2603"
    assert "a name of no known \\udcff" in keeper.log.read_text()


def test_nothing_is_imported_or_read_from_the_volume(
    keeper: Keeper, source: Path, ask: Callable[..., object]
) -> None:
    """A volume's user can make names at which Python searches for modules and source lines.

    A module would be run, and a traceback would wait for a fifo in place of a source file.
    """
    for place in [Path(entry) for entry in sys.path if entry] + [REPOSITORY]:
        below = source / place.relative_to("/")
        below.mkdir(parents=True, exist_ok=True)
        (below / "planted.py").write_text("raise SystemExit('planted')")
    for module in ("tests/support/tools/inside.py", "passthrough/session/libfuse.py"):
        path = source / REPOSITORY.relative_to("/") / module
        path.parent.mkdir(parents=True, exist_ok=True)
        os.mkfifo(path)

    assert ask("import", "planted") == "ModuleNotFoundError"
    with pytest.raises(OSError, match="Input/output error"):
        ask("fail")
    assert "TypeError" in keeper.log.read_text()
    assert keeper.processes[0].poll() is None


@pytest.mark.parametrize("place", ["managed plugin", "service"])
def test_the_capabilities_of_the_plugin_suffice(
    keeper: Keeper, mountpoint: Path, place: str
) -> None:
    asked = json.loads((REPOSITORY / "config.json").read_text())["linux"]["capabilities"]
    given = [*DOCKERS_OWN, *asked] if place == "managed plugin" else unit("CapabilityBoundingSet")
    words = ",".join(f"+{name.removeprefix('CAP_').lower()}" for name in given)

    pid = keeper.serve(within=("setpriv", "--bounding-set", f"-all,{words}")).pid

    assert int(status(pid)[0]["CapEff"], 16) == in_force(KEPT)
    assert probe(mountpoint, "list", "/") == []


@pytest.mark.parametrize("capability", ["sys_admin", "setpcap"])
def test_a_missing_capability_is_refused_by_name(
    source: Path, mountpoint: Path, tmp_path: Path, capability: str
) -> None:
    keeper = Keeper(source, mountpoint, tmp_path / "stderr")
    lacking = ["setpriv", "--bounding-set", f"-{capability}"]
    process = keeper.start(encode(keeper.handover), keeper.passed_fds, lacking)
    report, end = report_of(process), ended(process)
    keeper.close()

    assert not report.serving
    assert report.error == (
        f"{OPTION}CAP_{capability.upper()} missing from the worker's capabilities;"
        " sandbox=none serves without a sandbox"
    )
    assert end == (1, b"")


def refusal(become: Callable[[], object]) -> str:
    """Return the refusal of `enter` in a process that *become* has made unfit."""

    def entering() -> str:
        become()
        try:
            sandbox.enter(os.open("/", os.O_PATH), by_file_handle=True, by_ring=False)
        except sandbox.SandboxError as error:
            return str(error)
        return ""

    return ROOT.run(entering)


def test_a_process_of_several_threads_is_refused() -> None:
    """Namespaces and capabilities belong to a thread, so the others would stay unconfined."""

    def become() -> None:
        reader, _ = os.pipe()
        threading.Thread(target=os.read, args=(reader, 1), daemon=True).start()

    assert refusal(become).startswith(f"{OPTION}the worker has 2 threads, ")


def test_an_unknown_machine_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(seccomp, "MACHINES", {})

    assert refusal(lambda: None).startswith(f"{OPTION}the numbers of the system calls of ")


def test_a_step_that_fails_is_named(tmp_path: Path) -> None:
    """After chroot(2) the root directory is no mount, so it cannot be replaced."""
    (tmp_path / "proc").mkdir()

    def become() -> None:
        privileges.unshare(CLONE_NEWNS)
        syscalls.mount(b"/proc", os.fsencode(tmp_path / "proc"), b"", MS_BIND, b"")
        privileges.load_unwinder()
        os.chroot(tmp_path)

    assert refusal(become).startswith(f"{OPTION}mount_setattr(2): Invalid argument; sandbox=none")


def test_sandbox_none_confines_nothing(source: Path, mountpoint: Path, tmp_path: Path) -> None:
    keeper = Keeper(
        source, mountpoint, tmp_path / "stderr", Requested(sandbox=Sandbox.NONE), INSIDE
    )
    keeper.serve()
    pid = keeper.worker_pid
    threads = status(pid)
    (own,) = status(os.getpid())[:1]
    opened = probe(mountpoint, "open", "/etc/passwd")
    root = os.readlink(f"/proc/{pid}/ns/mnt") == os.readlink("/proc/self/ns/mnt")
    keeper.close()

    assert threads
    for thread in threads:
        assert int(thread["CapEff"], 16) == in_force(int(own["CapEff"], 16))
        assert thread["NoNewPrivs"] == own["NoNewPrivs"]
    assert opened == ""
    assert root


def test_the_command_serves_from_a_sandbox_and_unmounts(source: Path, mountpoint: Path) -> None:
    words = [
        sys.executable,
        "-m",
        "passthrough",
        f"--source={source}",
        f"--mountpoint={mountpoint}",
    ]
    with subprocess.Popen(words, cwd=REPOSITORY, stdout=-1) as process:
        assert process.stdout is not None
        assert process.stdout.readline().startswith(b"serving")
        (child,) = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        targets = [mount.target for mount in mounts_of(int(child))]
        process.terminate()
        assert process.wait(LIMIT_S) == 0

    assert targets == [b"/"]
    assert mounts_at(mountpoint) == []


def test_the_capabilities_are_documented_with_their_reasons() -> None:
    table = (REPOSITORY / "docs" / "security.md").read_text().partition("| Capability |")[2]
    rows = re.findall(r"^\| `(CAP_\w+)` \| (.*) \|$", table, re.MULTILINE)

    assert dict(rows) == {name: reason for name, (_, reason) in sandbox.KEPT.items()}
