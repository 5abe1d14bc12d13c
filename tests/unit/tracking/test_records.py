"""The record format: whatever happens to the bytes, only the record that was hit is lost, and that is told."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from heimdall.tracking.records import (
    FORMAT,
    Damage,
    Position,
    Record,
    decode,
    encode,
    encode_metrics,
    last_timestamp,
    read_records,
)

DATA = Path(__file__).parents[2] / "data"


def lines(count: int) -> list[bytes]:
    """Metrics, and every third record params."""
    made = []
    for n in range(1, count + 1):
        if n % 3:
            made.append(encode_metrics(n, 1_000_000 + n, n, {"loss": n / 7, "name with space": -n}))
        else:
            made.append(encode(n, 1_000_000 + n, "p", {"loss": str(n / 7), "name with space": "ä"}))
    return made


def read(path: Path, content: bytes, *, ended: bool = True) -> tuple[list[Record], list[Damage]]:
    path.write_bytes(content)
    items = list(read_records(path, Position(), ended=ended))
    return [i for i in items if isinstance(i, Record)], [i for i in items if isinstance(i, Damage)]


def lost_numbers(damage: list[Damage], count: int) -> set[int]:
    return {n for d in damage for n in range(d.first, (count if d.last is None else d.last) + 1)}


def test_every_value_survives(tmp_path: Path) -> None:
    values = {"nan": math.nan, "inf": math.inf, "minus": -math.inf, "tiny": 5e-324, "third": 1 / 3, "ä\n\x1e": 1.0}
    (record,), damage = read(tmp_path / "j", encode_metrics(1, 2, 3, values))
    assert not damage
    assert math.isnan(record.content[1].pop("nan"))
    values.pop("nan")
    assert record == Record(1, 2, "m", [3, values])


def test_every_truncation_point_loses_at_most_the_record_it_hits(tmp_path: Path) -> None:
    whole = lines(6)
    content = b"".join(whole)
    for cut in range(len(content)):
        complete = sum(len(b"".join(whole[:n])) <= cut for n in range(1, 7))
        records, damage = read(tmp_path / "j", content[:cut])
        numbers = [record.number for record in records]
        # a record that only lacks its LF is whole
        assert numbers in (list(range(1, complete + 1)), list(range(1, complete + 2)))
        torn = content[:cut].removesuffix(b"\n") not in (
            b"\n".join(w.rstrip(b"\n") for w in whole[:n]) for n in range(7)
        )
        half_written = torn and len(content[:cut].rpartition(b"\n")[2]) > 1
        assert bool(damage) == half_written, cut


def test_append_after_a_torn_tail_keeps_the_next_record(tmp_path: Path) -> None:
    first, second, third = lines(3)
    for cut in range(1, len(second)):
        records, damage = read(tmp_path / "j", first + second[:cut] + third)
        assert {1, 3} <= {record.number for record in records}
        assert lost_numbers(damage, 3) | {record.number for record in records} == {1, 2, 3}


@given(st.data())
def test_flipped_bits_lose_at_most_the_records_they_hit(tmp_path_factory: Any, data: st.DataObject) -> None:
    whole = lines(8)
    content = bytearray(b"".join(whole))
    ends = [len(b"".join(whole[: n + 1])) for n in range(8)]
    flips = data.draw(
        st.lists(st.tuples(st.integers(0, len(content) - 1), st.integers(1, 255)), min_size=1, max_size=4)
    )
    hit = set()
    for place, mask in flips:
        content[place] ^= mask
        hit.add(next(n for n, end in enumerate(ends, 1) if place < end))
    original = {n: decode(line.strip(b"\x1e\n")) for n, line in enumerate(whole, 1)}
    records, damage = read(tmp_path_factory.mktemp("flip") / "j", bytes(content))
    for record in records:
        assert record == original[record.number]
    lost = set(range(1, 9)) - {record.number for record in records}
    assert lost <= hit
    assert lost <= lost_numbers(damage, 8), "what is lost is reported"


def test_an_unfinished_line_is_awaited_while_somebody_writes(tmp_path: Path) -> None:
    path = tmp_path / "j"
    first, second = lines(2)
    path.write_bytes(first + second[:10])
    position = Position()
    assert [r.number for r in read_records(path, position, ended=False) if isinstance(r, Record)] == [1]
    path.write_bytes(first + second)
    assert [r.number for r in read_records(path, position, ended=False) if isinstance(r, Record)] == [2]
    assert position.offset == path.stat().st_size


def test_damage_at_the_end_is_told_even_if_it_was_passed_long_ago(tmp_path: Path) -> None:
    path = tmp_path / "j"
    first, second = lines(2)
    path.write_bytes(first + second.replace(b"loss", b"lass"))
    position = Position()
    assert len(list(read_records(path, position, ended=False))) == 1
    assert [str(item) for item in read_records(path, position, ended=True)] == ["j: record 2 (torn tail)"]


def test_last_timestamp_looks_past_damage(tmp_path: Path) -> None:
    path = tmp_path / "j"
    path.write_bytes(b"".join(lines(5)) + b"\x1edeadbeef torn")
    assert last_timestamp(path) == 1_000_005


@pytest.mark.parametrize("version", [1, FORMAT])
def test_a_journal_of_any_format_is_still_read(version: int) -> None:
    """The files were written by the versions that wrote these formats, and are never written anew."""
    golden = DATA / f"journal-format-{version}.journal"
    items = list(read_records(golden, Position(), ended=True))
    records = [item for item in items if isinstance(item, Record)]
    assert records[0].content[0]["format"] == version
    expected = json.loads(golden.with_suffix(".json").read_text())
    assert repr([[r.number, r.timestamp_ms, r.kind, r.content] for r in records]) == repr(expected)
    assert len(items) == len(records)


@given(
    st.dictionaries(st.text(), st.floats(), max_size=6),
    st.integers(min_value=1, max_value=2**40),
    st.integers(min_value=0, max_value=2**40),
)
def test_metrics_are_read_as_they_were_given(values: dict[str, float], number: int, step: int) -> None:
    line = encode_metrics(number, 1_700_000_000_000, step, values)
    assert line.isascii()
    assert line.count(b"\x1e") == line.count(b"\n") == 1
    record = decode(line.strip(b"\x1e\n"))
    # the text of a NaN is equal to itself
    assert repr(record) == repr(Record(number, 1_700_000_000_000, "m", [step, values]))
