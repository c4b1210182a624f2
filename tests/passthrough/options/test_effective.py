from functools import partial

import msgspec
import pytest
from hypothesis import given, strategies as st

from passthrough.options.choices import (
    Atime,
    CachePolicy,
    InodeFileHandles,
    Locks,
    Passthrough,
    Sandbox,
    SessionKind,
    Squash,
    Standby,
    Transport,
)
from passthrough.options.effective import (
    LOCAL_LOCKS,
    OBSTACLES,
    RULES,
    Effective,
    Note,
    described,
    require_io_uring,
    resolve,
)
from passthrough.options.parsing import FOR_A_NEW_DIRECTORY, parse_options
from passthrough.options.sessions import (
    FIRST_IDMAP,
    FIRST_KERNEL_SESSION,
    Release,
    automatic,
)
from passthrough.options.table import OPTIONS, OptionError, Requested, Values, as_text
from passthrough.options.values import Owner, Range

RELEASE = FIRST_KERNEL_SESSION
parse = partial(parse_options, release=RELEASE)


def decided(requested: Requested, file_handles_obstacle: str = "") -> Effective:
    return resolve(requested, RELEASE, file_handles_obstacle)


def requested_again(effective: Effective) -> Requested:
    """Return the options that give each value of *effective*."""
    return Requested(**{name: getattr(effective, name) for name in OPTIONS})


def values_of(options: Values) -> list[object]:
    return [getattr(options, name) for name in OPTIONS]


# An option and the option that overrules it, with the note.
CONFLICTS = {
    "writeback with cache=never": (
        Requested(writeback=True, cache=CachePolicy.NEVER),
        Note("writeback", "false", "with cache=never no data may wait in the kernel"),
    ),
    "writeback with seal_size": (
        Requested(writeback=True, seal_size=True),
        Note(
            "writeback",
            "false",
            "with seal_size each write needs a check before the kernel caches it",
        ),
    ),
    "direct I/O with writeback": (
        Requested(writeback=True),
        Note(
            "allow_direct_io",
            "false",
            "with writeback the kernel writes its cached pages through any descriptor, and"
            " O_DIRECT would refuse those that are not aligned",
        ),
    ),
    "no_open without cache=always": (
        Requested(no_open=True, cache=CachePolicy.METADATA),
        Note(
            "no_open",
            "false",
            "a file that is not opened keeps its cached pages, which only cache=always allows",
        ),
    ),
}
CONFLICTS |= {
    f"ACLs with {name}": (
        msgspec.structs.replace(config, session=SessionKind.KERNEL, posix_acl=True),
        Note(
            "posix_acl",
            "false",
            "an ACL names users and groups by the host's numbers, to which no map is applied",
        ),
    )
    for name, config in {
        "map_uid": Requested(map_uid=(Range(0, 1000, 1),)),
        "map_gid": Requested(map_gid=(Range(0, 1000, 1),)),
        "squash": Requested(squash=Squash.ROOT),
    }.items()
}
CONFLICTS |= {
    f"{option} with squash": (
        msgspec.structs.replace(config, session=SessionKind.KERNEL, squash=Squash.ALL),
        Note(
            option,
            "false",
            "with squash or owner the host must check each open, and the kernel would send no"
            " request",
        ),
    )
    for option, config in {
        "no_open": Requested(no_open=True, cache=CachePolicy.ALWAYS),
        "no_opendir": Requested(no_opendir=True),
    }.items()
}
CONFLICTS |= {
    f"dev with {name}": (
        config,
        Note(
            "dev",
            "false",
            "with squash or owner the host must check each open, and the kernel opens device nodes"
            " by itself",
        ),
    )
    for name, config in {
        "squash=root": Requested(dev=True, squash=Squash.ROOT),
        "squash=all": Requested(dev=True, squash=Squash.ALL),
        "owner": Requested(dev=True, owner=Owner(0, 0)),
    }.items()
}
CONFLICTS |= {
    f"{option} without a sandbox": (
        msgspec.structs.replace(config, sandbox=Sandbox.NONE),
        Note(
            option,
            instead,
            "with sandbox=none the worker reads through the host's mount, whose flags decide on"
            " access times",
        ),
    )
    for option, config, instead in (
        ("atime", Requested(atime=Atime.STRICTATIME), "relatime"),
        ("diratime", Requested(diratime=False), "true"),
    )
}
AGREEMENTS = {
    "noatime without a sandbox": Requested(
        atime=Atime.NOATIME, diratime=False, sandbox=Sandbox.NONE
    ),
    "strictatime": Requested(atime=Atime.STRICTATIME, diratime=False),
    "ACLs": Requested(session=SessionKind.KERNEL, posix_acl=True),
    "no_open with cache=always": Requested(no_open=True, cache=CachePolicy.ALWAYS),
    "writeback without direct I/O": Requested(writeback=True, allow_direct_io=False),
    "seal_size": Requested(seal_size=True),
    "nothing": Requested(),
}


