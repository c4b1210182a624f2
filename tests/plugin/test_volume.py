"""plugin/volume.py: names, states and references."""

import os
from datetime import UTC, datetime
from itertools import product

import pytest
from hypothesis import given, strategies as st

from plugin.errors import BadRequest, VolumeInUse
from plugin.volume import (
    TRANSITIONS,
    Event,
    Record,
    State,
    Volume,
    VolumeName,
    file_name,
    volume_name,
)


@pytest.fixture
def volume() -> Volume:
    return Volume(Record(name=VolumeName("v"), options={}, created_at=datetime.now(UTC)))


# What a user may call a volume, and what its files are called then.
NAMES = {
    "a": "a",
    "7": "7",
    "my-data_1.old": "my-data_1.old",
    "A" * 128: "A" * 128,
    ".": "@.",
    "..": "@..",
    "a/b": "@a%2Fb",
    "a/../b": "@a%2F..%2Fb",
    "/abs": "@%2Fabs",
    "-v": "@-v",
    "_v": "@_v",
    ".hidden": "@.hidden",
    "a b": "@a%20b",
    "a:b": "@a%3Ab",
    "a\n": "@a%0A",
    "@a": "@%40a",
    "#a": "@%23a",
    "%2F": "@%252F",
    "\u00e4": "@%C3%A4",
    "a\u0308": "@a%CC%88",
    "A" * 129: "@" + "A" * 129,
    "x" * 300: "#0d4e2ca9e9cbced7a7a5380eb29e1a3783b9b6d0db72de36a1051038e1c1fbc7",
}


@pytest.mark.parametrize("name", NAMES)
def test_a_name_may_be_nearly_any_text(name: str) -> None:
    assert volume_name(name) == name
    assert file_name(volume_name(name)) == NAMES[name]


@pytest.mark.parametrize("name", ["", "a\0", "\ud800", "A" * 1025, "x" * 1_000_000])
def test_other_names_are_refused_with_what_is_accepted(name: str) -> None:
    with pytest.raises(BadRequest) as refusal:
        volume_name(name)
    assert "is not accepted; expected 1 to 1024 characters of Unicode text" in str(refusal.value)
    assert len(str(refusal.value)) < 1000
    str(refusal.value).encode()  # as it is when it is sent


@given(names=st.lists(st.text(st.sampled_from("ab/.@#%2F\n\u00e4-"), min_size=1), unique=True))
def test_no_two_names_share_a_file_and_none_leaves_its_directory(names: list[str]) -> None:
    files = [file_name(volume_name(name)) for name in names]
    assert len(set(files)) == len(names)
    for file in files:
        assert file not in {"", ".", ".."}
        assert not set("/:\0\n\\ ") & set(file)
        assert len(os.fsencode(file)) <= 255


@given(name=st.text(min_size=1, max_size=1024))
def test_a_file_is_named_in_ascii_and_never_too_long(name: str) -> None:
    try:
        file = file_name(volume_name(name))
    except BadRequest:
        assert "\0" in name
        return
    assert file.isascii()
    assert len(file) <= 201


@pytest.mark.parametrize(("state", "event"), [*product(State, Event)])
def test_a_change_that_is_not_in_the_table_is_refused(
    volume: Volume, state: State, event: Event
) -> None:
    volume.state = state
    after = TRANSITIONS.get((state, event))
    if after is None:
        with pytest.raises(VolumeInUse, match=f"'v' cannot {event}: it is {state}"):
            volume.apply(event)
        assert volume.state is state
    else:
        volume.apply(event)
        assert volume.state is after


def test_only_a_volume_that_is_not_mounted_can_be_removed() -> None:
    assert [state for state, event in TRANSITIONS if event is Event.REMOVE] == [State.IDLE]


def test_one_id_can_be_mounted_several_times(volume: Volume) -> None:
    """`docker cp` mounts a running container's volume once more, with the id that it has."""
    for left in (1, 2):
        volume.references = volume.references_with("a")
        assert volume.references == {"a": left}
    for left in (1, 0):
        volume.references = volume.references_without("a")
        assert volume.reference_count == left


def test_an_unknown_id_changes_nothing(volume: Volume) -> None:
    volume.references = volume.references_with("a")
    assert volume.references_without("b") == {"a": 1} == volume.references


@given(changes=st.lists(st.tuples(st.booleans(), st.sampled_from("abc"))))
def test_references_are_a_count_for_each_id(changes: list[tuple[bool, str]]) -> None:
    volume = Volume(Record(name=VolumeName("v"), options={}, created_at=datetime.now(UTC)))
    expected: list[str] = []
    for add, mount_id in changes:
        if add:
            volume.references = volume.references_with(mount_id)
            expected.append(mount_id)
        else:
            volume.references = volume.references_without(mount_id)
            if mount_id in expected:
                expected.remove(mount_id)
        assert sorted(volume.references.elements()) == sorted(expected)
        assert volume.reference_count == len(expected)
        assert all(volume.references.values())  # what the registry may write


def test_what_was_counted_before_the_plugin_ended_is_lost_until_there_is_a_new_mount() -> None:
    record = Record(name=VolumeName("v"), options={}, created_at=datetime.now(UTC))
    volume = Volume(record, {"a": 2, "b": 1})
    assert volume.state is State.LEFT
    assert volume.reference_count == 3
    assert volume.references_without("a") == {"a": 1, "b": 1}
    assert volume.references_with("a") == {"a": 1}
    assert "the plugin has ended while it was mounted" in volume.last_error
