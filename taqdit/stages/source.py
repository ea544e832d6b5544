"""The package's own code as one digest: what is kept of results names the code that made them."""

import hashlib
from functools import lru_cache
from pathlib import Path

_PACKAGE = Path(__file__).parents[1]
_CODE = (".py", ".mplstyle")


@lru_cache(maxsize=1)
def source_digest() -> str:
    """SHA-256 of every module and style file of the package, by name and content; as they were
    when this was first called."""
    _first_stamps()
    return _digest_now()


def source_unchanged() -> bool:
    """Whether no file was written since `source_digest` was first called: else a module that was
    loaded later may be another one."""
    source_digest()
    return _stamps() == _first_stamps()


@lru_cache(maxsize=1)
def _first_stamps() -> list[tuple[str, int, int]]:
    return _stamps()


def _stamps() -> list[tuple[str, int, int]]:
    """Name, time of the last change in ns and size in bytes of every file."""
    found = [(path, path.stat()) for path in _files()]
    return [(str(path), each.st_mtime_ns, each.st_size) for path, each in found]


def _files() -> list[Path]:
    return [path for path in sorted(_PACKAGE.rglob("*")) if path.suffix in _CODE]


def _digest_now() -> str:
    digest = hashlib.sha256()
    for path in _files():
        digest.update(path.relative_to(_PACKAGE).as_posix().encode() + path.read_bytes())
    return digest.hexdigest()
