"""The memory of the tables: found by a successor, refused, given back."""

import errno
import os
from concurrent.futures import ThreadPoolExecutor

from tests.passthrough.core.probe_tables import Probe
from tests.support.tools.checks import fails
from tests.support.tools.core_tables import check, named

LIMIT_S = 20.0


def test_a_successor_finds_everything() -> None:
    probe = Probe(budget=50)
    nodeids = [named(probe.grant(100 + number, number, handle=None))[1] for number in range(50)]
    by_handle = named(probe.grant(99, 1, handle=b"handle"))[1]
    fh, _ = probe.open(nodeids[3], 60, backing=4)
    probe.forget(nodeids[3])
    probe.forget(nodeids[4])
    probe.add_mount(88, 40)
    probe.spoil_hash()
    successor = Probe(os.dup(probe.fd))
    check(successor)
    assert successor.mounts()[1]["fd"] == -1
    assert successor.opened(fh) == (60, -1, 2, 5, nodeids[3])
    assert (successor.inode(nodeids[3]) or {})["backing_id"] == 4
    assert (successor.inode(by_handle) or {})["handle"] == b"handle"
    assert successor.release(fh) == (60, -1, 4, (3, -1))
    assert named(successor.grant(104, 4))[1] not in nodeids
    check(successor)


def test_memory_of_another_version_is_refused() -> None:
    probe = Probe()
    probe.write_header(8, b"\x63\x00\x00\x00")
    fails(errno.EPROTO, lambda: Probe(probe.fd))
    fd = os.memfd_create("empty")
    fails(errno.EPROTO, lambda: Probe(fd))
    os.ftruncate(fd, 1 << 16)
    fails(errno.EPROTO, lambda: Probe(fd))
    os.close(fd)


def test_the_memory_keeps_its_size() -> None:
    probe = Probe()
    fails(errno.EPERM, lambda: os.ftruncate(probe.fd, 0))
    fails(errno.EPERM, lambda: os.ftruncate(probe.fd, 1 << 40))


def test_an_inode_has_100_bytes_beside_its_descriptor() -> None:
    """Also right after the hash has grown, which it does at three quarters."""
    probe = Probe(budget=1 << 40)
    before = os.fstat(probe.fd).st_blocks * 512
    for number in range(1, 200_000):
        probe.grant(100 + number, 0)
        if number >= 1_000 and number % 500 == 0:
            assert os.fstat(probe.fd).st_blocks * 512 - before <= number * 100, number


def test_an_inode_has_100_bytes_beside_its_short_handle() -> None:
    """A handle of most file systems takes 32 bytes, also where longer ones are possible."""
    probe = Probe(budget=0)
    before = os.fstat(probe.fd).st_blocks * 512
    for number in range(1, 50_000):
        probe.grant(100 + number, 0, handle=b"h" * 24)
        if number >= 1_000 and number % 500 == 0:
            assert os.fstat(probe.fd).st_blocks * 512 - before <= number * (100 + 32), number


def test_memory_comes_back_when_most_is_forgotten() -> None:
    probe = Probe(budget=20_000, handle_bytes=24)
    before = os.fstat(probe.fd).st_blocks * 512
    nodeids = [
        named(probe.grant(100 + number, number, handle=None if number < 20_000 else b"h" * 12))[1]
        for number in range(40_000)
    ]
    most = os.fstat(probe.fd).st_blocks * 512
    assert most < 40_000 * 100
    kept = {nodeids[number] for number in (0, 5_000, 39_000)}
    for nodeid in nodeids:
        if nodeid not in kept:
            probe.forget(nodeid)
    probe.trim()
    assert os.fstat(probe.fd).st_blocks * 512 < before + most // 10
    check(probe)
    again = [named(probe.grant(100 + number, number)) for number in range(20_000)]
    assert not {name[1] for name in again if name[0] == "taken"} & set(nodeids)
    assert all(probe.inode(nodeid) for nodeid in kept)
    check(probe)
    probe.recover()
    check(probe)


def test_a_recovery_leaves_memory_to_be_trimmed() -> None:
    probe = Probe(budget=1 << 40)
    nodeids = [named(probe.grant(100 + number, number))[1] for number in range(20_000)]
    for nodeid in nodeids:
        probe.forget(nodeid)
    probe.recover()
    probe.trim()
    assert os.fstat(probe.fd).st_blocks * 512 < 300_000
    check(probe)


def test_the_memory_of_a_large_hash_comes_back() -> None:
    probe = Probe()
    before = os.fstat(probe.fd).st_blocks * 512
    assert probe.grant_many(100, 60_000) == 0
    for nodeid in probe.live()[1:]:
        probe.forget(nodeid)
    probe.trim()
    assert os.fstat(probe.fd).st_blocks * 512 < before + 300_000
    assert probe.grant_many(100, 60_000) == 0
    check(probe)


def test_lookups_wait_until_memory_is_given_back_and_the_hash_can_grow() -> None:
    probe = Probe()
    probe.set_hash_room(1024)
    with ThreadPoolExecutor(1) as pool:
        failed = pool.submit(probe.grant_many, 100, 5_000)
        while probe.header()["inodes"] < 1023 and not failed.done():
            pass
        assert not failed.done()
        probe.set_hash_room(None)
        assert failed.result(LIMIT_S) == 0
    check(probe)
