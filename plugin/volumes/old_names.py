"""The directory names of volumes in a registry of format 1 or 2.

A passfs of that time accepted any text of up to 1024 characters as the name of a volume, and
encoded it as the name of the directory. A registry of format 3 has that name in a column.
"""

import re
from hashlib import sha256
from urllib.parse import quote

from plugin.volume import FileName

PLAIN = re.compile(r"[a-zA-Z0-9][a-zA-Z0-9_.-]{0,127}")
LONGEST_ENCODED = 200


def directory_of(name: str) -> FileName:
    """Return the name of the directory that an older passfs made for the volume *name*.

    Two volumes never share a directory: a plain name is kept, a quoted name begins with `@`, and a
    SHA-256 begins with `#`.
    """
    if PLAIN.fullmatch(name) is not None:
        return FileName(name)
    encoded = quote(name, safe="")
    if len(encoded) <= LONGEST_ENCODED:
        return FileName(f"@{encoded}")
    return FileName(f"#{sha256(name.encode()).hexdigest()}")
