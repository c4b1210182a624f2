import math
from functools import partial

import msgspec
import pytest
from hypothesis import assume, given, strategies as st

from passthrough.options.choices import (
    Atime,
    CachePolicy,
    InodeFileHandles,
    Locks,
    LogLevel,
    Passthrough,
    Sandbox,
    SessionKind,
    Squash,
    Standby,
    Submounts,
    Transport,
)
from passthrough.options.parsing import OF_A_SOURCE, parse_options
from passthrough.options.sessions import FIRST_KERNEL_SESSION, LACKING, Lack
from passthrough.options.table import OPTIONS, OptionError, Requested, as_text, text_of, words_of
from passthrough.options.values import Owner, Range
from passthrough.options.vocabulary import ALIASES, MEANINGLESS, canonical

SOURCE = ("source",)
TEN_YEARS_S = 315_360_000.0

parse = partial(parse_options, release=FIRST_KERNEL_SESSION)

ACCEPTED: dict[str, dict[str, object]] = {
    "subpath": {
        "a": "a",
        "./a//b/": "a/b",
        "None": None,
        "./none": "none",
        "...": "...",
        " a ": " a ",
    },
    "create": {"": True, "no": False},
    "owner": {
        "": Owner(0, 0),
        " 5 ": Owner(5, 5),
        "5:6": Owner(5, 6),
        "0:4294967294": Owner(0, 4_294_967_294),
        "None": None,
    },
    "cache": {
        "never": CachePolicy.NEVER,
        "metadata": CachePolicy.METADATA,
        "auto": CachePolicy.AUTO,
        " Always ": CachePolicy.ALWAYS,
    },
    "entry_timeout": {"0": 0.0, "3650d": TEN_YEARS_S},
    "attr_timeout": {"2.5": 2.5},
    "dir_entry_timeout": {"1h": 3600.0},
    "dir_attr_timeout": {"250ms": 0.25},
    "negative_timeout": {"1m": 60.0},
    "writeback": {"on": True, "off": False},
    "no_readdir": {"": True},
    "xattr": {"off": False},
    "use_host_ino": {"on": True},
    "seal_size": {"true": True},
    "allow_direct_io": {"no": False},
    "readonly": {"true": True, "": True, "no": False},
    "suid": {"yes": True, "off": False},
    "dev": {"on": True, "0": False},
    "exec": {"1": True, "FALSE": False},
    "atime": {
        "relatime": Atime.RELATIME,
        "noatime": Atime.NOATIME,
        "StrictAtime": Atime.STRICTATIME,
    },
    "diratime": {"no": False},
    "inode_file_handles": {
        "never": InodeFileHandles.NEVER,
        "Prefer": InodeFileHandles.PREFER,
        " mandatory": InodeFileHandles.MANDATORY,
    },
    "submounts": {"cross": Submounts.CROSS, "HIDE": Submounts.HIDE},
    "session": {"auto": SessionKind.AUTO, "libfuse": SessionKind.LIBFUSE},
    "transport": {"auto": Transport.AUTO, "dev": Transport.DEV, "IO_URING": Transport.IO_URING},
    "standby": {"on": Standby.ON, "OFF": Standby.OFF},
    "passthrough": {
        "auto": Passthrough.AUTO,
        "ON": Passthrough.ON,
        "off": Passthrough.OFF,
    },
    "map_uid": {
        "0:100000:65536": (Range(0, 100_000, 65_536),),
        "none": (),
        " 1000:1000:1,0:5:10 ": (Range(0, 5, 10), Range(1000, 1000, 1)),
    },
    "map_gid": {"7:8:1+9:10:1": (Range(7, 8, 1), Range(9, 10, 1))},
    "squash": {"none": Squash.NONE, "root": Squash.ROOT, "All": Squash.ALL},
    "anon_uid": {"0": 0, " 4294967294 ": 4_294_967_294},
    "anon_gid": {"99": 99},
    "idmap": {"true": True},
    "no_open": {"false": False},
    "no_opendir": {"off": False},
    "killpriv_v2": {"false": False},
    "posix_acl": {"0": False},
    "locks": {"host": Locks.HOST, "Local": Locks.LOCAL},
    "mode": {"0770": 0o770, "755": 0o755, "7777": 0o7777, "none": None},
    "uid": {"0": 0, "None": None},
    "gid": {"4294967294": 4_294_967_294, "none": None},
    "sandbox": {"namespace": Sandbox.NAMESPACE, "none": Sandbox.NONE},
    "fsname": {"server:/data": "server:/data", "a" * 128: "a" * 128},
    "log_level": {"Debug": LogLevel.DEBUG, " error": LogLevel.ERROR, "auto": None},
}
DURATIONS_S = {
    "0": 0.0,
    "7": 7.0,
    "0.5": 0.5,
    "5ms": 0.005,
    "90s": 90.0,
    "1.5m": 90.0,
    "2h": 7200.0,
    "1d": 86_400.0,
    " 3S ": 3.0,
    "3650d": TEN_YEARS_S,
}
NO_DURATIONS = [
    *("", " ", "-1", "+1", "1e3", ".5", "5.", "1,5", "inf", "nan", "1 s", "1w", "1s1s", "0x1"),
    *("3651d", "315360000.1", "9" * 400, "\u0661", "1\n2", "1\0"),
]
ALIASED = {
    "ro": ("readonly", True),
    "rw": ("readonly", False),
    "nosuid": ("suid", False),
    "nodev": ("dev", False),
    "noexec": ("exec", False),
    "relatime": ("atime", Atime.RELATIME),
    "noatime": ("atime", Atime.NOATIME),
    "strictatime": ("atime", Atime.STRICTATIME),
    "nodiratime": ("diratime", False),
}
NO_RANGES = [
    *("", "0", "0:1", "0:1:2:3", "a:0:1", "0:0:0", "0:-1:5", "0x0:0:1", "0: 1:1", "0:1:1,", "+"),
    *("4294967294:0:2", "0:4294967295:1", "0:0:4294967296", "\u0661:0:1"),
    *("0:0:10,9:20:1", "0:0:10+20:9:1", "5:100:1,5:200:1", "1:2:3;9:9:9"),
]
NO_IDS = ["", "-1", "4294967295", "1e3", "root", "0x10", "1.0", "\u0661"]
NO_MODES = ["", "0", "77", "00755", "0o755", "888", "u+rwx", "-755", "\u0667\u0667\u0667"]
TIME = "seconds, or a number with ms, s, m, h or d, up to ten years"
REFUSED = [
    ("cache", "sometimes", "'sometimes' is not accepted; expected never, metadata, auto or always"),
    ("cache", "", "'' is not accepted; expected never, metadata, auto or always"),
    ("entry_timeout", "soon", f"'soon' is not accepted; expected {TIME}"),
    ("attr_timeout", "-1", f"'-1' is not accepted; expected {TIME}"),
    ("dir_entry_timeout", "1w", f"'1w' is not accepted; expected {TIME}"),
    ("dir-attr-timeout", "11y", f"'11y' is not accepted; expected {TIME}"),
    ("readonly", "maybe", "'maybe' is not accepted; expected true or false"),
    ("suid", "2", "'2' is not accepted; expected true or false"),
    ("dev", "tru", "'tru' is not accepted; expected true or false"),
    ("exec", "no way", "'no way' is not accepted; expected true or false"),
    ("atime", "never", "'never' is not accepted; expected relatime, noatime or strictatime"),
    ("sandbox", "chroot", "'chroot' is not accepted; expected namespace or none"),
    ("submounts", "show", "'show' is not accepted; expected cross or hide"),
    ("session", "uring", "'uring' is not accepted; expected auto, kernel or libfuse"),
    ("inode_file_handles", "on", "'on' is not accepted; expected never, prefer or mandatory"),
    (
        "dax_file_size",
        "0",
        f"'0' is refused: {MEANINGLESS['dax_file_size']}; expected the option left out",
    ),
    *(
        (
            *("mode", arrives),
            (
                f"{arrives!r} is not accepted; expected {OPTIONS['mode'].accepts}; YAML makes"
                f' {arrives} of {meant} without quotes, so write "{meant}" with them'
            ),
        )
        for arrives, meant in (("493", "0755"), ("448", "0700"), ("1528", "2770"))
    ),
    ("mode", "u=rwx", "'u=rwx' is not accepted; expected three or four octal digits, or none"),
    ("mode", "99999", "'99999' is not accepted; expected three or four octal digits, or none"),
    (
        *("log_level", "trace"),
        "'trace' is not accepted; expected auto, debug, info, warning or error",
    ),
    ("fsname", "", "'' is not accepted; expected 1 to 128 letters, digits or _.:/@+-"),
    ("fsname", "a,suid", "'a,suid' is not accepted; expected 1 to 128 letters, digits or _.:/@+-"),
    ("fsname", "a\n", r"'a\n' is not accepted; expected 1 to 128 letters, digits or _.:/@+-"),
    ("ro", "false", "'false' is not accepted; expected no value"),
    ("noatime", "1", "'1' is not accepted; expected no value"),
    ("cahce", "auto", "is not known, given here as 'auto'; expected cache, perhaps"),
    ("soruce", "/a", "is not known, given here as '/a'; expected source, perhaps"),
]


