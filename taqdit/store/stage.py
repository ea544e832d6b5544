"""A stage's folder: named by what went into it, resumed from what is there, sealed when done."""

import logging
import os
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager, closing
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np

from taqdit.errors import CorruptError, InputError, StorageError
from taqdit.store import digest, disk, parallel
from taqdit.store.aside import set_aside
from taqdit.store.claim import claim, claimants, idle
from taqdit.store.digest import SEAL, STAGE, corrupt, read_stamped, stamp
from taqdit.store.disk import Identity, identity_at
from taqdit.store.document import SCHEMA, among, described, document_of, establish, read_document
from taqdit.store.lock import in_turn
from taqdit.store.shard import Shard, read_shard, verify_shard, write_shard

DATA = (".safetensors", ".png", ".npz", ".jsonl")  # the last two: imported files
_log = logging.getLogger(__name__)

_Tried = tuple[Identity | None, CorruptError | StorageError | None]  # a file, why it is not good


@dataclass(frozen=True, eq=False)
class Stage:
    """One folder `<root>/<name>/<first 12 digits of the fingerprint>`; made by `open` or `find`.

    The listing is the ledger: a unit is done when its file is there and verifies. `moved_aside`
    names the data files, with reasons, that this object found corrupt.
    """

    folder: Path
    name: str
    fingerprint: str
    moved_aside: list[tuple[str, str]] = field(default_factory=list)
    _first: dict[str, Any] = field(default_factory=dict, repr=False)  # read of stage.json

    @classmethod
    def open(
        cls,
        root: Path,
        name: str,
        *,
        fingerprint: str,
        inputs: Mapping[str, Any],
        backend: Mapping[str, Any],
        lost: Mapping[str, Any] | None = None,
    ) -> "Stage":
        """Find or make the folder, with its stage.json, and clear what dead writers left.

        `inputs` is what the fingerprint was taken of, `backend` what computes on this machine.
        Where there are data, but stage.json is damaged or missing, a new one says that they were
        made on `lost`, or if that is None, CorruptError is raised. StorageError when the folder
        belongs to another fingerprint.
        """
        stage = cls(_folder(root, name, fingerprint), name, fingerprint)
        disk.make_folder(stage.folder)
        stage._discard_dead(".*.tmp")
        document = document_of(name, fingerprint, inputs, backend)
        establish(stage.path(STAGE), document, stage.names, lost=lost)
        stage._document()
        return stage

    @classmethod
    def find(cls, root: Path, name: str, fingerprint: str) -> "Stage | None":
        """The stage if it exists, to read. Nothing is made; errors as `open`."""
        stage = cls(_folder(root, name, fingerprint), name, fingerprint)
        with disk.guarded("look for", stage.folder):
            if not stage.path(STAGE).exists():
                return None
        stage._document()
        return stage

    @classmethod
    def at(cls, folder: Path) -> "Stage":
        """The stage whose folder this is, to read. InputError if it is none, errors as `open`."""
        folder = folder.resolve()
        if not (folder / STAGE).is_file():
            raise InputError(f"{folder} is no stage of a store: it has no {STAGE}")
        fingerprint = str(read_stamped(folder / STAGE).get("fingerprint"))
        stage = cls(folder, folder.parent.name, fingerprint)
        stage._document()
        return stage

    @classmethod
    def set_aside(cls, root: Path, name: str, fingerprint: str) -> Path | None:
        """Rename the stage's folder to `<folder>.replaced-<n>`; None if there is none.

        Raises StorageError if another process is at work in it.
        """
        return set_aside(_folder(root, name, fingerprint))

    @property
    def inputs(self) -> dict[str, Any]:
        """What the fingerprint was taken of; stage.json is not read for it again."""
        return dict((self._first or self._document())["inputs"])

    @property
    def backends(self) -> list[dict[str, Any]]:
        """On which backends the stage was made."""
        return list(self._document()["backends"])

    def path(self, file_name: str) -> Path:
        """Where a file of the stage is, or is to be published."""
        return self.folder / file_name

    def names(self, suffix: str = "") -> list[str]:
        """The published data files (shards, images, imported ones) whose names end so, sorted."""
        with disk.guarded("list", self.folder):
            names = [path.name for path in self.folder.iterdir() if path.suffix in DATA]
        return sorted(n for n in names if n.endswith(suffix) and not n.startswith("."))

    def write(
        self,
        file_name: str,
        tensors: Mapping[str, np.ndarray],
        *,
        kind: str,
        index: int | str,
        metadata: Mapping[str, Any],
    ) -> None:
        """Publish a shard that says which stage and which unit it is."""
        stamped = {**metadata, "stage": self.fingerprint}
        write_shard(self.path(file_name), tensors, kind=kind, index=index, metadata=stamped)

    def read(self, file_name: str, *, kind: str, index: int | str) -> Shard:
        """A shard of this stage. CorruptError when it is damaged, or another's under its name."""
        shard = read_shard(self.path(file_name), kind=kind)
        owner, unit = shard.metadata.get("stage"), shard.metadata.get("index")
        if (owner, unit) != (self.fingerprint, index):
            whose = "another stage" if owner != self.fingerprint else f"unit {unit!r}"
            raise corrupt(self.path(file_name), f"it belongs to {whose}")
        return shard

    def admit(self, backend: Mapping[str, Any], *, allow_change: bool) -> None:
        """Ask leave to compute on this backend; call it before computing what is missing.

        A stage with data from other backends is not continued (StorageError) unless
        `allow_change`; stage.json then names this one too, for ever. The seal is taken off.
        """
        document = self._document()
        backends = document["backends"]
        if not among(backend, backends):
            if not self.names():
                backends.clear()
            elif not allow_change:
                raise StorageError(
                    f"{self.folder} was made on {described(*backends)}, this is "
                    f"{described(backend)}; continue it there, or mix them with "
                    "allow_backend_change=true"
                )
            backends.append(backend)
            disk.publish_json(self.path(STAGE), stamp(document))
        disk.remove(self.path(SEAL))

    def backend_note(self, backend: Mapping[str, Any]) -> str | None:
        """ "made on ..." when any of the stage was, or may have been, made on another backend."""
        backends = self._document()["backends"]
        if len(backends) == 1 and among(backend, backends):
            return None
        return f"made on {described(*backends)}"

    def valid(
        self, names: Iterable[str], verify: Callable[[Path], object] = verify_shard
    ) -> set[str]:
        """Those of `names` that exist and that `verify`, called on several threads, accepts.

        One for which it raises CorruptError is logged and moved aside. Many files are looked over
        fastest in one call.
        """
        wanted = list(names)
        with closing(parallel.each(lambda name: self._tried(name, verify), wanted)) as outcomes:
            pairs = zip(wanted, outcomes, strict=True)
            return {name for name, tried in pairs if self._settled(name, tried)}

    def quarantine(
        self, file_name: str, reason: str, *, judged: Identity | None, keep_seal: bool = False
    ) -> Path | None:
        """Rename a file to the first free `<name>.bad-<n>`, and take the seal off, unless what it
        lists cannot be told anew.

        None, and nothing is done, if what is there is not the very file that was `judged`: another
        process has moved that aside, and may have made it anew.
        """
        path = self.path(file_name)
        with disk.guarded("rename", path), in_turn(self.folder):
            if judged is None or identity_at(path) != judged:
                return None
            if not keep_seal:
                disk.remove(self.path(SEAL))
            candidates = (self.path(f"{file_name}.bad-{n}") for n in count(1))
            target = next(path for path in candidates if not os.path.lexists(path))
            disk.move(path, target)
        self.moved_aside.append((file_name, reason))
        _log.warning("%s is moved aside to %s: %s", path, target.name, reason)
        return target

    def discard(self, names: Iterable[str]) -> None:
        """Delete files of the stage that others have made superfluous, and take the seal off."""
        for name in names:
            disk.remove(self.path(SEAL))
            disk.remove(self.path(name))

    def seal(self) -> None:
        """List every data file with its sha256 in SEALED.json: the stage is complete."""
        self._discard_dead("*.claim")
        self._discard_dead(".*.tmp")
        names = self.names()
        digests = parallel.each(self._digest, names)
        files = [[name, sha256] for name, sha256 in zip(names, digests, strict=True) if sha256]
        disk.publish_json(self.path(SEAL), stamp({"schema": SCHEMA, "files": files}))

    def unseal(self) -> None:
        """Take the seal off: what it lists will change."""
        disk.remove(self.path(SEAL))

    @property
    def seal_list(self) -> dict[str, str] | None:
        """File name -> sha256 as sealed; None without a seal that is intact."""
        try:
            seal = read_stamped(self.path(SEAL))
        except CorruptError as error:
            _log.warning("%s", error)
            return None
        except StorageError as error:
            if isinstance(error.__cause__, FileNotFoundError):
                return None  # there is none, or another process has just taken it off
            raise
        return digest.texts_by_name(seal.get("files")) if seal.get("schema") == SCHEMA else None

    def unsealed_or_changed(self, names: Iterable[str]) -> bool:
        """Whether to seal (again): the seal does not list exactly the data files there are, or
        one of `names` is not among them."""
        sealed = self.seal_list
        return sealed is None or set(self.names()) != set(sealed) or not set(names) <= set(sealed)

    def claim(self, unit: str) -> AbstractContextManager[bool]:
        """Claim a unit of work for a `with` block; True when obtained.

        False: a living process is at it (or was: look for its file before waiting on).
        """
        return claim(self.path(f"{unit}.claim"))

    def is_claimed(self, begin: str = "") -> bool:
        """Whether a living process holds a claim on a unit whose name begins so."""
        return not idle(self.folder, f"{begin}*.claim")

    def claimants(self, begin: str = "") -> list[str]:
        """Who claims units whose names begin so: `batch-000003 (host x, process 123)`."""
        return claimants(self.folder, f"{begin}*.claim")

    def _discard_dead(self, pattern: str) -> None:
        """Remove files that only a living process would need, of those that are dead."""
        for leftover in self.folder.glob(pattern):
            disk.discard_dead(leftover)

    def _digest(self, name: str) -> str | None:
        """SHA-256 of a file; None if another process has removed it meanwhile."""
        try:
            return digest.sha256_file(self.path(name))
        except StorageError:
            if self.path(name).exists():
                raise
            return None

    def _document(self) -> dict[str, Any]:
        """stage.json as it is now."""
        document = read_document(self.path(STAGE), self.fingerprint)
        self._first.setdefault("inputs", document["inputs"])
        return document

    def _tried(self, name: str, verify: Callable[[Path], object]) -> _Tried:
        """Which file it is, None if it is not there, and why it does not verify."""
        identity = identity_at(path := self.path(name))
        try:
            if identity is not None:
                verify(path)
        except (CorruptError, StorageError) as error:
            return identity, error
        return identity, None

    def _settled(self, name: str, tried: _Tried) -> bool:
        """Whether a file is good. One that is corrupt is moved aside."""
        judged, error = tried
        if error and self.path(name).exists():  # else another process moved it aside meanwhile
            if isinstance(error, StorageError):
                raise error
            self.quarantine(name, digest.reason_of(error, self.path(name)), judged=judged)
        return judged is not None and error is None


def _folder(root: Path, name: str, fingerprint: str) -> Path:
    return root / name / fingerprint[:12]
