"""The completion of arguments in bash, zsh and fish."""

import os
import pty
import re
import select
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
from typer.testing import CliRunner

from plugin.__main__ import app
from plugin.volume import VolumeName
from plugin.volumes.registry import Registry
from tests.support.tools.records import record
from tests.support.tools.service import Service, started

pytestmark = pytest.mark.full

LIMIT_S = 30.0
NAMES = ("data", "db", "web")
EVIL = "d$(touch evil)`touch evil`\n"


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """A plugin with volumes, one of them with a name that harms a shell."""
    directory = tmp_path_factory.mktemp("completion")
    (directory / "data").mkdir()
    with Registry.open(directory / "data") as registry:
        registry.add(msgspec.structs.replace(record("evil"), name=VolumeName(EVIL)))
    with started(directory) as service:
        for name in NAMES:
            service.call("VolumeDriver.Create", Name=name, Opts={})
        yield service


def output(environment: dict[str, str], *command: str, cwd: Path | None = None) -> str:
    """Return the output of a command; `passfs` is that of this interpreter."""
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    done = subprocess.run(
        command,
        env=environment | {"PATH": path},
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
        check=True,
        cwd=cwd,
    )
    assert done.stderr == ""
    return done.stdout


def completed(*words: str) -> list[str]:
    """Return the completions of the last of *words*, as bash asks for them: it splits at `=`."""
    split = [part for word in words for part in re.split("(=)", word) if part or not word]
    environment = {
        "_PASSFS_COMPLETE": "complete_bash",
        "COMP_WORDS": "\n".join(["passfs", *split]),
        "COMP_CWORD": str(len(split)),
    }
    return asked(environment).split()


def asked(environment: dict[str, str]) -> str:
    """Return the answer of `passfs`, in this process, to the script of a shell."""
    result = CliRunner(env=environment).invoke(app, [], prog_name="passfs")
    assert result.exit_code == 0
    return result.stdout


def data_dir(service: Service) -> tuple[str, str]:
    return "--data-dir", str(service.directory / "data")


@pytest.mark.parametrize("command", ["status", "check", "rm"])
def test_names_of_volumes_are_completed(service: Service, command: str) -> None:
    assert completed(command, *data_dir(service), "d") == ["data", "db"]


def test_without_a_plugin_there_is_no_name(tmp_path: Path) -> None:
    assert completed("status", "--data-dir", str(tmp_path), "d") == []


def test_commands_and_options_are_completed() -> None:
    assert completed("unm") == ["unmount"]
    assert completed("mount", "--f") == ["--foreground"]


@pytest.mark.parametrize(
    ("word", "completions"),
    [
        ("ro,nos", ["ro,nosuid"]),
        ("ro,no_open", ["ro,no_open=", "ro,no_opendir="]),
        ("cac", ["cache=never", "cache=metadata", "cache=auto", "cache=always"]),
        ("ro,cache=a", ["auto", "always"]),
        ("sub", ["submounts=cross", "submounts=hide"]),  # no subpath, which is for volumes
        ("zz", []),
    ],
)
def test_the_words_of_options_are_completed(word: str, completions: list[str]) -> None:
    assert completed("mount", "/srv", "/mnt", "-o", word) == completions


@pytest.mark.parametrize(
    ("word", "completions"),
    [
        ("dir", ["dir_attr_timeout=", "dir_entry_timeout=", "diratime="]),
        ("loc", ["locks=host", "locks=local"]),
        ("locks=", ["host", "local"]),
        ("readonly=f", ["false"]),
        ("entry_timeout=5", []),
        ("nosu", ["nosuid"]),
    ],
)
def test_the_changes_of_options_are_completed(word: str, completions: list[str]) -> None:
    assert completed("set", "db", word) == completions
    assert completed("set", "--data-dir=/none", "db", "cache=auto", word) == completions


def test_a_value_does_not_follow_a_blank() -> None:
    assert "cache=" in completed("set", "db", "cache=", "")


def test_names_of_options_with_a_default_are_completed() -> None:
    assert completed("set", "db", "--unset", "dir") == [
        *("dir_entry_timeout", "dir_attr_timeout", "diratime"),
    ]


