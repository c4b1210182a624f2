"""policy.py: default and forbidden options, in every spelling."""

import contextlib

import pytest
from hypothesis import given, strategies as st

from passthrough.options.choices import CachePolicy, Locks, Passthrough
from passthrough.options.table import OPTIONS
from passthrough.options.vocabulary import ALIASES
from plugin.admin.policy import Ban, Policy, default_options, forbidden_options
from plugin.errors import InvalidOption
from tests.support.tools.options import RELEASE

# Spellings that users write.
NAMES = [*OPTIONS, *ALIASES, "source", "Read-Only", "NO-DEV", "Dev", " suid", "entry-timeout"]
VALUES = ["", "true", "1", "off", "none", "never", "Always", "5s", "/srv", "on", "libfuse"]


def policy(defaults: str = "", forbidden: str = "") -> Policy:
    return Policy(RELEASE, default_options(defaults), forbidden_options(forbidden))


def refusal(decided: Policy, options: dict[str, str]) -> str:
    with pytest.raises(InvalidOption) as refused:
        decided.parse(options)
    return str(refused.value)


@pytest.mark.parametrize(
    ("options", "cache", "readonly"),
    [
        ({}, CachePolicy.NEVER, True),
        ({"cache": "always"}, CachePolicy.ALWAYS, True),
        ({"Cache": "auto", "rw": ""}, CachePolicy.AUTO, False),
        ({"READONLY": "no"}, CachePolicy.NEVER, False),
    ],
)
def test_a_default_applies_to_options_that_are_not_given(
    options: dict[str, str], cache: CachePolicy, *, readonly: bool
) -> None:
    config = policy("cache=never,ro").parse(options).effective
    assert (config.cache, config.readonly) == (cache, readonly)


def test_defaults_for_new_directories_do_not_apply_to_sources() -> None:
    decided = policy("mode=0770,uid=5,ro")
    assert decided.parse({}).effective.mode == 0o770
    with_source = decided.parse({"source": "/srv"}).effective
    assert (with_source.mode, with_source.uid, with_source.readonly) == (None, None, True)


@pytest.mark.parametrize("create", [{"create": "true"}, {"Create": ""}])
def test_defaults_for_a_new_directory_apply_to_a_source_that_is_made(
    create: dict[str, str],
) -> None:
    decided = policy("mode=0770,uid=5,gid=6")
    made = decided.parse({"source": "/srv", "gid": "7", **create}).requested
    assert (made.mode, made.uid, made.gid) == (0o770, 5, 7)
    kept = decided.parse({"source": "/srv", "create": "false"}).requested
    assert (kept.mode, kept.uid, kept.gid) == (None, None, None)
    assert refusal(decided, {"source": "/srv", "create": "perhaps"}).startswith("option 'create'")


def test_a_name_is_refused_before_the_lookup_if_all_values_are_forbidden() -> None:
    policy("", "uid=0,gid=0,mode").refuse_names({"uid": "root", "gid": "root"})
    with pytest.raises(InvalidOption, match=r"'root' is forbidden by the administrator"):
        policy("uid=5", "uid").refuse_names({"UID": "root"})


def test_a_default_keeps_the_locks_of_all_volumes_on_the_host() -> None:
    decided = policy("locks=host")
    assert decided.parse({}).effective.locks is Locks.HOST
    assert decided.parse({"locks": "local"}).effective.locks is Locks.LOCAL


@pytest.mark.parametrize("source", [{}, {"source": "/srv"}])
def test_forbidden_locks_leave_each_volume_its_default(source: dict[str, str]) -> None:
    decided = policy(forbidden="locks")
    assert decided.parse(source)
    for value in Locks:
        assert "forbidden" in refusal(decided, source | {"locks": value.value})


def test_forbidden_local_locks_forbid_no_volume_that_leaves_them_out() -> None:
    decided = policy(forbidden="locks=local")
    assert decided.contradiction() is None
    assert decided.parse({}).effective.locks is Locks.LOCAL
    assert "forbidden" in refusal(decided, {"locks": "local"})


def test_options_can_be_compatible_because_of_a_default() -> None:
    decided = policy("allow_direct_io=false")
    asked = {"cache": "metadata", "passthrough": "on"}
    assert decided.parse(asked).effective.passthrough is Passthrough.ON
    assert "cannot be had" in refusal(Policy(RELEASE), asked)


def test_a_default_that_conflicts_with_an_option_is_named() -> None:
    assert refusal(policy("passthrough=on"), {"writeback": ""}).endswith(
        " (defaults of this plugin: passthrough=on)"
    )


