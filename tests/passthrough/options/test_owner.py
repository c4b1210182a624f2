"""owner.py: what the option `owner` implies and excludes, and the ids of the source's owner."""

import pytest

from passthrough.options.choices import SessionKind, Squash
from passthrough.options.effective import resolve
from passthrough.options.owner import with_source
from passthrough.options.parsing import parse_options
from passthrough.options.table import OptionError, Requested
from passthrough.options.values import Owner
from tests.support.tools.options import RELEASE

SHOWN = Owner(5, 6)


def refusal(given: dict[str, str], *, has_source: bool = True) -> str:
    with pytest.raises(OptionError) as refused:
        parse_options(given, RELEASE, has_source=has_source)
    return str(refused.value)


@pytest.mark.parametrize("session", ["kernel", "libfuse"])
def test_all_callers_act_as_the_owner_of_the_source(session: str) -> None:
    given = Requested(owner=SHOWN, session=SessionKind(session))
    before = resolve(given, RELEASE)
    config = resolve(with_source(given, 1000, 1001), RELEASE)

    assert (before.squash, before.anon_uid, before.anon_gid) == (Squash.ALL, None, None)
    assert (config.squash, config.anon_uid, config.anon_gid) == (Squash.ALL, 1000, 1001)
    assert config.owner == SHOWN
    assert (config.posix_acl, config.notes) == (False, ())


def test_given_ids_win_over_those_of_the_source() -> None:
    config = with_source(Requested(owner=SHOWN, anon_uid=0, anon_gid=7), 1000, 1001)

    assert (config.anon_uid, config.anon_gid) == (0, 7)


def test_without_the_option_the_source_decides_nothing() -> None:
    given = Requested(squash=Squash.ROOT)

    assert with_source(given, 0, 0) is given
    config = resolve(given, RELEASE)
    assert (config.squash, config.anon_uid, config.anon_gid) == (Squash.ROOT, 65534, 65534)


@pytest.mark.parametrize(
    ("ids", "kind", "option"), [((0, 7), "user", "anon_uid"), ((7, 0), "group", "anon_gid")]
)
def test_no_caller_acts_as_root_unless_the_options_say_so(
    ids: tuple[int, int], kind: str, option: str
) -> None:
    with pytest.raises(OptionError) as refused:
        with_source(Requested(owner=SHOWN), *ids)

    assert str(refused.value) == (
        "option 'owner': '5:6' would let any user of a container act as root, because the source"
        f" belongs to the host's {kind} 0; expected a source that belongs to another {kind}, or"
        f" {option} for the {kind} to act as"
    )
    with_source(Requested(owner=SHOWN, **{option: 0}), *ids)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("option", "text", "words"),
    [
        ("squash", "all", "with owner all callers act as the source's owner"),
        ("squash", "root", "with owner all callers act as the source's owner"),
        ("map_uid", "0:1000:1", "every file shows the owner; expected none"),
        ("map_gid", "0:1000:1", "every file shows the owner; expected none"),
        ("idmap", "true", "every file shows the owner; expected false"),
        ("suid", "true", "any user could make a program that runs as the shown owner"),
        (
            "uid",
            "0",
            "act as the host's root; expected another owner of the directory, or anon_uid",
        ),
        (
            "gid",
            "0",
            "act as the host's root; expected another owner of the directory, or anon_gid",
        ),
    ],
)
def test_options_that_contradict_the_owner_are_refused(option: str, text: str, words: str) -> None:
    given = {"owner": "5:6", "create": "", option: text}
    refused = refusal(given)

    assert refused.startswith(f"option {option!r}: {text!r} cannot be had beside owner: ")
    assert words in refused


def test_a_directory_of_its_own_has_another_owner_than_root() -> None:
    assert "cannot be had beside owner" in refusal({"owner": "", "uid": "0"}, has_source=False)
    for given in ({"uid": "5", "gid": "5"}, {"uid": "0", "anon_uid": "0"}, {"suid": "no"}):
        parse_options({"owner": "", **given}, RELEASE)
