"""What the options of a volume change in the operations."""

import errno
import os
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from passthrough.core.filesystem import PassthroughFs
from passthrough.core.handles import DirectFile, OpenFile
from passthrough.core.inodes import ROOT
from passthrough.identity.attributes import Changes
from passthrough.options.effective import Effective
from tests.support.tools.direct import CALLER, fails, listing, number_of
from tests.support.tools.options import effective

CHANGING: dict[str, Callable[[PassthroughFs, int], object]] = {
    "mknod": lambda fs, _: fs.mknod(ROOT, b"new", stat.S_IFREG | 0o600, 0, CALLER),
    "mkdir": lambda fs, _: fs.mkdir(ROOT, b"new", 0o700, CALLER),
    "symlink": lambda fs, _: fs.symlink(ROOT, b"new", b"target", CALLER),
    "link": lambda fs, file: fs.link(file, ROOT, b"new"),
    "unlink": lambda fs, _: fs.unlink(ROOT, b"file"),
    "rmdir": lambda fs, _: fs.rmdir(ROOT, b"dir"),
    "rename": lambda fs, _: fs.rename(ROOT, b"file", ROOT, b"new", 0, CALLER),
    "chmod": lambda fs, file: fs.setattr(file, Changes(mode=0o600)),
    "truncate": lambda fs, file: fs.setattr(file, Changes(size=0)),
    "utimens": lambda fs, file: fs.setattr(file, Changes(mtime=(1, 0))),
    "create": lambda fs, _: fs.create(ROOT, b"new", 0o600, os.O_RDWR, CALLER),
    "open to write": lambda fs, file: fs.open(file, os.O_WRONLY),
    "open to do both": lambda fs, file: fs.open(file, os.O_RDWR),
    "open to truncate": lambda fs, file: fs.open(file, os.O_RDONLY | os.O_TRUNC),
    "setxattr": lambda fs, file: fs.setxattr(file, b"user.a", b"new"),
    "removexattr": lambda fs, file: fs.removexattr(file, b"user.a"),
}
XATTR: dict[str, Callable[[PassthroughFs, int], object]] = {
    "getxattr": lambda fs, file: fs.getxattr(file, b"user.a"),
    "setxattr": lambda fs, file: fs.setxattr(file, b"user.a", b"new"),
    "listxattr": lambda fs, file: fs.listxattr(file, CALLER),
    "removexattr": lambda fs, file: fs.removexattr(file, b"user.a"),
    "getxattr of an ACL": lambda fs, file: fs.getxattr(file, b"system.posix_acl_access"),
}
CONTENT = b"0123456789"


@contextmanager
def serving(source: Path, config: Effective) -> Iterator[PassthroughFs]:
    fs = PassthroughFs(config, os.open(source, os.O_PATH))
    try:
        yield fs
    finally:
        fs.close()


@pytest.fixture
def files(source: Path) -> Path:
    """A file and a directory."""
    (source / "file").write_bytes(CONTENT)
    os.setxattr(source / "file", "user.a", b"old")
    (source / "dir").mkdir()
    return source


def state(directory: Path) -> object:
    """Everything about *directory* that an operation could have changed."""
    found = (directory / "file").stat()
    file = (found.st_mode, found.st_uid, found.st_gid, found.st_nlink, found.st_mtime_ns)
    value = os.getxattr(directory / "file", "user.a")
    return sorted(os.listdir(directory)), file, (directory / "file").read_bytes(), value


@pytest.mark.parametrize("operation", CHANGING.values(), ids=CHANGING)
def test_a_read_only_volume_refuses_every_change(
    files: Path, operation: Callable[[PassthroughFs, int], object]
) -> None:
    """Here, and not only in the mount's flags, which somebody may remount."""
    before = state(files)
    with serving(files, effective(readonly=True)) as fs:
        fails(errno.EROFS, lambda: operation(fs, number_of(fs, b"file")))

    assert state(files) == before


@pytest.mark.parametrize("operation", CHANGING.values(), ids=CHANGING)
def test_another_volume_does_not(
    files: Path, operation: Callable[[PassthroughFs, int], object]
) -> None:
    with serving(files, effective()) as fs:
        operation(fs, number_of(fs, b"file"))


def test_a_read_only_volume_can_be_read(files: Path) -> None:
    with serving(files, effective(readonly=True)) as fs:
        number = number_of(fs, b"file")
        handle = fs.open(number, os.O_RDONLY)
        assert fs.read(handle, 0, 100) == CONTENT
        fs.fsync(handle, datasync=False)
        fs.flush(handle)
        fs.release(handle)
        assert set(listing(fs)) == {b".", b"..", b"file", b"dir"}
        assert fs.getxattr(number, b"user.a") == b"old"


@pytest.mark.parametrize("operation", XATTR.values(), ids=XATTR)
def test_without_xattr_nothing_is_known_of_them(
    files: Path, operation: Callable[[PassthroughFs, int], object]
) -> None:
    """ENOSYS is the one answer that the kernel remembers."""
    before = state(files)
    with serving(files, effective(xattr=False)) as fs:
        fails(errno.ENOSYS, lambda: operation(fs, number_of(fs, b"file")))

    assert state(files) == before


