"""Each safeguard of the store is taken away in turn, and some check has to notice.

A mutation is a line of the store's source that is replaced (by nothing that guards): what uses the
function sees the changed one. The check runs in this process, once with and once without it.
"""

import importlib
import inspect
import textwrap
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import CodeType

import company_checks
import damage_checks
import disk_checks
import pytest
import store_lab
import test_store_claim
from ledger import shows

from taqdit.errors import TaqditError
from taqdit.store import aside, claim, digest, disk, document, layout, lock, shard
from taqdit.store.stage import Stage
from taqdit.trajectories import pictures as images

pytestmark = pytest.mark.slow


def plain(function: object) -> Callable:
    """The function itself below classmethod, property and decorators."""
    return inspect.unwrap(getattr(function, "__func__", getattr(function, "fget", function)))


@contextmanager
def changed(function: object, old: str, new: str) -> Iterator[None]:
    """Run `function`, whoever has a reference to it, with other source."""
    target = plain(function)
    source = textwrap.dedent(inspect.getsource(target))
    assert source.count(old) == 1, f"{target.__qualname__} has no single {old!r}"
    module = compile(source.replace(old, new), inspect.getsourcefile(target), "exec")
    code = next(
        each
        for each in module.co_consts
        if isinstance(each, CodeType) and each.co_name == target.__name__
    )
    kept, target.__code__ = target.__code__, code
    try:
        yield
    finally:
        target.__code__ = kept


@dataclass(frozen=True)
class Mutation:
    """`old` becomes `new` in `function`, which `check` has to notice: a check of this folder,
    or the name of a test of another file."""

    function: object
    old: str
    new: str
    check: Callable | str

    def __str__(self) -> str:
        where = plain(self.function).__qualname__
        return f"{where}: {self.old} -> {self.new or 'nothing'}"


def problems(check: Callable | str, request: pytest.FixtureRequest, name: str) -> list[str]:
    """The first problem that a check finds in a new folder, or what makes a test fail."""
    root = request.getfixturevalue("tmp_path") / name
    if callable(check):
        return next((found for found in check(root) if found), [])
    module, _, test = check.partition(".")
    check = getattr(importlib.import_module(module), test)
    root.mkdir()
    with pytest.MonkeyPatch.context() as monkeypatch:
        try:
            check(**arguments(check, request, root, monkeypatch))
        except (AssertionError, pytest.fail.Exception, TaqditError) as error:
            return [str(error) or "it failed"]
    return []


def arguments(
    test: Callable, request: pytest.FixtureRequest, root: Path, monkeypatch: pytest.MonkeyPatch
) -> dict:
    """What a test of another file takes."""
    made = {
        "tmp_path": lambda: root,
        "stage": lambda: test_store_claim.open_stage(root),
        "monkeypatch": lambda: monkeypatch,
        "caplog": lambda: request.getfixturevalue("caplog"),
    }
    return {each: made[each]() for each in inspect.signature(test).parameters}


