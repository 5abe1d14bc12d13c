from __future__ import annotations

import hashlib
import resource
from pathlib import Path

import numpy as np
import pytest

from heimdall.errors import OutputError
from heimdall.tasks.localization.dataset import open_dataset
from heimdall.tasks.localization.recordings import read_samples
from heimdall.tasks.localization.scene import BOLTZMANN_DBM_PER_HZ, Scene
from heimdall.tasks.localization.simulator import draw_session, simulate


def digests(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(folder.iterdir())}


def test_a_data_set_is_made_again_bit_for_bit_however_many_threads_write_it(scene: Scene, tmp_path: Path) -> None:
    first = simulate(scene, tmp_path / "first", 4, threads=1)
    again = Scene.load(first)
    assert again is not None
    second = simulate(again, tmp_path / "second", 4, threads=3)
    assert digests(first) == digests(second)


def test_another_seed_is_another_data_set(scene: Scene) -> None:
    other = scene.model_copy(update={"seed": scene.seed + 1})
    assert not np.array_equal(draw_session(scene, 0).samples, draw_session(other, 0).samples)


def test_a_hold_out_set_has_other_sessions_of_the_same_scene(scene: Scene, tmp_path: Path) -> None:
    whole = digests(simulate(scene, tmp_path / "whole", 4))
    later = digests(simulate(scene, tmp_path / "later", 2, first_session=2))
    assert sorted(later) == [
        "scene.json",
        *(f"session-{number:05d}.sigmf-{part}" for number in (2, 3) for part in ("data", "meta")),
    ]
    assert later.items() <= whole.items()  # what is drawn depends on scene and number alone


def test_received_power_survives_sixteen_bit_integers(scene: Scene, recordings: Path) -> None:
    session = open_dataset(recordings).sessions[1]
    samples = read_samples(session.recordings[0], 17_920)
    power = 10 * np.log10((np.abs(samples) ** 2).mean(axis=1)) + session.recordings[0].full_scale_dbm
    drawn = draw_session(scene, 1)
    noise = BOLTZMANN_DBM_PER_HZ + 10 * np.log10(192e3) + np.array([r.noise_figure_db for r in scene.receivers])
    expected = 10 * np.log10(10 ** (drawn.received_power_dbm / 10) + 10 ** (noise / 10))
    np.testing.assert_allclose(power, expected, atol=0.15)


def test_samples_use_the_range_without_clipping(scene: Scene) -> None:
    parts = draw_session(scene, 2).samples.view(np.float32)
    peak = np.abs(parts).max(axis=1)
    assert (peak < 1).all()
    assert (peak > 0.75).all()


def test_transmitters_stand_inside_the_box(scene: Scene, recordings: Path) -> None:
    positions = scene.plane.to_plane(*open_dataset(recordings).truths.T)
    low, high = scene.box
    assert (positions >= low - 1e-4).all()
    assert (positions <= high + 1e-4).all()


def test_a_folder_with_files_is_not_written_over(scene: Scene, tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(OutputError, match="not empty"):
        simulate(scene, tmp_path, 1)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def test_a_simulation_that_stops_leaves_no_folder_that_looks_whole(scene: Scene, tmp_path: Path) -> None:
    def stop(done: int) -> None:
        if done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        simulate(scene, tmp_path / "set", 4, progress=stop)
    assert list(tmp_path.iterdir()) == []


def test_a_place_that_cannot_be_written_is_one_clear_error(scene: Scene, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(OutputError) as caught:
        simulate(scene, tmp_path / "file" / "set", 1)
    assert caught.value.exit_code == 74


def test_a_write_that_fails_half_way_is_loud_and_leaves_nothing(scene: Scene, tmp_path: Path) -> None:
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, before[1]))  # stands in for a full disk: half a recording fits
    try:
        with pytest.raises(OutputError) as caught:
            simulate(scene, tmp_path / "set", 2)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert caught.value.exit_code == 74
    assert list(tmp_path.iterdir()) == []
