"""What is delivered besides metrics: params too long, names refused, files; to a sink in memory."""

from __future__ import annotations

from pathlib import Path

import pytest

from heimdall.tracking.cursor import Cursor
from heimdall.tracking.limits import PARAM_CHARACTERS
from heimdall.tracking.sinks import MANIFEST, MemorySink, PermanentError, TransientError
from journals import deliver, only, values, write

pytestmark = pytest.mark.usefixtures("without_pauses")


def test_long_params_go_whole_into_an_artifact(folder: Path) -> None:
    text = "ä" * (PARAM_CHARACTERS + 1)
    made = write(folder)
    made.append("p", {"config": text, "nul": "a\x00b", "fits": "x" * PARAM_CHARACTERS})
    made.append("e", "FINISHED", "")
    made.close()
    sink = MemorySink()
    assert deliver(folder, sink)
    run = only(sink)
    assert run.files["heimdall/params/config.txt"].decode() == text
    assert run.files["heimdall/params/nul.txt"] == b"a\x00b"
    assert run.params["config"].startswith("sha256:")
    assert "heimdall/params/config.txt" in run.params["config"]
    assert run.params["fits"] == "x" * PARAM_CHARACTERS


def test_refused_names_are_mapped_and_the_mapping_is_kept(folder: Path) -> None:
    made = write(folder)
    made.append_metrics({"a+b": 1.0, "a*b": 2.0}, 0)
    made.append("e", "FINISHED", "")
    made.close()
    sink = MemorySink()
    assert deliver(folder, sink)
    run = only(sink)
    mapped = {name.removeprefix("heimdall.name."): text for name, text in run.tags.items() if "heimdall.name." in name}
    assert sorted(mapped.values()) == ["a*b", "a+b"]
    assert {mapped[point.name]: point.value for point in run.points} == {"a+b": 1.0, "a*b": 2.0}


def test_identical_content_is_sent_once(folder: Path, tmp_path: Path) -> None:
    made = write(folder)
    for name in ("best.ckpt", "last.ckpt", "last.ckpt"):
        (tmp_path / name).write_bytes(b"w" * 1000)
        made.stage(tmp_path / name, name)
    made.append("e", "FINISHED", "")
    made.close()
    sink = MemorySink()
    assert deliver(folder, sink)
    uploads = [call for call in sink.calls if call.startswith("upload") and MANIFEST not in call]
    assert uploads == ["upload best.ckpt", "upload last.ckpt as best.ckpt"]
    assert set(only(sink).files) == {"best.ckpt", "last.ckpt", MANIFEST}


def test_of_versions_that_wait_only_the_newest_is_sent(folder: Path, tmp_path: Path) -> None:
    made = write(folder)
    for version in range(4):
        (tmp_path / "last.ckpt").write_bytes(b"version %d" % version)
        made.stage(tmp_path / "last.ckpt", "last.ckpt")
    made.append("e", "FINISHED", "")
    made.close()
    sink = MemorySink()
    assert deliver(folder, sink)
    assert only(sink).files["last.ckpt"] == b"version 3"
    assert sink.calls.count("upload last.ckpt") == 1


def test_a_refused_file_is_kept_and_tried_again_next_time(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "big.bin").write_bytes(b"big")
    made = write(folder)
    made.stage(tmp_path / "big.bin", "big.bin")
    made.append("e", "FINISHED", "")
    made.close()

    class Narrow(MemorySink):
        def upload(self, run_id: str, path: Path, destination: str, *, same_as: str = "") -> None:
            if destination == "big.bin":
                raise PermanentError("too large")
            super().upload(run_id, path, destination, same_as=same_as)

    narrow = Narrow()
    assert deliver(folder, narrow)
    cursor = Cursor.load(folder)
    assert cursor.refusals == ["big.bin: too large"]
    assert (folder / "staged" / cursor.set_aside[0]["staged"]).read_bytes() == b"big"
    wide = MemorySink(runs=narrow.runs)
    assert deliver(folder, wide)
    assert only(wide).files["big.bin"] == b"big"


def test_metrics_do_not_wait_behind_a_large_file(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "big.bin").write_bytes(b"big")
    made = write(folder)
    made.stage(tmp_path / "big.bin", "big.bin")
    made.append_metrics({"loss": 1.0}, 0)

    class Slow(MemorySink):
        def upload(self, run_id: str, path: Path, destination: str, *, same_as: str = "") -> None:
            raise TransientError("the object store is down")

    sink = Slow()
    assert not deliver(folder, sink, give_up=lambda idle: idle > 0.5)
    assert values(only(sink)) == [1.0]
    made.close()
