import os
from types import SimpleNamespace

import msgspec
import pytest
from hypothesis import given, strategies as st

from passthrough.linux import kernel_features
from passthrough.options import config as config_module
from passthrough.options.config import (
    FOR_A_NEW_DIRECTORY,
    Atime,
    CachePolicy,
    Config,
    InodeFileHandles,
    Locks,
    OptionError,
    Passthrough,
    Session,
    Squash,
    Transport,
    as_text,
    parse_options,
)
from passthrough.options.effective import LOCAL_LOCKS, OBSTACLES, RULES, Note, decide, described
from passthrough.options.values import Range

# A wish that cannot be had, beside what overrules it.
CONFLICTS = {
    "writeback with cache=never": (
        Config(writeback=True, cache=CachePolicy.NEVER),
        Note("writeback", "false", "with cache=never no data may wait in the kernel"),
    ),
    "writeback with seal_size": (
        Config(writeback=True, seal_size=True),
        Note(
            "writeback",
            "false",
            "seal_size refuses what would make a file longer, and must be asked before it is"
            " cached",
        ),
    ),
    "direct I/O with writeback": (
        Config(writeback=True),
        Note(
            "allow_direct_io",
            "false",
            "with writeback the kernel writes its cached pages through any descriptor, and"
            " O_DIRECT would refuse those that are not aligned",
        ),
    ),
    "no_open without cache=always": (
        Config(no_open=True, cache=CachePolicy.METADATA),
        Note(
            "no_open",
            "false",
            "a file that is not opened keeps its cached pages, which cache=always alone allows",
        ),
    ),
}
CONFLICTS |= {
    f"ACLs with {name}": (
        msgspec.structs.replace(config, session=Session.KERNEL, posix_acl=True),
        Note(
            "posix_acl",
            "false",
            "an ACL names users and groups by the host's numbers, to which no map is applied",
        ),
    )
    for name, config in {
        "map_uid": Config(map_uid=(Range(0, 1000, 1),)),
        "map_gid": Config(map_gid=(Range(0, 1000, 1),)),
        "squash": Config(squash=Squash.ROOT),
    }.items()
}
CONFLICTS |= {
    f"{option} with squash": (
        msgspec.structs.replace(config, session=Session.KERNEL, squash=Squash.ALL),
        Note(
            option,
            "false",
            "squash has the host asked about each open, and the kernel would ask about none",
        ),
    )
    for option, config in {
        "no_open": Config(no_open=True, cache=CachePolicy.ALWAYS),
        "no_opendir": Config(no_opendir=True),
    }.items()
}
AGREEMENTS = {
    "ACLs": Config(session=Session.KERNEL, posix_acl=True),
    "no_open with cache=always": Config(no_open=True, cache=CachePolicy.ALWAYS),
    "writeback without direct I/O": Config(writeback=True, allow_direct_io=False),
    "seal_size": Config(seal_size=True),
    "nothing": Config(),
}


@pytest.mark.parametrize(("config", "note"), CONFLICTS.values(), ids=CONFLICTS)
def test_a_wish_that_another_option_overrules_is_turned_off_with_the_reason(
    config: Config, note: Note
) -> None:
    applies, notes = decide(config)

    assert notes == (note,)
    assert as_text(applies)[note.option] == note.effective
    assert getattr(config, note.option) != getattr(applies, note.option)


@pytest.mark.parametrize("config", AGREEMENTS.values(), ids=AGREEMENTS)
def test_wishes_that_agree_apply(config: Config) -> None:
    applies, notes = decide(config)

    assert notes == ()
    for rule in RULES:
        assert getattr(applies, rule.option) == getattr(config, rule.option)


def test_every_rule_is_tried_above() -> None:
    assert {rule.reason for rule in RULES} == {note.reason for _, note in CONFLICTS.values()}


def test_what_is_turned_off_turns_nothing_else_off() -> None:
    applies, notes = decide(Config(writeback=True, cache=CachePolicy.NEVER, seal_size=True))

    assert [note.option for note in notes] == ["writeback"]
    assert applies.allow_direct_io


def test_a_note_is_a_sentence() -> None:
    assert str(Note("no_open", "false", "because")) == "no_open is false: because"


def test_locks_stay_local_where_the_session_cannot_take_them_to_the_host() -> None:
    """Said to who asked for it; who did not gets what there is."""
    portable = Session.LIBFUSE
    wanted, notes = decide(Config(session=portable, locks=Locks.HOST))
    left_open, no_notes = decide(Config(session=portable))

    assert wanted.locks is left_open.locks is Locks.LOCAL
    (note,) = notes
    reason = "pyfuse3 passes no locks on, so that the kernel keeps them among the volume's users"
    assert str(note) == f"locks is local: {reason}"
    assert no_notes == decide(Config(session=portable, locks=Locks.LOCAL)).notes == ()


