"""INIT: the features that the kernel offers and the options want, with reasons."""

import pytest

from passthrough.options.choices import CachePolicy, Locks, Passthrough, SessionKind, Transport
from passthrough.options.effective import Effective
from passthrough.session import negotiation
from passthrough.session.abi import Init
from passthrough.session.negotiation import FEATURES, REQUIRED, Offer, ProtocolError, agree
from tests.support.fakes.kernel import EVERYTHING
from tests.support.tools import abi
from tests.support.tools.options import effective

NEW = Offer(abi.MAJOR, abi.MINOR, 131_072, EVERYTHING)
KERNEL = SessionKind.KERNEL
USUAL = (
    *(Init.INIT_EXT, Init.MAX_PAGES, Init.BIG_WRITES, Init.SETXATTR_EXT, Init.ASYNC_READ),
    *(Init.ASYNC_DIO, Init.PARALLEL_DIROPS, Init.DO_READDIRPLUS, Init.READDIRPLUS_AUTO),
    *(Init.CACHE_SYMLINKS, Init.SUBMOUNTS, Init.HAS_EXPIRE_ONLY, Init.HAS_RESEND),
    Init.NO_EXPORT_SUPPORT,
)
ACLS = {Init.POSIX_ACL, Init.DONT_MASK}
LOCKS = {Init.POSIX_LOCKS, Init.FLOCK_LOCKS}
# Options, and the features that they want beside the usual ones.
WANTED: dict[str, tuple[Effective, set[Init]]] = {
    "defaults": (
        effective(session=KERNEL),
        {
            *(Init.ATOMIC_O_TRUNC, Init.HANDLE_KILLPRIV_V2, Init.AUTO_INVAL_DATA),
            *{Init.PASSTHROUGH, *LOCKS, *ACLS},
        },
    ),
    "always": (
        effective(
            session=KERNEL,
            cache=CachePolicy.ALWAYS,
            killpriv_v2=False,
            posix_acl=False,
            locks=Locks.LOCAL,
        ),
        {Init.ATOMIC_O_TRUNC, Init.EXPLICIT_INVAL_DATA, Init.PASSTHROUGH},
    ),
    "not passed through": (
        effective(session=KERNEL, passthrough=Passthrough.OFF),
        {Init.ATOMIC_O_TRUNC, Init.HANDLE_KILLPRIV_V2, Init.AUTO_INVAL_DATA, *LOCKS, *ACLS},
    ),
    "over rings": (
        effective(session=KERNEL, transport=Transport.IO_URING),
        {
            *(Init.ATOMIC_O_TRUNC, Init.HANDLE_KILLPRIV_V2, Init.AUTO_INVAL_DATA),
            *{Init.PASSTHROUGH, Init.OVER_IO_URING, *LOCKS, *ACLS},
        },
    ),
    "never opened": (
        effective(session=KERNEL, cache=CachePolicy.ALWAYS, no_open=True, no_opendir=True),
        {
            *(Init.NO_OPEN_SUPPORT, Init.NO_OPENDIR_SUPPORT),
            *(Init.HANDLE_KILLPRIV_V2, Init.EXPLICIT_INVAL_DATA, *ACLS),
        },
    ),
    "idmapped": (
        effective(session=KERNEL, idmap=True),
        {
            *(Init.ATOMIC_O_TRUNC, Init.HANDLE_KILLPRIV_V2, Init.AUTO_INVAL_DATA),
            *{Init.PASSTHROUGH, Init.ALLOW_IDMAP, *LOCKS, *ACLS},
        },
    ),
    "writeback": (
        effective(session=KERNEL, writeback=True),
        {
            *LOCKS,
            *(Init.ATOMIC_O_TRUNC, Init.HANDLE_KILLPRIV_V2, Init.AUTO_INVAL_DATA),
            *(*ACLS, Init.WRITEBACK_CACHE),
        },
    ),
}


@pytest.mark.parametrize(("config", "more"), WANTED.values(), ids=WANTED)
def test_the_features_that_the_options_want_are_requested(
    config: Effective, more: set[Init]
) -> None:
    agreed = agree(NEW, config)

    assert {flag for flag in Init if agreed.flags & flag} == {*USUAL, *more}


def test_every_feature_is_wanted_by_some_options_above_or_never() -> None:
    wanted = {*USUAL}.union(*(more for _, more in WANTED.values()))
    never = {Init.CREATE_SUPP_GROUP, Init.SECURITY_CTX}

    assert {feature.flag for feature in FEATURES} == wanted | never


def test_a_feature_that_is_not_offered_is_not_used() -> None:
    agreed = agree(NEW._replace(flags=REQUIRED), effective(session=KERNEL))

    assert agreed.flags == REQUIRED
    by_name = {feature.feature: feature for feature in agreed.features}
    assert by_name["cache_symlinks"][2:] == (False, "the kernel does not offer it")
    assert by_name["max_pages"].used
    assert not by_name["writeback_cache"].used
    assert by_name["writeback_cache"].reason.endswith("with writeback")


def test_the_flags_of_init_tell_the_state_of_each_feature() -> None:
    """A plugin has the flags alone, in the report of the worker."""
    config = effective(session=KERNEL)
    agreed = agree(NEW._replace(flags=REQUIRED), config)

    assert negotiation.states(int(REQUIRED), int(agreed.flags), config) == agreed.features


@pytest.mark.parametrize("minor", [40, 44, 45, 99])
def test_the_lower_minor_version_holds(minor: int) -> None:
    assert agree(NEW._replace(minor=minor), effective()).minor == min(minor, 45)


@pytest.mark.parametrize(
    ("offer", "sentence"),
    [
        (NEW._replace(minor=39), "the kernel speaks FUSE 7.39, not 7.40"),
        (NEW._replace(major=8, minor=0), "the kernel speaks FUSE 8.0, not 7.40"),
        (NEW._replace(flags=EVERYTHING & ~Init.SETXATTR_EXT), "does not offer SETXATTR_EXT"),
    ],
)
def test_another_protocol_is_refused(offer: Offer, sentence: str) -> None:
    with pytest.raises(ProtocolError, match=sentence) as refused:
        agree(offer, effective())

    assert "session=libfuse does not" in str(refused.value)


def test_passthrough_on_is_refused_if_it_is_not_offered() -> None:
    config = effective(session=KERNEL, passthrough=Passthrough.ON)
    offer = NEW._replace(flags=EVERYTHING & ~Init.PASSTHROUGH)

    with pytest.raises(ProtocolError, match="'on' cannot be had: this kernel has none"):
        agree(offer, config)


def test_idmap_is_refused_if_it_is_not_offered() -> None:
    offer = NEW._replace(flags=EVERYTHING & ~Init.ALLOW_IDMAP)

    with pytest.raises(ProtocolError, match="'true' cannot be had: this kernel has none"):
        agree(offer, effective(session=KERNEL, idmap=True))


def test_an_offer_joins_both_words_of_flags() -> None:
    fields = (abi.MAJOR, abi.MINOR, 1, 0x4000_0001, 0x80)

    assert negotiation.offer(fields) == Offer(7, 45, 1, 1 | Init.INIT_EXT | Init.HAS_RESEND)
