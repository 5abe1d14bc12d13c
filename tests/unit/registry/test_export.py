from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file
from torch import nn

from heimdall.errors import DataError, HoldError, UsageError
from heimdall.registry import weights
from heimdall.registry.export import check_parity, deviation, export_onnx, onnx_predict, torch_predict


class TwoHeads(nn.Module):
    """Has a buffer that is named like one of its outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 2)
        self.register_buffer("spread", torch.tensor(0.5))

    def forward(self, x: torch.Tensor, shift: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return self.layer(x) + shift, self.spread.expand(x.shape[0])


NAMES = ("x", "shift"), ("place", "spread")


def inputs(count: int) -> dict[str, Any]:
    generator = np.random.default_rng(count)
    return {
        "x": generator.normal(size=(count, 3)).astype(np.float32),
        "shift": generator.normal(size=(count, 2)).astype(np.float32),
    }


def test_an_exported_network_takes_any_batch_and_gives_what_torch_gives(tmp_path: Path) -> None:
    network = TwoHeads()
    export_onnx(network, inputs(4), *NAMES, tmp_path / "model.onnx")
    reference = torch_predict(network, *NAMES, provider="cpu")
    exported = onnx_predict(tmp_path / "model.onnx", "cpu")
    for count in (1, 4, 17):
        parity = check_parity(reference, exported, inputs(count))
        assert parity.relative < 1e-5
        assert parity.samples == count
    network.layer.weight.data += 0.01
    with pytest.raises(HoldError, match=r"deviates from torch by .* in 'place'"):
        check_parity(reference, exported, inputs(4))


def test_rounding_of_one_small_answer_is_no_deviation() -> None:
    inputs = {"x": np.float32([[1.0], [9.0]])}

    def sigma(noise: float) -> Any:
        return lambda arrays: {"sigma_m": (1000 * arrays["x"][:, 0] + noise).astype(np.float32)}

    assert check_parity(sigma(0), sigma(0.02), inputs).relative == pytest.approx(0.02 / 8000, rel=1e-2)
    with pytest.raises(HoldError, match="'sigma_m'"):
        check_parity(sigma(0), sigma(20), inputs)
    frozen = lambda arrays: {"sigma_m": np.float32([1000, 9000])}  # noqa: E731 - a batch size that was exported with it
    with pytest.raises(HoldError, match="'sigma_m'"):
        check_parity(sigma(0), frozen, inputs)


def test_what_is_not_finite_is_infinitely_far() -> None:
    good = np.ones(3, np.float32)
    for bad in (np.array([1, np.nan, 1]), np.array([1, np.inf, 1]), np.ones(2)):
        assert deviation(good, bad)[1] == float("inf")
        assert deviation(bad, good)[1] == float("inf")


def test_degrees_are_compared_with_their_spread_not_with_their_size() -> None:
    degrees = np.float32([45.0, 46.0])
    assert deviation(degrees, degrees + np.float32(0.01))[1] == pytest.approx(0.01, rel=0.05)


def test_a_missing_gpu_is_a_sentence(tmp_path: Path) -> None:
    import onnxruntime

    if "CUDAExecutionProvider" not in onnxruntime.get_available_providers():
        with pytest.raises(UsageError, match=r"CUDAExecutionProvider.*--provider cpu"):
            onnx_predict(tmp_path / "model.onnx", "cuda")
    if not torch.cuda.is_available():
        with pytest.raises(UsageError, match="no CUDA device"):
            torch_predict(TwoHeads(), *NAMES, provider="cuda")


def test_a_checkpoint_comes_back_from_safetensors_and_json_as_it_was(tmp_path: Path) -> None:
    shared = torch.arange(4.0)
    content = {
        "state_dict": {"a": shared, "b": shared},
        "hyper_parameters": {"config": {"size": (3, [1, 2.5, None, True]), 7: "seven", "mean": torch.ones(2)}},
        "optimizer_states": [{"step": 1}],
        "heimdall": {"history": {}},
        "pytorch-lightning_version": "2.6.6",
    }
    torch.save(content, tmp_path / "in.ckpt")
    weights.split_checkpoint(tmp_path / "in.ckpt", tmp_path / "model")

    class Spy:
        def load(self, checkpoint: Path) -> Any:
            self.content = torch.load(checkpoint, weights_only=True)
            return nn.Identity()

    spy = Spy()
    weights.load_module(spy, tmp_path / "model")  # type: ignore[arg-type]
    assert spy.content["hyper_parameters"]["config"]["size"] == (3, [1, 2.5, None, True])
    assert spy.content["hyper_parameters"]["config"][7] == "seven"
    assert torch.equal(spy.content["state_dict"]["b"], shared)
    assert "optimizer_states" not in spy.content
    assert "heimdall" not in spy.content
    assert set(load_file(tmp_path / "model" / weights.TENSORS)) >= {"/state_dict/a", "/state_dict/b"}
    json.loads((tmp_path / "model" / weights.REST).read_text())


def test_a_checkpoint_with_a_pickled_object_is_refused(tmp_path: Path) -> None:
    torch.save({"state_dict": {}, "evil": Path("/")}, tmp_path / "in.ckpt")
    with pytest.raises(DataError, match="not a checkpoint of plain types"):
        weights.split_checkpoint(tmp_path / "in.ckpt", tmp_path / "model")