def test_with_no_readdir_every_directory_is_empty_and_its_names_are_still_found(
    files: Path,
) -> None:
    with serving(files, effective(no_readdir=True)) as fs:
        assert listing(fs) == {}
        assert fs.getattr(number_of(fs, b"file")).stat.st_size == len(CONTENT)


@pytest.mark.parametrize(("packed", "place"), [(False, 0), (True, 1)])
def test_a_file_has_one_number_wherever_it_is_seen(files: Path, packed: bool, place: int) -> None:
    """In its entry, its attributes, and in listings, the dots included."""
    (files / "dir" / "sub").mkdir()
    expected = {
        path: place << 47 | (files / path).stat().st_ino for path in ("", "file", "dir", "dir/sub")
    }
    with serving(files, effective(use_host_ino=packed)) as fs:
        directory = number_of(fs, b"dir")
        handles = {"": fs.opendir(ROOT), "dir": fs.opendir(directory)}
        dots = {
            path: {r.name: r.number for r, entry in fs.readdirplus(handle, 0) if entry is None}
            for path, handle in handles.items()
        }

        assert directory == expected["dir"]
        assert number_of(fs, b"file") == expected["file"]
        assert fs.getattr(ROOT).number == expected[""]
        assert fs.getattr(directory).number == expected["dir"]
        assert dots == {
            "": {b".": expected[""], b"..": expected[""]},
            "dir": {b".": expected["dir"], b"..": expected[""]},
        }


SIZE_CHANGES: dict[str, Callable[[PassthroughFs, int], object]] = {
    "truncate": lambda fs, file: fs.setattr(file, Changes(size=1)),
    "extend": lambda fs, file: fs.setattr(file, Changes(size=100)),
    "the same size": lambda fs, file: fs.setattr(file, Changes(size=len(CONTENT))),
    "truncate and chmod": lambda fs, file: fs.setattr(file, Changes(size=1, mode=0o600)),
    "open with O_TRUNC": lambda fs, file: fs.open(file, os.O_WRONLY | os.O_TRUNC),
    "create with O_TRUNC": lambda fs, _: fs.create(
        ROOT, b"new", 0o600, os.O_WRONLY | os.O_TRUNC, CALLER
    ),
    "write beyond the end": lambda fs, file: fs.write(fs.open(file, os.O_RDWR), 9, b"ab"),
    "append": lambda fs, file: fs.write(fs.open(file, os.O_WRONLY | os.O_APPEND), 0, b"a"),
}


@pytest.mark.parametrize("operation", SIZE_CHANGES.values(), ids=SIZE_CHANGES)
def test_sealed_sizes_do_not_change(
    files: Path, operation: Callable[[PassthroughFs, int], object]
) -> None:
    """A write with O_APPEND lands at the end, whatever offset the kernel names."""
    before = state(files)
    with serving(files, effective(seal_size=True)) as fs:
        fails(errno.EPERM, lambda: operation(fs, number_of(fs, b"file")))

    assert state(files) == before


def test_sealed_files_can_be_overwritten_and_made(files: Path) -> None:
    with serving(files, effective(seal_size=True)) as fs:
        handle = fs.open(number_of(fs, b"file"), os.O_WRONLY)
        assert fs.write(handle, 8, b"ab") == 2
        fs.setattr(number_of(fs, b"file"), Changes(mode=0o640))
        fs.create(ROOT, b"new", 0o600, os.O_RDWR, CALLER)

    assert (files / "file").read_bytes() == b"01234567ab"
    assert (files / "new").stat().st_size == 0


@pytest.mark.parametrize(
    ("config", "kind"), [(effective(), DirectFile), (effective(allow_direct_io=False), OpenFile)]
)
def test_o_direct_reaches_the_host_if_it_may(
    files: Path, config: Effective, kind: type[OpenFile]
) -> None:
    """On opening and on creation alike."""
    with serving(files, config) as fs:
        opened = fs.open(number_of(fs, b"file"), os.O_RDWR | os.O_DIRECT)
        _, created = fs.create(ROOT, b"new", 0o600, os.O_RDWR | os.O_DIRECT, CALLER)

        assert [type(fs.files[handle]) for handle in (opened, created)] == [kind, kind]


def test_with_writeback_what_is_opened_to_write_can_be_read_and_does_not_append(
    files: Path,
) -> None:
    """The kernel fills partial pages, and knows itself where the end is."""
    with serving(files, effective(writeback=True, allow_direct_io=False)) as fs:
        opened = fs.open(number_of(fs, b"file"), os.O_WRONLY | os.O_APPEND)
        _, created = fs.create(ROOT, b"new", 0o600, os.O_WRONLY | os.O_APPEND, CALLER)
        for handle in (opened, created):
            fs.write(handle, 0, b"x")
            assert fs.read(handle, 0, 1) == b"x"

    assert (files / "file").read_bytes() == b"x123456789"


def test_what_another_option_overrules_does_not_apply(files: Path) -> None:
    with serving(files, effective(writeback=True, seal_size=True)) as fs:
        assert not fs.config.writeback
        fails(errno.EBADF, lambda: fs.read(fs.open(number_of(fs, b"file"), os.O_WRONLY), 0, 1))