def test_without_options_every_value_is_the_default() -> None:
    assert parse({}) == Requested()
    assert Requested() == Requested(
        subpath=None,
        create=False,
        cache=CachePolicy.AUTO,
        entry_timeout=None,
        attr_timeout=None,
        dir_entry_timeout=None,
        dir_attr_timeout=None,
        negative_timeout=None,
        writeback=False,
        no_readdir=False,
        xattr=True,
        use_host_ino=False,
        seal_size=False,
        allow_direct_io=True,
        readonly=False,
        suid=False,
        dev=False,
        exec=True,
        atime=Atime.RELATIME,
        diratime=True,
        session=SessionKind.AUTO,
        map_uid=(),
        map_gid=(),
        squash=Squash.NONE,
        owner=None,
        anon_uid=None,
        anon_gid=None,
        idmap=False,
        no_open=False,
        no_opendir=False,
        killpriv_v2=None,
        posix_acl=None,
        locks=None,
        mode=None,
        uid=None,
        gid=None,
        sandbox=Sandbox.NAMESPACE,
        fsname="passfs",
        log_level=None,
    )


@pytest.mark.parametrize(
    ("option", "text", "value"),
    [(option, text, value) for option, texts in ACCEPTED.items() for text, value in texts.items()],
)
def test_an_option_sets_its_field_and_no_other(option: str, text: str, value: object) -> None:
    parsed = parse({option: text}, has_source=option in OF_A_SOURCE)
    assert parsed == msgspec.structs.replace(Requested(), **{option: value})


