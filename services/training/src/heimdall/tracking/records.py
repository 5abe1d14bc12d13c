"""What a record of the journal is: one numbered, checksummed line, written with one ``write(2)``.

``RS crc32 SP body LF`` with ``body = [number, milliseconds, kind, …]`` in ASCII JSON, so that neither RS (0x1e) nor LF
occurs inside. A reader finds the next record after any damage: both marks separate, either of them may be broken. The
format is documented in docs/reference/journal.md.

======  ====================================================  ==================================================
kind    content                                               meaning
======  ====================================================  ==================================================
h       ``{format, run_key, run_name, experiment, …}``        a session of the run begins (written twice)
v       ``step, [name, …], digits``                           metrics of one step: the values as IEEE 754 doubles,
                                                              most significant byte first, 16 digits each
m       ``step, {name: value}``                               the same in format 1
p       ``{name: text}``                                      params
t       ``{name: text}``                                      tags; the last one wins
a       ``staged, destination, bytes, mtime_ns``              a file staged for upload
f       –                                                     deliver now, somebody waits
e       ``status, reason``                                    the session ended
======  ====================================================  ==================================================
"""

from __future__ import annotations

import json
from binascii import b2a_hex
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from struct import Struct, unpack
from struct import error as StructError
from typing import Any, NamedTuple
from zlib import crc32

FORMAT = 2
RS, LF = b"\x1e", b"\n"
CHUNK_BYTES = 1 << 18

# about twice as fast as json.dumps, which builds an encoder a call
_to_json = json.JSONEncoder(separators=(",", ":"), ensure_ascii=True, check_circular=False).encode


class Record(NamedTuple):
    """One record as it was written."""

    number: int
    timestamp_ms: int
    kind: str
    content: list[Any]


@dataclass(frozen=True)
class Damage:
    """Records ``first`` to ``last`` of a segment cannot be read; ``last`` is None where the end is unknown."""

    segment: str
    first: int
    last: int | None

    def __str__(self) -> str:
        if self.last is None:
            return f"{self.segment}: record {self.first} (torn tail)"
        numbers = f"record {self.first}" if self.first == self.last else f"records {self.first}-{self.last}"
        return f"{self.segment}: {numbers}"


def encode(number: int, timestamp_ms: int, kind: str, *content: Any) -> bytes:
    """The line of one record. NaN and infinities are kept."""
    body = _to_json([number, timestamp_ms, kind, *content]).encode("ascii")
    return b"\x1e%08x %b\n" % (crc32(body), body)


_metric_plans: dict[tuple[str, ...], tuple[Callable[..., bytes], bytes]] = {}
_MOST_METRIC_PLANS = 256


def encode_metrics(number: int, timestamp_ms: int, step: int, metrics: Mapping[str, float]) -> bytes:
    """The line of one step's metrics: names are encoded once a set of names, values are copied, not written out.

    Raises struct.error, TypeError or OverflowError where a value is no number.
    """
    names = tuple(metrics)
    plan = _metric_plans.get(names)
    if plan is None:
        plan = _plan(names)
    pack, heads = plan
    body = b'[%d,%d,"v",%d,%b,"%b"]' % (number, timestamp_ms, step, heads, b2a_hex(pack(*metrics.values())))
    return b"\x1e%08x %b\n" % (crc32(body), body)


def _plan(names: tuple[str, ...]) -> tuple[Callable[..., bytes], bytes]:
    if len(_metric_plans) >= _MOST_METRIC_PLANS:
        _metric_plans.clear()
    heads = _to_json([str(name) for name in names]).encode("ascii")
    plan = _metric_plans[names] = (Struct(f">{len(names)}d").pack, heads)
    return plan


def decode(token: bytes) -> Record | None:
    """The record between two marks, or None where it is damaged."""
    try:
        if token[8:9] != b" " or int(token[:8], 16) != crc32(token[9:]):
            return None
        number, timestamp_ms, kind, *content = json.loads(token[9:])
        if kind == "v":  # for every reader the metrics of one step, however they are written
            step, names, digits = content
            values = unpack(f">{len(names)}d", bytes.fromhex(digits))
            kind, content = "m", [step, dict(zip(names, values, strict=True))]
    except (ValueError, StructError):
        return None
    return Record(number, timestamp_ms, kind, content)


@dataclass
class Position:
    """How far a segment has been read: all bytes before ``offset``, all records up to ``number``."""

    offset: int = 0
    number: int = 0
    doubtful: bool = False  # something unreadable was met; the next record's number tells whether anything is lost


def read_records(path: Path, position: Position, *, ended: bool) -> Iterator[Record | Damage]:
    """Records after ``position``, which moves along. Stops at an unfinished line, as more of it may be on its way.

    With ``ended`` nobody writes any more: the rest of the file is a record without its LF, or damage.
    Uses memory for one chunk and one record, however long the segment is.
    """
    for line, is_last in _lines(path, position.offset):
        if is_last and not ended:
            return
        for token in line.split(RS):
            record = decode(token) if token else None
            if record is None:
                position.doubtful = position.doubtful or bool(token)
            elif record.number > position.number:  # else read before: its neighbour's LF was damaged
                if record.number > position.number + 1:
                    yield Damage(path.name, position.number + 1, record.number - 1)
                position.number, position.doubtful = record.number, False
                yield record
        position.offset += len(line) + (0 if is_last else 1)
    if ended and position.doubtful:
        position.doubtful = False
        yield Damage(path.name, position.number + 1, None)


def _lines(path: Path, offset: int) -> Iterator[tuple[bytes, bool]]:
    """Lines without their LF, and whether it is the unfinished last one."""
    rest: list[bytes] = []
    with path.open("rb") as file:
        file.seek(offset)
        while chunk := file.read(CHUNK_BYTES):
            *complete, last = chunk.split(LF)
            for line in complete:
                yield b"".join((*rest, line)), False
                rest = []
            rest.append(last)
    if any(rest):
        yield b"".join(rest), True


def last_timestamp(path: Path) -> int:
    """The latest timestamp in the last 64 KiB of a segment in milliseconds, 0 where there is none."""
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - (1 << 16)))
        tokens = file.read().replace(LF, RS).split(RS)
    return max((record.timestamp_ms for token in tokens if (record := decode(token))), default=0)
