"""Reads W&B's local files: how far did an interrupted run get?

A `.wandb` file holds W&B's protobuf records in LevelDB's log format
(https://github.com/google/leveldb/blob/main/doc/log_format.md) after a header of 7 bytes that begins with `:W&B`.
W&B's own reader is inside its compiled core.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

BLOCK, HEADER = 32768, 7
FULL, FIRST, MIDDLE, LAST = 1, 2, 3, 4


def raw_records(content: bytes) -> Iterator[bytes]:
    """The bytes of each whole record; a torn end is left out."""
    if content[:4] != b":W&B":
        return
    position = HEADER
    parts: list[bytes] = []
    while position + HEADER <= len(content):
        left = BLOCK - position % BLOCK
        if left < HEADER:
            position += left
            continue
        _, length, kind = struct.unpack_from("<IHB", content, position)
        position += HEADER
        if kind not in (FULL, FIRST, MIDDLE, LAST) or position + length > len(content):
            return
        parts.append(content[position : position + length])
        position += length
        if kind in (FULL, LAST):
            yield b"".join(parts)
            parts = []


def records(path: Path) -> Iterator[Any]:
    """W&B's `Record` messages."""
    from wandb.proto import wandb_internal_pb2 as messages

    for raw in raw_records(path.read_bytes()):
        yield messages.Record.FromString(raw)  # type: ignore[attr-defined]


def history(path: Path) -> Iterator[dict[str, Any]]:
    """The logged rows, in order; nested keys joined by dots."""
    for record in records(path):
        if record.WhichOneof("record_type") == "history":
            yield {item.key or ".".join(item.nested_key): json.loads(item.value_json) for item in record.history.item}


def last_step(folder: Path, run_id: str) -> int:
    """The greatest step of the run's local files below `folder`; -1 if there is none."""
    files = folder.glob(f"wandb/*run-*-{run_id}/run-{run_id}.wandb")
    return max((row.get("_step", -1) for file in files for row in history(file)), default=-1)
