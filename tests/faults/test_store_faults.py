"""The store under kills, power loss, full disks, bit rot and company. After every fault: whatever
has its final name verifies, and running again gives the bytes of an undisturbed run."""

import json
import subprocess
import sys
from pathlib import Path

import company_checks
import damage_checks
import disk_checks
from ledger import shows
from store_lab import SHARDS, UNITS, finished_with_one_corrupt_shard, reference


def passed(check, root, *arguments, at_least=1):
    """All trials of a check are without a problem; how many there were."""
    trials = list(check(root / "new", *arguments))
    assert not any(trials), [problems for problems in trials if problems][:3]
    assert len(trials) >= at_least
    return len(trials)


def work(function: str, root: Path) -> dict:
    worker = Path(__file__).with_name("store_worker.py")
    command = [sys.executable, str(worker), function, str(root)]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_the_reference_holds_what_it_should():
    assert sorted(reference()) == sorted([*SHARDS, "SEALED.json", "stage.json"])


@shows("P1", "the store: dies at each operation of the disk in turn, half of the data written")
def test_death_at_any_operation_then_resume(tmp_path):
    return passed(disk_checks.deaths, tmp_path, at_least=20)


@shows(
    "P1", "the store: dies at each operation while a damaged shard is moved aside and made again"
)
def test_death_at_any_operation_of_a_repair(tmp_path):
    return passed(disk_checks.deaths, tmp_path, finished_with_one_corrupt_shard, at_least=10)


@shows("P1", "the store: a process killed with SIGKILL at each operation of the disk in turn")
def test_sigkill_at_every_operation(tmp_path):
    result = work("kill_at_each_operation", tmp_path)
    assert result["kills"] > 15
    assert result["differing"] == []
    return result["kills"]


@shows("P1", "the store: processes killed with SIGKILL at random moments")
def test_sigkill_at_random(tmp_path):
    result = work("kill_at_random", tmp_path)
    assert result["killed"] >= 20
    assert result["differing"] == 0
    return result["killed"]


POWER = "states after a power cut at each event: unsynced data whole, half, zeros or gone, unsynced"


@shows("P2", f"{POWER} names any subset of the last six")
def test_power_loss(tmp_path):
    return passed(disk_checks.power_loss, tmp_path, at_least=20)


@shows("P2", "the same states while a damaged shard is moved aside and made again")
def test_power_loss_while_a_corrupt_shard_is_redone(tmp_path):
    return passed(disk_checks.power_loss, tmp_path, finished_with_one_corrupt_shard, at_least=10)


def test_new_folders_are_made_durable(tmp_path):
    passed(disk_checks.new_folders, tmp_path)


@shows("P3", "the store: ENOSPC at each operation of the disk in turn, half of the data written")
def test_a_full_disk_at_any_operation(tmp_path):
    return passed(disk_checks.full_disk, tmp_path, at_least=20)


@shows("P3", "the store: the disk becomes read-only at each operation in turn")
def test_a_read_only_disk_at_any_operation(tmp_path):
    return passed(disk_checks.read_only, tmp_path, at_least=20)


def test_an_error_leaves_no_temporary_file(tmp_path):
    passed(disk_checks.leftovers, tmp_path, at_least=5)


@shows("P3", "the store: a quota (RLIMIT_FSIZE) of too few bytes for some file")
def test_real_quotas(tmp_path):
    return passed(disk_checks.quotas, tmp_path, at_least=50)


@shows("P4", "one bit of a shard flipped, half of the times in its header")
def test_flipped_bits_are_found(tmp_path):
    return passed(damage_checks.flipped_bits, tmp_path, at_least=10_000)


@shows("P4", "a shard cut off at each length, or with a byte too many")
def test_other_lengths_are_found(tmp_path):
    return passed(damage_checks.other_lengths, tmp_path, at_least=500)


@shows("P4", "4 KB of a shard zeroed")
def test_zeroed_pages_are_found(tmp_path):
    return passed(damage_checks.zeroed_pages, tmp_path, at_least=500)


@shows("P4", "one bit of stage.json or SEALED.json flipped: refused, or nothing but white space")
def test_flipped_bits_in_documents_are_found(tmp_path):
    return passed(damage_checks.flipped_documents, tmp_path, at_least=2000)


@shows("P4", "one bit of a stored picture flipped, a picture cut off, 64 bytes of it zeroed")
def test_damaged_pictures_are_found(tmp_path):
    return passed(damage_checks.damaged_pictures, tmp_path, at_least=1500)


@shows("P4", "each shard of a stage damaged in turn: it alone is moved aside and made again")
def test_a_corrupt_shard_alone_is_redone(tmp_path):
    return passed(damage_checks.one_redone, tmp_path, at_least=UNITS)


@shows("P5", "four processes complete one stage together: nothing is done twice")
def test_four_writers_share_the_work(tmp_path):
    result = work("write_together", tmp_path)
    assert result == {"made": [UNITS] * 10, "differing": 0}
    return len(result["made"])


@shows("P5", "four processes on a file system without locks: work may double, the bytes are right")
def test_four_writers_without_locks(tmp_path):
    result = work("write_together_without_locks", tmp_path)
    assert result["differing"] == 0
    assert min(result["made"]) >= UNITS
    return len(result["made"])


@shows("P5", "eight processes race for a dead owner's claim: one gets it")
def test_eight_race_for_a_dead_owners_claim(tmp_path):
    result = work("race_for_a_dead_claim", tmp_path)
    assert result == {"winners": [1] * 20}
    return len(result["winners"])


@shows(
    "P7", "the store: Ctrl-C within each operation of the disk in turn, half of the data written"
)
def test_an_interrupt_within_any_operation(tmp_path):
    return passed(disk_checks.interrupts, tmp_path, at_least=20)


@shows("P7", "the store: a second Ctrl-C within the operation after that, which may clean up")
def test_a_second_interrupt_within_the_next_operation(tmp_path):
    return passed(disk_checks.second_interrupts, tmp_path, at_least=20)


def test_another_process_founds_the_stage_meanwhile(tmp_path):
    passed(company_checks.founded_meanwhile, tmp_path)


def test_two_writers_of_one_file(tmp_path):
    passed(company_checks.two_at_one_file, tmp_path, at_least=2)


def test_what_a_dead_writer_left(tmp_path):
    passed(company_checks.dead_writers_file, tmp_path)


def test_a_strangers_shard_is_not_read(tmp_path):
    passed(damage_checks.strangers, tmp_path, at_least=2)


def test_what_changes_a_stage_takes_its_seal_off(tmp_path):
    passed(company_checks.seals_come_off, tmp_path, at_least=3)


def test_a_stage_in_use_is_not_set_aside(tmp_path):
    passed(company_checks.in_use, tmp_path, at_least=2)


def test_the_system_is_asked_to_sync(tmp_path):
    passed(disk_checks.asks_to_sync, tmp_path)
