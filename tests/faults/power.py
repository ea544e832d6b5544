"""A model of power loss, after SQLite's test6: what may be left in a folder when the power goes."""

from collections.abc import Callable, Iterator
from itertools import product
from pathlib import Path
from typing import BinaryIO

from store_lab import QuickDisk


class PowerDisk(QuickDisk):
    """Records what happens in one folder."""

    def __init__(self) -> None:
        self.events: list[tuple[str, str, object]] = []

    def record(self, operation: str, name: str, value: object = None) -> None:
        self.events.append((operation, name, value))

    def open_exclusive(self, path: Path) -> BinaryIO:
        self.record("create", path.name)
        return super().open_exclusive(path)

    def write(self, file: BinaryIO, write: Callable[[BinaryIO], object]) -> None:
        super().write(file, write)
        self.record("write", Path(file.name).name, Path(file.name).read_bytes())

    def sync(self, file: BinaryIO) -> None:
        self.record("sync", Path(file.name).name)

    def replace(self, source: Path, target: Path) -> None:
        super().replace(source, target)
        self.record("replace", source.name, target.name)

    def sync_dir(self, folder: Path) -> None:
        self.record("sync_dir", folder.name)

    def unlink(self, path: Path) -> None:
        super().unlink(path)
        self.record("unlink", path.name)

    def adopt(self, folder: Path) -> None:
        """What is in the folder already is durable."""
        for path in folder.iterdir():
            self.record("create", path.name)
            self.record("write", path.name, path.read_bytes())
            self.record("sync", path.name)
        self.record("sync_dir", folder.name)

    def acknowledge(self, name: str) -> None:
        self.record("acknowledge", name)


State = tuple[frozenset[tuple[str, bytes]], frozenset[str]]


def crash_states(
    events: list[tuple[str, str, object]], folder: str, begin: int = 0
) -> Iterator[State]:
    """Every (folder contents, acknowledged names) that a power cut may leave: cut after each event
    from `begin` on; of what was not synced, any subset of the changes to the folder (of the last
    six) is there, and the data is whole, half, zeros or nothing."""
    seen = set()
    for end in range(begin, len(events) + 1):
        for state in _states_after(events[:end], folder):
            if state not in seen:
                seen.add(state)
                yield state


def _states_after(events: list[tuple[str, str, object]], folder: str) -> Iterator[State]:
    files: list[dict] = []
    open_files: dict[str, int] = {}
    durable: dict[str, int] = {}
    pending: list[tuple[str, str, int | None]] = []
    acknowledged = set()
    for operation, name, value in events:
        if operation == "create":
            open_files[name] = len(files)
            files.append({"data": b"", "synced": True})
            pending.append(("", name, open_files[name]))
        elif operation == "write":
            files[open_files[name]] = {"data": value, "synced": False}
        elif operation == "sync":
            files[open_files[name]]["synced"] = True
        elif operation == "replace":
            open_files[str(value)] = open_files[name]
            pending.append((name, str(value), open_files[name]))
        elif operation == "unlink":
            pending.append((name, "", None))
        elif operation == "sync_dir" and name == folder:
            durable = _applied(durable, pending)
            pending = []
        elif operation == "acknowledge":
            acknowledged.add(name)
    for chosen in product((False, True), repeat=min(len(pending), 6)):
        some = [change for change, there in zip(pending[-6:], chosen, strict=True) if there]
        entries = _applied(durable, some)
        for variant in product(*(_variants(files[number]) for number in entries.values())):
            yield frozenset(zip(entries, variant, strict=True)), frozenset(acknowledged)


def _applied(entries: dict[str, int], changes: list[tuple[str, str, int | None]]) -> dict[str, int]:
    entries = dict(entries)
    for old, new, number in changes:
        entries.pop(old, None)
        if new and number is not None:
            entries[new] = number
    return entries


def _variants(file: dict) -> set[bytes]:
    data = file["data"]
    return {data} if file["synced"] else {data, data[: len(data) // 2], bytes(len(data)), b""}
