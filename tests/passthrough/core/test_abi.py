"""abi.pxd against the structures and numbers of Python, and the machine's linux/fuse.h.

The probe lays each structure over one pattern of bytes. A field then has the expected value only if
its offset, its size and its sign are as expected.
"""

import re
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path
from struct import Struct, pack

import pytest

from passthrough.session import wire as program_wire
from tests.passthrough.core import probe_abi
from tests.support.tools import abi, wire

HEADER = Path("/usr/include/linux/fuse.h")
# No two units of 16 bits are equal, and each has its highest bit set.
PATTERN = b"".join(pack("=H", 0x8000 + number) for number in range(256))
PADDING = re.compile(r"padding|unused|dummy|spare|reserved|__")
# The times of attributes are unsigned in linux/fuse.h, and signed in wire.py.
WORD = 2**64 - 1

STRUCTURES = probe_abi.structures(PATTERN)
CONSTANTS = probe_abi.constants()
ROWS = {name: row for name, row in vars(wire).items() if isinstance(row, Struct)}
OF_PROGRAM = {name: row for name, row in vars(program_wire).items() if isinstance(row, Struct)}
OTHER_NAMES = {"EXTENSION": "fuse_ext_header", "GROUPS": "fuse_supp_groups"}
# The parts of other structures; wire.py writes them out.
PARTS = {
    *("fuse_attr", "fuse_kstatfs", "fuse_file_lock", "fuse_sx_time", "fuse_statx"),
    "fuse_direntplus",
}
OTHER_CONSTANTS = {
    "MAJOR": "FUSE_KERNEL_VERSION",
    "MINOR": "FUSE_KERNEL_MINOR_VERSION",
    "LEAST_MINOR": "FUSE_LEAST_MINOR_VERSION",
}
# Constants of abi.pxd alone.
CORE_ONLY = {
    *("FUSE_OPCODES", "FUSE_MIN_READ_BUFFER", "FUSE_NAME_MAX", "FUSE_INVALID_UIDGID"),
    *("FUSE_IOCTL_COMPAT", "FUSE_IOCTL_UNRESTRICTED", "FUSE_IOCTL_RETRY", "FUSE_IOCTL_32BIT"),
    "FUSE_POLL_SCHEDULE_NOTIFY",
}


def structure(row: str) -> str:
    return OTHER_NAMES.get(row, f"fuse_{row.lower()}")


def fields(value: Mapping[str, object], prefix: str = "") -> Iterator[tuple[str, int]]:
    """Yield the path in C and the value of each field that is not padding."""
    for name, content in value.items():
        if PADDING.match(name):
            continue
        if isinstance(content, Mapping):
            yield from fields(content, f"{prefix}{name}.")
        else:
            assert isinstance(content, int)
            yield prefix + name, content & WORD


def python_constants() -> dict[str, int]:
    """Return the numbers of abi.py by their names in linux/fuse.h."""
    numbers = {
        OTHER_CONSTANTS.get(
            name, name if name.startswith(("FATTR", "FOPEN")) else f"FUSE_{name}"
        ): value
        for name, value in vars(abi).items()
        if name.isupper() and isinstance(value, int)
    }
    numbers |= {f"FUSE_{code.name}": code.value for code in abi.Opcode}
    numbers |= {f"FUSE_NOTIFY_{code.name}": code.value for code in abi.Notification}
    return numbers | {f"FUSE_{flag.name}": flag.value for flag in abi.Init}


@pytest.mark.parametrize("row", sorted(ROWS.keys() - {"BACKING_ID"}))
def test_a_structure_is_laid_out_as_wire_has_it(row: str) -> None:
    size, value = STRUCTURES[structure(row)]

    assert size == ROWS[row].size
    expected = [number & WORD for number in ROWS[row].unpack_from(PATTERN)]
    if row == "BACKING_MAP":
        expected.pop()  # wire.py names its padding
    assert [number for _, number in fields(value)] == expected


def test_the_program_has_the_structures_of_the_tests() -> None:
    own = {name: (row.format, row.size) for name, row in OF_PROGRAM.items()}

    assert own == {name: (ROWS[name].format, ROWS[name].size) for name in own}
    assert own


def test_no_structure_is_in_one_place_only() -> None:
    assert STRUCTURES.keys() - PARTS == {structure(row) for row in ROWS.keys() - {"BACKING_ID"}}


def test_the_constants_are_those_of_python() -> None:
    shared = {name: value for name, value in CONSTANTS.items() if name not in CORE_ONLY}

    assert shared == python_constants()
    assert CONSTANTS["FUSE_OPCODES"] == max(abi.Opcode) + 1


@pytest.fixture(scope="module")
def header() -> str:
    """Return the text of the machine's linux/fuse.h without comments."""
    if not HEADER.exists() or shutil.which("cc") is None:
        pytest.skip("this machine has no linux/fuse.h, or no C compiler")
    return re.sub(r"/\*.*?\*/", "", HEADER.read_text(), flags=re.DOTALL)


def printed(lines: list[str], directory: Path) -> list[int]:
    """Return the numbers that C expressions have; they may use the buffer `pattern`."""
    octets = ",".join(map(str, PATTERN))
    statements = "\n".join(f'printf("%llu\\n", (unsigned long long)({line}));' for line in lines)
    program = (
        f"#include <linux/fuse.h>\n#include <stdio.h>\n"
        f"_Alignas(8) static const unsigned char pattern[] = {{{octets}}};\n"
        f"int main(void) {{\n{statements}\nreturn 0; }}\n"
    )
    binary = directory / "printed"
    subprocess.run(["cc", "-x", "c", "-", "-o", binary], input=program, text=True, check=True)
    return [int(line) for line in subprocess.check_output([binary], text=True).split()]


def test_structures_are_as_the_header_has_them(header: str, tmp_path: Path) -> None:
    """The header may be older: what it lacks is left out."""
    found = dict(re.findall(r"^struct (\w+) \{(.*?)^\};", header, re.DOTALL | re.MULTILINE))
    known = {name: row for name, row in STRUCTURES.items() if name in found}
    declared = set(re.findall(r"(\w+)(?:\[\w*\])?;", "".join(found.values())))
    expected = {f"sizeof(struct {name})": size for name, (size, _) in known.items()}
    for name, (_, value) in known.items():
        own = set(re.findall(r"(\w+)(?:\[\w*\])?;", found[name]))
        expected |= {
            f"((const struct {name} *)pattern)->{path}": number
            for path, number in fields(value)
            if path.partition(".")[0] in own and declared.issuperset(path.split("."))
        }

    assert len(known) >= 55
    assert dict(zip(expected, printed([*expected], tmp_path), strict=True)) == expected


def test_constants_are_as_the_header_has_them(header: str, tmp_path: Path) -> None:
    of_a_version = {"FUSE_KERNEL_MINOR_VERSION"}
    expected = {
        name: value
        for name, value in CONSTANTS.items()
        if re.search(rf"\b{name}\b", header) and name not in of_a_version
    }

    assert len(expected) >= 120
    assert dict(zip(expected, printed([*expected], tmp_path), strict=True)) == expected
