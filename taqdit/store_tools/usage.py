"""What takes how much space in a store."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from taqdit.store_tools.stage_folder import Sizes
from taqdit.store_tools.survey import Survey


@dataclass(frozen=True)
class Share:
    """Of `folders` folders: files and their bytes."""

    folders: int
    files: int
    bytes: int


@dataclass(frozen=True)
class Usage:
    """`stages` by kind and `folders` by name hold the data; `beside` what is no data: `aside`
    (corrupt files), `leftovers` (of dead writers), `replaced` (whole folders) and `other`.
    `working`, checkpoints and parts of unfinished statistics, is among the data."""

    bytes: int
    stages: Mapping[str, Share]
    folders: Mapping[str, Share]
    working: Share
    beside: Mapping[str, Share]

    def as_dict(self) -> dict[str, Any]:
        """Plain data."""
        return asdict(self)


def usage(survey: Survey) -> Usage:
    """Add it up. The shares of `stages` and `beside` sum to `bytes`."""
    stages = survey.stages
    folders = {
        each.name: Share(1, len(each.files) + len(each.about), each.bytes) for each in stages
    }
    kinds = {
        kind: _sum(folders[each.name] for each in stages if each.kind == kind)
        for kind in dict.fromkeys(each.kind for each in stages)
    }
    beside = {
        "aside": _sum(_share(each.aside) for each in stages),
        "leftovers": _sum(_share(each.leftovers) for each in stages),
        "replaced": _sum(Share(1, each.files, each.bytes) for each in survey.replaced),
    }
    total = survey.sizes
    known = _sum([*kinds.values(), *beside.values()])
    beside["other"] = Share(
        0, max(0, len(total) - known.files), max(0, sum(total.values()) - known.bytes)
    )
    working = _sum(_share(each.working) for each in stages)
    return Usage(sum(total.values()), kinds, folders, working, beside)


def _share(sizes: Sizes) -> Share:
    return Share(int(bool(sizes)), len(sizes), sum(sizes.values()))


def _sum(shares: Iterable[Share]) -> Share:
    all_of = list(shares)
    return Share(
        sum(each.folders for each in all_of),
        sum(each.files for each in all_of),
        sum(each.bytes for each in all_of),
    )
