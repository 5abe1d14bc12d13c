"""The model bundle: one zip file with a manifest (JSON) and weights (safetensors); nothing in it can run code."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from heimdall.errors import DataError

if TYPE_CHECKING:
    from heimdall.tasks.localization.module import LocalizationModule

FORMAT, VERSION = "heimdall-localization-bundle", 1
MANIFEST, WEIGHTS = "manifest.json", "weights.safetensors"


def write_bundle(module: LocalizationModule, config: dict[str, Any], path: Path) -> Path:
    """Write ``module`` and the config it was trained with to ``path``; the file appears only when it is whole."""
    from safetensors.torch import save

    from heimdall.tasks.localization.features import BANDS, FFT_POINTS, FRAMES, HOP, REFERENCE, SAMPLE_RATE_HZ

    weights = {name: value.detach().cpu().contiguous() for name, value in module.state_dict().items()}
    manifest = {
        "format": FORMAT,
        "version": VERSION,
        "hyperparameters": module.options,
        "config": config,
        "features": {
            "sample_rate_hz": SAMPLE_RATE_HZ,
            "fft_points": FFT_POINTS,
            "hop": HOP,
            "bands": BANDS,
            "frames": FRAMES,
            "reference": REFERENCE,
        },
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    with zipfile.ZipFile(partial, "w", zipfile.ZIP_STORED) as archive:
        # A fixed date: the same model is the same file
        archive.writestr(zipfile.ZipInfo(MANIFEST), json.dumps(manifest, indent=1, sort_keys=True))
        archive.writestr(zipfile.ZipInfo(WEIGHTS), save(weights))
    partial.replace(path)
    return path


def read_bundle(path: Path) -> LocalizationModule:
    """The module that a bundle holds.

    Raises :class:`~heimdall.errors.DataError` for a file that is no bundle, or of a later version.
    """
    from safetensors.torch import load

    from heimdall.tasks.localization.module import LocalizationModule

    try:
        with zipfile.ZipFile(path) as archive:
            manifest = json.loads(archive.read(MANIFEST))
            weights = load(archive.read(WEIGHTS))
    except (OSError, zipfile.BadZipFile, KeyError, ValueError) as error:
        raise DataError(f"{path} is not a model bundle.", mend="Give the bundle that a training run wrote.") from error
    if manifest.get("format") != FORMAT or manifest.get("version", 0) > VERSION:
        raise DataError(
            f"{path} is a {manifest.get('format')} of version {manifest.get('version')}; "
            f"this program reads {FORMAT} up to version {VERSION}.",
            mend="Use the version of the program that wrote it.",
        )
    module = LocalizationModule(manifest["hyperparameters"])
    module.load_state_dict(weights)
    return module.eval()
