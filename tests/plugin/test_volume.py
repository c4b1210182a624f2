"""plugin/volume.py: names, states and references."""

from datetime import UTC, datetime
from itertools import product

import pytest
from hypothesis import given, strategies as st

from plugin.errors import BadRequest, VolumeInUse
from plugin.volume import TRANSITIONS, Event, Record, State, Volume, VolumeName, volume_name


@pytest.fixture
def volume() -> Volume:
    return Volume(Record(name=VolumeName("v"), options={}, created_at=datetime.now(UTC)))


@pytest.mark.parametrize("name", ["a", "7", "my-data_1.old", "A" * 128, "0" * 64])
def test_docker_s_own_names_are_accepted(name: str) -> None:
    assert volume_name(name) == name


@pytest.mark.parametrize(
    "name",
    [
        "",
        ".",
        "..",
        "a/b",
        "a/../b",
        "/abs",
        "-v",
        "_v",
        ".hidden",
        "a b",
        "a\n",
        "a\0",
        "ä",
        "A" * 129,
        "x" * 1_000_000,
    ],
)
def test_other_names_are_refused_with_what_is_accepted(name: str) -> None:
    with pytest.raises(BadRequest) as refusal:
        volume_name(name)
    assert "is not accepted; expected 1 to 128 of the characters" in str(refusal.value)
    assert len(str(refusal.value)) < 1000


@given(name=st.text())
def test_an_accepted_name_is_one_component_of_a_path(name: str) -> None:
    try:
        accepted = volume_name(name)
    except BadRequest:
        return
    assert accepted == name
    assert "/" not in name
    assert name not in {"", ".", ".."}


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
    volume.add_reference("a")
    volume.add_reference("a")
    assert volume.drop_reference("a")
    assert volume.references
    assert volume.drop_reference("a")
    assert not volume.references


def test_an_unknown_id_changes_nothing(volume: Volume) -> None:
    volume.add_reference("a")
    assert not volume.drop_reference("b")
    assert volume.references == {"a": 1}


@given(changes=st.lists(st.tuples(st.booleans(), st.sampled_from("abc"))))
def test_references_are_a_count_for_each_id(changes: list[tuple[bool, str]]) -> None:
    volume = Volume(Record(name=VolumeName("v"), options={}, created_at=datetime.now(UTC)))
    expected: list[str] = []
    for add, mount_id in changes:
        if add:
            volume.add_reference(mount_id)
            expected.append(mount_id)
        else:
            assert volume.drop_reference(mount_id) == (mount_id in expected)
            if mount_id in expected:
                expected.remove(mount_id)
        assert sorted(volume.references.elements()) == sorted(expected)
        assert volume.reference_count == len(expected)