@pytest.mark.parametrize(("requested", "note"), CONFLICTS.values(), ids=CONFLICTS)
def test_an_overruled_option_is_turned_off_with_the_reason(
    requested: Requested, note: Note
) -> None:
    effective = decided(requested)

    assert effective.notes == (note,)
    assert as_text(effective)[note.option] == note.effective
    assert getattr(requested, note.option) != getattr(effective, note.option)
    assert effective.requested == requested


@pytest.mark.parametrize("requested", AGREEMENTS.values(), ids=AGREEMENTS)
def test_options_without_a_conflict_stay(requested: Requested) -> None:
    effective = decided(requested)

    assert effective.notes == ()
    for rule in RULES:
        wanted = getattr(requested, rule.option)
        assert wanted is None or getattr(effective, rule.option) == wanted


def test_every_rule_is_tested_above() -> None:
    assert {rule.reason for rule in RULES} == {note.reason for _, note in CONFLICTS.values()}


def test_an_option_that_is_turned_off_overrules_no_other() -> None:
    effective = decided(Requested(writeback=True, cache=CachePolicy.NEVER, seal_size=True))

    assert [note.option for note in effective.notes] == ["writeback"]
    assert effective.allow_direct_io


def test_a_note_is_a_sentence() -> None:
    assert str(Note("no_open", "false", "because")) == "no_open is false: because"


def test_locks_stay_local_if_the_session_cannot_take_them_to_the_host() -> None:
    """Only locks=host gets a note."""
    portable = SessionKind.LIBFUSE
    host = decided(Requested(session=portable, locks=Locks.HOST))
    left_open = decided(Requested(session=portable))

    assert host.locks is left_open.locks is Locks.LOCAL
    (note,) = host.notes
    reason = "pyfuse3 passes no locks on, so that the kernel keeps them among the volume's users"
    assert str(note) == f"locks is local: {reason}"
    assert left_open.notes == ()
    assert decided(Requested(session=portable, locks=Locks.LOCAL)).notes == ()


def test_the_reasons_for_local_locks() -> None:
    session, no_open = LOCAL_LOCKS

    assert session.applies(Requested(session=SessionKind.LIBFUSE))
    assert no_open.applies(Requested(no_open=True, cache=CachePolicy.ALWAYS))
    assert not no_open.applies(Requested())


def test_every_value_that_was_left_open_is_decided() -> None:
    effective = decided(Requested(cache=CachePolicy.NEVER, attr_timeout=2.0))

    assert effective.session is automatic(RELEASE).session
    assert decided(Requested(session=SessionKind.LIBFUSE)).killpriv_v2 is False
    assert decided(Requested(session=SessionKind.KERNEL)).killpriv_v2 is True
    assert decided(Requested(session=SessionKind.LIBFUSE)).posix_acl is False
    assert decided(Requested(session=SessionKind.KERNEL)).posix_acl is True
    assert decided(Requested(session=SessionKind.KERNEL, xattr=False)).posix_acl is False
    assert effective.entry_timeout == effective.dir_entry_timeout == 0
    assert effective.attr_timeout == effective.dir_attr_timeout == 2
    still_open = {name for name in OPTIONS if getattr(effective, name) is None}
    assert still_open == {*FOR_A_NEW_DIRECTORY, "subpath", "owner", "log_level"}