def test_the_table_above_has_every_option_and_every_option_is_a_field() -> None:
    assert list(ACCEPTED) == list(OPTIONS)
    assert set(Requested.__struct_fields__) == set(OPTIONS)


@pytest.mark.parametrize("option", OPTIONS)
def test_every_option_is_explained(option: str) -> None:
    assert OPTIONS[option].meaning
    assert OPTIONS[option].accepts


@pytest.mark.parametrize(("text", "seconds"), DURATIONS_S.items())
def test_durations(text: str, seconds: float) -> None:
    assert parse({"attr_timeout": text}).attr_timeout == pytest.approx(seconds)


@pytest.mark.parametrize("text", NO_DURATIONS)
def test_malformed_durations_are_refused(text: str) -> None:
    with pytest.raises(OptionError) as refused:
        parse({"attr_timeout": text})

    assert str(refused.value) == f"option 'attr_timeout': {text!r} is not accepted; expected {TIME}"


@pytest.mark.parametrize(
    ("option", "text"),
    [
        *(("map_uid", text) for text in NO_RANGES),
        *(("map_gid", text) for text in NO_RANGES),
        *(("anon_uid", text) for text in NO_IDS),
        *(("anon_gid", text) for text in NO_IDS),
        *(("uid", text) for text in NO_IDS),
        *(("owner", text) for text in (*filter(None, NO_IDS), ":", "5:", ":5", "5:6:7", "5:-1")),
        *(("gid", text) for text in NO_IDS),
        *(("mode", text) for text in NO_MODES),
    ],
)
def test_malformed_ids_ranges_and_modes_are_refused(option: str, text: str) -> None:
    """Ranges must not overlap on either side."""
    with pytest.raises(OptionError) as refused:
        parse({option: text})

    assert str(refused.value).startswith(
        f"option {option!r}: {text!r} is not accepted; expected {OPTIONS[option].accepts}"
    )


