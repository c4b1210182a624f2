"""fio(1) in verify mode: it reads what it has written, and compares the checksum of each block."""

import json
import os
import subprocess
from collections.abc import Mapping
from pathlib import Path

from tests.support.tools.callers import Caller

LIMIT_S = 120.0
SIZE = "1m"

_EACH: Mapping[str, str] = {
    "size": SIZE,
    "ioengine": "psync",
    "bs": "4k",
    "fallocate": "none",
    "verify": "crc32c",
    "verify_dump": "0",
    "verify_state_save": "0",
    "do_verify": "1",
}
JOBS: Mapping[str, Mapping[str, str]] = {
    "sequential": {"rw": "write", "bs": "64k", "size": "4m"},
    "random": {"rw": "randwrite", "numjobs": "2"},
    "mixed": {"rw": "randrw", "bsrange": "1k-32k", "bs_unaligned": "1"},
    "checked-meanwhile": {"rw": "randwrite", "verify_backlog": "64"},
    "direct": {"rw": "randwrite", "ioengine": "libaio", "iodepth": "8", "direct": "1"},
    "mapped": {"rw": "randwrite", "ioengine": "mmap"},
    "synced": {"rw": "write", "fdatasync": "32"},
}
"""Name of the job -> options other than in `_EACH`. All jobs run at once."""


class FioError(AssertionError):
    """An error that fio has found, with its output."""


def command(directory: Path, seed: int, *, only_verify: bool) -> list[str]:
    """Return the command line of fio, which writes below *directory*, or only verifies."""
    words = ["fio", "--output-format=json", f"--directory={directory}", f"--randseed={seed}"]
    if only_verify:
        words.append("--verify_only=1")
    for name, given in JOBS.items():
        options = {**_EACH, **given}
        if only_verify:  # with a backlog fio would skip the blocks that it has verified before
            options.pop("verify_backlog", None)
        words += [f"--name={name}", *(f"--{key}={value}" for key, value in options.items())]
    return words


def run(caller: Caller, directory: Path, seed: int, *, only_verify: bool = False) -> int:
    """Run all jobs as *caller*, and return the number of bytes read.

    Raises:
        FioError: fio has found an error.
    """
    text = f"fio in {directory}, seed {seed}"
    try:
        done = subprocess.run(
            command(directory, seed, only_verify=only_verify),
            capture_output=True,
            cwd="/",
            user=caller.uid,
            group=caller.gid,
            extra_groups=caller.groups,
            timeout=LIMIT_S,
            check=False,
            env={"PATH": os.environ["PATH"]},
        )
    except subprocess.TimeoutExpired as error:
        raise FioError(f"{text}: {error}") from None
    output = done.stderr.decode(errors="replace")
    if done.returncode or output.strip():
        raise FioError(f"{text}: exit status {done.returncode}\n{output}")
    jobs = json.loads(done.stdout)["jobs"]
    if wrong := [job["jobname"] for job in jobs if job["error"] or not job["read"]["io_bytes"]]:
        raise FioError(f"{text}: errors, or nothing was read: {wrong}")
    return sum(job["read"]["io_bytes"] for job in jobs)
