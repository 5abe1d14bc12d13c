"""The network: what its physics gives untrained, what training adds, what is served."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
import pytest
import torch

from heimdall.errors import DataError
from heimdall.tasks.base import FitResult, find_task
from heimdall.tasks.ptychography import physics
from heimdall.tasks.ptychography.config import PtychographyConfig, SimulationOptions
from heimdall.tasks.ptychography.datamodule import GroupDataset, PtychographyData
from heimdall.tasks.ptychography.evaluate import compare, truth_box
from heimdall.tasks.ptychography.grouping import group_patterns
from heimdall.tasks.ptychography.module import Groups, PtychographyModule, new_module
from heimdall.tasks.ptychography.network import estimate
from heimdall.tasks.ptychography.reconstruct import reconstruct, refined
from heimdall.tasks.ptychography.refine import refine, scan_misfit
from heimdall.tasks.ptychography.scan import Scan, write_scan
from heimdall.tasks.ptychography.simulate import simulate
from heimdall.tasks.ptychography.task import PtychographyTask

TASK = PtychographyTask()


def config_for(train: Path, test: Path, **options: Any) -> PtychographyConfig:
    small = {"epochs": 1, "width": 8, "physics_steps": 4, "preview_every": 0}
    return PtychographyConfig.model_validate({"train_data_file": train, "test_data_file": test, **small, **options})


def trained(config: PtychographyConfig) -> tuple[PtychographyModule, PtychographyData, pl.Trainer]:
    data = PtychographyData(config)
    module = new_module(config, data)
    trainer = pl.Trainer(
        max_epochs=config.epochs,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(module, data)
    return module.eval(), data, trainer


@pytest.fixture(scope="module")
def fitted(scan_file: Path, other_file: Path) -> tuple[PtychographyModule, PtychographyData, pl.Trainer]:
    return trained(config_for(scan_file, other_file, epochs=2))


@pytest.fixture(scope="module")
def fitted_of_four(scan_file: Path, other_file: Path) -> tuple[PtychographyModule, PtychographyData, pl.Trainer]:
    return trained(config_for(scan_file, other_file, gridsize=2))


def test_task_is_found_by_its_name() -> None:
    assert isinstance(find_task("ptychography"), PtychographyTask)


def test_steps_of_physics_bring_an_object_nearer_to_its_pattern(scan: Scan) -> None:
    measured = physics.to_corner(torch.from_numpy(scan.patterns[:4] * physics.amplitude_scale(scan.patterns)))[:, None]
    probes = torch.from_numpy(scan.probe).expand(4, 1, *scan.probe.shape)
    light = physics.intensity(probes)[:, 0]
    misfits = []
    for steps in (0, 4, 12):
        objects = estimate(measured, probes, light, None, None, steps)
        predicted = physics.intensity(physics.far_field(objects[:, None], probes))
        misfits.append(float(physics.misfit(predicted, measured).mean()))
    assert misfits[1] < 0.5 * misfits[0]
    assert misfits[2] < misfits[1]


def test_training_lowers_the_loss(
    fitted: tuple[PtychographyModule, PtychographyData, pl.Trainer],
) -> None:
    module, data, _ = fitted
    untrained = new_module(data.config, data).eval()
    assert mean_loss(module, data) < mean_loss(untrained, data)


@torch.no_grad()
def mean_loss(module: PtychographyModule, data: PtychographyData) -> float:
    losses = [float(module.loss(module.predicted(Groups(*batch)), Groups(*batch))) for batch in data.train_dataloader()]
    return float(np.mean(losses))


def test_metrics_carry_the_names_their_users_know(
    fitted: tuple[PtychographyModule, PtychographyData, pl.Trainer],
) -> None:
    names = set(fitted[2].callback_metrics)
    assert {"poisson_train_loss_step", "poisson_train_loss_epoch", "poisson_val_loss", "learning_rate"} <= names


def test_amplitude_loss_has_names_of_its_own(scan_file: Path, other_file: Path) -> None:
    *_, trainer = trained(config_for(scan_file, other_file, torch_loss_mode="mae", n_images=8))
    assert {"mae_train_loss_step", "mae_train_loss_epoch", "mae_val_loss"} <= set(trainer.callback_metrics)


@pytest.mark.parametrize("gridsize", [1, 2])
def test_reconstruction_lies_where_the_truth_lies(
    fitted: Any, fitted_of_four: Any, other_scan: Scan, gridsize: int
) -> None:
    module, _, _ = fitted if gridsize == 1 else fitted_of_four
    found = reconstruct(module, other_scan)
    assert other_scan.truth is not None
    box = found.image.scanned(other_scan.x, other_scan.y)
    figures = compare(*truth_box(found.image, other_scan.truth, box), border=4)
    assert figures.orientation == "right"
    assert figures.sign == "right"
    assert figures.shift_px < 0.3
    assert figures.correlation > 0.7


def test_mirrored_stitching_would_be_seen(fitted: Any, other_scan: Scan) -> None:
    # what the reference did: the same patches with the offsets of the windows negated
    wrong = replace(other_scan, x=other_scan.x.max() - other_scan.x + 40, y=other_scan.y.max() - other_scan.y + 40)
    right, mirrored = reconstruct(fitted[0], other_scan), reconstruct(fitted[0], wrong)
    assert mirrored.misfit.mean() > 3 * right.misfit.mean()


def test_refinement_lowers_the_misfit_from_the_network_and_from_a_flat_object(fitted: Any, other_scan: Scan) -> None:
    start = reconstruct(fitted[0], other_scan)
    after = refined(other_scan, start, 8)
    assert after.misfit.mean() < 0.8 * start.misfit.mean()
    flat = refine(other_scan, start.probe, 8)
    flat_misfit = scan_misfit(other_scan, flat.image, flat.probe).mean()
    assert after.misfit.mean() < flat_misfit < 0.1


def test_refinement_follows_from_its_seed(fitted: Any, other_scan: Scan) -> None:
    start = reconstruct(fitted[0], other_scan)
    first, again, other = (refined(other_scan, start, 2, seed=seed) for seed in (1, 1, 2))
    np.testing.assert_array_equal(first.image.values, again.image.values)
    assert not np.array_equal(first.image.values, other.image.values)


def test_probe_of_the_training_scan_is_replaced_by_the_learnt_one_and_no_other(fitted: Any, scan: Scan) -> None:
    module: PtychographyModule = fitted[0]
    given = torch.from_numpy(physics.scale_probe(scan.probe))
    torch.testing.assert_close(module.probe_for(given), module.probe)
    assert not torch.equal(module.probe, given)
    other = torch.roll(given, 3, -1)
    assert module.probe_for(other) is other


def test_scale_of_the_amplitudes_changes_nothing_but_the_misfit_units(fitted: Any, other_scan: Scan) -> None:
    louder = replace(other_scan, patterns=other_scan.patterns * 37)
    first, second = reconstruct(fitted[0], other_scan), reconstruct(fitted[0], louder)
    np.testing.assert_allclose(second.image.values, first.image.values, atol=1e-3)


def test_patterns_of_another_size_are_refused(fitted: Any, other_scan: Scan) -> None:
    wider = replace(other_scan, patterns=np.pad(other_scan.patterns, ((0, 0), (32, 32), (32, 32))))
    with pytest.raises(DataError, match="128 pixels wide; the model was trained on patterns of 64"):
        reconstruct(fitted[0], wider)


@pytest.mark.parametrize("gridsize", [1, 2])
def test_served_network_gives_the_patches_of_the_trained_one(fitted: Any, fitted_of_four: Any, gridsize: int) -> None:
    module, data, _ = fitted if gridsize == 1 else fitted_of_four
    groups = group_patterns(data.test_scan, gridsize**2)[:4]
    dataset = GroupDataset(data.test_scan, groups, 1.0)
    dataset.canvas = module.geometry.canvas if gridsize > 1 else module.geometry.size
    with torch.no_grad():
        merged = module.objects(*dataset.inputs(range(4)), dataset.canvas, module.probe)
        if merged.rows is None or merged.columns is None:
            direct = merged.objects[:, None].numpy()
        else:
            direct = physics.cut(merged.objects, merged.rows, merged.columns).numpy()
        example = TASK.example_input(data)
        inputs = (torch.from_numpy(example[name]) for name in TASK.input_names)
        amplitude, phase = TASK.inference_module(module)(*inputs)
    assert amplitude.shape == phase.shape == example["patterns"].shape
    # a served model knows the scale of its training scan
    scale = physics.amplitude_scale(data.test_scan.patterns) / physics.amplitude_scale(data.train_scan.patterns)
    served = (amplitude * torch.exp(1j * phase)).numpy()
    np.testing.assert_allclose(served * scale, direct, atol=1e-3)


@pytest.mark.parametrize(("size", "gridsize"), [(128, 1), (128, 2), (256, 1)])
def test_larger_patterns_are_trained_on_reconstructed_and_refined(tmp_path: Path, size: int, gridsize: int) -> None:
    larger = simulate(SimulationOptions.model_validate({"patterns": 16, "size": size, "photons": 1e6, "seed": 4}))
    path = write_scan(tmp_path / "scan.npz", larger)
    options = {"n_images": 4, "batch_size": 2, "overlap": 2, "gridsize": gridsize, "width": 4}
    module, data, trainer = trained(config_for(path, path, **options))
    assert np.isfinite(float(trainer.callback_metrics["poisson_val_loss"]))
    assert data.canvas > size
    start = reconstruct(module, larger)
    assert refined(larger, start, 4).misfit.mean() < start.misfit.mean() < 0.1


def test_training_twice_gives_the_same_weights(scan_file: Path, other_file: Path) -> None:
    config = config_for(scan_file, other_file, n_images=16)
    first, second = trained(config)[0], trained(config)[0]
    for name, value in first.state_dict().items():
        assert torch.equal(value, second.state_dict()[name]), name
    other = trained(config.model_copy(update={"seed": 1}))[0]
    assert not torch.equal(other.network.correction.last.weight, first.network.correction.last.weight)


def test_checkpoint_loads_without_pickle_and_reports(fitted: Any, tmp_path: Path) -> None:
    _module, data, trainer = fitted
    path = tmp_path / "last.ckpt"
    trainer.save_checkpoint(path)
    torch.load(path, weights_only=True)
    loaded = TASK.load(path)
    history = {"poisson_train_loss_epoch": [(1, 0, 2.0), (2, 1, 1.0)], "poisson_val_loss": [(1, 0, 2.5)]}
    result = FitResult(module=loaded, data=data, history=history, checkpoint=path)
    report = TASK.report(result, tmp_path / "report")
    names = {file.name for file in report.files}
    assert {"reconstructed_amplitude.png", "reconstructed_phase.png", "probe.png", "misfit.png"} <= names
    assert {"learning_curves.png", "reconstruction.npz"} <= names
    assert all(file.stat().st_size > 0 for file in report.files)
    assert 0 < report.metrics["misfit"] < 0.1
    with np.load(tmp_path / "report" / "reconstruction.npz", allow_pickle=False) as arrays:
        assert arrays["object"].shape == (len(arrays["rows"]), len(arrays["columns"]))
        assert arrays["misfit"].shape == arrays["xcoords"].shape


def test_evaluation_of_a_served_model_names_its_data_and_its_misfit(fitted: Any, other_file: Path) -> None:
    module, data, _ = fitted
    serve = TASK.inference_module(module)

    def predict(arrays: dict[str, Any]) -> dict[str, Any]:
        if arrays["patterns"].shape[1] != 1:
            raise ValueError("one pattern alone")
        with torch.no_grad():
            outputs = serve(*(torch.from_numpy(arrays[name]) for name in TASK.input_names))
        return dict(zip(TASK.output_names, (part.numpy() for part in outputs), strict=True))

    evaluation = TASK.evaluate(predict, str(other_file), other_file.parent)
    assert evaluation.digest == data.test_scan.digest
    assert evaluation.count == len(data.test_scan)
    assert evaluation.metrics["misfit"] < 0.1
    frame = TASK.predict(predict, str(other_file), other_file.parent)
    assert len(frame) == evaluation.count
    assert frame["misfit"].mean() == pytest.approx(evaluation.metrics["misfit"], rel=1e-3)


def test_without_a_test_file_a_region_is_kept_and_said(scan_file: Path) -> None:
    data = PtychographyData(PtychographyConfig(train_data_file=scan_file, validation_fraction=0.2))
    assert len(data.train_scan) + len(data.test_scan) == 49
    assert "are kept for validation" in data.notes[0]
    middle = np.hypot(data.test_scan.x - np.median(data.test_scan.x), data.test_scan.y - np.median(data.test_scan.y))
    everywhere = np.hypot(data.train_scan.x - middle.mean(), data.train_scan.y)
    assert middle.max() < everywhere.max()


def test_amplitudes_that_are_no_counts_get_assumed_photons_and_say_so(scan: Scan, tmp_path: Path) -> None:
    path = write_scan(tmp_path / "scan.npz", replace(scan, patterns=scan.patterns / 31.7))
    data = PtychographyData(PtychographyConfig(train_data_file=path))
    assert any("photons a pattern are assumed" in note for note in data.notes)
    said = PtychographyData(PtychographyConfig(train_data_file=path, photons=5e4))
    assert said.photons == 5e4


def test_scan_too_small_to_split_is_refused(scan: Scan, tmp_path: Path) -> None:
    path = write_scan(tmp_path / "scan.npz", scan.select(np.arange(6)))
    with pytest.raises(DataError, match="too small"):
        PtychographyData(PtychographyConfig(train_data_file=path))