@pytest.mark.parametrize(("option", "text"), [("mode", "0700"), ("uid", "0"), ("gid", "7")])
def test_mode_and_owner_are_refused_beside_a_source(option: str, text: str) -> None:
    assert as_text(parse({option: text}))[option] == text
    parse({option: "none"}, has_source=True)

    with pytest.raises(OptionError) as refused:
        parse({option.upper(): text}, has_source=True)

    assert str(refused.value) == (
        f"option {option.upper()!r}: {text!r} is for a new directory, and the source"
        " exists already; expected the option left out, or create beside it"
    )
    parse({option: text, "create": ""}, has_source=True)


@pytest.mark.parametrize(("option", "text"), [("subpath", "a/b"), ("create", "true")])
def test_options_of_a_source_are_refused_without_one(option: str, text: str) -> None:
    parse({option: text}, has_source=True)

    with pytest.raises(OptionError) as refused:
        parse({option: text})

    assert str(refused.value) == (
        f"option {option!r}: {text!r} is about a source, and the volume has a directory of its own;"
        " expected source beside it, or the option left out"
    )


@pytest.mark.parametrize("text", ["", ".", "./", "/a", "..", "a/../b", "a/..", "a\0"])
def test_a_part_of_a_source_is_a_path_below_it(text: str) -> None:
    with pytest.raises(OptionError, match="expected a path below the source, without"):
        parse({"subpath": text}, has_source=True)


@pytest.mark.parametrize("readonly", [{}, {"rw": ""}, {"readonly": "false"}])
def test_no_readdir_is_refused_beside_a_writable_source(
    readonly: dict[str, str],
) -> None:
    parse({"no_readdir": "", **readonly})

    with pytest.raises(OptionError) as refused:
        parse({"No-Readdir": "yes", **readonly}, has_source=True)

    assert str(refused.value) == (
        "option 'No-Readdir': 'yes' hides the files of the source, so that an engine copies an"
        " image's over them; expected readonly beside it, or false"
    )


@pytest.mark.parametrize("readonly", [{"ro": ""}, {"readonly": "1"}])
def test_no_readdir_is_accepted_beside_a_read_only_source(readonly: dict[str, str]) -> None:
    config = parse({"no_readdir": "", **readonly}, has_source=True)

    assert (config.no_readdir, config.readonly) == (True, True)


def test_ranges_as_text_can_be_given_again() -> None:
    config = parse({"map_uid": "1000:1000:1+0:100000:1000"})

    assert as_text(config)["map_uid"] == "0:100000:1000,1000:1000:1"
    assert parse({"map_uid": as_text(config)["map_uid"]}) == config


@pytest.mark.parametrize("text", ["", "true", " TRUE "])
@pytest.mark.parametrize(("alias", "expected"), ALIASED.items())
def test_an_alias_sets_its_option(alias: str, expected: tuple[str, object], text: str) -> None:
    option, value = expected

    assert getattr(parse({alias: text}), option) == value


def test_the_table_above_has_every_alias() -> None:
    assert set(ALIASED) == set(ALIASES)