@given(
    st.builds(
        Requested,
        cache=st.sampled_from(CachePolicy),
        entry_timeout=st.none() | st.floats(0, 100),
        no_open=st.booleans(),
        writeback=st.booleans(),
        seal_size=st.booleans(),
        allow_direct_io=st.booleans(),
    )
)
def test_effective_options_have_no_conflict(requested: Requested) -> None:
    effective = decided(requested)
    again = decided(requested_again(effective))

    assert (values_of(again), again.notes) == (values_of(effective), ())


def test_effective_options_can_be_given_as_text() -> None:
    effective = decided(Requested())
    again = decided(parse(as_text(effective)))

    assert (values_of(again), again.notes) == (values_of(effective), ())


def test_the_session_is_described_with_the_reason() -> None:
    kernel = decided(Requested(session=SessionKind.KERNEL))
    asked = described(kernel, RELEASE)
    chosen = described(decided(Requested()), RELEASE)

    assert asked["session"] == "kernel: as asked for"
    assert chosen["session"] == ": ".join(automatic(RELEASE))
    assert asked["options"] == as_text(kernel)
    assert asked["notes"] == []


@pytest.mark.parametrize(
    ("release", "session", "reason"),
    [
        ((6, 9), SessionKind.KERNEL, "Linux 6.9 has FUSE passthrough"),
        ((7, 0), SessionKind.KERNEL, "Linux 7.0 has FUSE passthrough"),
        ((6, 8), SessionKind.LIBFUSE, "Linux 6.8 is older than 6.9"),
        ((0, 0), SessionKind.LIBFUSE, "Linux 0.0 is older than 6.9"),
    ],
)
def test_the_release_decides_the_automatic_session(
    release: Release, session: SessionKind, reason: str
) -> None:
    assert automatic(release) == (session, reason)
    assert resolve(Requested(), release).session is session


# The obstacles to passthrough: options beside session=kernel, and a piece of the reason.
WITH_OBSTACLE = {
    "libfuse": (Requested(session=SessionKind.LIBFUSE), "pyfuse3 does not negotiate"),
    "writeback": (Requested(writeback=True), "with writeback"),
    "seal_size": (Requested(seal_size=True), "with seal_size"),
    "metadata": (Requested(cache=CachePolicy.METADATA), "with cache=metadata"),
    "no_open": (Requested(no_open=True, cache=CachePolicy.ALWAYS), "with no_open"),
    "noatime without a sandbox": (
        Requested(atime=Atime.NOATIME, sandbox=Sandbox.NONE),
        "with atime=noatime and sandbox=none",
    ),
}
WITHOUT_OBSTACLE = {
    "nothing": Requested(),
    "noatime": Requested(atime=Atime.NOATIME),
    "metadata without direct I/O": Requested(cache=CachePolicy.METADATA, allow_direct_io=False),
    "writeback that is off": Requested(writeback=True, cache=CachePolicy.NEVER),
    "no_open that is off": Requested(no_open=True),
}


def with_passthrough(requested: Requested, wish: Passthrough) -> Requested:
    automatic = requested.session is SessionKind.AUTO
    session = SessionKind.KERNEL if automatic else requested.session
    return msgspec.structs.replace(requested, session=session, passthrough=wish)


