from collections.abc import Sequence

import pytest

from passthrough.options.table import OptionError
from passthrough.standalone.words import given_options


@pytest.mark.parametrize(
    ("texts", "given"),
    [
        (["ro,cache=never", "noexec"], {"ro": "", "cache": "never", "noexec": ""}),
        (["ro", "ro", ",,"], {"ro": ""}),
        (['map_uid="0:0:1,5:5:1",ro'], {"map_uid": "0:0:1,5:5:1", "ro": ""}),
        (["fsname=a=b"], {"fsname": "a=b"}),
        (["defaults,nofail,_netdev,noauto,user=joe,users,group,async"], {}),
        (["x-systemd.requires=/srv,X-mount.mkdir=0755,comment=mine,ro"], {"ro": ""}),
        (["x_attr"], {"x_attr": ""}),
        (["owner=0:0"], {"owner": "0:0"}),
    ],
)
def test_words_are_split_as_mount_splits_them(texts: Sequence[str], given: dict[str, str]) -> None:
    assert given_options(texts) == given


@pytest.mark.parametrize(
    ("texts", "sentence"),
    [
        (["cache=auto,cache=never"], "option 'cache': 'never' is not accepted; expected one value"),
        (["ro,remount"], "option 'remount': is refused: the options of a mount cannot be changed"),
    ],
)
def test_a_word_is_refused(texts: Sequence[str], sentence: str) -> None:
    with pytest.raises(OptionError, match=f"^{sentence}"):
        given_options(texts)


def test_an_implied_word_gives_way() -> None:
    assert given_options(["rw,readonly"], implied=("rw",)) == {"readonly": ""}


def test_unknown_options_are_left_out_if_the_caller_wants_that() -> None:
    given = given_options(["intr,ro,soft=1,cache=never"], sloppy=True)

    assert given == {"ro": "", "cache": "never"}
    with pytest.raises(OptionError):
        given_options(["remount"], sloppy=True)