def test_a_refusal_names_no_default_that_is_unrelated() -> None:
    decided = policy("cache=never")
    assert refusal(decided, {"ro": "perhaps"}) == refusal(Policy(RELEASE), {"ro": "perhaps"})


@pytest.mark.parametrize(
    ("forbidden", "options", "usual"),
    [
        ("dev", {"dev": "true"}, "'false'"),
        ("dev", {"DEV": "on"}, "'false'"),
        ("dev=true", {" dev": "1"}, "'false'"),
        ("dev=yes", {"Dev": ""}, "'false'"),
        ("exec", {"noexec": ""}, "'true'"),
        ("exec=0", {"noexec": "true"}, "'true'"),
        ("noexec", {"exec": "false"}, "'true'"),
        ("entry-timeout=60", {"entry_timeout": "1m"}, "'from cache'"),
        ("entry_timeout", {"entry-timeout": "1s"}, "'from cache'"),
        ("cache=always,cache=metadata", {"cache": "METADATA"}, "'auto'"),
        ("sandbox", {"sandbox": "none"}, "'namespace'"),
        ("killpriv_v2", {"killpriv-v2": "false"}, "'true with session=kernel'"),
        ("source", {"Source": "/srv"}, "a directory of its own"),
    ],
)
def test_a_forbidden_option_is_refused_in_every_spelling(
    forbidden: str, options: dict[str, str], usual: str
) -> None:
    ((written, text),) = options.items()
    assert refusal(policy("", forbidden), options) == (
        f"option {written!r}: {text!r} is forbidden by the administrator of this plugin;"
        f" expected the option left out; the default is {usual}"
    )


@pytest.mark.parametrize("options", [{"rw": ""}, {"readonly": "0"}, {"ReadOnly": "false"}])
def test_a_default_can_be_enforced(options: dict[str, str]) -> None:
    for forbidden in ("rw", "readonly", "readonly=false"):
        assert "forbidden by the administrator" in refusal(policy("ro", forbidden), options)
        assert policy("ro", forbidden).parse({"readonly": "yes"}).effective.readonly


def test_a_forbidden_option_with_its_default_value_is_accepted() -> None:
    decided = policy("cache=never", "suid,dev=true,cache")
    understood = decided.parse({"nosuid": "", "nodev": "", "cache": "never"})
    assert understood == decided.parse({})


def test_a_forbidden_default_is_a_contradiction() -> None:
    assert policy("", "suid,cache=always").contradiction() is None
    assert policy("cache=always", "suid,cache=always").contradiction() == Ban("cache", "always")
    assert policy("", "rw").contradiction() == Ban("readonly", "false")


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("source=/srv", "option 'source': is each volume's own; expected the option left out"),
        ("cash=auto", "option 'cash': is not known, given here as 'auto'; expected cache, perhaps"),
        ("ro,rw", "option 'rw': '' is a second value; expected the option once"),
        ("passthrough=on,writeback", "option 'passthrough': 'on' cannot be had"),
    ],
)
def test_impossible_defaults_are_refused(text: str, sentence: str) -> None:
    with pytest.raises(InvalidOption) as refused:
        default_options(text)
    assert str(refused.value).startswith(sentence)


def test_a_default_is_no_name_of_a_user() -> None:
    """Names are looked up when a volume is created."""
    with pytest.raises(InvalidOption, match="looked up when a volume is created, so write the nu"):
        default_options("uid=alice")


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("cach", "option 'cach': is not known"),
        ("cache=sometimes", "option 'cache': 'sometimes' is not accepted; expected never, "),
        ("source=/srv", "option 'source': '/srv' is not accepted; expected source without a value"),
    ],
)
def test_an_invalid_ban_is_refused(text: str, sentence: str) -> None:
    with pytest.raises(InvalidOption) as refused:
        forbidden_options(text)
    assert str(refused.value).startswith(sentence)


@given(
    options=st.dictionaries(st.sampled_from(NAMES), st.sampled_from(VALUES), max_size=4),
    forbidden=st.lists(
        st.sampled_from(
            ["dev", "suid=true", "rw", "noexec", "cache=always", "source", "entry_timeout"]
        ),
        unique=True,
    ),
)
def test_no_accepted_volume_has_a_forbidden_option(
    options: dict[str, str], forbidden: list[str]
) -> None:
    decided = policy("ro", ",".join(forbidden))
    usual = decided.parse({}).requested_as_text()
    with contextlib.suppress(InvalidOption):
        has = decided.parse(options).requested_as_text()
        for ban in decided.forbidden:
            value = has.get(ban.option)
            assert value == usual.get(ban.option) if ban.value is None else value != ban.value
