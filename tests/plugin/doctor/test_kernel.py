"""The checks of the kernel, with the facts of other kernels than this one."""

import errno
import os
import stat
from pathlib import Path

import pytest

from passthrough.linux import kernel_features, privileges, syscalls
from plugin.doctor import kernel
from plugin.doctor.facts import Facts, InitFacts
from plugin.doctor.finding import State
from tests.support.tools.doctor import facts, init, machine, written


@pytest.mark.parametrize(
    ("release", "architecture", "state", "meaning"),
    [
        ((6, 18), "x86_64", State.OK, ""),
        ((6, 9), "aarch64", State.OK, ""),
        ((6, 8), "x86_64", State.WARNING, "session=auto takes libfuse"),
        ((5, 14), "riscv64", State.WARNING, "session=auto takes libfuse"),
        ((5, 13), "x86_64", State.ERROR, "unless it has sandbox=none"),
        ((6, 18), "s390x", State.ERROR, "unless it has sandbox=none"),
    ],
)
def test_the_release(
    tmp_path: Path, release: tuple[int, int], architecture: str, state: State, meaning: str
) -> None:
    known = Facts(machine(tmp_path, release=release, architecture=architecture))
    found = kernel.release(known)
    assert (found.state, meaning in found.meaning) == (state, True)
    assert found.found == f"Linux {release[0]}.{release[1]} on {architecture}"


def with_device(directory: Path, mode: int, number: tuple[int, int] = (10, 229)) -> Facts:
    """Return facts with a device of FUSE that has a mode and a number."""
    written(directory, proc__filesystems="nodev\tproc\nnodev\tfuse\n")
    path = directory / "fuse"
    os.mknod(path, stat.S_IFCHR, os.makedev(*number))
    path.chmod(mode)
    return Facts(machine(directory, fuse=path))


def test_the_device_opens_for_all(tmp_path: Path) -> None:
    found = kernel.device(with_device(tmp_path, 0o666))
    assert (found.state, found.found) == (State.OK, f"{tmp_path}/fuse opens, and has mode 0666")


def test_the_device_opens_for_root_alone(tmp_path: Path) -> None:
    found = kernel.device(with_device(tmp_path, 0o600))
    assert (found.state, found.remedy.rpartition(": ")[2]) == (
        State.NOTE,
        f"chmod 0666 {tmp_path}/fuse",
    )


def test_another_device_is_an_error(tmp_path: Path) -> None:
    found = kernel.device(with_device(tmp_path, 0o666, (1, 3)))
    assert (found.state, found.found) == (State.ERROR, f"{tmp_path}/fuse is not the device of FUSE")


def test_a_missing_device_is_an_error(tmp_path: Path) -> None:
    found = kernel.device(Facts(machine(tmp_path, fuse=tmp_path / "fuse")))
    assert (found.state, found.found) == (
        State.ERROR,
        f"{tmp_path}/fuse: No such file or directory",
    )
    assert found.remedy.startswith("modprobe fuse")


def test_the_device_of_a_kernel_without_the_module_is_not_opened(tmp_path: Path) -> None:
    known = with_device(tmp_path, 0o666)
    written(tmp_path, proc__filesystems="nodev\tproc\n\tfuseblk\n")
    (tmp_path / "fuse").unlink()
    os.mknod(tmp_path / "fuse", stat.S_IFCHR, os.makedev(10, 229))
    found = kernel.device(known)
    assert (found.state, found.found) == (State.WARNING, "the module fuse is not loaded")


@pytest.mark.parametrize(
    ("offered", "state", "text"),
    [
        (init(), State.OK, "FUSE 7.45"),
        (init(minor=39), State.WARNING, "FUSE 7.39"),
        (init("SETXATTR_EXT"), State.WARNING, "FUSE 7.45, without SETXATTR_EXT"),
        (
            InitFacts(error="EPERM"),
            State.WARNING,
            "not checked: the kernel sends no INIT: EPERM",
        ),
    ],
)
def test_the_protocol(tmp_path: Path, offered: InitFacts, state: State, text: str) -> None:
    found = kernel.protocol(facts(tmp_path, init=offered))
    assert (found.state, found.found) == (state, text)


