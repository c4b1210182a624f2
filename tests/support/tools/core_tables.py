"""What the tests of the compiled tables share."""

from collections import Counter
from typing import Any, Final

from tests.passthrough.core.probe_tables import Probe

Named = tuple[str, int, int]
ROOT: Final = 1
FILES: Final = 0
DIRECTORIES: Final = 1
BLOCK: Final = 64

State = tuple[frozenset[tuple[int, ...]], frozenset[tuple[int, int, int]]]


def named(answer: Named | str) -> Named:
    """Return the result of a grant that was counted: how, nodeid, number shown."""
    assert not isinstance(answer, str)
    return answer


def check(probe: Probe) -> None:
    """Compare everything that is derived with the slots."""
    header = probe.header()
    live = probe.live()
    inodes = [probe.inode(probe.nodeid_at(index)) or {} for index in live]
    free, holes = probe.free()
    everything = set(range(1, header["inode_end"]))
    of_holes = {hole * BLOCK + slot for hole in holes for slot in range(BLOCK)}
    assert len(free) == len(set(free))
    assert set(free) | set(live) | of_holes == everything
    assert len(free) + len(live) + len(of_holes) == len(everything)
    assert sorted(probe.hash()) == live
    assert header["hash_used"] == header["inodes"] == len(live)
    assert header["descriptors"] == sum(not inode["by_handle"] for inode in inodes) - 1
    assert header["by_handle"] == sum(inode["by_handle"] for inode in inodes)
    assert probe.some_by_handle() == (header["by_handle"] > 0)
    opens: Counter[int] = Counter()
    for table in (FILES, DIRECTORIES):
        opened = probe.live_opens(table)
        assert header["opens"][table] == len(opened)
        vacant = probe.free_opens(table)
        assert sorted(vacant + opened) == list(range(1, header["open_end"][table]))
        for index in opened:
            opened_file = probe.opened(probe.fh_at(index, table), table)
            assert opened_file is not None
            opens[opened_file[4]] += 1
    users: Counter[int] = Counter()
    for inode in inodes:
        assert inode["lookups"] or inode["opens"]
        assert inode["opens"] == opens[inode["nodeid"]]
        users[probe.places()[inode["place"]]["mount"]] += 1
        found = probe.find(inode["ino"], inode["place"])
        assert inode["replaced"] or (found is not None and found[1] == inode["nodeid"])
    assert [mount["users"] for mount in probe.mounts()] == [
        users[index] for index in range(len(probe.mounts()))
    ]


def state(probe: Probe) -> State:
    """Return what the kernel and the host know of: inodes and open files."""
    inodes = set()
    for index in probe.live():
        inode: dict[str, Any] = probe.inode(probe.nodeid_at(index)) or {}
        inodes.add((inode["nodeid"], inode["ino"], inode["lookups"], inode["descriptor"]))
    opens = set()
    for index in probe.live_opens():
        fh = probe.fh_at(index)
        fd, _, _, _, nodeid = probe.opened(fh) or (0, 0, 0, 0, 0)
        opens.add((fh, fd, nodeid))
    return frozenset(inodes), frozenset(opens)
