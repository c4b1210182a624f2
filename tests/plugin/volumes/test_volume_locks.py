"""volume_locks.py: the request in flight, as Get and List report it."""

import trio

from plugin.volumes.volume_locks import VolumeLocks


async def test_the_request_in_flight_is_reported_in_every_round_of_the_event_loop() -> None:
    """Also in the round after the lock is acquired, when its holder has not yet run."""
    locks, reported, is_over = VolumeLocks(), list[str](), trio.Event()

    async def mount() -> None:
        async with locks.hold("v", "Mount") as lock:
            lock.note_step("opening it")
            await is_over.wait()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(mount)
        nursery.start_soon(mount)
        while not reported or "opening" not in reported[-1]:
            reported.append(locks.in_flight("v"))
            await trio.lowlevel.checkpoint()
        is_over.set()
        while len(locks):
            reported.append(locks.in_flight("v"))
            await trio.lowlevel.checkpoint()
    assert set(reported) == {"", "Mount, for 0 s: opening it"}
    assert locks.in_flight("v") == ""