def test_what_leaves_locks_to_the_kernel() -> None:
    opened_unasked = Config(no_open=True, cache=CachePolicy.ALWAYS)
    (session, _), (no_open, _) = LOCAL_LOCKS

    assert session(Config(session=Session.LIBFUSE))
    assert no_open(opened_unasked)
    assert not no_open(Config())


def test_what_was_left_open_is_answered() -> None:
    applies, _ = decide(Config(cache=CachePolicy.NEVER, attr_timeout=2.0))

    assert applies.session is config_module.automatic().session
    assert decide(Config(session=Session.LIBFUSE)).config.killpriv_v2 is False
    assert decide(Config(session=Session.KERNEL)).config.killpriv_v2 is True
    assert applies.entry_timeout == applies.dir_entry_timeout == 0
    assert applies.attr_timeout == applies.dir_attr_timeout == 2
    open_still = {name for name, value in msgspec.structs.asdict(applies).items() if value is None}
    assert open_still == set(FOR_A_NEW_DIRECTORY)


@given(
    st.builds(
        Config,
        cache=st.sampled_from(CachePolicy),
        entry_timeout=st.none() | st.floats(0, 100),
        no_open=st.booleans(),
        writeback=st.booleans(),
        seal_size=st.booleans(),
        allow_direct_io=st.booleans(),
    )
)
def test_what_is_decided_stays_decided(config: Config) -> None:
    applies, _ = decide(config)

    assert decide(applies) == (applies, ())


def test_what_applies_can_be_given_as_options() -> None:
    applies, _ = decide(Config())

    assert decide(parse_options(as_text(applies))) == (applies, ())


def test_who_serves_is_described_with_the_reason() -> None:
    asked, automatic = described(Config(session=Session.KERNEL)), described(Config())
    chosen = config_module.automatic()

    assert asked["session"] == "kernel: as asked for"
    assert str(automatic["session"]).startswith(f"{chosen.session}: ")
    assert asked["options"] == as_text(decide(Config(session=Session.KERNEL)).config)
    assert asked["notes"] == []


@pytest.mark.parametrize(
    ("release", "session", "reason"),
    [
        ((6, 9), Session.KERNEL, "Linux 6.9 has FUSE passthrough and resends requests"),
        ((7, 0), Session.KERNEL, "Linux 7.0 has FUSE passthrough and resends requests"),
        ((6, 8), Session.LIBFUSE, "Linux 6.8 is older than 6.9"),
        ((0, 0), Session.LIBFUSE, "Linux 0.0 is older than 6.9"),
    ],
)
def test_what_auto_takes_goes_by_the_release(
    monkeypatch: pytest.MonkeyPatch,
    release: tuple[int, int],
    session: Session,
    reason: str,
) -> None:
    monkeypatch.setattr(kernel_features, "linux_release", lambda: release)

    assert config_module.automatic() == (session, reason)
    assert decide(Config()).config.session is session


@pytest.mark.parametrize(
    ("text", "release"), [("6.18.44-fc", (6, 18)), ("5.10", (5, 10)), ("odd", (0, 0))]
)
def test_the_release_is_read(
    monkeypatch: pytest.MonkeyPatch, text: str, release: tuple[int, int]
) -> None:
    monkeypatch.setattr(os, "uname", lambda: SimpleNamespace(release=text))

    assert kernel_features.linux_release() == release


# What keeps the kernel from the host's files: options beside session=kernel, a piece of the reason.
IN_THE_WAY = {
    "libfuse": (Config(session=Session.LIBFUSE), "pyfuse3 does not negotiate"),
    "writeback": (Config(writeback=True), "with writeback"),
    "seal_size": (Config(seal_size=True), "seal_size"),
    "metadata": (Config(cache=CachePolicy.METADATA), "with cache=metadata"),
    "no_open": (Config(no_open=True, cache=CachePolicy.ALWAYS), "with no_open"),
    "noatime": (Config(atime=Atime.NOATIME), "with atime=noatime"),
}
NOT_IN_THE_WAY = {
    "nothing": Config(),
    "metadata without direct I/O": Config(cache=CachePolicy.METADATA, allow_direct_io=False),
    "writeback that is off": Config(writeback=True, cache=CachePolicy.NEVER),
    "no_open that is off": Config(no_open=True),
}


def with_passthrough(config: Config, wish: Passthrough) -> Config:
    session = Session.KERNEL if config.session is Session.AUTO else config.session
    return msgspec.structs.replace(config, session=session, passthrough=wish)