PUBLISH, OPEN = disk.publish, disk.Disk.open_exclusive
MUTATIONS = [
    # publishing
    Mutation(PUBLISH, "current.sync(file)", "pass", disk_checks.power_loss),
    Mutation(PUBLISH, "current.sync_dir(path.parent)", "pass", disk_checks.power_loss),
    Mutation(PUBLISH, "current.unlink(temporary)", "pass", disk_checks.leftovers),
    Mutation(PUBLISH, "except BaseException:", "except Exception:", disk_checks.interrupts),
    Mutation(
        PUBLISH,
        'path.with_name(f".{path.name}.{os.getpid()}-{secrets.token_hex(4)}.tmp")',
        "path",
        disk_checks.deaths,
    ),
    Mutation(
        PUBLISH,
        "_require_space(path, 2 * size_hint)",
        "pass",
        "test_store.test_publish_wants_twice_the_room",
    ),
    Mutation(OPEN, 'path.open("xb")', 'path.open("wb")', company_checks.two_at_one_file),
    Mutation(OPEN, 'path.open("xb")', 'path.open("xb", buffering=0)', disk_checks.quotas),
    Mutation(
        OPEN, "hold(file)", "pass", "test_store_stage.test_opening_clears_dead_writers_files_only"
    ),
    Mutation(
        OPEN,
        "if is_at(file, path):",
        "if True:",
        "test_store.test_a_file_swept_away_before_its_lock_is_made_again",
    ),
    Mutation(OPEN, "discard_dead(path)", "pass", company_checks.dead_writers_file),
    Mutation(disk.Disk.write, "file.flush()", "pass", disk_checks.power_loss),
    Mutation(disk.Disk.sync, "_sync(file.fileno())", "pass", disk_checks.asks_to_sync),
    Mutation(disk.Disk.sync_dir, "_sync(descriptor)", "pass", disk_checks.asks_to_sync),
    Mutation(disk.make_folder, "current.sync_dir(folder.parent)", "pass", disk_checks.new_folders),
    Mutation(
        disk.discard_dead,
        "try_hold(file, without_locks=False)",
        "True",
        "test_store_stage.test_opening_clears_dead_writers_files_only",
    ),
    # reading
    Mutation(
        shard._check,
        '_digest(described, parts) != metadata.get("sha256")',
        "False",
        damage_checks.flipped_bits,
    ),
    Mutation(
        shard._check,
        "canonical_json(metadata) != text",
        "False",
        "test_store_shard.test_metadata_spelled_otherwise_is_found",
    ),
    Mutation(
        shard._check,
        "if kind not in (None, stored_kind):",
        "if False:",
        "test_store_shard.test_a_shard_of_another_kind_or_schema_is_refused",
    ),
    Mutation(
        shard._check,
        "if schema != SCHEMA:",
        "if False:",
        "test_store_shard.test_a_shard_of_another_kind_or_schema_is_refused",
    ),
    Mutation(
        layout.parse,
        "if make_header(metadata, specs) != header:",
        "if False:",
        damage_checks.flipped_bits,
    ),
    Mutation(layout.parse, "if size != len(data):", "if False:", damage_checks.other_lengths),
    Mutation(digest.read_stamped, "if not fits:", "if False:", damage_checks.flipped_documents),
    Mutation(
        images._check_chunks,
        "zlib.crc32(view[at + 4 : end - 4])",
        'int.from_bytes(data[end - 4 : end], "big")',
        damage_checks.damaged_pictures,
    ),
    Mutation(
        Stage.read,
        "if (owner, unit) != (self.fingerprint, index):",
        "if False:",
        damage_checks.strangers,
    ),
    Mutation(
        Stage._settled,
        "self.quarantine(name, digest.reason_of(error, self.path(name)), judged=judged)",
        "pass",
        damage_checks.one_redone,
    ),
    # claims
    Mutation(
        claim._obtain,
        "if not try_hold(file, without_locks=True):",
        "if False:",
        "test_store_claim.test_a_claim_is_one_process_s",
    ),
    Mutation(
        claim._obtain,
        "if is_at(file, path):",
        "if True:",
        "test_store_claim.test_a_claim_released_while_it_is_looked_at_is_made_anew",
    ),
    Mutation(
        claim.claim,
        "disk.current.unlink(path)",
        "pass",
        "test_store_claim.test_a_claim_is_released_whatever_happens",
    ),
    Mutation(
        aside.set_aside,
        'if not mine or not idle(folder, "*.claim"):',
        "if False:",
        company_checks.in_use,
    ),
    # the stage and its seal
    Mutation(
        document.read_document,
        "!= fingerprint",
        "is None",
        "test_store_stage.test_a_folder_of_another_fingerprint_is_refused",
    ),
    Mutation(
        document.read_document,
        'if document.get("schema") != SCHEMA:',
        "if False:",
        "test_store_stage.test_a_stage_of_a_later_version_is_refused",
    ),
    Mutation(
        document._loss,
        "if names():",
        "if False:",
        "test_store_stage.test_data_without_a_stage_file_is_corrupt",
    ),
    Mutation(
        document.establish,
        "[lost] if data else",
        "[lost] if False else",
        "test_store_stage.test_an_unknown_backend_is_no_real_one",
    ),
    Mutation(
        document.establish,
        "if mine and (problem := _loss(path, document, names)) is not None:",
        "if mine:",
        company_checks.founded_meanwhile,
    ),
    Mutation(
        document.establish,
        "if mine and",
        "if",
        "test_store_stage.test_one_process_at_a_time_writes_a_lost_stage_file_anew",
    ),
    Mutation(
        Stage.open,
        'stage._discard_dead(".*.tmp")',
        "pass",
        "test_store_stage.test_opening_clears_dead_writers_files_only",
    ),
    Mutation(
        Stage.seal,
        'self._discard_dead("*.claim")',
        "pass",
        "test_store_stage.test_sealing_clears_what_dead_writers_left",
    ),
    Mutation(
        Stage.seal,
        'self._discard_dead(".*.tmp")',
        "pass",
        "test_store_stage.test_sealing_clears_what_dead_writers_left",
    ),
    Mutation(
        Stage.admit,
        "if not among(backend, backends):",
        "if False:",
        "test_store_stage.test_a_stage_with_data_keeps_its_backend",
    ),
    Mutation(Stage.admit, "disk.remove(self.path(SEAL))", "pass", company_checks.seals_come_off),
    Mutation(
        Stage.quarantine, "disk.remove(self.path(SEAL))", "pass", company_checks.seals_come_off
    ),
    Mutation(
        Stage.quarantine,
        "if judged is None or identity_at(path) != judged:",
        "if False:",
        "test_store_quarantine.test_what_another_has_made_anew_stays",
    ),
    Mutation(
        lock.in_turn,
        "hold(descriptor)",
        "pass",
        "test_store_quarantine.test_nobody_comes_between_the_look_and_the_renaming",
    ),
    Mutation(Stage.discard, "disk.remove(self.path(SEAL))", "pass", company_checks.seals_come_off),
    Mutation(
        Stage.unsealed_or_changed,
        "set(self.names()) != set(sealed)",
        "False",
        "test_store_stage.test_sealing",
    ),
    Mutation(
        Stage.unsealed_or_changed,
        "not set(names) <= set(sealed)",
        "False",
        "test_store_stage.test_sealing",
    ),
    Mutation(
        Stage.names,
        'not n.startswith(".")',
        "True",
        "test_store_stage.test_names_are_the_published_data_and_nothing_else",
    ),
]


@shows("mutations", "a line that guards is taken out of the store, one at a time", trials=1)
@pytest.mark.parametrize("mutation", MUTATIONS, ids=str)
def test_a_safeguard_that_is_gone_is_noticed(mutation, request):
    store_lab.reference()  # of the store as it is
    with changed(mutation.function, mutation.old, mutation.new):
        found = problems(mutation.check, request, "without")
    assert found, "nothing noticed"
    print(found[0])
    assert not problems(mutation.check, request, "with")


def test_a_mutation_that_changes_nothing_survives(request):
    """What the test above says of one that no check notices."""
    store_lab.reference()
    with changed(PUBLISH, "current.sync(file)", "current.sync((file))"):
        assert not problems(disk_checks.leftovers, request, "same")


def test_a_mutation_of_a_line_that_is_gone_is_an_error():
    with pytest.raises(AssertionError, match="publish has no single 'no such line'"):
        changed(PUBLISH, "no such line", "").__enter__()
    kept = disk.publish.__code__
    with changed(PUBLISH, "current.sync(file)", "pass"):
        assert disk.publish.__code__ is not kept
    assert disk.publish.__code__ is kept
