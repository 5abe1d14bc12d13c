from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from heimdall.training.snapshot import SnapshotMemory, shapes_in


class Backbone(StrEnum):
    SMALL = "SMALL"


def trained() -> tuple[nn.Module, torch.optim.Optimizer]:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Flatten(), nn.LazyLinear(4))
    optimizer = None
    for _ in range(2):
        loss = module(torch.randn(4, 3, 8, 8)).square().mean()
        optimizer = optimizer or torch.optim.AdamW(module.parameters())
        loss.backward()
        optimizer.step()
    assert optimizer is not None
    return module, optimizer


def checkpoint_of(module: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    return {"state_dict": module.state_dict(), "optimizer_states": [optimizer.state_dict()], "epoch": 3}


def test_a_snapshot_loads_back_as_what_it_was_taken_of(tmp_path: Path) -> None:
    module, optimizer = trained()
    wanted = {name: value.clone() for name, value in module.state_dict().items()}
    taken = SnapshotMemory().take(checkpoint_of(module, optimizer))
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(1)
    torch.save(taken, tmp_path / "x.ckpt")
    loaded = torch.load(tmp_path / "x.ckpt", weights_only=True)
    assert all(torch.equal(loaded["state_dict"][name], value) for name, value in wanted.items())
    assert loaded["epoch"] == 3
    assert loaded["state_dict"]._metadata == module.state_dict()._metadata  # type: ignore[attr-defined]
    optimizer.load_state_dict(loaded["optimizer_states"][0])
    module.load_state_dict(loaded["state_dict"])


def test_the_next_snapshot_uses_the_memory_of_the_last() -> None:
    module, optimizer = trained()
    memory = SnapshotMemory()
    first = memory.take(checkpoint_of(module, optimizer))
    places = {value.data_ptr() for value in first["state_dict"].values()}
    memory.release()
    second = memory.take(checkpoint_of(module, optimizer))
    assert {value.data_ptr() for value in second["state_dict"].values()} <= places | {
        value.data_ptr() for state in first["optimizer_states"][0]["state"].values() for value in state.values()
    }


def test_a_snapshot_that_is_not_released_is_never_overwritten() -> None:
    memory = SnapshotMemory()
    first = memory.take({"a": torch.zeros(3)})
    memory.take({"a": torch.ones(3)})
    assert first["a"].tolist() == [0, 0, 0]


def test_reserved_memory_is_used() -> None:
    memory = SnapshotMemory()
    tensors = [torch.randn(4, 5), torch.randn(4, 5), torch.zeros(2, dtype=torch.int64)]
    memory.reserve(shapes_in({"all": tensors, "epoch": 3}))
    held = {tensor.data_ptr() for free in memory._free.values() for tensor in free}
    taken = memory.take({"all": tensors})
    assert {tensor.data_ptr() for tensor in taken["all"]} == held
    assert [tensor.tolist() for tensor in taken["all"]] == [tensor.tolist() for tensor in tensors]


def test_paths_enumerations_and_numbers_of_numpy_become_plain(tmp_path: Path) -> None:
    odd = {"path": tmp_path, Backbone.SMALL: (np.float64(0.5), np.int32(7)), "flag": np.bool_(True)}
    taken = SnapshotMemory().take({"hyper_parameters": odd})
    torch.save(taken, tmp_path / "x.ckpt")
    assert torch.load(tmp_path / "x.ckpt", weights_only=True)["hyper_parameters"] == {
        "path": str(tmp_path),
        "SMALL": (0.5, 7),
        "flag": True,
    }


def test_what_would_need_a_pickle_is_refused_when_it_is_saved_not_when_it_is_needed() -> None:
    with pytest.raises(TypeError, match=r"checkpoint\.callbacks\.mine is a .*SnapshotMemory"):
        SnapshotMemory().take({"callbacks": {"mine": SnapshotMemory()}})
