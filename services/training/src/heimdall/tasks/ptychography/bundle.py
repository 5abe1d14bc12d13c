"""``wts.h5.zip``: the final model, a zip of a JSON manifest and safetensors weights. Nothing in it can run code.

The name is the one its users know. A bundle from a stranger is read with suspicion: its members are never written to
disk, their sizes are limited before they are read, and the manifest is checked before a network is built from it.
"""

from __future__ import annotations

import hashlib
import json
import zipfile
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from safetensors import SafetensorError
from safetensors.torch import load, save

from heimdall.errors import DataError
from heimdall.tasks.ptychography.module import PtychographyModule

NAME = "wts.h5.zip"
FORMAT, VERSION = "heimdall-ptychography-bundle", 1
MANIFEST, WEIGHTS = "manifest.json", "weights.safetensors"
LARGEST = {MANIFEST: 2**20, WEIGHTS: 2**30}
MEND = "Give the wts.h5.zip that a training run wrote."


class Hyperparameters(BaseModel):
    """Arguments of :class:`PtychographyModule`, within the limits that training keeps to."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    size: Literal[64, 128, 256]
    modes: int = Field(ge=1, le=64)
    gridsize: int = Field(ge=1, le=3)
    canvas: int = Field(ge=64, le=4096)
    margin: int = Field(ge=0, le=128, multiple_of=4)
    width: int = Field(ge=4, le=256, multiple_of=4)
    physics_steps: int = Field(ge=0, le=64)
    torch_loss_mode: Literal["poisson", "mae"]
    learn_probe: bool
    learning_rate: float = Field(gt=0, allow_inf_nan=False)
    probe_learning_rate: float = Field(4e-4, gt=0, allow_inf_nan=False)
    photon_scale: float = Field(gt=0, allow_inf_nan=False)
    input_scale: float = Field(gt=0, allow_inf_nan=False)


class Manifest(BaseModel):
    """What a bundle says of itself."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    format: str
    version: int
    weights_sha256: str
    hyperparameters: Hyperparameters
    config: dict[str, Any]


def write_bundle(module: PtychographyModule, config: Mapping[str, Any], path: Path) -> Path:
    """Write ``module``, and the config it was trained with, to ``path``; the file appears only when it is whole."""
    weights = save({name: value.detach().cpu().contiguous() for name, value in module.state_dict().items()})
    manifest = Manifest(
        format=FORMAT,
        version=VERSION,
        weights_sha256=hashlib.sha256(weights).hexdigest(),
        hyperparameters=Hyperparameters(**module.hparams),
        config=dict(config),
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial")
    with zipfile.ZipFile(partial, "w", zipfile.ZIP_STORED) as archive:
        # a fixed date: the same model is the same file
        archive.writestr(zipfile.ZipInfo(MANIFEST), manifest.model_dump_json(indent=1))
        archive.writestr(zipfile.ZipInfo(WEIGHTS), weights)
    partial.replace(path)
    return path


def read_bundle(path: Path) -> PtychographyModule:
    """The module that a bundle holds.

    Raises :class:`~heimdall.errors.DataError` for anything but a whole bundle of a known version.
    """
    if not path.is_file():
        raise DataError(f"There is no file {path}.", mend=MEND)
    try:
        with zipfile.ZipFile(path) as archive:
            _check_members(path, archive)
            manifest = _manifest(path, _read(path, archive, MANIFEST))
            weights = _read(path, archive, WEIGHTS)
    except (zipfile.BadZipFile, EOFError, NotImplementedError, OSError, RuntimeError) as error:
        raise DataError(f"{path} is not a model bundle, or damaged: {error}.", mend=MEND) from error
    if hashlib.sha256(weights).hexdigest() != manifest.weights_sha256:
        raise DataError(f"The weights in {path} are damaged: their digest is not the manifest's.", mend=MEND)
    module = PtychographyModule(**manifest.hyperparameters.model_dump())
    try:
        module.load_state_dict(load(weights))
    except (SafetensorError, RuntimeError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise DataError(f"The weights in {path} do not fit its manifest: {reason}", mend=MEND) from error
    if not all(bool(torch.isfinite(value).all()) for value in module.state_dict().values()):
        raise DataError(f"The weights in {path} are not all finite numbers.", mend=MEND)
    return module.eval()


def _check_members(path: Path, archive: zipfile.ZipFile) -> None:
    names = [info.filename for info in archive.infolist()]
    for name in names:
        parts = PurePosixPath(name.replace("\\", "/"))
        if parts.is_absolute() or ".." in parts.parts:
            raise DataError(f"{path} is refused: its member {name!r} leads out of the bundle.", mend=MEND)
    if sorted(names) != sorted(LARGEST):
        raise DataError(f"{path} is not a model bundle: it holds {', '.join(names) or 'nothing'}.", mend=MEND)


def _read(path: Path, archive: zipfile.ZipFile, name: str) -> bytes:
    limit = LARGEST[name]
    with archive.open(name) as member:
        # what the directory claims may be a lie: never unpack more than the limit
        content = member.read(limit + 1)
    if len(content) > limit:
        raise DataError(f"{path} is refused: its {name} unpacks to more than {limit} bytes.", mend=MEND)
    return content


def _manifest(path: Path, content: bytes) -> Manifest:
    try:
        raw = json.loads(content)
        kind, version = raw.get("format"), raw.get("version")
    except (ValueError, AttributeError, RecursionError) as error:
        raise DataError(f"The manifest of {path} cannot be read.", mend=MEND) from error
    if kind != FORMAT:
        raise DataError(f"{path} is a bundle of kind {kind!r}, not {FORMAT!r}.", mend=MEND)
    if version != VERSION:
        raise DataError(
            f"{path} is a bundle of version {version!r}; this program reads version {VERSION}.",
            mend="Use the version of heimdall that wrote it.",
        )
    try:
        return Manifest.model_validate(raw)
    except ValidationError as error:
        first = error.errors(include_input=False, include_url=False)[0]
        place = ".".join(map(str, first["loc"]))
        raise DataError(f"The manifest of {path} is wrong at {place}: {first['msg']}.", mend=MEND) from None
