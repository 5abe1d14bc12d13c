"""A checkpoint without pickle: tensors in safetensors, everything else in JSON, and back again.

A Lightning checkpoint is a zip around a pickle. What a model needs of it are plain types and tensors, so it is
split here: ``model.safetensors`` holds the tensors under the path they had, ``model.json`` the rest. The state of
optimizer, loops and callbacks is left out.
"""

from __future__ import annotations

import json
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from heimdall.errors import DataError

if TYPE_CHECKING:
    import torch
    from lightning.pytorch import LightningModule

    from heimdall.tasks.base import Task

TENSORS = "model.safetensors"
REST = "model.json"
TRAINING_ONLY = frozenset({"optimizer_states", "lr_schedulers", "loops", "callbacks", "heimdall", "MixedPrecision"})
_TENSOR, _TUPLE, _PAIRS = "__tensor__", "__tuple__", "__pairs__"


def split_checkpoint(checkpoint: Path, folder: Path) -> None:
    """Write ``model.safetensors`` and ``model.json`` into ``folder``.

    Raises :class:`DataError` where the checkpoint is unreadable or holds anything but plain types and tensors.
    """
    import torch
    from safetensors.torch import save_file

    try:
        content = torch.load(checkpoint, map_location="cpu", weights_only=True)
    except Exception as error:
        raise DataError(f"{checkpoint} is not a checkpoint of plain types: {error}") from error
    tensors: dict[str, torch.Tensor] = {}
    kept = {key: value for key, value in content.items() if key not in TRAINING_ONLY}
    rest = _take_apart(kept, "", tensors)
    folder.mkdir(parents=True, exist_ok=True)
    save_file(tensors, folder / TENSORS)
    (folder / REST).write_text(json.dumps(rest, indent=1), encoding="utf-8")


def _take_apart(value: Any, path: str, tensors: dict[str, torch.Tensor]) -> Any:
    import torch

    if isinstance(value, torch.Tensor):
        tensors[path] = value.detach().clone().contiguous()  # safetensors refuses memory that two tensors share
        return {_TENSOR: path}
    if isinstance(value, dict):
        if all(isinstance(key, str) and not key.startswith("__") for key in value):
            return {key: _take_apart(item, f"{path}/{key}", tensors) for key, item in value.items()}
        pairs = [[key, _take_apart(item, f"{path}/{key}", tensors)] for key, item in value.items()]
        return {_PAIRS: pairs}
    if isinstance(value, list | tuple):
        items = [_take_apart(item, f"{path}/{index}", tensors) for index, item in enumerate(value)]
        return {_TUPLE: items} if isinstance(value, tuple) else items
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise DataError(
        f"The checkpoint holds a {type(value).__name__} at {path}, which cannot be stored without pickle.",
        mend="Keep hyperparameters to plain types (numbers, text, lists, dictionaries).",
    )


def _put_together(value: Any, tensors: dict[str, torch.Tensor]) -> Any:
    if isinstance(value, list):
        return [_put_together(item, tensors) for item in value]
    if not isinstance(value, dict):
        return value
    if _TENSOR in value:
        return tensors[value[_TENSOR]]
    if _TUPLE in value:
        return tuple(_put_together(item, tensors) for item in value[_TUPLE])
    if _PAIRS in value:
        return {key: _put_together(item, tensors) for key, item in value[_PAIRS]}
    return {key: _put_together(item, tensors) for key, item in value.items()}


def load_module(task: Task[Any], folder: Path) -> LightningModule:
    """The module whose weights :func:`split_checkpoint` wrote into ``folder``, on the CPU and in evaluation mode."""
    with TemporaryDirectory() as temporary:
        checkpoint = Path(temporary) / "model.ckpt"
        join_checkpoint(folder, checkpoint)
        return task.load(checkpoint).eval()


def join_checkpoint(folder: Path, checkpoint: Path) -> None:
    """The way back: a checkpoint of plain types from what :func:`split_checkpoint` wrote into ``folder``."""
    import torch
    from safetensors.torch import load_file

    try:
        tensors = load_file(folder / TENSORS)
        rest = json.loads((folder / REST).read_text(encoding="utf-8"))
    except Exception as error:
        raise DataError(f"The weights in {folder} cannot be read: {error}") from error
    torch.save(_put_together(rest, tensors), checkpoint)
