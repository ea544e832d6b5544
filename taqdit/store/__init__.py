"""The store: files appear whole or not at all, verify themselves, and are never silently mixed."""

from taqdit.store.digest import canonical_json, sha256_file, sha256_hex
from taqdit.store.disk import make_folder, publish, publish_bytes, publish_json, reading
from taqdit.store.journal import Journal, read_journal
from taqdit.store.shard import Known, Shard, read_shard, verify_shard, write_shard
from taqdit.store.stage import Stage

__all__ = [
    "Journal",
    "Known",
    "Shard",
    "Stage",
    "canonical_json",
    "make_folder",
    "publish",
    "publish_bytes",
    "publish_json",
    "read_journal",
    "read_shard",
    "reading",
    "sha256_file",
    "sha256_hex",
    "verify_shard",
    "write_shard",
]