@pytest.mark.parametrize(
    "name", ["dir_attr_timeout", "dir-attr-timeout", "DIR-attr_Timeout", " dir_attr_timeout "]
)
def test_names_ignore_case_and_accept_dashes_for_underscores(name: str) -> None:
    assert canonical(name) == "dir_attr_timeout"
    assert parse({name: "5"}).dir_attr_timeout == 5


@pytest.mark.parametrize(("option", "text", "sentence"), REFUSED)
def test_a_refusal_has_the_option_its_value_and_the_accepted_values(
    option: str, text: str, sentence: str
) -> None:
    with pytest.raises(OptionError) as refused:
        parse({option: text}, others=SOURCE)

    assert str(refused.value) == f"option {option!r}: {sentence}"
    assert refused.value.option == option
    assert refused.value.value == text
    assert sentence.endswith(f"expected {refused.value.accepted}")


def test_the_refusal_of_a_dissimilar_name_lists_all_names() -> None:
    with pytest.raises(OptionError) as refused:
        parse({"zzzzzz": "1"}, others=SOURCE)

    known = ", ".join(sorted([*OPTIONS, *ALIASES, *SOURCE]))
    assert refused.value.accepted == f"one of {known}"


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("ro", "readonly"),
        ("ro", "rw"),
        ("attr_timeout", "attr-timeout"),
        ("cache", "CACHE"),
        ("noatime", "atime"),
    ],
)
def test_two_spellings_of_one_option_are_refused(first: str, second: str) -> None:
    """Also if both have the same value."""
    texts = {"cache": "auto", "atime": "noatime", "attr_timeout": "1", "readonly": "true"}
    given_options = {name: texts.get(canonical(name), "") for name in (first, second)}

    with pytest.raises(OptionError) as refused:
        parse(given_options)

    assert str(refused.value) == (
        f"option {second!r}: is given twice, here as {given_options[second]!r};"
        f" expected one of the two: {first} sets the same"
    )


names = st.one_of(st.sampled_from([*OPTIONS, *ALIASES]), st.text())


@given(st.dictionaries(names, st.text(), max_size=3))
def test_any_text_parses_or_is_refused_by_name_and_value(texts: dict[str, str]) -> None:
    outcome = parsed_or_refused(texts)

    if isinstance(outcome, OptionError):
        assert outcome.value == texts[outcome.option]
        assert repr(outcome.option) in str(outcome)
        assert repr(outcome.value) in str(outcome)
        assert outcome.accepted in str(outcome)
    else:
        assert {canonical(name) for name in texts} <= {*OPTIONS, *ALIASES}
        assert msgspec.convert(msgspec.to_builtins(outcome), Requested) == outcome


def parsed_or_refused(texts: dict[str, str]) -> Requested | OptionError:
    try:
        return parse(texts)
    except OptionError as refused:
        return refused


LEFT_OPEN = {option.left_open for option in OPTIONS.values()}


@pytest.mark.parametrize("session", [{}, {"session": "auto"}, {"session": "libfuse"}])
@pytest.mark.parametrize(("option", "lack"), LACKING[SessionKind.LIBFUSE].items())
def test_an_option_that_the_session_lacks_is_refused_with_the_reason(
    option: str, lack: Lack, session: dict[str, str]
) -> None:
    """On Linux 6.8 `auto` stands for libfuse."""
    wish = "io_uring" if option == "transport" else "on"
    with pytest.raises(OptionError) as refused:
        parse_options({option.upper(): wish, **session}, (6, 8))

    named = session.get("session", "auto")
    instead = {"passthrough": "auto or off", "transport": "auto or dev"}
    assert str(refused.value) == (
        f"option {option.upper()!r}: {wish!r} cannot be had with session={named}: {lack.reason};"
        f" expected {instead.get(option, 'false')}"
    )