def test_an_option_is_completed_if_it_can_be_changed(service: Service) -> None:
    """The plugin is asked to change each option to the value that it has."""
    in_force = service.call("VolumeDriver.Get", Name="db")["Volume"]["Status"]["options"]
    names = {word.removesuffix("=") for word in completed("set", "db", "")} & in_force.keys()
    accepted = {
        name
        for name, value in in_force.items()
        if CliRunner()
        .invoke(app, ["set", *data_dir(service), "db", "--dry-run", f"{name}={value}"])
        .exit_code
        == 0
    }
    assert names == accepted


def test_a_real_bash_completes(service: Service, tmp_path: Path) -> None:
    script = (
        'eval "$(_PASSFS_COMPLETE=source_bash passfs)"; complete -p passfs;'
        f" COMP_WORDS=(passfs status {' '.join(data_dir(service))} d); COMP_CWORD=4;"
        ' _passfs_completion passfs; printf "%s\\n" "${COMPREPLY[@]}"'
    )

    lines = output({}, "bash", "--norc", "-c", script, cwd=tmp_path).splitlines()

    assert lines == ["complete -o default -F _passfs_completion passfs", "data", "db"]
    assert list(tmp_path.iterdir()) == []


def read_until(terminal: int, end: bytes) -> bytes:
    """Return what the terminal receives, up to *end*."""
    received = b""
    while end not in received:
        assert select.select([terminal], [], [], LIMIT_S)[0], received
        received += os.read(terminal, 4096)
    return received


@pytest.mark.parametrize(
    ("typed", "completed"),
    [
        (b"set db cache=al\t", b"<set><db><cache=always>"),
        (b"set --data-dir=/none db lock\th\t", b"<set><--data-dir=/none><db><locks=host>"),
        (b"mount -o ro,cache=al\t", b"<mount><-o><ro,cache=always>"),
    ],
)
def test_a_bash_that_is_typed_into_completes_values(typed: bytes, completed: bytes) -> None:
    ours, theirs = pty.openpty()
    environment = {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "TERM": "dumb"}
    command = ("setsid", "--ctty", "bash", "--noprofile", "--norc", "-i")
    with os.fdopen(ours, "r+b", buffering=0) as terminal:
        bash = subprocess.Popen(
            command, stdin=theirs, stdout=theirs, stderr=theirs, env=environment | {"PS1": "> "}
        )
        os.close(theirs)
        try:
            for line in (
                b'eval "$(_PASSFS_COMPLETE=source_bash passfs)"\n',
                b"passfs() { printf '<%s>' \"$@\"; echo; }\n",
                b"passfs " + typed + b"\n",
            ):
                read_until(ours, b"> ")
                terminal.write(line)
            assert completed in read_until(ours, completed)
        finally:
            bash.kill()
            bash.wait()


@pytest.mark.parametrize(
    ("shell", "environment", "answer"),
    [
        ("zsh", {}, '_arguments \'*: :(("data""db"))\''),
        ("fish", {"_TYPER_COMPLETE_FISH_ACTION": "get-args"}, "data\ndb"),
    ],
)
def test_other_shells_get_names(
    service: Service, shell: str, environment: dict[str, str], answer: str
) -> None:
    words = " ".join(["passfs", "status", *data_dir(service), "d"])
    question = {"_PASSFS_COMPLETE": f"complete_{shell}", "_TYPER_COMPLETE_ARGS": words}

    found = asked(question | environment)

    assert "".join(found.split()) == "".join(answer.split())


@pytest.mark.parametrize("shell", ["zsh", "fish"])
def test_other_shells_get_whole_words(shell: str) -> None:
    question = {
        "_PASSFS_COMPLETE": f"complete_{shell}",
        "_TYPER_COMPLETE_FISH_ACTION": "get-args",
        "_TYPER_COMPLETE_ARGS": "passfs set db locks=l",
    }

    assert re.findall(r"[\w=]*=\w+", asked(question)) == ["locks=local"]


@pytest.mark.parametrize(
    ("shell", "line"),
    [("bash", "complete -o"), ("zsh", "#compdef passfs"), ("fish", "complete --command passfs")],
)
def test_a_package_can_write_the_script_of_each_shell(shell: str, line: str) -> None:
    assert line in asked({"_PASSFS_COMPLETE": f"source_{shell}"})
