"""The journal: a log of JSON objects, one a line, that survives its writer."""

import json
import logging
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from taqdit.store.digest import corrupt, parse_object
from taqdit.store.disk import guarded, reading

_MOST_LEFT_OUT = 1_000  # lines; more are no accident of a writer
_log = logging.getLogger(__name__)


class Journal:
    """Appends to a file that one process writes; each line is handed to the system at once.

    A line that an earlier writer left unfinished is cut off first.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        with guarded("write", path):
            self._file = path.open("a+b")
            self._file.seek(0)
            self._file.truncate(self._file.read().rfind(b"\n") + 1)

    def append(self, record: Mapping[str, Any]) -> None:
        """Add one object. NaN and infinities, which JSON has not, become strings."""
        line = json.dumps(_finite(record), ensure_ascii=False, allow_nan=False)
        with guarded("write", self._path):
            self._file.write(line.encode() + b"\n")
            self._file.flush()

    def close(self) -> None:
        with guarded("write", self._path):
            self._file.close()


def read_journal(path: Path) -> list[dict[str, Any]]:
    """The journal's objects, in order, while or after it is written.

    A last line that is not finished is left out; any other that is no object is left out with a
    warning. StorageError when the file cannot be read, CorruptError when it is no journal.
    """
    records, left_out = [], 0
    with guarded("read", path), reading(path) as file:
        for number, line in enumerate(file, start=1):
            try:
                if line.endswith(b"\n"):
                    records.append(parse_object(line))
            except ValueError as error:
                left_out += 1
                _log.warning("%s, line %d is left out: %s", path, number, error)
            if left_out > _MOST_LEFT_OUT:
                raise corrupt(path, f"more than {_MOST_LEFT_OUT} of its lines hold no object")
    return records


def _finite(value: Any) -> Any:
    if type(value) in (int, str):  # most are, and what follows takes longer
        return value
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return value
