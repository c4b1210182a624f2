import stat

import pytest

from passthrough.options.cache_policy import Cache
from passthrough.options.choices import CachePolicy
from tests.support.tools.options import effective

DAY_S = 86_400.0
FILE, DIRECTORY, SYMLINK = stat.S_IFREG | 0o644, stat.S_IFDIR | 0o755, stat.S_IFLNK | 0o777
POLICIES = {
    CachePolicy.NEVER: (0.0, False),
    CachePolicy.METADATA: (DAY_S, False),
    CachePolicy.AUTO: (1.0, False),
    CachePolicy.ALWAYS: (DAY_S, True),
}


@pytest.mark.parametrize(("policy", "expected"), POLICIES.items())
def test_the_policy_sets_timeouts_in_seconds_and_whether_pages_stay(
    policy: CachePolicy, expected: tuple[float, bool]
) -> None:
    timeout_s, keep_pages = expected
    cache = Cache(effective(cache=policy))

    assert cache.timeouts(FILE) == (timeout_s, timeout_s)
    assert cache.timeouts(DIRECTORY) == (timeout_s, timeout_s)
    assert cache.absent == timeout_s
    assert cache.keep_pages is keep_pages


def test_every_policy_is_in_the_table_above() -> None:
    assert set(POLICIES) == set(CachePolicy)


@pytest.mark.parametrize("policy", CachePolicy)
@pytest.mark.parametrize(
    ("given", "file", "directory"),
    [
        ({"entry_timeout": 5.0}, (5.0, None), (5.0, None)),
        ({"attr_timeout": 6.0}, (None, 6.0), (None, 6.0)),
        ({"dir_entry_timeout": 7.0}, (None, None), (7.0, None)),
        ({"dir_attr_timeout": 8.0}, (None, None), (None, 8.0)),
        ({"entry_timeout": 5.0, "dir_entry_timeout": 7.0}, (5.0, None), (7.0, None)),
        ({"attr_timeout": 6.0, "dir_attr_timeout": 8.0}, (None, 6.0), (None, 8.0)),
        ({"entry_timeout": 0.0, "attr_timeout": 0.0}, (0.0, 0.0), (0.0, 0.0)),
        ({"dir_entry_timeout": 0.0, "entry_timeout": 5.0}, (5.0, None), (0.0, None)),
    ],
)
def test_a_given_timeout_overrides_the_policy(
    policy: CachePolicy,
    given: dict[str, float],
    file: tuple[float | None, ...],
    directory: tuple[float | None, ...],
) -> None:
    """None stands for the policy's timeout; a directory timeout overrides the general timeout."""
    policy_s, _ = POLICIES[policy]
    cache = Cache(effective(cache=policy, **given))

    assert cache.timeouts(FILE) == tuple(policy_s if s is None else s for s in file)
    assert cache.timeouts(SYMLINK) == cache.timeouts(FILE)
    assert cache.timeouts(DIRECTORY) == tuple(policy_s if s is None else s for s in directory)


@pytest.mark.parametrize("policy", CachePolicy)
@pytest.mark.parametrize("seconds", [0.0, 9.0])
def test_negative_entries_have_a_timeout_of_their_own(policy: CachePolicy, seconds: float) -> None:
    policy_s, _ = POLICIES[policy]
    cache = Cache(effective(cache=policy, negative_timeout=seconds))

    assert cache.absent == seconds
    assert cache.timeouts(FILE) == cache.timeouts(DIRECTORY) == (policy_s, policy_s)
