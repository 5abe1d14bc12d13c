"""Steps made directly are Lightning's own steps: weights, figures, counters, hooks and their order."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch.utils.data import DataLoader, TensorDataset

from heimdall.training.steps import HOOKS, DirectEpochLoop, step_directly
from trainers import silent_trainer

EVERY_HOOK = (*HOOKS, "on_train_epoch_start", "on_train_epoch_end", "on_validation_end")


def note(owner: str, name: str) -> Any:
    """A hook that notes its call, in what name figures would be logged, and whether there are gradients."""

    def hook(self: Any, *arguments: Any, **_: Any) -> None:
        module = self if owner == "module" else arguments[1]
        has_gradients = module.layer.weight.grad is not None
        module.calls.append((owner, name, module._current_fx_name, has_gradients))

    return hook


class Watching(Callback):
    """A callback with every hook."""


for _name in EVERY_HOOK:
    setattr(Watching, _name, note("callback", _name))


class Line(LightningModule):
    """Something small that does all that a step may do."""

    def __init__(
        self,
        *,
        schedule: str = "step",
        end_at: int = -1,
        skip_at: int = -1,
        says: str = "loss",
        optimizer: Callable[..., torch.optim.Optimizer] = torch.optim.AdamW,
    ) -> None:
        super().__init__()
        torch.manual_seed(4)
        self.layer = torch.nn.Linear(3, 1)
        self.schedule, self.end_at, self.skip_at, self.says = schedule, end_at, skip_at, says
        self.optimizer = optimizer
        self.calls: list[tuple[str, str, str | None, bool]] = []
        self.rates: list[float] = []
        self.outputs: list[Any] = []

    def training_step(self, batch: list[torch.Tensor], number: int) -> Any:
        if number == self.skip_at:
            return None
        loss = (self.layer(batch[0]) - batch[1]).square().mean()
        self.log("loss", loss, on_step=True, on_epoch=True)
        self.calls.append(("module", "training_step", self._current_fx_name, self.layer.weight.grad is not None))
        return {"loss": loss, "number": number} if self.says == "dict" else loss

    def validation_step(self, batch: list[torch.Tensor]) -> None:
        self.log("val/loss", (self.layer(batch[0]) - batch[1]).square().mean())

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> int | None:
        return -1 if batch_idx == self.end_at else None

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.outputs.append({key: float(value) for key, value in outputs.items()})
        self.rates.append(self.trainer.optimizers[0].param_groups[0]["lr"])

    def configure_optimizers(self) -> Any:
        optimizer = self.optimizer(self.parameters(), lr=0.05)
        if self.schedule == "plateau":
            plateau = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, patience=0, factor=0.5)
            return {"optimizer": optimizer, "lr_scheduler": {"scheduler": plateau, "monitor": "val/loss"}}
        schedule = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.9)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": self.schedule}}


for _name in ("on_before_backward", "on_after_backward", "on_before_optimizer_step"):
    setattr(Line, _name, note("module", _name))


def fit(module: Line, *, directly: bool, **how: Any) -> tuple[Trainer, bool]:
    torch.manual_seed(5)
    data = TensorDataset(torch.randn(27, 3), torch.randn(27, 1))
    trainer = silent_trainer(max_epochs=3, callbacks=[Watching()], **how)
    if directly:
        step_directly(trainer)
    trainer.fit(module, DataLoader(data, 4), DataLoader(data, 8))
    loop = trainer.fit_loop.epoch_loop
    return trainer, isinstance(loop, DirectEpochLoop) and loop._step is not None


CASES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "plain": ({}, {}),
    "bf16": ({}, {"precision": "bf16-mixed"}),
    "accumulated": ({}, {"accumulate_grad_batches": 2}),
    "clipped": ({}, {"gradient_clip_val": 0.1}),
    "schedule an epoch": ({"schedule": "epoch"}, {}),
    "schedule on a plateau": ({"schedule": "plateau"}, {}),
    "epoch ended by the module": ({"end_at": 3}, {}),
    "a step without a loss": ({"skip_at": 2}, {}),
    "more than a loss": ({"says": "dict"}, {}),
    "validated within the epoch": ({}, {"val_check_interval": 3}),
    "so many steps": ({}, {"max_steps": 9}),
    "the loss asked for several times a step": ({"optimizer": torch.optim.LBFGS}, {}),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("case", list(CASES))
def test_a_direct_step_is_lightnings_step(case: str) -> None:
    options, how = CASES[case]
    usual, direct = Line(**options), Line(**options)
    (trainer, _), (other, was_direct) = fit(usual, directly=False, **how), fit(direct, directly=True, **how)
    assert was_direct
    for weight, same in zip(usual.parameters(), direct.parameters(), strict=True):
        assert torch.equal(weight, same)
    assert (usual.rates, usual.outputs) == (direct.rates, direct.outputs)
    assert {k: float(v) for k, v in trainer.callback_metrics.items()} == {
        k: float(v) for k, v in other.callback_metrics.items()
    }
    assert trainer.fit_loop.state_dict() == other.fit_loop.state_dict()
    assert trainer.optimizers[0].state_dict()["state"].keys() == other.optimizers[0].state_dict()["state"].keys()
    # the one difference: gradients are freed before the forward pass
    assert [call[:3] for call in usual.calls] == [call[:3] for call in direct.calls]
    assert {call[1] for call in direct.calls} == {*EVERY_HOOK, "training_step"}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("accumulate", [1, 2])
def test_gradients_are_freed_before_the_forward_pass(accumulate: int) -> None:
    usual, direct = Line(), Line()
    fit(usual, directly=False, accumulate_grad_batches=accumulate)
    fit(direct, directly=True, accumulate_grad_batches=accumulate)
    had, has = ([call[3] for call in m.calls if call[1] == "training_step"] for m in (usual, direct))
    # seven batches an epoch: the last one of an odd number is a step of its own, so each epoch begins anew
    numbers = [number % 7 for number in range(21)]
    assert any(had[0::accumulate])
    assert has == [number % accumulate > 0 for number in numbers]


class OwnStep(Line):
    def optimizer_step(self, *arguments: Any, **how: Any) -> None:
        super().optimizer_step(*arguments, **how)
        self.calls.append(("module", "optimizer_step", None, True))


class WatchesGradientsGo(Line):
    def on_before_zero_grad(self, optimizer: torch.optim.Optimizer) -> None:
        self.calls.append(("module", "on_before_zero_grad", None, self.layer.weight.grad is not None))


class OwnTransfer(Line):
    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        return [2 * batch[0], batch[1]]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", [OwnStep, WatchesGradientsGo, OwnTransfer])
def test_whatever_is_unusual_goes_the_usual_way(kind: type[Line]) -> None:
    usual, direct = kind(), kind()
    fit(usual, directly=False)
    _, was_direct = fit(direct, directly=True)
    assert not was_direct
    assert torch.equal(usual.layer.weight, direct.layer.weight)
    gone = [[call for call in module.calls if call[1] == "on_before_zero_grad"] for module in (usual, direct)]
    assert gone[0] == gone[1]


@pytest.mark.filterwarnings("ignore")
def test_a_batch_that_is_none_is_passed_over() -> None:
    weights = []
    for directly in (False, True):
        module = Line(schedule="epoch")
        torch.manual_seed(5)
        batches = [[torch.randn(4, 3), torch.randn(4, 1)], None, [torch.randn(4, 3), torch.randn(4, 1)]]
        trainer = silent_trainer(max_epochs=2, limit_val_batches=0)
        if directly:
            step_directly(trainer)
        module.on_train_batch_end = lambda *_: None  # type: ignore[method-assign]
        trainer.fit(module, DataLoader(batches, batch_size=None, collate_fn=lambda batch: batch))  # type: ignore[arg-type]
        assert trainer.global_step == 4
        weights.append(module.layer.weight)
    assert torch.equal(*weights)
