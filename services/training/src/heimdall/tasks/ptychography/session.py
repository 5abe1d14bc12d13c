"""One reconstruction from files to files, with sentences on the way."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import torch

from heimdall.errors import UsageError
from heimdall.tasks.ptychography.module import PtychographyModule
from heimdall.tasks.ptychography.outputs import write_reconstruction
from heimdall.tasks.ptychography.reconstruct import reconstruct, refined
from heimdall.tasks.ptychography.report import figures
from heimdall.tasks.ptychography.scan import read_scan
from heimdall.tasks.ptychography.task import PtychographyTask


def run(
    model_path: Path, test_data: Path, output_dir: Path, sweeps: int, batch_size: int, accelerator: str, seed: int
) -> Iterator[str]:
    """Reconstruct ``test_data``; yields a line for people after each step.

    Raises :class:`~heimdall.errors.DataError` for a bad scan or bundle, before anything is written.
    """
    scan = read_scan(test_data)
    for note in scan.notes:
        yield f"{test_data}: {note}."
    module = PtychographyTask().load(model_path)
    assert isinstance(module, PtychographyModule)  # noqa: S101 - made by this task
    module = module.to(device(accelerator)).eval()
    started = time.perf_counter()
    found = reconstruct(module, scan, batch_size=batch_size)
    network_seconds = time.perf_counter() - started
    yield f"Network: {len(scan)} patterns in {network_seconds:.1f} s, misfit {found.misfit.mean():.4f}."
    facts = {"model": model_path.name, "scan_sha256": scan.digest, "network_seconds": network_seconds}
    facts["network_misfit"] = float(found.misfit.mean())
    if sweeps:
        found = refined(scan, found, sweeps, seed=seed)
        facts |= {"sweeps": sweeps, "refine_seconds": found.curve[-1][0], "curve": list(found.curve)}
        yield f"Refined: {sweeps} sweeps in {found.curve[-1][0]:.1f} s, misfit {found.misfit.mean():.4f}."
    facts |= figures(found, scan)
    for path in write_reconstruction(found, scan, output_dir, facts):
        yield f"Wrote {path}"


def device(accelerator: str) -> torch.device:
    """Where to compute. Raises :class:`~heimdall.errors.UsageError` where a GPU is asked for and there is none."""
    has_gpu = torch.cuda.is_available()
    if accelerator in ("cuda", "gpu") and not has_gpu:
        raise UsageError("torch finds no CUDA device here.", mend="Use --accelerator cpu.")
    return torch.device("cuda" if has_gpu and accelerator != "cpu" else "cpu")
