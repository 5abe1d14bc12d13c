"""Files that a reconstruction leaves behind."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from heimdall.errors import OutputError
from heimdall.tasks.ptychography.pictures import draw_amplitude, draw_misfit, draw_phase, draw_probe
from heimdall.tasks.ptychography.reconstruct import Reconstruction
from heimdall.tasks.ptychography.scan import Scan


def write_reconstruction(found: Reconstruction, scan: Scan, folder: Path, facts: dict[str, Any]) -> list[Path]:
    """Pictures, ``reconstruction.npz`` and ``reconstruction.json`` in ``folder``.

    The array file holds ``object`` (H, W) complex64, ``rows`` (H,) and ``columns`` (W,): object pixel of each of its
    lines; ``light`` (H, W); ``probe`` (m, N, N); ``misfit``, ``xcoords``, ``ycoords`` (M,).

    Raises :class:`~heimdall.errors.OutputError` where ``folder`` cannot be written to.
    """
    arrays = folder / "reconstruction.npz"
    facts_file = folder / "reconstruction.json"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        np.savez_compressed(
            arrays,
            allow_pickle=False,
            object=found.image.values,
            rows=found.image.rows,
            columns=found.image.columns,
            light=found.image.light,
            probe=found.probe.cpu().numpy(),
            misfit=found.misfit,
            xcoords=scan.x,
            ycoords=scan.y,
        )
        facts_file.write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")
        return [
            draw_amplitude(found, scan, folder / "reconstructed_amplitude.png"),
            draw_phase(found, scan, folder / "reconstructed_phase.png"),
            draw_probe(found, folder / "probe.png"),
            draw_misfit(found, scan, folder / "misfit.png"),
            arrays,
            facts_file,
        ]
    except OSError as error:
        raise OutputError(
            f"{folder} cannot be written to: {error.strerror}.", mend="Name another --output-dir."
        ) from error
