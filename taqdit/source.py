"""The package's own code as one digest: what is kept of results names the code that made them."""

import hashlib
from functools import lru_cache
from pathlib import Path

_PACKAGE = Path(__file__).parent
_CODE = (".py", ".mplstyle")


@lru_cache(maxsize=1)
def source_digest() -> str:
    """SHA-256 of every module and style file of the package, by name and content."""
    digest = hashlib.sha256()
    for path in sorted(_PACKAGE.rglob("*")):
        if path.suffix in _CODE:
            digest.update(path.relative_to(_PACKAGE).as_posix().encode() + path.read_bytes())
    return digest.hexdigest()