@pytest.mark.parametrize(("requested", "reason"), WITH_OBSTACLE.values(), ids=WITH_OBSTACLE)
def test_an_obstacle_refuses_passthrough_or_turns_it_off(requested: Requested, reason: str) -> None:
    with pytest.raises(OptionError) as refused:
        decided(with_passthrough(requested, Passthrough.ON))
    assert str(refused.value).startswith("option 'passthrough': 'on' cannot be had: " + reason)
    assert str(refused.value).endswith("; expected auto or off")

    auto = decided(with_passthrough(requested, Passthrough.AUTO))
    assert auto.passthrough is Passthrough.OFF
    assert str(described(auto, RELEASE)["passthrough"]).startswith("off: " + reason)
    assert "passthrough" not in str(described(auto, RELEASE)["notes"])


def test_every_obstacle_to_passthrough_is_tested_above() -> None:
    assert len(WITH_OBSTACLE) == len(OBSTACLES)


@pytest.mark.parametrize("requested", WITHOUT_OBSTACLE.values(), ids=WITHOUT_OBSTACLE)
@pytest.mark.parametrize("wish", [Passthrough.AUTO, Passthrough.ON])
def test_passthrough_without_an_obstacle(requested: Requested, wish: Passthrough) -> None:
    effective = decided(with_passthrough(requested, wish))

    assert effective.passthrough is wish
    assert str(described(effective, RELEASE)["passthrough"]).startswith("on: ")
    without = described(effective, RELEASE, "it is not offered")
    assert without["passthrough"] == "off: it is not offered"
    off = decided(with_passthrough(requested, Passthrough.OFF))
    assert described(off, RELEASE)["passthrough"] == "off: as asked for"


def test_preferred_file_handles_are_turned_off_if_the_source_has_none() -> None:
    effective = decided(Requested(), "there are none")

    assert effective.inode_file_handles is InodeFileHandles.NEVER
    assert effective.notes == (Note("inode_file_handles", "never", "there are none"),)
    assert decided(requested_again(effective), "there are none").notes == ()


def test_mandatory_file_handles_are_refused_if_the_source_has_none() -> None:
    requested = Requested(inode_file_handles=InodeFileHandles.MANDATORY)

    with pytest.raises(OptionError) as refused:
        decided(requested, "there are none")

    assert str(refused.value) == (
        "option 'inode_file_handles': 'mandatory' cannot be had: there are none;"
        " expected prefer or never"
    )
    assert decided(requested).inode_file_handles is InodeFileHandles.MANDATORY


WITH_HINDRANCE = {
    "map_uid": (Requested(idmap=True, map_uid=(Range(0, 1000, 1),)), "with map_uid or map_gid"),
    "map_gid": (Requested(idmap=True, map_gid=(Range(0, 1000, 1),)), "with map_uid or map_gid"),
    "squash": (Requested(idmap=True, squash=Squash.ROOT), "with squash"),
}


@pytest.mark.parametrize(("requested", "reason"), WITH_HINDRANCE.values(), ids=WITH_HINDRANCE)
def test_idmap_is_refused_if_the_worker_needs_the_ids_of_callers(
    requested: Requested, reason: str
) -> None:
    with pytest.raises(OptionError) as refused:
        resolve(requested, FIRST_IDMAP)

    assert str(refused.value).startswith("option 'idmap': 'true' cannot be had: " + reason)
    assert str(refused.value).endswith("; expected false")


def test_idmap_is_refused_on_older_kernels() -> None:
    with pytest.raises(OptionError, match=r"'true' cannot be had: Linux has .* from 6\.12 on"):
        resolve(Requested(idmap=True), (6, 11))

    assert resolve(Requested(idmap=True), (6, 12)).notes == ()


OFF = "no administrator has switched it on"


