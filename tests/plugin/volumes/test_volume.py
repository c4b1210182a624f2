"""volume.py: names, states and references."""

import string
from itertools import product

import pytest
from hypothesis import given, strategies as st

from plugin.errors import BadRequest, VolumeInUse, quoted
from plugin.volume import (
    TRANSITIONS,
    Event,
    State,
    Volume,
    file_name,
    volume_name,
)
from tests.support.tools.records import record


@pytest.fixture
def volume() -> Volume:
    return Volume(record("v"))


PLAIN = string.ascii_letters + string.digits


@pytest.mark.parametrize("name", ["my-data_1.old", "7z", "Aa", "a.", "a--", "A" * 200])
def test_names_by_docker_s_rule_for_local_volumes_are_accepted(name: str) -> None:
    assert volume_name(name) == name


@pytest.mark.parametrize(
    "name",
    [
        *("", ".", "..", "a/b", "a/../b", "/abs", "-v", "_v", ".hidden", " a", "a ", "a b", "a:b"),
        *(
            "ab\n",
            "a\nb",
            "a\0",
            "@ab",
            "#ab",
            "a%2F",
            "\u00e4b",
            "b\u00e4",
            "a\u0308",
            "\u0661\u0662",
        ),
        *("\ud800", "A" * 201, "x" * 1_000_000),
    ],
)
def test_other_names_are_refused_with_the_rule(name: str) -> None:
    with pytest.raises(BadRequest) as refusal:
        volume_name(name)
    assert str(refusal.value).startswith(f"volume name {quoted(name)} is not accepted; expected ")
    assert str(refusal.value).endswith(
        "expected 2 to 200 characters out of a-z, A-Z, 0-9, '_', '.' and '-', of which the first is"
        " a letter or a digit"
    )
    assert len(str(refusal.value)) < 1000
    str(refusal.value).encode()  # as the server sends it


def test_the_refusal_of_a_single_letter_explains_docker_run() -> None:
    with pytest.raises(BadRequest, match=r"; `docker run -v v:/data` takes a single letter for a"):
        volume_name("v")
    with pytest.raises(BadRequest, match=r"'7' is not accepted; .* is a letter or a digit$"):
        volume_name("7")


@given(name=st.text(st.characters() | st.sampled_from(PLAIN + "_.-"), max_size=250))
def test_an_accepted_name_is_a_file_name(name: str) -> None:
    try:
        accepted = volume_name(name)
    except BadRequest:
        return
    assert file_name(accepted) == name
    assert name[0] in PLAIN
    assert set(name) <= set(PLAIN + "_.-")
    assert 2 <= len(name) <= 200


@pytest.mark.parametrize("text", ["", ".", "..", "a/b", "/", "a\0", "\u00e4" * 128])
def test_a_file_name_is_one_path_component(text: str) -> None:
    with pytest.raises(ValueError, match="is no name of a file"):
        file_name(text)


@pytest.mark.parametrize(("state", "event"), [*product(State, Event)])
def test_an_event_without_a_row_in_the_table_is_refused(
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
    """`docker cp` mounts a running container's volume once more, with the same id."""
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
def test_references_are_counted_by_mount_id(changes: list[tuple[bool, str]]) -> None:
    volume = Volume(record("v"))
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
        assert all(volume.references.values())  # as the registry requires


def test_references_of_an_ended_plugin_last_until_the_next_mount() -> None:
    volume = Volume(record("v"), {"a": 2, "b": 1})
    assert volume.state is State.LEFT
    assert volume.reference_count == 3
    assert volume.references_without("a") == {"a": 1, "b": 1}
    assert volume.references_with("a") == {"a": 1}
    assert "the plugin ended while the volume was mounted" in volume.last_error
