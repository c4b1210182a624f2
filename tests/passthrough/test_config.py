import math

import msgspec
import pytest
from hypothesis import assume, given, strategies as st

from passthrough.config import (
    ALIASES,
    OPTIONS,
    Atime,
    CachePolicy,
    Config,
    OptionError,
    Sandbox,
    Session,
    canonical,
    effective,
    parse_options,
)

SOURCE = ("source",)
TEN_YEARS_S = 315_360_000.0

ACCEPTED: dict[str, dict[str, object]] = {
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
    "readonly": {"true": True, "": True, "no": False},
    "suid": {"yes": True, "off": False},
    "dev": {"on": True, "0": False},
    "exec": {"1": True, "FALSE": False},
    "atime": {
        "relatime": Atime.RELATIME,
        "noatime": Atime.NOATIME,
        "StrictAtime": Atime.STRICTATIME,
    },
    "session": {"auto": Session.AUTO, "libfuse": Session.LIBFUSE},
    "sandbox": {"namespace": Sandbox.NAMESPACE, "none": Sandbox.NONE},
    "fsname": {"server:/data": "server:/data", "a" * 128: "a" * 128},
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
}
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
    ("session", "kernel", "'kernel' is not accepted; expected auto or libfuse"),
    ("fsname", "", "'' is not accepted; expected 1 to 128 letters, digits or _.:/@+-"),
    ("fsname", "a,suid", "'a,suid' is not accepted; expected 1 to 128 letters, digits or _.:/@+-"),
    ("fsname", "a\n", r"'a\n' is not accepted; expected 1 to 128 letters, digits or _.:/@+-"),
    ("ro", "false", "'false' is not accepted; expected no value"),
    ("noatime", "1", "'1' is not accepted; expected no value"),
    ("cahce", "auto", "is not known, given here as 'auto'; expected cache, perhaps"),
    ("soruce", "/a", "is not known, given here as '/a'; expected source, perhaps"),
]


def test_nothing_given_is_the_default() -> None:
    assert parse_options({}) == Config()
    assert Config() == Config(
        cache=CachePolicy.AUTO,
        entry_timeout=None,
        attr_timeout=None,
        dir_entry_timeout=None,
        dir_attr_timeout=None,
        readonly=False,
        suid=False,
        dev=False,
        exec=True,
        atime=Atime.RELATIME,
        session=Session.AUTO,
        sandbox=Sandbox.NAMESPACE,
        fsname="passfs",
    )


@pytest.mark.parametrize(
    ("option", "text", "value"),
    [(option, text, value) for option, texts in ACCEPTED.items() for text, value in texts.items()],
)
def test_an_option_sets_its_field_and_no_other(option: str, text: str, value: object) -> None:
    assert parse_options({option: text}) == msgspec.structs.replace(Config(), **{option: value})


def test_the_table_above_has_every_option_and_every_option_is_a_field() -> None:
    assert list(ACCEPTED) == list(OPTIONS)
    assert set(Config.__struct_fields__) == set(OPTIONS)


@pytest.mark.parametrize("option", OPTIONS)
def test_every_option_is_explained(option: str) -> None:
    assert OPTIONS[option].meaning
    assert OPTIONS[option].accepts


@pytest.mark.parametrize(("text", "seconds"), DURATIONS_S.items())
def test_durations(text: str, seconds: float) -> None:
    assert parse_options({"attr_timeout": text}).attr_timeout == pytest.approx(seconds)


@pytest.mark.parametrize("text", NO_DURATIONS)
def test_no_durations(text: str) -> None:
    with pytest.raises(OptionError) as refused:
        parse_options({"attr_timeout": text})

    assert str(refused.value) == f"option 'attr_timeout': {text!r} is not accepted; expected {TIME}"


@pytest.mark.parametrize("text", ["", "true", " TRUE "])
@pytest.mark.parametrize(("alias", "expected"), ALIASED.items())
def test_a_word_of_mount_stands_for_an_option(
    alias: str, expected: tuple[str, object], text: str
) -> None:
    option, value = expected

    assert getattr(parse_options({alias: text}), option) == value


def test_the_table_above_has_every_alias() -> None:
    assert set(ALIASED) == set(ALIASES)


@pytest.mark.parametrize(
    "name", ["dir_attr_timeout", "dir-attr-timeout", "DIR-attr_Timeout", " dir_attr_timeout "]
)
def test_dashes_underscores_and_capitals_are_alike(name: str) -> None:
    assert canonical(name) == "dir_attr_timeout"
    assert parse_options({name: "5"}).dir_attr_timeout == 5


@pytest.mark.parametrize(("option", "text", "sentence"), REFUSED)
def test_a_refusal_names_the_option_quotes_the_value_and_says_what_would_do(
    option: str, text: str, sentence: str
) -> None:
    with pytest.raises(OptionError) as refused:
        parse_options({option: text}, others=SOURCE)

    assert str(refused.value) == f"option {option!r}: {sentence}"
    assert refused.value.option == option
    assert refused.value.value == text
    assert sentence.endswith(f"expected {refused.value.accepted}")


def test_a_name_like_no_other_gets_the_list_of_all_names() -> None:
    with pytest.raises(OptionError) as refused:
        parse_options({"zzzzzz": "1"}, others=SOURCE)

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
    """Also where they agree: which of the two is meant later is anybody's guess."""
    texts = {"cache": "auto", "atime": "noatime", "attr_timeout": "1", "readonly": "true"}
    given_options = {name: texts.get(canonical(name), "") for name in (first, second)}

    with pytest.raises(OptionError) as refused:
        parse_options(given_options)

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
        assert msgspec.convert(msgspec.to_builtins(outcome), Config) == outcome


def parsed_or_refused(texts: dict[str, str]) -> Config | OptionError:
    try:
        return parse_options(texts)
    except OptionError as refused:
        return refused


@given(st.from_regex(r"[0-9]{1,4}(\.[0-9]{1,6})?(ms|s|m|h|d)?", fullmatch=True))
def test_effective_options_can_be_given_again(timeout: str) -> None:
    """What inspection shows means the same where it is typed in; the kernel counts nanoseconds."""
    config = parsed_or_refused({"entry_timeout": timeout, "ro": "", "noatime": "", "fsname": "x"})
    assume(isinstance(config, Config))
    assert isinstance(config, Config)
    shown = {name: text for name, text in effective(config).items() if text != "from cache"}

    again = parse_options(shown)

    assert config.entry_timeout is not None
    assert again.entry_timeout is not None
    assert math.isclose(again.entry_timeout, config.entry_timeout, abs_tol=1e-9)
    assert msgspec.structs.replace(again, entry_timeout=None) == msgspec.structs.replace(
        config, entry_timeout=None
    )


def test_effective_shows_every_option_as_text() -> None:
    assert effective(Config(attr_timeout=2.5, entry_timeout=86_400.0, dir_attr_timeout=0.0)) == {
        "cache": "auto",
        "entry_timeout": "86400s",
        "attr_timeout": "2.5s",
        "dir_entry_timeout": "from cache",
        "dir_attr_timeout": "0s",
        "readonly": "false",
        "suid": "false",
        "dev": "false",
        "exec": "true",
        "atime": "relatime",
        "session": "auto",
        "sandbox": "namespace",
        "fsname": "passfs",
    }


def test_a_config_does_not_change() -> None:
    with pytest.raises(AttributeError):
        Config().readonly = True  # type: ignore[misc]


def test_a_config_from_elsewhere_has_no_field_that_is_not_known() -> None:
    with pytest.raises(msgspec.ValidationError, match="turbo"):
        msgspec.json.decode(b'{"turbo": true}', type=Config)
