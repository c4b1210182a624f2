"""orphans.py: the first process of a pid namespace reaps orphans."""

import subprocess
import sys

# The shell is a child of this process, which trio reaps. Its own child outlives it.
SCRIPT = """
import os, sys, trio
from plugin.mounting.orphans import reap_orphans

async def until_childless():
    while True:
        try:
            os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        except ChildProcessError:
            return
        await trio.sleep(0.01)

async def main():
    own, starting = set(), False
    async with trio.open_nursery() as nursery:
        nursery.start_soon(reap_orphans, lambda pid: starting or pid in own)
        await trio.testing.wait_all_tasks_blocked()
        for _ in range(3):
            starting = True
            shell = await trio.lowlevel.open_process(["sh", "-c", "sleep 0.1 & exit 3"])
            own.add(shell.pid)
            starting = False
            await trio.sleep(0.05)
            assert await shell.wait() == 3
            own.discard(shell.pid)
        with trio.move_on_after(5) as scope:
            await until_childless()
        nursery.cancel_scope.cancel()
    print("left" if scope.cancelled_caught else "reaped")

import trio.testing
trio.run(main)
"""


def test_process_1_reaps_orphans() -> None:
    done = subprocess.run(
        ["unshare", "--pid", "--fork", sys.executable, "-c", SCRIPT],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stdout) == (0, "reaped\n"), done.stderr
