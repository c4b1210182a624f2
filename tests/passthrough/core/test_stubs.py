"""The .pyi files: each compiled module that Python sees something of has one."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
SEEN = re.compile(r"^(?:def|cpdef(?: \w+)*|cdef class) (\w+)", re.MULTILINE)
MODULES = sorted([*(ROOT / "passthrough/core").glob("*.pyx"), *Path(__file__).parent.glob("*.pyx")])


@pytest.mark.parametrize("module", MODULES, ids=lambda module: module.stem)
def test_a_stub_has_the_names_that_python_sees(module: Path) -> None:
    seen = {name for name in SEEN.findall(module.read_text()) if not name.startswith("_")}
    stub = module.with_suffix(".pyi")
    declared = {
        node.name
        for node in ast.parse(stub.read_text() if stub.exists() else "").body
        if isinstance(node, ast.ClassDef | ast.FunctionDef) and not node.name.startswith("_")
    }

    assert declared == seen