def test_features_that_are_not_offered_are_named_with_their_purpose(tmp_path: Path) -> None:
    found = kernel.features(facts(tmp_path, init=init("ALLOW_IDMAP", "POSIX_ACL")))
    assert (found.state, found.found) == (State.NOTE, "not offered: posix_acl, allow_idmap")
    assert "posix_acl (access checks by POSIX ACLs, with posix_acl)" in found.meaning


def test_features_with_checks_of_their_own_are_not_named_twice(tmp_path: Path) -> None:
    offered = init("PASSTHROUGH", "OVER_IO_URING", "SUBMOUNTS")
    found = kernel.features(facts(tmp_path, init=offered))
    assert found.state is State.OK
    assert kernel.features(facts(tmp_path, init=InitFacts(error="x"))).state is State.WARNING


@pytest.mark.parametrize(
    ("offered", "uid_map", "state", "text"),
    [
        (init(), "0 0 4294967295", State.OK, "can read and write"),
        (init(), "0 1000 1", State.NOTE, "this process is in a user namespace"),
        (init("PASSTHROUGH"), "0 0 4294967295", State.NOTE, "does not offer it"),
        (InitFacts(error="x"), "", State.WARNING, "not checked"),
    ],
)
def test_passthrough(
    tmp_path: Path, offered: InitFacts, uid_map: str, state: State, text: str
) -> None:
    written(tmp_path, proc__self__uid_map=f"{uid_map}\n")
    found = kernel.passthrough(facts(tmp_path, init=offered))
    assert (found.state, text in found.found) == (state, True)


OFF = "no administrator has switched it on: PATH is N"
OLD = "Linux 6.8 has no FUSE over io_uring, which comes with 6.14 (PATH: missing)"


@pytest.mark.parametrize(
    ("obstacle", "disabled", "remedy"),
    [
        ("", "0", ""),
        ("", "1", ""),
        ("", "2", "sysctl kernel.io_uring_disabled=1"),
        (OFF, "0", "echo Y > "),
        (OLD, "0", "run Linux 6.14"),
    ],
)
def test_io_uring(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    obstacle: str,
    disabled: str,
    remedy: str,
) -> None:
    written(tmp_path, proc__sys__kernel__io_uring_disabled=f"{disabled}\n")
    monkeypatch.setattr(kernel_features, "io_uring_obstacle", lambda: obstacle)
    found = kernel.io_uring(facts(tmp_path))
    assert found.state is (State.NOTE if remedy else State.OK)
    assert found.remedy.startswith(remedy)


@pytest.mark.parametrize(
    ("number", "state", "remedy"),
    [
        (errno.ENOSPC, State.ERROR, "raise /proc/sys/user/max_{mnt,net,ipc,uts}_namespaces"),
        (errno.EINVAL, State.ERROR, "run a kernel with them"),
        (errno.EPERM, State.WARNING, "run the command as root"),
    ],
)
def test_a_kernel_that_refuses_namespaces(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, state: State, remedy: str
) -> None:
    def refuse(_: int) -> None:
        raise OSError(number, os.strerror(number))

    written(tmp_path, proc__sys__kernel__seccomp__actions_avail="errno\n")
    monkeypatch.setattr(privileges, "unshare", refuse)
    found = kernel.namespaces(facts(tmp_path))
    assert (found.state, found.remedy) == (state, remedy)


def test_a_kernel_without_seccomp(tmp_path: Path) -> None:
    found = kernel.namespaces(facts(tmp_path))
    assert (found.state, found.found) == (State.ERROR, "the kernel has no seccomp filters")


def test_a_kernel_without_fanotify(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert kernel.fanotify(facts(tmp_path)).state is State.OK

    def refuse(_: int) -> int:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))

    monkeypatch.setattr(syscalls, "fanotify_init", refuse)
    found = kernel.fanotify(facts(tmp_path))
    assert (found.state, found.found) == (State.NOTE, "not available (Function not implemented)")
