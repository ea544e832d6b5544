"""What takes how much space in a store: what `taqdit store du` prints."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

from taqdit.store_tools.stage_folder import Sizes
from taqdit.store_tools.survey import Survey
from taqdit.words import counted, size


@dataclass(frozen=True)
class Share:
    """Of `folders` folders: files and their bytes."""

    folders: int = 0
    files: int = 0
    bytes: int = 0

    @classmethod
    def of(cls, sizes: Sizes) -> Share:
        """Of files that lie in one folder."""
        return cls(int(bool(sizes)), len(sizes), sum(sizes.values()))

    def __add__(self, more: Share) -> Share:
        folders, files = self.folders + more.folders, self.files + more.files
        return Share(folders, files, self.bytes + more.bytes)


@dataclass(frozen=True)
class Usage:
    """`stages` by kind and `folders` by name hold the data; `beside` what is no data: `aside`
    (corrupt files), `leftovers` (of dead writers), `replaced` (whole folders) and `other`.
    `working`, checkpoints and parts of unfinished statistics, is among the data. The shares of
    `stages` and `beside` sum to `bytes`."""

    bytes: int
    stages: dict[str, Share]
    folders: dict[str, Share]
    working: Share
    beside: dict[str, Share]

    @classmethod
    def of(cls, survey: Survey) -> Usage:
        """Add it up."""
        kinds, folders, working, none = dict[str, Share](), dict[str, Share](), Share(), Share()
        beside = dict.fromkeys(("aside", "leftovers", "replaced"), none)
        for stage in survey.stages:
            own = Share(1, len(stage.files) + len(stage.about), stage.bytes)
            kinds[stage.kind] = kinds.get(stage.kind, none) + own
            folders[stage.name] = own
            working += Share.of(stage.working)
            beside["aside"] += Share.of(stage.aside)
            beside["leftovers"] += Share.of(stage.leftovers)
        for old in survey.replaced:
            beside["replaced"] += Share(1, old.files, old.bytes)
        total, known = Share.of(survey.sizes), sum([*kinds.values(), *beside.values()], none)
        rest = max(0, total.files - known.files), max(0, total.bytes - known.bytes)
        return cls(total.bytes, kinds, folders, working, {**beside, "other": Share(0, *rest)})


def as_json(survey: Survey) -> dict[str, Any]:
    """What `du --json` prints."""
    return asdict(Usage.of(survey))


def lines(survey: Survey) -> Iterator[str]:
    """The same for people."""
    usage = Usage.of(survey)
    yield f"{size(usage.bytes):>11}  {survey.store}"
    for kind, share in usage.stages.items():
        yield _line(f"{kind}, {counted(share.folders, 'folder')}", share)
        for name, part in usage.folders.items() if share.folders > 1 else ():
            if name.startswith(f"{kind}/"):
                yield _line(f"  {name}", part)
    beside = {"of it checkpoints and parts": usage.working, **usage.beside}
    yield from (_line(name, share) for name, share in beside.items() if share.files)
    for stage in survey.stages:
        if stage.unlisted:
            yield f"{'unknown':>11}  {stage.name}: {stage.problem}"


def _line(name: str, share: Share) -> str:
    return f"{size(share.bytes):>11}  {name}, {counted(share.files, 'file')}"
