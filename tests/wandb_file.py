"""The file that an offline run of W&B leaves behind, read back."""

import json
import struct

BLOCK, FILE_HEADER, RECORD_HEADER = 32 * 1024, 7, 7  # bytes; the file is a log as LevelDB writes it
FIRST_PART, LAST_PART, ONLY_PART = 2, 4, 1


def stored(file):
    """Every record of a run's file, in order: its parts put together, then parsed by W&B's own types."""
    from wandb.proto import wandb_internal_pb2

    data, place, parts, found = file.read_bytes(), FILE_HEADER, b"", []
    assert data[:4] == b":W&B"
    while place + RECORD_HEADER <= len(data):
        if BLOCK - place % BLOCK < RECORD_HEADER:  # padding
            place += BLOCK - place % BLOCK
            continue
        _, length, kind = struct.unpack("<IHB", data[place : place + RECORD_HEADER])
        part = data[place + RECORD_HEADER : place + RECORD_HEADER + length]
        parts = part if kind in (FIRST_PART, ONLY_PART) else parts + part
        place += RECORD_HEADER + length
        if kind in (LAST_PART, ONLY_PART):
            found.append(wandb_internal_pb2.Record.FromString(parts))
    return found


def history_of(records):
    """What was logged, a mapping per call, in order."""
    return [
        {(item.key or "/".join(item.nested_key)): json.loads(item.value_json) for item in record.history.item}
        for record in records
        if record.HasField("history")
    ]


def config_of(records):
    """The configuration of the run."""
    return {
        update.key: json.loads(update.value_json)
        for record in records
        if record.HasField("run")
        for update in record.run.config.update
    }


def artifacts_of(records):
    """(name, type) of what is kept with it."""
    asked = {(one.request.log_artifact.artifact.name, one.request.log_artifact.artifact.type) for one in records}
    return asked | {(one.artifact.name, one.artifact.type) for one in records if one.HasField("artifact")}