@pytest.mark.parametrize(
    ("transport", "session", "description"),
    [
        (
            Transport.AUTO,
            SessionKind.KERNEL,
            "dev: the default, because io_uring is slower",
        ),
        (Transport.AUTO, SessionKind.LIBFUSE, "dev: pyfuse3 reads /dev/fuse itself"),
        (Transport.DEV, SessionKind.KERNEL, "dev: as asked for"),
        (Transport.IO_URING, SessionKind.KERNEL, "io_uring: as asked for"),
    ],
)
def test_the_transport_is_described_with_the_reason(
    transport: Transport, session: SessionKind, description: str
) -> None:
    effective = decided(Requested(session=session, transport=transport))

    assert str(described(effective, RELEASE)["transport"]).startswith(description)
    assert description.startswith(f"{effective.transport}: ")
    assert values_of(decided(requested_again(effective))) == values_of(effective)


@pytest.mark.parametrize(
    ("requested", "expected", "noted"),
    [
        (Requested(session=SessionKind.KERNEL), "on: another process makes", False),
        (Requested(session=SessionKind.KERNEL, standby=Standby.ON), "on: as asked for", False),
        (Requested(session=SessionKind.KERNEL, standby=Standby.OFF), "off: as asked for", False),
        (Requested(session=SessionKind.LIBFUSE), "off: with session=libfuse", False),
        (
            Requested(session=SessionKind.LIBFUSE, standby=Standby.ON),
            "off: with session=libfuse",
            True,
        ),
        (
            Requested(session=SessionKind.KERNEL, transport=Transport.IO_URING, standby=Standby.ON),
            "off: with transport=io_uring",
            True,
        ),
    ],
)
def test_the_standby_is_described_with_the_reason(
    requested: Requested, expected: str, *, noted: bool
) -> None:
    effective = decided(requested)

    assert str(described(effective, RELEASE)["standby"]).startswith(expected)
    assert expected.startswith(f"{effective.standby}: ")
    assert [note.option for note in effective.notes] == ["standby"] * noted


@pytest.mark.parametrize("transport", [Transport.AUTO, Transport.DEV])
def test_only_io_uring_needs_rings(transport: Transport) -> None:
    effective = decided(Requested(session=SessionKind.KERNEL, transport=transport))

    require_io_uring(effective, OFF)
    assert effective.transport is Transport.DEV


@pytest.mark.parametrize(
    ("session", "reason"),
    [(SessionKind.KERNEL, OFF), (SessionKind.LIBFUSE, "pyfuse3 reads /dev/fuse")],
)
def test_unavailable_rings_are_refused(session: SessionKind, reason: str) -> None:
    requested = Requested(session=session, transport=Transport.IO_URING)

    with pytest.raises(OptionError, match=reason) as refused:
        require_io_uring(decided(requested), OFF)

    assert (refused.value.option, refused.value.accepted) == ("transport", "auto or dev")


@pytest.mark.parametrize(
    ("text", "meant"),
    [("511", "0777"), ("504", "0770"), ("1023", "1777"), ("1533", "2775"), ("0511", "0777")],
)
def test_a_mode_that_yaml_may_have_converted_is_noted(text: str, meant: str) -> None:
    (note,) = decided(parse({"mode": text})).notes

    assert str(note) == (
        f"mode is {int(text, 8):04o}: YAML makes this of {meant} without quotes; if you meant that,"
        f' write "{meant}"'
    )


@pytest.mark.parametrize("text", ["0755", "700", "1777", "2775", "0555", "000", "0400", "none"])
def test_a_mode_that_makes_sense_is_not_noted(text: str) -> None:
    assert decided(parse({"mode": text})).notes == ()


def test_a_volume_that_looks_empty_to_an_engine_is_noted() -> None:
    (note,) = decided(parse({"no_readdir": ""})).notes

    assert str(note).startswith("no_readdir is true: an engine takes the volume for empty")
    assert decided(parse({"no_readdir": "", "ro": ""})).notes == ()


def test_requested_options_are_no_effective_options() -> None:
    """The call is an error to mypy; otherwise mypy would report the comment as unused."""
    with pytest.raises(AttributeError):
        described(Requested(), RELEASE)  # type: ignore[arg-type]
