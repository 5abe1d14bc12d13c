"""The forward model beside a plain loop, the signs of merging and cutting, the losses beside their formulas."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from heimdall.tasks.ptychography import physics
from heimdall.tasks.ptychography.config import SimulationOptions
from heimdall.tasks.ptychography.grouping import group_patterns
from heimdall.tasks.ptychography.scan import Scan
from heimdall.tasks.ptychography.simulate import make_probe, simulate

N = 64


def smooth(shape: tuple[int, ...], seed: int) -> np.ndarray:
    random = np.random.default_rng(seed)
    return (random.standard_normal(shape) + 1j * random.standard_normal(shape)).astype(np.complex64)


def test_forward_model_equals_a_plain_loop_with_several_probe_modes() -> None:
    objects, probes = smooth((2, 3, N, N), 1), smooth((2, 3, 2, N, N), 2)
    got = physics.intensity(physics.far_field(torch.from_numpy(objects), torch.from_numpy(probes))).numpy()
    for b in range(2):
        for c in range(3):
            wanted = np.zeros((N, N))
            for mode in range(2):
                wave = np.fft.fft2(objects[b, c].astype(complex) * probes[b, c, mode])
                wanted += np.abs(wave) ** 2 / N**2
            np.testing.assert_allclose(got[b, c], wanted, rtol=2e-4, atol=1e-4)


def test_one_detector_pixel_equals_the_sum_it_is_defined_by() -> None:
    wave = smooth((N, N), 3)
    got = physics.far_field(torch.from_numpy(wave), torch.ones(1, N, N) + 0j)[0, 5, 60]
    rows, columns = np.indices((N, N))
    wanted = (wave * np.exp(-2j * np.pi * (5 * rows + 60 * columns) / N)).sum() / N
    assert abs(complex(got) - wanted) < 1e-3


def test_energy_at_the_detector_is_the_energy_behind_the_object() -> None:
    wave = torch.from_numpy(smooth((4, N, N), 4))
    light = physics.intensity(physics.far_field(wave, torch.ones(1, N, N) + 0j)).sum((-2, -1))
    torch.testing.assert_close(light, wave.abs().square().sum((-2, -1)), rtol=1e-4, atol=0)


def test_window_centre_is_its_pixel_n_over_two() -> None:
    canvas = torch.zeros(1, 200, 200)
    canvas[0, 90, 70] = 1
    corners, remainders = physics.split_positions(np.array([[90.0, 70.0]]), N)
    rows, columns = physics.windows(torch.from_numpy(corners)[None], N, 200)
    assert physics.cut(canvas, rows, columns)[0, 0, N // 2, N // 2] == 1
    assert np.abs(remainders).max() == 0


def test_merge_puts_patches_back_where_they_were_cut() -> None:
    canvas = torch.from_numpy(smooth((2, 96, 96), 5))
    starts = torch.tensor([[[0, 4], [20, 30], [32, 7]], [[1, 1], [9, 32], [31, 0]]])
    rows, columns = physics.windows(starts, N, 96)
    weights = torch.rand(2, 3, N, N) + 0.1
    merged = physics.merge(physics.cut(canvas, rows, columns), weights, rows, columns)
    seen = physics.place(weights, rows, columns) > 0
    torch.testing.assert_close(merged[seen], canvas[seen], rtol=0, atol=1e-2)
    torch.testing.assert_close(merged[~seen], torch.ones_like(merged[~seen]))


def test_wrong_sign_of_the_offsets_would_be_seen() -> None:
    canvas = torch.from_numpy(smooth((1, 96, 96), 6))
    rows, columns = physics.windows(torch.tensor([[[6, 10], [20, 26]]]), N, 96)
    wrong_rows, wrong_columns = physics.windows(torch.tensor([[[26, 22], [12, 6]]]), N, 96)
    patches, weights = physics.cut(canvas, rows, columns), torch.ones(1, 2, N, N)
    right = physics.cut(physics.merge(patches, weights, rows, columns), rows, columns)
    wrong = physics.cut(physics.merge(patches, weights, wrong_rows, wrong_columns), rows, columns)
    assert (right - patches).abs().max() < 1e-3
    assert (wrong - patches).abs().mean() > 0.5


def test_merge_of_four_explains_the_patterns_with_probe_weights_and_not_with_equal_ones(scan: Scan) -> None:
    # patches that are right only where the probe lights them, as a network's are
    groups = torch.from_numpy(group_patterns(scan, 4))
    corners, remainders = physics.split_positions(np.column_stack([scan.y, scan.x]), N)
    members = torch.from_numpy(corners)[groups]
    offsets = members - members.double().mean(1, keepdim=True).round().long()
    spread = int(offsets.abs().max())
    rows, columns = physics.windows(offsets + spread, N, N + 2 * spread)
    assert scan.truth is not None
    truth = torch.from_numpy(np.stack([scan.truth[r : r + N, c : c + N] for r, c in corners]))[groups]
    probes = physics.shift_probe(torch.from_numpy(scan.probe), torch.from_numpy(remainders)[groups])
    light = physics.intensity(probes)
    dim = light < 0.03 * light.amax()
    patches = torch.where(dim, torch.ones_like(truth), truth)
    measured = physics.intensity(physics.far_field(truth, probes)).sqrt()

    def misfit(weights: torch.Tensor) -> float:
        seen = physics.cut(physics.merge(patches, weights, rows, columns), rows, columns)
        return float(physics.misfit(physics.intensity(physics.far_field(seen, probes)), measured).mean())

    assert misfit(light) < 1e-3
    assert misfit(torch.ones_like(light)) > 3 * misfit(light)


def test_probe_moves_by_whole_pixels_as_a_roll_and_there_and_back_by_parts() -> None:
    probe = torch.from_numpy(make_probe("realistic", N, np.random.default_rng(0))[None])
    moved = physics.shift_probe(probe, torch.tensor([2.0, -3.0]))
    torch.testing.assert_close(moved, torch.roll(probe, (2, -3), (-2, -1)), rtol=0, atol=1e-5)
    part = torch.tensor([0.3, -0.45])
    torch.testing.assert_close(physics.shift_probe(physics.shift_probe(probe, part), -part), probe, rtol=0, atol=1e-5)


def test_poisson_loss_is_its_formula_pixel_by_pixel() -> None:
    random = np.random.default_rng(7)
    predicted, scaled, photon_scale = random.uniform(0.1, 2, (2, 1, 8, 8)), random.uniform(0, 2, (2, 1, 8, 8)), 3.0
    wanted = 0.0
    rates = photon_scale**2 * predicted + physics.DARK_COUNTS
    for rate, counts in zip(rates.ravel(), ((photon_scale * scaled) ** 2).ravel(), strict=True):
        wanted += rate - counts * math.log(rate) + math.lgamma(counts + 1)
    counts = torch.from_numpy((photon_scale * scaled) ** 2)
    got = physics.poisson_loss(
        torch.from_numpy(predicted), counts, torch.lgamma(counts + 1).sum((-2, -1)), torch.tensor(photon_scale)
    )
    assert float(got) == pytest.approx(wanted / 2, rel=1e-5)


def test_amplitude_loss_and_misfit_are_their_formulas() -> None:
    predicted, measured = torch.tensor([[[4.0, 9.0]]]), torch.tensor([[[1.0, 5.0]]])
    assert float(physics.mae_loss(predicted, measured)) == pytest.approx(1.5)
    assert float(physics.misfit(predicted, measured)) == pytest.approx((1 + 4) / 26)


def test_scaled_input_and_probe_have_the_energy_of_half_a_window(scan: Scan) -> None:
    scaled = scan.patterns * physics.amplitude_scale(scan.patterns)
    assert np.square(scaled).sum((1, 2)).mean() == pytest.approx((N / 2) ** 2, rel=1e-4)
    assert np.square(np.abs(physics.scale_probe(scan.probe * 7))).sum() == pytest.approx((N / 2) ** 2, rel=1e-4)


def test_simulation_follows_from_its_seed_alone() -> None:
    options = SimulationOptions(patterns=16, seed=3)
    first, again, other = simulate(options), simulate(options), simulate(options.model_copy(update={"seed": 4}))
    np.testing.assert_array_equal(first.patterns, again.patterns)
    assert not np.array_equal(first.patterns, other.patterns)


@pytest.mark.parametrize("kind", ["lines", "fields", "textures"])
@pytest.mark.parametrize("probe", ["realistic", "ideal"])
def test_simulated_counts_are_whole_and_as_bright_as_asked(kind: str, probe: str) -> None:
    options = SimulationOptions.model_validate({"patterns": 16, "kind": kind, "probe": probe, "photons": 2e4})
    scan = simulate(options)
    counts = np.square(scan.patterns.astype(np.float64))
    np.testing.assert_allclose(counts, np.rint(counts), atol=1e-3)
    assert counts.sum((1, 2)).mean() == pytest.approx(2e4, rel=0.01)
    assert scan.truth is not None
    assert np.abs(np.angle(scan.truth)).max() <= 1.0 + 1e-6
    assert np.abs(scan.truth).max() <= 1.0 + 1e-6


def test_groups_hold_a_seed_and_near_neighbours_without_repeats(scan: Scan) -> None:
    groups = group_patterns(scan, 4, neighbours=6, seed=1)
    assert sorted(groups[:, 0]) == list(range(len(scan)))
    distances = np.hypot(scan.x[:, None] - scan.x, scan.y[:, None] - scan.y)
    for group in groups:
        assert len(set(group)) == 4
        nearest = np.argsort(distances[group[0]])[1:7]
        assert set(group[1:]) <= set(nearest)


def test_groups_never_mix_two_scans(scan: Scan) -> None:
    from dataclasses import replace

    two = replace(scan, index=np.arange(len(scan)) % 2)
    groups = group_patterns(two, 4)
    assert (two.index[groups] == two.index[groups][:, :1]).all()


def test_number_of_groups_can_be_chosen(scan: Scan) -> None:
    assert group_patterns(scan, 1, count=10).shape == (10, 1)
    many = group_patterns(scan, 4, count=2 * len(scan))
    assert many.shape == (2 * len(scan), 4)
    assert np.bincount(many[:, 0]).tolist() == [2] * len(scan)