@pytest.mark.parametrize(("config", "reason"), IN_THE_WAY.values(), ids=IN_THE_WAY)
def test_passthrough_that_cannot_be_is_refused_or_done_without(config: Config, reason: str) -> None:
    with pytest.raises(OptionError) as refused:
        decide(with_passthrough(config, Passthrough.ON))
    assert str(refused.value).startswith("option 'passthrough': 'on' cannot be had: " + reason)
    assert str(refused.value).endswith("; expected auto or off")

    auto = with_passthrough(config, Passthrough.AUTO)
    applies = decide(auto).config
    assert applies.passthrough is Passthrough.OFF
    assert str(described(auto)["passthrough"]).startswith("off: " + reason)
    assert "passthrough" not in str(described(auto)["notes"])


def test_everything_in_the_way_of_passthrough_is_tried_above() -> None:
    assert len(IN_THE_WAY) == len(OBSTACLES)


@pytest.mark.parametrize("config", NOT_IN_THE_WAY.values(), ids=NOT_IN_THE_WAY)
@pytest.mark.parametrize("wish", [Passthrough.AUTO, Passthrough.ON])
def test_passthrough_that_nothing_is_in_the_way_of(config: Config, wish: Passthrough) -> None:
    asked = with_passthrough(config, wish)

    assert decide(asked).config.passthrough is wish
    assert str(described(asked)["passthrough"]).startswith("on: ")
    assert described(asked, "", "it is not offered")["passthrough"] == "off: it is not offered"
    off = with_passthrough(config, Passthrough.OFF)
    assert described(off)["passthrough"] == "off: as asked for"


def test_handles_that_the_source_has_not_are_not_preferred() -> None:
    applies, notes = decide(Config(), "there are none")

    assert applies.inode_file_handles is InodeFileHandles.NEVER
    assert notes == (Note("inode_file_handles", "never", "there are none"),)
    assert decide(applies, "there are none").notes == ()


def test_handles_that_the_source_has_not_cannot_be_mandatory() -> None:
    config = Config(inode_file_handles=InodeFileHandles.MANDATORY)

    with pytest.raises(OptionError) as refused:
        decide(config, "there are none")

    assert str(refused.value) == (
        "option 'inode_file_handles': 'mandatory' cannot be had: there are none;"
        " expected prefer or never"
    )
    assert decide(config).config.inode_file_handles is InodeFileHandles.MANDATORY


OFF = "no administrator has switched it on"


@pytest.mark.parametrize(
    ("asked", "session", "told"),
    [
        (Transport.AUTO, Session.KERNEL, "dev: the kernel sends again what a worker has not"),
        (Transport.AUTO, Session.LIBFUSE, "dev: pyfuse3 reads /dev/fuse itself"),
        (Transport.DEV, Session.KERNEL, "dev: as asked for"),
        (Transport.IO_URING, Session.KERNEL, "io_uring: as asked for"),
    ],
)
def test_the_transport_is_told_with_the_reason(
    asked: Transport, session: Session, told: str
) -> None:
    config = Config(session=session, transport=asked)

    applies = decide(config).config

    assert str(described(config)["transport"]).startswith(told)
    assert told.startswith(f"{applies.transport}: ")
    assert decide(applies).config == applies


def test_nobody_needs_rings_who_is_not_to_use_them() -> None:
    for asked in (Transport.AUTO, Transport.DEV):
        config = Config(session=Session.KERNEL, transport=asked)
        assert decide(config, without_rings=OFF).config.transport is Transport.DEV


@pytest.mark.parametrize(
    ("session", "reason"), [(Session.KERNEL, OFF), (Session.LIBFUSE, "pyfuse3 reads /dev/fuse")]
)
def test_rings_that_cannot_be_had_are_refused(session: Session, reason: str) -> None:
    config = Config(session=session, transport=Transport.IO_URING)

    with pytest.raises(OptionError, match=reason) as refused:
        decide(config, without_rings=OFF)

    assert (refused.value.option, refused.value.accepted) == ("transport", "auto or dev")


@pytest.mark.parametrize(
    ("text", "meant"),
    [("511", "0777"), ("504", "0770"), ("1023", "1777"), ("1533", "2775"), ("0511", "0777")],
)
def test_a_mode_that_yaml_may_have_made_of_another_is_noted(text: str, meant: str) -> None:
    (note,) = decide(parse_options({"mode": text})).notes

    assert str(note) == (
        f"mode is {int(text, 8):04o}: YAML makes this of {meant} without quotes; if you meant that,"
        f' write "{meant}"'
    )


@pytest.mark.parametrize("text", ["0755", "700", "1777", "2775", "0555", "000", "0400", "none"])
def test_a_mode_that_makes_sense_is_not_noted(text: str) -> None:
    assert decide(parse_options({"mode": text})).notes == ()


def test_a_volume_that_looks_empty_to_an_engine_is_noted() -> None:
    (note,) = decide(parse_options({"no_readdir": ""})).notes

    assert str(note).startswith("no_readdir is true: an engine takes the volume for empty")
    assert decide(parse_options({"no_readdir": "", "ro": ""})).notes == ()
