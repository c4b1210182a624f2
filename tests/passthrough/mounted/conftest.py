"""Marks for the tests of mounts."""

import pytest


def pytest_itemcollected(item: pytest.Item) -> None:
    """Leave these tests to full runs: nearly every one serves a mount of its own."""
    item.add_marker(pytest.mark.full)
