"""What one model version holds, and how its folder is built. Nothing in it is a pickle.

MLmodel, requirements.txt, …      written by MLflow; flavours onnx, python_function and heimdall
model.onnx                        what is served; plain mlflow opens it without any of our code
input_example.json, …             real inputs, from which MLflow checks the signature
heimdall/manifest.json            task, digests, parity, figures, environment (:class:`Manifest`)
heimdall/model.safetensors, .json the weights for torch (:mod:`heimdall.registry.weights`)
heimdall/card.md, pictures/       the model card
"""

from __future__ import annotations

import hashlib
import os
import platform
import shutil
from collections.abc import Iterator, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from pydantic import BaseModel, ConfigDict, ValidationError

from heimdall.errors import DataError
from heimdall.registry.export import Parity
from heimdall.tasks.base import Arrays

if TYPE_CHECKING:
    from lightning.pytorch import LightningDataModule
    from mlflow.models import Model, ModelSignature

FORMAT_VERSION = 1
FOLDER = "heimdall"
MANIFEST = f"{FOLDER}/manifest.json"
ONNX_FILE = "model.onnx"
LARGE_ONNX_BYTES = 1_500_000_000  # a protobuf message ends at 2 GiB; larger weights go into a file beside it
REQUIREMENTS = ("mlflow", "numpy", "onnx", "onnxruntime", "pandas")
ENVIRONMENT = ("heimdall-training", "torch", "lightning", "onnx", "onnxruntime", "numpy", "mlflow")
PROVIDERS = ("CUDAExecutionProvider", "CPUExecutionProvider")


class Manifest(BaseModel):
    """Everything that :mod:`heimdall` needs to open a model again, and where the model comes from."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    format_version: int = FORMAT_VERSION
    task: str
    name: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    run_id: str
    checkpoint_sha256: str
    training_data_digest: str
    metrics: dict[str, float | None]  # None stands for a figure that is not finite, which JSON cannot hold
    parity: Parity
    latency_ms: float
    parameters: int  # trainable and not
    environment: dict[str, str]


def read_manifest(folder: Path) -> Manifest:
    """The manifest of the model in ``folder``. Raises :class:`DataError` where there is none or it is not ours."""
    try:
        return Manifest.model_validate_json((folder / MANIFEST).read_bytes())
    except OSError as error:
        raise DataError(
            f"{folder} is not a model of heimdall: it has no {MANIFEST}.", mend="Register it: heimdall models register."
        ) from error
    except ValidationError as error:
        raise DataError(f"{folder / MANIFEST} cannot be understood: {error.errors()[0]['msg']}.") from error


def finite(metrics: Mapping[str, float]) -> dict[str, float | None]:
    """``metrics`` with None in the place of NaN and infinity."""
    return {name: float(value) if np.isfinite(value) else None for name, value in metrics.items()}


def file_digest(path: Path) -> str:
    """sha256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def data_digest(data: LightningDataModule) -> str:
    """sha256 over the training data: what the data module calls its digest, or else every training sample in order."""
    known = getattr(data, "digest", None) or getattr(getattr(data, "dataset", None), "digest", None)
    if isinstance(known, str) and known:
        return known
    digest = hashlib.sha256()
    dataset: Any = data.train_dataloader().dataset
    for index in range(len(dataset)):
        for array in _arrays(dataset[index]):
            digest.update(f"{array.dtype}{array.shape}".encode())
            digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()


def _arrays(sample: Any) -> Iterator[Any]:
    if isinstance(sample, Mapping):
        for key in sorted(sample, key=str):
            yield from _arrays(sample[key])
    elif isinstance(sample, Sequence) and not isinstance(sample, str | bytes):
        for item in sample:
            yield from _arrays(item)
    else:
        yield np.asarray(sample)


def environment() -> dict[str, str]:
    """Versions of everything that had a part in making the model."""
    return {"python": platform.python_version(), "platform": platform.platform(terse=True)} | {
        name: version(name) for name in ENVIRONMENT
    }


def signature(inputs: Arrays, outputs: Arrays) -> ModelSignature:
    """Named tensors with a free first dimension, as MLflow enforces them."""
    from mlflow.models import ModelSignature
    from mlflow.types import Schema, TensorSpec

    def schema(arrays: Arrays) -> Schema:
        return Schema([TensorSpec(array.dtype, (-1, *array.shape[1:]), name) for name, array in arrays.items()])

    return ModelSignature(inputs=schema(inputs), outputs=schema(outputs))


def build(folder: Path, onnx_file: Path, extras: Path, example: Arrays, outputs: Arrays, mlflow_model: Model) -> None:
    """Write a complete MLflow model into ``folder``, which must not exist yet.

    ``extras`` is the folder with manifest, weights and card; ``mlflow_model`` carries the ids of run and model.
    """
    import mlflow.onnx
    import onnx

    large = onnx_file.stat().st_size > LARGE_ONNX_BYTES or onnx_file.with_suffix(".onnx.data").exists()
    mlflow_model.add_flavor(FOLDER, data=FOLDER, format_version=FORMAT_VERSION)
    mlflow.onnx.save_model(
        onnx.load(str(onnx_file)),
        str(folder),
        mlflow_model=mlflow_model,
        signature=signature(example, outputs),
        input_example=dict(example),
        pip_requirements=[f"{name}=={version(name)}" for name in REQUIREMENTS],
        onnx_execution_providers=list(PROVIDERS),
        save_as_external_data=large,
        **({"location": f"{ONNX_FILE}.data"} if large else {}),
    )
    shutil.copytree(extras, folder / FOLDER)
    # files come out of temporary folders with their permissions; a server that runs as another user must read them
    for parent, _, names in os.walk(folder):
        Path(parent).chmod(0o755)
        for name in names:
            (Path(parent) / name).chmod(0o644)
