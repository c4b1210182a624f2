"""The option `source`, and the refusals of other options."""

import contextlib

import pytest
from hypothesis import given, strategies as st

from passthrough.options.choices import CachePolicy, Locks
from plugin import volume_options
from plugin.errors import InvalidOption
from tests.support.tools.options import RELEASE


def test_without_options_a_volume_has_a_directory_of_its_own() -> None:
    parsed = volume_options.parse({}, RELEASE)
    assert parsed.source is None
    assert parsed.effective.cache is CachePolicy.AUTO


def test_a_volume_with_a_directory_of_its_own_has_local_locks() -> None:
    own = volume_options.parse({}, RELEASE)
    assert own.effective.locks is own.effective.requested.locks is Locks.LOCAL
    assert own.effective.notes == ()
    assert volume_options.parse({"source": "/srv"}, RELEASE).effective.locks is Locks.HOST


@pytest.mark.parametrize("given", [{}, {"source": "/srv"}])
@pytest.mark.parametrize("locks", Locks)
def test_given_locks_win(given: dict[str, str], locks: Locks) -> None:
    parsed = volume_options.parse(given | {"locks": locks.value}, RELEASE)
    assert parsed.effective.locks is parsed.effective.requested.locks is locks


@pytest.mark.parametrize("name", ["source", "Source", " source"])
def test_source_may_be_spelled_like_every_option(name: str) -> None:
    given = {name: "/srv/app", "cache": "never"}
    parsed = volume_options.parse(given, RELEASE)
    assert parsed.source == "/srv/app"
    assert parsed.effective.cache is CachePolicy.NEVER
    assert volume_options.has_source(given)
    assert not volume_options.has_source({"cache": "never"})


@pytest.mark.parametrize(
    "value", ["", "srv", "./srv", "~", "/srv/../etc", "/..", "/srv\0", "C:\\srv"]
)
def test_a_source_must_be_an_absolute_path(value: str) -> None:
    with pytest.raises(InvalidOption) as refusal:
        volume_options.parse({"source": value}, RELEASE)
    assert str(refusal.value) == (
        f"option 'source': {value!r} is not accepted; expected the absolute path of an existing"
        " directory on the host, without '..'"
    )


def test_source_given_twice_is_refused() -> None:
    with pytest.raises(InvalidOption, match=r"option 'SOURCE': '/b' is given twice"):
        volume_options.parse({"source": "/a", "SOURCE": "/b"}, RELEASE)


def test_a_bad_value_is_refused_with_what_is_accepted() -> None:
    with pytest.raises(InvalidOption) as refusal:
        volume_options.parse({"cache": "sometimes"}, RELEASE)
    for part in ("option 'cache'", "'sometimes'", "never, metadata, auto or always"):
        assert part in str(refusal.value)


@pytest.mark.parametrize(
    ("name", "near"), [("cach", "cache"), ("sorce", "source"), ("read-only", "readonly")]
)
def test_an_unknown_option_is_refused_with_the_nearest_known(name: str, near: str) -> None:
    with pytest.raises(InvalidOption, match=f"option '{name}'.*{near}"):
        volume_options.parse({name: "x"}, RELEASE)


@pytest.mark.parametrize("name", ["device", "Device", "type", "o", "src", "path", "mountpoint"])
def test_the_refusal_of_other_drivers_options_names_source(name: str) -> None:
    with pytest.raises(InvalidOption) as refusal:
        volume_options.parse({name: "/srv/app", "o": "bind"}, RELEASE)
    assert str(refusal.value).startswith(
        f"option '{name}': {'bind' if name == 'o' else '/srv/app'!r} is for another driver"
    )
    assert "source" in str(refusal.value).partition("expected ")[2]


MOUNTED = "a file system that the host has mounted, and -o source=/DIRECTORY for its place"


@pytest.mark.parametrize(
    ("options", "instead"),
    [
        ({"device": "/srv/app"}, "-o source=/srv/app, in place of device"),
        (
            {"type": "none", "o": "bind,ro", "device": "/srv/app"},
            "-o source=/srv/app -o ro, in place of type and o and device",
        ),
        ({"o": "bind,noexec,uid=5"}, "-o source=/DIRECTORY -o noexec, in place of o"),
        *(
            (
                options,
                f"{MOUNTED}, in place of {' and '.join(options)}",
            )
            for options in (
                {"type": "nfs", "o": "addr=10.0.0.1,password=secret", "device": ":/export"},
                {"type": "tmpfs", "device": "tmpfs"},
                {"device": "//server/share"} | {"type": "cifs"},
            )
        ),
    ],
)
def test_the_refusal_of_other_drivers_options_says_what_to_give(
    options: dict[str, str], instead: str
) -> None:
    with pytest.raises(InvalidOption) as refusal:
        volume_options.parse(options, RELEASE)

    assert str(refusal.value).partition("expected ")[2] == instead


def test_the_refusal_of_size_does_not_name_seal_size() -> None:
    with pytest.raises(InvalidOption) as refusal:
        volume_options.parse({"size": "10G"}, RELEASE)
    assert "limit its directory on the host" in str(refusal.value)
    assert "seal_size" not in str(refusal.value)


@pytest.mark.parametrize("name", ["sizes", "sync", "quota", "addr"])
def test_the_refusal_of_a_dissimilar_name_lists_all_names(name: str) -> None:
    with pytest.raises(InvalidOption, match="expected one of allow_direct_io, anon_gid, "):
        volume_options.parse({name: "1"}, RELEASE)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ({}, {"cache": "auto"}),
        ({"ro": ""}, {"readonly": "true"}),
        ({"entry-timeout": "1s"}, {"entry_timeout": "1000ms"}),
        ({"source": "/srv/app"}, {"source": "/srv//app/"}),
    ],
)
def test_options_with_one_meaning_do_not_differ(one: dict[str, str], other: dict[str, str]) -> None:
    assert (
        volume_options.difference(
            volume_options.parse(one, RELEASE), volume_options.parse(other, RELEASE)
        )
        == ""
    )


def test_the_directory_that_a_volume_serves_may_be_a_part_of_its_source() -> None:
    assert volume_options.parse({}, RELEASE).served is None
    assert volume_options.parse({"source": "/srv"}, RELEASE).served == "/srv"
    part = volume_options.parse({"source": "/srv/", "subpath": "a//b"}, RELEASE)
    assert (part.source, part.served) == ("/srv/", "/srv/a/b")


def test_a_difference_is_named_with_both_values() -> None:
    have = volume_options.parse({"cache": "never", "source": "/srv"}, RELEASE)
    wanted = volume_options.parse({"cache": "always"}, RELEASE)
    assert volume_options.difference(have, wanted) == (
        "cache is 'never' and 'always' was asked for, source is '/srv' and nothing was asked for"
    )


@given(given=st.dictionaries(st.text() | st.sampled_from(["source", "cache", "ro"]), st.text()))
def test_any_options_are_parsed_or_refused(given: dict[str, str]) -> None:
    with contextlib.suppress(InvalidOption):
        assert (
            volume_options.difference(
                volume_options.parse(given, RELEASE), volume_options.parse(given, RELEASE)
            )
            == ""
        )