@pytest.mark.parametrize("value", ["1", "5"])
def test_a_number_that_the_session_lacks_is_refused(
    value: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The number 1 equals True."""
    lack = Lack("it has none", without=65_534)
    monkeypatch.setitem(LACKING, SessionKind.LIBFUSE, {"anon_uid": lack})
    parse({"session": "libfuse", "anon_uid": "65534"})

    with pytest.raises(OptionError, match="it has none; expected 65534"):
        parse({"session": "libfuse", "anon_uid": value})


@pytest.mark.parametrize(
    ("option", "value"),
    [
        *(("no_open", "false"), ("killpriv_v2", "false"), ("transport", "dev")),
        ("posix_acl", "false"),
        *(("transport", "auto"), ("passthrough", "off"), ("passthrough", "auto")),
    ],
)
def test_an_option_that_the_session_lacks_may_be_turned_off(option: str, value: str) -> None:
    assert as_text(parse({"session": "libfuse", option: value}))[option] == value


@given(st.from_regex(r"[0-9]{1,4}(\.[0-9]{1,6})?(ms|s|m|h|d)?", fullmatch=True))
def test_options_as_text_can_be_given_again(timeout: str) -> None:
    """Timeouts are equal to the nanosecond, as the kernel keeps them."""
    config = parsed_or_refused({"entry_timeout": timeout, "ro": "", "noatime": "", "fsname": "x"})
    assume(isinstance(config, Requested))
    assert isinstance(config, Requested)
    shown = {name: text for name, text in as_text(config).items() if text not in LEFT_OPEN}

    again = parse(shown)

    assert config.entry_timeout is not None
    assert again.entry_timeout is not None
    assert math.isclose(again.entry_timeout, config.entry_timeout, abs_tol=1e-9)
    assert msgspec.structs.replace(again, entry_timeout=None) == msgspec.structs.replace(
        config, entry_timeout=None
    )


def test_every_option_is_shown_as_text() -> None:
    assert as_text(Requested(attr_timeout=2.5, entry_timeout=86_400.0, dir_attr_timeout=0.0)) == {
        "subpath": "none",
        "create": "false",
        "owner": "none",
        "cache": "auto",
        "entry_timeout": "86400s",
        "attr_timeout": "2.5s",
        "dir_entry_timeout": "from cache",
        "dir_attr_timeout": "0s",
        "negative_timeout": "from cache",
        "writeback": "false",
        "no_readdir": "false",
        "xattr": "true",
        "use_host_ino": "false",
        "seal_size": "false",
        "allow_direct_io": "true",
        "readonly": "false",
        "suid": "false",
        "dev": "false",
        "exec": "true",
        "atime": "relatime",
        "diratime": "true",
        "inode_file_handles": "prefer",
        "submounts": "cross",
        "session": "auto",
        "transport": "auto",
        "standby": "on with session=kernel, except over io_uring",
        "passthrough": "auto",
        "map_uid": "none",
        "map_gid": "none",
        "squash": "none",
        "anon_uid": "65534, or with owner the source's owner",
        "anon_gid": "65534, or with owner the source's group",
        "idmap": "false",
        "no_open": "false",
        "no_opendir": "false",
        "killpriv_v2": "true with session=kernel",
        "posix_acl": "true with session=kernel",
        "locks": "host with a source and session=kernel, else local",
        "mode": "none",
        "uid": "none",
        "gid": "none",
        "sandbox": "namespace",
        "fsname": "passfs",
        "log_level": "auto",
    }


def test_options_are_immutable() -> None:
    with pytest.raises(AttributeError):
        Requested().readonly = True  # type: ignore[misc]


def test_an_unknown_field_is_refused() -> None:
    with pytest.raises(msgspec.ValidationError, match="turbo"):
        msgspec.json.decode(b'{"turbo": true}', type=Requested)


@pytest.mark.parametrize("name", OPTIONS)
def test_the_words_of_an_option_are_those_that_its_refusal_lists(name: str) -> None:
    words, accepts = words_of(name), OPTIONS[name].accepts
    if words:
        assert accepts == f"{', '.join(words[:-1])} or {words[-1]}"
        assert [text_of(name, OPTIONS[name].parse(word)) for word in words] == [*words]
    else:
        assert any(
            sign in accepts for sign in ("number", "digits", "UID", "container:", "path", "letters")
        )
