"""Reads what Weights & Biases keeps of an offline run: protobufs in the log format of LevelDB."""

import json
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from wandb.proto import wandb_internal_pb2

_HEADER = 7  # of the file, and of every piece: checksum, length, kind
_BLOCK = 32768
_LAST_PIECES = (1, 4)  # a whole record, or the end of one


def records(path: Path) -> Iterator[Any]:
    """Whole records, in order."""
    data, at, pieces = path.read_bytes(), _HEADER, b""
    while at + _HEADER <= len(data):
        left = _BLOCK - at % _BLOCK
        if left < _HEADER:  # padding
            at += left
            continue
        _, size, kind = struct.unpack_from("<IHB", data, at)
        at += _HEADER
        if kind == 0 or at + size > len(data):
            return  # the end, or a piece that is being written
        pieces += data[at : at + size]
        at += size
        if kind in _LAST_PIECES:
            yield wandb_internal_pb2.Record.FromString(pieces)
            pieces = b""


def history(path: Path) -> list[dict[str, Any]]:
    """What was logged: one dict a step, with `_step`."""
    found = []
    for record in records(path):
        if record.WhichOneof("record_type") == "history":
            items = record.history.item
            row = {i.key or "/".join(i.nested_key): json.loads(i.value_json) for i in items}
            found.append(row | {"_step": record.history.step.num})
    return found


def config(path: Path) -> dict[str, Any]:
    """The last value of each config key."""
    found: dict[str, Any] = {}
    for record in records(path):
        kind = record.WhichOneof("record_type")
        updates = {"run": lambda r: r.run.config.update, "config": lambda r: r.config.update}
        if kind in updates:
            for update in updates[kind](record):
                found[update.key or update.nested_key[0]] = json.loads(update.value_json)
    return found
