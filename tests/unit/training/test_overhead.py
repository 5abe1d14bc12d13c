from __future__ import annotations

import torch
from lightning.pytorch.trainer.connectors.logger_connector.result import _Metadata, _ResultMetric
from torch import nn

from heimdall.training.overhead import fuse, spare_overhead


def train(*, fused: bool) -> torch.Tensor:
    torch.manual_seed(3)
    module = nn.Sequential(nn.Linear(6, 32), nn.GELU(), nn.Linear(32, 2))
    optimizer = torch.optim.AdamW(module.parameters(), lr=1e-2, weight_decay=0.05)
    for number in range(30):
        if fused and number == 10:  # as after a resume: there is a state already
            for group in optimizer.param_groups:
                fuse(group, optimizer.state)
            assert optimizer.param_groups[0]["fused"]
        loss = (module(torch.randn(16, 6)) - 1).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return nn.utils.parameters_to_vector(module.parameters()).detach()


def test_the_fused_optimizer_takes_the_same_steps() -> None:
    torch.testing.assert_close(train(fused=True), train(fused=False), rtol=1e-4, atol=1e-6)


def test_complex_weights_are_left_to_the_plain_optimizer() -> None:
    group = {"params": [nn.Parameter(torch.zeros(2, dtype=torch.complex64))]}
    fuse(group, {})
    assert "fused" not in group


def test_a_logged_figure_is_still_moved_where_it_is_elsewhere() -> None:
    spare_overhead()
    figure = _ResultMetric(_Metadata(fx="training_step", name="loss", on_epoch=True), is_tensor=True)
    assert figure.to(torch.device("cpu")) is figure
    assert figure.to(torch.device("meta")).value.device.type == "meta"
