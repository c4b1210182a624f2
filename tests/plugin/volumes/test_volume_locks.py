"""volume_locks.py: what Get and List ask of it at any time."""

import trio

from plugin.volumes.volume_locks import Turns


async def test_what_is_under_way_can_be_asked_at_any_moment() -> None:
    """Also between the taking of the lock and the first word of who has it."""
    turns, said, is_over = Turns(), list[str](), trio.Event()

    async def mount() -> None:
        async with turns.take("v", "Mount") as turn:
            turn.comes_to("opening it")
            await is_over.wait()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(mount)
        nursery.start_soon(mount)
        while not said or "opening" not in said[-1]:
            said.append(turns.under_way("v"))
            await trio.lowlevel.checkpoint()
        is_over.set()
        while len(turns):
            said.append(turns.under_way("v"))
            await trio.lowlevel.checkpoint()
    assert set(said) == {"", "Mount, for 0 s: opening it"}
    assert turns.under_way("v") == ""
