"""What a checkpoint must hold, beside weights and optimizer, so that a resumed run equals the uninterrupted one.

The states of all random generators, and the running means that Lightning keeps within an epoch, as plain types, so that
a checkpoint loads with ``weights_only=True``. Where in the order of samples training stood is Lightning's own count;
:mod:`~heimdall.training.loading` goes on from there.
"""

from __future__ import annotations

import dataclasses
import random
from typing import Any

import numpy as np
import torch
from lightning.pytorch import Trainer
from lightning.pytorch.trainer.connectors.logger_connector.result import _Metadata, _ResultMetric, _Sync
from torchmetrics import Metric


def random_states() -> dict[str, Any]:
    """States of the generators of Python, NumPy and torch (CPU and every CUDA device), as plain types."""
    version, numbers, gauss = random.getstate()
    name, keys, position, has_gauss, cached = np.random.get_state(legacy=True)  # noqa: NPY002
    return {
        "python": [version, torch.tensor(numbers, dtype=torch.int64), gauss],
        "numpy": [
            name,
            torch.from_numpy(np.asarray(keys).astype(np.int64)),
            int(position),
            int(has_gauss),
            float(cached),
        ],
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
    }


def set_random_states(states: dict[str, Any]) -> None:
    """Put back what :func:`random_states` took."""
    version, numbers, gauss = states["python"]
    random.setstate((version, tuple(numbers.tolist()), gauss))
    name, keys, position, has_gauss, cached = states["numpy"]
    np.random.set_state((name, keys.numpy().astype(np.uint32), position, has_gauss, cached))  # noqa: NPY002
    torch.set_rng_state(states["torch"].cpu())
    if states["cuda"] and len(states["cuda"]) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all([state.cpu() for state in states["cuda"]])


def running_means(trainer: Trainer) -> dict[str, Any]:
    """What Lightning has accumulated of this epoch's training metrics, and the state of the module's own metrics."""
    results = [_result_state(key, metric) for key, metric in trainer.fit_loop.epoch_loop._results.items()]
    states = {
        name: {"state": {k: _copy(v) for k, v in m.metric_state.items()}, "updates": int(m._update_count)}
        for name, m in trainer.lightning_module.named_modules()
        if is_metric(m)
    }
    return {"results": results, "metrics": states}


def is_metric(module: Any) -> bool:
    """Whether ``module`` is a metric of torchmetrics. ``isinstance`` would ask each of its hundreds of subclasses."""
    return Metric in type(module).__mro__


def set_running_means(trainer: Trainer, saved: dict[str, Any]) -> None:
    """Put back what :func:`running_means` took, before the first batch after a resume."""
    device = trainer.strategy.root_device
    modules = dict(trainer.lightning_module.named_modules())
    for name, kept in saved["metrics"].items():
        module = modules.get(name)
        if module is not None and is_metric(module):
            for key, value in kept["state"].items():
                setattr(module, key, [t.to(device) for t in value] if isinstance(value, list) else value.to(device))
            module._update_count = kept["updates"]
    for entry in saved["results"]:
        should, rank_zero_only = entry["sync"]
        meta = _Metadata(**entry["meta"])
        meta.sync = _Sync(_should=should, rank_zero_only=rank_zero_only, fn=trainer.strategy.reduce)
        metric = _ResultMetric(meta, is_tensor=entry["is_tensor"]).to(device)
        for key, value in entry["state"].items():
            setattr(metric, key, value.to(device))
        if not metric.is_tensor:
            metric.value = modules[meta.metric_attribute]
        metric._update_count = entry["updates"]
        trainer.fit_loop.epoch_loop._results[entry["key"]] = metric


def _result_state(key: str, metric: _ResultMetric) -> dict[str, Any]:
    meta = metric.meta
    plain = {f.name: getattr(meta, f.name) for f in dataclasses.fields(meta) if f.name != "_sync"}
    plain["reduce_fx"] = meta.reduce_fx.__name__  # Lightning turns the name into the function again
    kept = ("value", "cumulated_batch_size") if meta.is_mean_reduction else ("value",)
    return {
        "key": key,
        "meta": plain,
        "sync": [meta.sync.should, meta.sync.rank_zero_only],
        "is_tensor": metric.is_tensor,
        "state": {name: _copy(getattr(metric, name)) for name in kept} if metric.is_tensor else {},
        "updates": int(metric._update_count),
    }


def _copy(value: Any) -> Any:
    return [part.detach().clone() for part in value] if isinstance(value, list) else value.detach().clone()
