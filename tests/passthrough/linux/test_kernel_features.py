import os
from types import SimpleNamespace

import pytest

from passthrough.linux import kernel_features


@pytest.mark.parametrize(
    ("text", "release"), [("6.18.44-fc", (6, 18)), ("5.10", (5, 10)), ("odd", (0, 0))]
)
def test_the_release_is_read(
    monkeypatch: pytest.MonkeyPatch, text: str, release: tuple[int, int]
) -> None:
    monkeypatch.setattr(os, "uname", lambda: SimpleNamespace(release=text))

    assert kernel_features.linux_release() == release
