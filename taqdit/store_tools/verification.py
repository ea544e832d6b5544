"""Every file of a store read and checked; nothing is changed.

Files are read twice, plainly for the digest in SEALED.json (a second thread is one file ahead) and
mapped for the shard's own digest and its numbers. One shard at a time is looked at.
"""

from __future__ import annotations

import errno
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from taqdit.errors import CorruptError, StorageError
from taqdit.stages import kinds
from taqdit.stages.checks.check import WARNINGS, Check, Problem, Unknown
from taqdit.store import canonical_json, read_shard, sha256_file, sha256_hex
from taqdit.store.digest import SEAL, STAGE, reason_of
from taqdit.store_tools.import_checks import Imported
from taqdit.store_tools.stage_folder import IMPORTED, Surveyed
from taqdit.trajectories.pictures import picture_owner, read_picture

CORRUPT, WARNING = "corrupt", "warning"
GAP = "gap"
_INCOMPLETE = (KeyError, TypeError, ValueError, IndexError, AttributeError, ArithmeticError)


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong (`severity` corrupt) or suspicious (warning). `kind` is a word for
    programs, `words` for people; `file` is None where it is the stage as a whole."""

    severity: str
    stage: str
    file: str | None
    kind: str
    words: str
    bytes: int | None

    def __str__(self) -> str:
        size = "" if self.bytes is None else f" ({self.bytes:,} bytes)"
        return f"{self.stage}{'' if self.file is None else '/' + self.file}{size}: {self.words}"


@dataclass(frozen=True)
class Checked:
    """A stage that was verified: how much was read and what was found."""

    stage: Surveyed
    files: int
    bytes: int
    findings: tuple[Finding, ...]

    @property
    def corrupt(self) -> list[Finding]:
        """What is wrong."""
        return [each for each in self.findings if each.severity == CORRUPT]

    @property
    def warnings(self) -> list[Finding]:
        """What is suspicious."""
        return [each for each in self.findings if each.severity == WARNING]


def verify(stages: Sequence[Surveyed]) -> Iterator[Checked]:
    """Check the stages one after the other."""
    with ThreadPoolExecutor(1) as reader:
        for stage in stages:
            yield _Verification(stage, reader).run()


class _Verification:
    """Of one stage."""

    def __init__(self, stage: Surveyed, reader: ThreadPoolExecutor) -> None:
        self.stage, self._reader = stage, reader
        self._findings: list[Finding] = []
        self._files = self._bytes = 0

    def run(self) -> Checked:
        """Read everything."""
        stage = self.stage
        if stage.is_foreign:
            found = stage.document and stage.document.get("schema")
            self._add(STAGE, "version", f"its schema is {found!r}: it is not checked")
            return self._checked()
        if stage.unlisted:
            self._add(None, "unreadable", str(stage.unlisted))
            return self._checked()
        self._check_about()
        foreign = stage.kind == IMPORTED
        known = _check_of(stage.kind) if stage.inputs else Unknown
        check = Imported(stage) if foreign else known(stage.kind, stage.inputs, [*stage.files])
        for name, digest in self._digests(list(stage.files)):
            self._check_file(name, digest, check)
        if not stage.held:
            self._close(check)
        return self._checked()

    def _close(self, check: Check) -> None:
        try:
            for file, kind, words in check.close():
                self._add(file, kind, words)
        except _INCOMPLETE as error:
            self._add(None, *_incomplete(error))
        if self.stage.seal is None and self.stage.kind != IMPORTED:
            self._close_aside()

    def _close_aside(self) -> None:
        """Tell what was moved aside and is not there again, where the files that are there do not
        show what is missing."""
        stage = self.stage
        gone = stage.moved_aside - set(stage.files)
        if _check_of(stage.kind).tells_gaps:  # it may have been no unit of the stage
            gone = {name for name in gone if name.endswith(".png")}
        if gone:
            words = f"missing since moved aside: {min(gone)}"
            more = f" and {len(gone) - 1} more" if gone - {min(gone)} else ""
            self._add(None, GAP, f"{words}{more}; a run makes again what it needs")

    def _checked(self) -> Checked:
        return Checked(self.stage, self._files, self._bytes, tuple(self._findings))

    def _check_about(self) -> None:
        """stage.json, SEALED.json, and whether what it lists is there."""
        stage = self.stage
        for name, reason in stage.faults.items():
            self._add(name, "stage" if name == STAGE else "seal", reason)
        if STAGE not in stage.faults and stage.inputs and not _fits(stage):
            self._add(STAGE, "stage", "its inputs do not give its fingerprint")
        imported = stage.kind == IMPORTED  # what was moved aside is a gap, sealed or not
        for name in sorted(set(stage.lost) - (stage.moved_aside if imported else set())):
            self._add(name, "missing", f"{SEAL} lists it, and it is not there")

    def _digests(self, names: Sequence[str]) -> Iterator[tuple[str, Future[str]]]:
        """The files with their SHA-256, which is under way for the next one already."""
        waiting: deque[tuple[str, Future[str]]] = deque()
        for name in names:
            waiting.append((name, self._reader.submit(sha256_file, self.stage.folder / name)))
            if len(waiting) > 1:
                yield waiting.popleft()
        yield from waiting

    def _check_file(self, name: str, digest: Future[str], check: Check) -> None:
        path, seal = self.stage.folder / name, self.stage.seal or {}
        try:
            whole = digest.result()
            problems = list(_guarded(self._problems(name, path, whole, check)))
        except StorageError as error:
            if not path.exists():
                return  # another process is at work
            problems, whole = [_unreadable(error)], ""
        except CorruptError as error:
            problems = [("digest", reason_of(error, path))]
        self._files, self._bytes = self._files + 1, self._bytes + self.stage.files[name]
        for kind, words in problems:
            self._add(name, kind, words)
        if any(kind == "place" for kind, _ in problems):
            check.misplaced.add(name)
        if (
            whole
            and all(kind in WARNINGS for kind, _ in problems)
            and seal.get(name, whole) != whole
        ):
            whole = "" if self.stage.kind == IMPORTED else "whole, but "  # which nobody can tell
            self._add(name, "seal", f"it is {whole}not the file that was sealed")

    def _problems(self, name: str, path: Path, digest: str, check: Check) -> Iterator[Problem]:
        mark = self.stage.fingerprint
        if isinstance(check, Imported):
            yield from check.foreign(name, path, digest)
            return
        if name.endswith(".png"):
            if not self.stage.inputs:
                return  # what there should be is not known
            owner = check.owner(name)
            if owner is None:
                yield "unexpected", "no image of this stage has such a name"
                return
            yield from check.picture(
                name, read_picture(path, owner=picture_owner(mark, int(owner)))
            )
            return
        shard = read_shard(path)
        if mark and shard.metadata.get("stage") != mark:
            yield "place", "it belongs to another stage"
            return
        yield from check.shard(name, shard)

    def _add(self, file: str | None, kind: str, words: str) -> None:
        sizes = {**self.stage.files, **self.stage.about}
        self._findings.append(
            Finding(
                severity=WARNING if kind in WARNINGS else CORRUPT,
                stage=self.stage.name,
                file=file,
                kind=kind,
                words=words,
                bytes=None if file is None else sizes.get(file),
            )
        )


def _check_of(name: str) -> type[Check]:
    """What the shards of a kind of stage must be."""
    kind = kinds.stored().get(name)
    return kind.check if kind and kind.check else Unknown


def _guarded(problems: Iterator[Problem]) -> Iterator[Problem]:
    """The problems; where stage.json or metadata lack something that a check needs, that."""
    try:
        yield from problems
    except _INCOMPLETE as error:
        yield _incomplete(error)


def _incomplete(error: Exception) -> Problem:
    return "shape", f"what describes it is not complete ({type(error).__name__}: {error})"


def _fits(stage: Surveyed) -> bool:
    """Whether the fingerprint was taken of the inputs."""
    return sha256_hex(canonical_json(stage.inputs).encode()) == stage.fingerprint


def _unreadable(error: StorageError) -> Problem:
    """A failing disk is corruption; a file that one may not read is not."""
    cause = error.__cause__
    failing = isinstance(cause, OSError) and cause.errno == errno.EIO
    return ("digest" if failing else "unreadable"), str(error)
