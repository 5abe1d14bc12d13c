"""From a scan and a trained network to one image, and how well that image explains the patterns."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from heimdall.errors import DataError
from heimdall.tasks.base import Predict
from heimdall.tasks.ptychography import physics
from heimdall.tasks.ptychography.datamodule import GroupDataset
from heimdall.tasks.ptychography.grouping import group_patterns
from heimdall.tasks.ptychography.module import PtychographyModule
from heimdall.tasks.ptychography.refine import best_scale, refine, scan_misfit
from heimdall.tasks.ptychography.scan import Scan
from heimdall.tasks.ptychography.stitch import ObjectImage, Stitcher

MEMBERS = (1, 4, 9)  # patterns in a group that a model may want


@dataclass(frozen=True, kw_only=True)
class Reconstruction:
    """An object, the probe (m, N, N) that explains the patterns with it, and Σ(|F|-A)²/ΣA² of each pattern (M,)."""

    image: ObjectImage
    probe: Tensor
    misfit: npt.NDArray[np.float32]
    curve: tuple[tuple[float, float], ...] = ()  # of the refinement: seconds, misfit


def reconstruct(module: PtychographyModule, scan: Scan, *, batch_size: int = 16) -> Reconstruction:
    """The network's object of ``scan`` and its misfit; see :func:`assemble`."""
    image, probe = assemble(module, scan, batch_size=batch_size)
    return Reconstruction(image=image, probe=probe, misfit=scan_misfit(scan, image, probe))


@torch.no_grad()
def assemble(module: PtychographyModule, scan: Scan, *, batch_size: int = 16) -> tuple[ObjectImage, Tensor]:
    """The network's object of ``scan``: one pass, patches merged with the probe's light as weights; and that probe.

    Raises :class:`~heimdall.errors.DataError` where the scan's patterns are not of the size that the network knows.
    """
    geometry = module.geometry
    if scan.size != geometry.size:
        raise DataError(
            f"The patterns are {scan.size} pixels wide; the model was trained on patterns of {geometry.size}.",
            mend="Use a model that was trained on this size.",
        )
    probe = module.probe_for(torch.from_numpy(physics.scale_probe(scan.probe)).to(module.device))
    groups = group_patterns(scan, geometry.gridsize**2)
    dataset = GroupDataset(scan, groups, 1.0)
    dataset.canvas = scan.size + 2 * dataset.spread if geometry.gridsize > 1 else scan.size
    corners, _ = physics.split_positions(np.column_stack([scan.y, scan.x]), scan.size)
    # a group's canvas begins where its first window does, less that window's place on it
    origins = corners[groups[:, 0]] - dataset.offsets[:, 0] - (dataset.canvas - scan.size) // 2
    stitcher = Stitcher(origins, dataset.canvas)
    for numbers in np.array_split(np.arange(len(groups)), -(-len(groups) // batch_size)):
        measured, starts, remainders = (part.to(module.device) for part in dataset.inputs(numbers.tolist()))
        merged = module.objects(measured, starts, remainders, dataset.canvas, probe)
        if merged.rows is None or merged.columns is None:
            light = merged.lights[:, 0]
        else:
            light = physics.place(merged.lights, merged.rows, merged.columns)
        stitcher.add(merged.objects.cpu().numpy(), light.cpu().numpy(), origins[numbers])
    return stitcher.image(), probe


def refined(scan: Scan, start: Reconstruction, sweeps: int, *, seed: int = 0) -> Reconstruction:
    """``start`` after ``sweeps`` of gradient descent on its object and probe."""
    result = refine(scan, start.probe, sweeps, start=start.image, seed=seed)
    return Reconstruction(
        image=result.image,
        probe=result.probe,
        misfit=scan_misfit(scan, result.image, result.probe),
        curve=tuple(result.curve),
    )


def reconstruct_served(predict: Predict, scan: Scan, *, batch_size: int = 32) -> Reconstruction:
    """The object of ``scan`` by a served model, whatever runs it; the misfit is that of the scan's own probe.

    The object's scale is the one that explains the patterns best: a served model knows only that of its training.
    """
    probe = torch.from_numpy(physics.scale_probe(scan.probe))
    members = _members(predict, scan)
    corners, _ = physics.split_positions(np.column_stack([scan.y, scan.x]), scan.size)
    light = physics.intensity(probe).numpy()
    stitcher = Stitcher(corners, scan.size)
    for groups, outputs in served_batches(predict, scan, members, batch_size):
        patches = outputs["amplitude"] * np.exp(1j * outputs["phase"])
        for column in range(members):
            weights = np.broadcast_to(light, (len(groups), *light.shape))
            stitcher.add(patches[:, column].astype(np.complex64), weights, corners[groups[:, column]])
    image = stitcher.image()
    image = replace(image, values=image.values * np.float32(best_scale(scan, image, probe)))
    return Reconstruction(image=image, probe=probe, misfit=scan_misfit(scan, image, probe))


def served_inputs(scan: Scan, groups: npt.NDArray[np.int64]) -> dict[str, npt.NDArray[Any]]:
    """What a served model takes for ``groups`` (B, C): patterns (B, C, N, N) and positions (B, C, 2) of float32."""
    places = np.column_stack([scan.x, scan.y])[groups]
    # float32 is exact to a thousandth of a pixel only near zero
    places -= np.floor(places.mean(axis=1, keepdims=True))
    return {"patterns": scan.patterns[groups], "positions": places.astype(np.float32)}


def served_batches(
    predict: Predict, scan: Scan, members: int, batch_size: int
) -> Iterator[tuple[npt.NDArray[np.int64], dict[str, npt.NDArray[Any]]]]:
    """Groups (B, C) with the model's outputs for them; every pattern is the first of one group."""
    groups = group_patterns(scan, members)
    for numbers in np.array_split(np.arange(len(groups)), -(-len(groups) // batch_size)):
        yield groups[numbers], predict(served_inputs(scan, groups[numbers]))


def _members(predict: Predict, scan: Scan) -> int:
    # A Predict does not say how many patterns it wants together, but it refuses a wrong number
    reasons = []
    for members in MEMBERS:
        if members > len(scan):
            break
        try:
            predict(served_inputs(scan, group_patterns(scan, members, count=1)))
        except Exception as error:  # noqa: BLE001 - each runtime has its own way to refuse a shape
            reasons.append(str(error).splitlines()[0][:200])
        else:
            return members
    raise DataError(
        f"The model takes no patterns of {scan.size} x {scan.size} pixels: {reasons[0] if reasons else 'no patterns'}.",
        mend="Use a model that was trained on this size.",
    )


def under_probe(found: Reconstruction, scan: Scan) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    """Amplitude and phase (M,) in radians of the object's mean under the probe at each position."""
    corners, _ = physics.split_positions(np.column_stack([scan.y, scan.x]), scan.size)
    light = physics.intensity(found.probe).cpu().numpy()
    means = []
    for row, column in corners - np.array(found.image.corner):
        seen = found.image.values[max(row, 0) : row + scan.size, max(column, 0) : column + scan.size]
        means.append((seen * light[: seen.shape[0], : seen.shape[1]]).sum() / light.sum())
    return np.abs(means).astype(np.float32), np.angle(means).astype(np.float32)
