"""From a network to ONNX with a dynamic batch, and the two ways to run it: torch and ONNX Runtime.

Both ways are a :data:`~heimdall.tasks.base.Predict`: named arrays in, named arrays out, batch first.
"""

from __future__ import annotations

import logging
import time
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict

from heimdall.errors import DataError, HoldError, UsageError
from heimdall.tasks.base import Arrays, Predict

if TYPE_CHECKING:
    from torch import nn

Runtime = Literal["torch", "onnx"]
Provider = Literal["auto", "cpu", "cuda"]
ONNX_PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}
PARITY_TOLERANCE = 1e-3
"""Largest accepted deviation of ONNX Runtime from torch, as a share of the output's spread (see :func:`deviation`)."""


class Parity(BaseModel):
    """How far ONNX Runtime is from torch on real inputs."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    max_deviation: float  # largest absolute difference, in the unit of the output where it occurs
    relative: float  # largest difference as a share of that output's spread
    worst_output: str
    tolerance: float
    samples: int


def export_onnx(
    module: nn.Module, example: Arrays, input_names: Sequence[str], output_names: Sequence[str], path: Path
) -> None:
    """Write ``module`` as ONNX to ``path``; the first dimension of every input and output is free.

    ``example`` needs two samples at least: torch takes a dimension of size one for a constant.
    Raises :class:`DataError` where the network cannot be exported.
    """
    import torch

    inputs = tuple(torch.from_numpy(np.ascontiguousarray(example[name])) for name in input_names)
    batch = torch.export.Dim("batch")
    shapes = (tuple({0: batch} for _ in inputs),)  # one entry for the one argument, *inputs
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)  # it regrets on each export that torchvision is not here
    try:
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")  # the exporter warns of its own deprecations
            program = torch.onnx.export(
                _contained(module),
                inputs,
                dynamo=True,
                input_names=list(input_names),
                output_names=list(output_names),
                dynamic_shapes=shapes,
                verbose=False,
            )
        assert program is not None  # noqa: S101 - torch returns None only where dynamo is off
        program.save(str(path))
    except Exception as error:
        first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise DataError(
            f"The network cannot be exported to ONNX: {first}",
            mend="Use operations with a batch dimension that torch.export can follow.",
        ) from error


def _contained(module: nn.Module) -> nn.Module:
    """``module`` one level down: a buffer of its own that is named like an output would define an ONNX name twice."""
    from torch import nn

    class Contained(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.network = module

        def forward(self, *inputs: Any) -> Any:
            return self.network(*inputs)

    return Contained().cpu().eval()


def deviation(
    expected: npt.NDArray[Any], got: npt.NDArray[Any], of: npt.NDArray[Any] | None = None
) -> tuple[float, float]:
    """Largest absolute difference, and the same as a share of the spread of ``of``, by default of ``expected``.

    The spread is max − min, but at least a hundredth of the largest magnitude, below which single precision itself
    would count: degrees near 45 are compared with how far the answers lie apart, not with 45. Anything that is not
    finite is infinitely far.
    """
    if expected.shape != got.shape or not (np.isfinite(expected).all() and np.isfinite(got).all()):
        return float("inf"), float("inf")
    if not expected.size:
        return 0.0, 0.0
    difference = float(np.abs(expected.astype(np.float64) - got.astype(np.float64)).max())
    of = expected if of is None else of
    scale = max(float(of.max() - of.min()), 1e-2 * float(np.abs(of).max()), 1e-6)
    return difference, difference / scale


def check_parity(reference: Predict, exported: Predict, inputs: Arrays, tolerance: float = PARITY_TOLERANCE) -> Parity:
    """Compare two ways to run one model on ``inputs``, also one sample at a time, which shows a frozen batch size.

    Raises :class:`HoldError` where they differ by more than ``tolerance``.
    """
    count = len(next(iter(inputs.values())))
    worst = (0.0, 0.0, "")
    whole = reference(inputs)
    one = {name: array[:1] for name, array in inputs.items()}
    for batch, expected in ((inputs, whole), (one, reference(one))):
        got = exported(batch)
        for name, array in expected.items():
            # one sample has no spread of its own: rounding would count as a deviation where its value is small
            absolute, relative = deviation(array, got[name], whole[name])
            if relative >= worst[1]:
                worst = (absolute, relative, name)
    parity = Parity(
        max_deviation=worst[0], relative=worst[1], worst_output=worst[2], tolerance=tolerance, samples=count
    )
    if not parity.relative <= tolerance:
        raise HoldError(
            f"ONNX Runtime deviates from torch by {parity.max_deviation:.3g} in {parity.worst_output!r}, "
            f"{parity.relative:.2g} of its spread; the tolerance is {tolerance:.2g}. The model was not registered.",
            mend="Train in full precision, or replace the operation that ONNX computes differently.",
        )
    return parity


def torch_predict(
    module: nn.Module, input_names: Sequence[str], output_names: Sequence[str], provider: Provider = "auto"
) -> Predict:
    """Run ``module`` with torch, on the GPU where there is one or where ``provider`` says so."""
    import torch

    if provider == "cuda" and not torch.cuda.is_available():
        raise UsageError("torch finds no CUDA device here.", mend="Use --provider cpu, or heimdall doctor for the GPU.")
    device = torch.device("cpu" if provider == "cpu" or not torch.cuda.is_available() else "cuda")
    placed = module.to(device).eval()

    def predict(arrays: Arrays) -> Arrays:
        inputs = [torch.from_numpy(np.ascontiguousarray(arrays[name])).to(device) for name in input_names]
        with torch.inference_mode():
            outputs = placed(*inputs)
        outputs = outputs if isinstance(outputs, tuple | list) else (outputs,)
        return {name: tensor.cpu().numpy() for name, tensor in zip(output_names, outputs, strict=True)}

    return predict


def onnx_predict(path: Path, provider: Provider = "auto") -> Predict:
    """Run the ONNX model at ``path`` with ONNX Runtime.

    Raises :class:`UsageError` where the execution provider is not installed, :class:`DataError` for a broken file.
    """
    import onnxruntime

    available = onnxruntime.get_available_providers()
    wanted = [ONNX_PROVIDERS[provider]] if provider != "auto" else [ONNX_PROVIDERS["cuda"], ONNX_PROVIDERS["cpu"]]
    usable = [name for name in wanted if name in available]
    if not usable:
        raise UsageError(
            f"This ONNX Runtime has no {wanted[0]}; it has {', '.join(available)}.",
            mend="Use --provider cpu, or install onnxruntime-gpu in place of onnxruntime.",
        )
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # warnings about graph clean-up are no news to the user
    try:
        session = onnxruntime.InferenceSession(str(path), sess_options=options, providers=usable)
    except Exception as error:
        raise DataError(f"{path} cannot be opened by ONNX Runtime: {error}") from error
    outputs = [output.name for output in session.get_outputs()]
    inputs = [entry.name for entry in session.get_inputs()]

    def predict(arrays: Arrays) -> Arrays:
        results = session.run(outputs, {name: np.ascontiguousarray(arrays[name]) for name in inputs})
        return dict(zip(outputs, results, strict=True))

    return predict


def latency_ms(predict: Predict, inputs: Arrays, repeats: int = 20) -> float:
    """Median time in milliseconds that ``predict`` takes for one sample, after three calls that are not counted."""
    one = {name: array[:1] for name, array in inputs.items()}
    times = []
    for index in range(repeats + 3):
        started = time.perf_counter()
        predict(one)
        if index >= 3:
            times.append(time.perf_counter() - started)
    return float(np.median(times) * 1e3)
