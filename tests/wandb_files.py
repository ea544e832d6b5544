"""Reads the .wandb file that an offline W&B run leaves, record by record.

The file: 7 bytes of header (":W&B", 0xBEE1, version), then 32 KiB blocks of chunks. A chunk is
checksum (4 bytes), length (2), kind (1) and data; a record is one FULL chunk or FIRST, MIDDLE ..,
LAST; fewer than 7 bytes at a block's end are padding. A torn tail ends the reading.
"""

import json
import struct
import time
from dataclasses import dataclass, field
from pathlib import Path

BLOCK, FULL, FIRST, MIDDLE, LAST = 32768, 1, 2, 3, 4


@dataclass
class RunFile:
    """What a test wants to know of a run."""

    run: dict = field(default_factory=dict)
    config: dict = field(default_factory=dict)
    history: list = field(default_factory=list)
    summary: dict = field(default_factory=dict)
    metrics: dict = field(default_factory=dict)  # name -> its x axis, "" for none
    hidden: set = field(default_factory=set)
    artifacts: list = field(default_factory=list)
    exit_code: int | None = None

    def column(self, name):
        """Values of one metric over the rows that have it."""
        return [row[name] for row in self.history if name in row]


def chunks(data):
    """(kind, bytes) of every whole chunk after the header."""
    at = 7
    while at + 7 <= len(data):
        rest = BLOCK - at % BLOCK
        if rest < 7:
            at += rest
            continue
        _, length, kind = struct.unpack_from("<IHB", data, at)
        body = data[at + 7 : at + 7 + length]
        if kind == 0 or len(body) < length:
            return
        at += 7 + length
        yield kind, body


def records(path):
    """Protocol buffer records of a .wandb file."""
    from wandb.proto import wandb_internal_pb2

    data = Path(path).read_bytes()
    if data and struct.unpack("<4sHB", data[:7])[:2] != (b":W&B", 0xBEE1):
        raise ValueError(f"{path} is no .wandb file")
    parts = b""
    for kind, body in chunks(data):
        parts = body if kind in (FULL, FIRST) else parts + body
        if kind in (FULL, LAST):
            record = wandb_internal_pb2.Record()
            record.ParseFromString(parts)
            yield record


def items(updates):
    """{dotted key: value} of the key-value pairs in a record."""
    return {".".join(u.nested_key) or u.key: json.loads(u.value_json) for u in updates}


def read_run(folder, *, patience=10.0):
    """The one run that W&B wrote under `folder` (a run's folder of taqdit).

    W&B's own process writes behind the run: this waits for the record of its end, if it comes.
    """
    (path,) = Path(folder).glob("wandb/*run-*/run-*.wandb")
    deadline = time.monotonic() + patience
    while True:
        found = RunFile()
        for record in records(path):
            _add(found, record, record.WhichOneof("record_type"))
        if found.exit_code is not None or time.monotonic() > deadline:
            return found
        time.sleep(0.05)


def _add(found, record, kind):
    if kind == "run":
        run = record.run
        names = ("run_id", "project", "entity", "display_name", "run_group", "job_type")
        found.run = {name: getattr(run, name) for name in names} | {"tags": list(run.tags)}
        found.config |= items(run.config.update)
    elif kind == "config":
        found.config |= items(record.config.update)
    elif kind == "history":
        found.history.append(items(record.history.item))
    elif kind == "summary":
        found.summary |= items(record.summary.update)
    elif kind == "metric":
        _add_metric(found, record.metric)
    elif kind == "artifact":
        found.artifacts.append(_artifact(record.artifact))
    elif kind == "exit":
        found.exit_code = record.exit.exit_code


def _add_metric(found, metric):
    name = metric.name or metric.glob_name
    found.metrics[name] = metric.step_metric
    if metric.options.hidden:
        found.hidden.add(name)


def _artifact(artifact):
    return {
        "name": artifact.name,
        "type": artifact.type,
        "aliases": list(artifact.aliases),
        "metadata": json.loads(artifact.metadata or "{}"),
        "entries": {entry.path: entry.ref for entry in artifact.manifest.contents},
        "digests": {entry.path: entry.digest for entry in artifact.manifest.contents},
    }
