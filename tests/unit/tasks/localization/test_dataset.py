"""Every bad input: one sentence that names the file, a mend, the right exit code."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from heimdall.errors import DataError
from heimdall.tasks.localization.config import LocalizationConfig
from heimdall.tasks.localization.datamodule import LocalizationData, split_sessions
from heimdall.tasks.localization.dataset import open_dataset
from heimdall.tasks.localization.recordings import read_metadata, read_samples, write_recording
from heimdall.tasks.localization.task import LocalizationTask
from heimdall.tasks.sampling import EpochSampler

VICTIM = "session-00003"


def prepare(folder: Path, cache: Path) -> LocalizationConfig:
    return LocalizationTask().prepare(LocalizationConfig(backbone="COMPACT", data=str(folder)), cache)


def edit(meta: Path, change: Callable[[dict[str, Any]], object]) -> None:
    content = json.loads(meta.read_text())
    change(content["global"])
    meta.write_text(json.dumps(content))


def rewrite_samples(folder: Path, datatype: str, change: Callable[[Any], object]) -> None:
    """The victim once more, with a checksum that fits, in ``datatype``."""
    recording = read_metadata(folder / f"{VICTIM}.sigmf-meta", 1)
    samples = read_samples(recording, 17_920)
    change(samples)
    write_recording(
        folder / VICTIM, samples, session=VICTIM, receivers=recording.receivers, sample_rate_hz=192e3,
        frequency_hz=145e6, full_scale_dbm=np.array(recording.full_scale_dbm), truth=recording.truth, datatype=datatype,
    )  # fmt: skip


def truncate(folder: Path) -> None:
    path = folder / f"{VICTIM}.sigmf-data"
    path.write_bytes(path.read_bytes()[:-1000])


def corrupt(folder: Path) -> None:
    path = folder / f"{VICTIM}.sigmf-data"
    content = bytearray(path.read_bytes())
    content[1000:1004] = b"\x12\x34\x56\x78"
    path.write_bytes(bytes(content))


def put_nan(folder: Path) -> None:
    def change(samples: Any) -> None:
        samples[1, 500] = np.nan

    rewrite_samples(folder, "cf32_le", change)


def drop_receiver(folder: Path) -> None:
    recording = read_metadata(folder / f"{VICTIM}.sigmf-meta", 1)
    samples = read_samples(recording, 17_920)[:3]
    write_recording(
        folder / VICTIM, samples, session=VICTIM, receivers=recording.receivers[:3], sample_rate_hz=192e3,
        frequency_hz=145e6, full_scale_dbm=np.array(recording.full_scale_dbm[:3]), truth=recording.truth,
    )  # fmt: skip


def meta_change(change: Callable[[dict[str, Any]], object]) -> Callable[[Path], None]:
    return lambda folder: edit(folder / f"{VICTIM}.sigmf-meta", change)


BAD = {
    "truncated": (truncate, "truncated"),
    "corrupt": (corrupt, "corrupt"),
    "samples that are NaN": (put_nan, "not numbers"),
    "samples missing": (lambda folder: (folder / f"{VICTIM}.sigmf-data").unlink(), "missing"),
    "metadata not JSON": (lambda folder: (folder / f"{VICTIM}.sigmf-meta").write_text("{"), "not the metadata"),
    "metadata a list": (lambda folder: (folder / f"{VICTIM}.sigmf-meta").write_text("[]"), "not the metadata"),
    "wrong number of receivers": (drop_receiver, "wrong number of receivers"),
    "receiver off the globe": (
        meta_change(lambda fields: fields["heimdall:receivers"][0].update(latitude=95)),
        "not the metadata",
    ),
    "channels without levels": (meta_change(lambda fields: fields["heimdall:full_scale_dbm"].pop()), "full-scale"),
    "unknown datatype": (meta_change(lambda fields: fields.update({"core:datatype": "cu8"})), "ci16_le, cf32_le"),
    "another sample rate": (meta_change(lambda fields: fields.update({"core:sample_rate": 48e3})), "Resample"),
    "no truth": (meta_change(lambda fields: fields.pop("heimdall:transmitter")), "where the transmitter stood"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_recording_is_named_with_its_mend_and_exit_code(name: str, own_recordings: Path, tmp_path: Path) -> None:
    spoil, expected = BAD[name]
    spoil(own_recordings)
    with pytest.raises(DataError, match=expected) as caught:
        prepare(own_recordings, tmp_path / "cache")
    assert caught.value.exit_code == 65
    assert VICTIM in caught.value.message
    assert caught.value.mend
    assert not list((tmp_path / "cache").rglob("*.npy"))


def test_a_missing_folder_and_an_empty_one_are_different_sentences(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no data folder") as missing:
        prepare(tmp_path / "nowhere", tmp_path / "cache")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="holds no SigMF recordings") as empty:
        prepare(tmp_path / "empty", tmp_path / "cache")
    assert missing.value.exit_code == empty.value.exit_code == 65


def test_two_receivers_are_too_few(own_recordings: Path, tmp_path: Path) -> None:
    for index in range(12):
        recording = read_metadata(own_recordings / f"session-{index:05d}.sigmf-meta", 1)
        write_recording(
            tmp_path / f"few-{index}", read_samples(recording, 17_920)[:2], session=str(index),
            receivers=recording.receivers[:2], sample_rate_hz=192e3, frequency_hz=145e6,
            full_scale_dbm=np.array(recording.full_scale_dbm[:2]), truth=recording.truth,
        )  # fmt: skip
    shutil.rmtree(own_recordings)
    with pytest.raises(DataError, match="at least 3"):
        open_dataset(tmp_path)


def test_one_file_a_receiver_gives_the_same_features_as_one_file_a_session(
    own_recordings: Path, tmp_path: Path
) -> None:
    whole = open_dataset(own_recordings)
    for session in whole.sessions:
        recording = session.recordings[0]
        samples = read_samples(recording, 17_920)
        for index, receiver in enumerate(recording.receivers):
            folder = tmp_path / "split" / session.name
            folder.mkdir(parents=True, exist_ok=True)
            write_recording(
                folder / receiver.name, samples[index : index + 1], session=session.name, receivers=(receiver,),
                sample_rate_hz=192e3, frequency_hz=145e6, truth=recording.truth, validate=session is whole.sessions[0],
                full_scale_dbm=np.array(recording.full_scale_dbm[index : index + 1]),
            )  # fmt: skip
    split = open_dataset(tmp_path / "split")
    order = np.argsort([receiver.name for receiver in whole.receivers])
    assert [receiver.name for receiver in split.receivers] == [whole.receivers[index].name for index in order]
    np.testing.assert_array_equal(split.features(tmp_path)[:], whole.features(tmp_path)[:, order])


def test_floating_point_recordings_are_read_too(own_recordings: Path, tmp_path: Path) -> None:
    before = np.array(open_dataset(own_recordings).features(tmp_path))
    rewrite_samples(own_recordings, "cf32_le", lambda samples: samples)
    np.testing.assert_allclose(open_dataset(own_recordings).features(tmp_path)[:], before, atol=1e-4)


def test_digest_follows_the_samples(own_recordings: Path) -> None:
    def louder(samples: Any) -> None:
        samples[0] *= 0.5

    before = open_dataset(own_recordings).digest
    assert open_dataset(own_recordings).digest == before
    rewrite_samples(own_recordings, "ci16_le", louder)
    assert open_dataset(own_recordings).digest != before


def test_features_are_computed_once(own_recordings: Path, tmp_path: Path) -> None:
    dataset = open_dataset(own_recordings)
    seen: list[int] = []
    first = np.array(dataset.features(tmp_path, seen.append))
    assert seen[-1] == 12
    (own_recordings / f"{VICTIM}.sigmf-data").unlink()  # would fail if it were read again
    np.testing.assert_array_equal(dataset.features(tmp_path, seen.append), first)


def test_sample_set_is_simulated_once_and_kept(tmp_path: Path) -> None:
    config = LocalizationConfig(backbone="COMPACT", sample_sessions=20)
    first = LocalizationTask().prepare(config, tmp_path)
    stamp = (Path(first.data) / "session-00000.sigmf-data").stat().st_mtime_ns
    second = LocalizationTask().prepare(config, tmp_path)
    assert second == first
    assert (Path(second.data) / "session-00000.sigmf-data").stat().st_mtime_ns == stamp


def test_split_is_disjoint_whole_and_follows_from_the_seed() -> None:
    split = split_sessions(100, 42, 0.1, 0.2)
    parts = [split.train, split.validation, split.test]
    assert [len(part) for part in parts] == [70, 10, 20]
    assert sorted(np.concatenate(parts).tolist()) == list(range(100))
    again, other = split_sessions(100, 42, 0.1, 0.2), split_sessions(100, 43, 0.1, 0.2)
    assert np.array_equal(again.test, split.test)
    assert not np.array_equal(other.test, split.test)


def test_order_of_samples_follows_from_seed_and_epoch_alone() -> None:
    sampler, resumed = EpochSampler(50, 1), EpochSampler(50, 1)
    orders = []
    for epoch in range(3):
        sampler.set_epoch(epoch)
        orders.append(list(sampler))
    assert orders[0] != orders[1]
    resumed.set_epoch(2)
    assert list(resumed) == orders[2]


def test_batches_are_features_and_positions_of_the_same_session(data: LocalizationData) -> None:
    features, positions = data.part(data.split.test).__getitems__([1, 0])
    first = data.split.test[1]
    np.testing.assert_array_equal(features[0].numpy(), data.features[first])
    np.testing.assert_allclose(positions[0].numpy(), data.positions[first], rtol=1e-6)


def test_too_few_sessions_to_train_on(own_recordings: Path, tmp_path: Path) -> None:
    for path in own_recordings.glob("session-0000[4-9]*"):
        path.unlink()
    config = prepare(own_recordings, tmp_path)
    with pytest.raises(DataError, match="at least 10"):
        LocalizationData(config)
