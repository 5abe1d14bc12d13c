from __future__ import annotations

from pathlib import Path

import lightning.pytorch as lightning
import numpy as np
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint

from heimdall.errors import ConfigError, DataError, ServiceError
from heimdall.tasks.localization.backbones import ARCHITECTURES, ImageBackbone, _resized_positions
from heimdall.tasks.localization.compact import CompactBackbone
from heimdall.tasks.localization.config import Backbone, LocalizationConfig
from heimdall.tasks.localization.datamodule import LocalizationData
from heimdall.tasks.localization.dataset import open_dataset, read_samples
from heimdall.tasks.localization.features import SAMPLES, band_powers
from heimdall.tasks.localization.module import LocalizationModule
from heimdall.tasks.localization.task import LocalizationTask

WIDTHS = {
    "CONVNEXT_TINY": 768, "CONVNEXT_SMALL": 768, "CONVNEXT_MEDIUM": 1024, "CONVNEXT_LARGE": 1536,
    "RESNET_50": 2048, "RESNET_101": 2048, "VIT_BASE": 768, "VIT_LARGE": 1024,
    "EFFICIENTNET_B3": 1536, "EFFICIENTNET_B4": 1792,
}  # fmt: skip


def trainer(folder: Path, epochs: int = 2) -> lightning.Trainer:
    return lightning.Trainer(
        max_epochs=epochs, accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=False,
        callbacks=[ModelCheckpoint(folder, monitor="val/loss", save_last=True, auto_insert_metric_name=False)],
    )  # fmt: skip


@pytest.mark.parametrize("name", WIDTHS)
def test_every_backbone_builds_and_gives_its_width(name: str) -> None:
    # On the meta device shapes are computed and nothing else: the largest has 300 million weights
    with torch.device("meta"):
        backbone = ImageBackbone(Backbone(name), receivers=5).eval()
        assert backbone(torch.empty(2, 5, 128, 32)).shape == (2, WIDTHS[name]) == (2, backbone.width)


@pytest.mark.parametrize("receivers", [3, 4, 9])
def test_any_number_of_receivers_from_three_on(receivers: int) -> None:
    features = torch.randn(2, receivers, 128, 32) * 5 - 110
    for backbone in (CompactBackbone(receivers, 0.1), _small("resnet", receivers)):
        assert backbone(features).shape == (2, backbone.width)


def _small(family: str, receivers: int, *, name: Backbone = Backbone.RESNET_50) -> ImageBackbone:
    """A backbone of the real kind, made small enough to run here."""
    sizes = {
        "convnext": {"depths": [1, 1, 1, 1], "hidden_sizes": [8, 8, 8, 16]},
        "resnet": {"depths": [1, 1, 1, 1], "hidden_sizes": [8, 8, 8, 16], "embedding_size": 8},
        "vit": {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16},
        "efficientnet": {"width_coefficient": 0.1, "depth_coefficient": 0.1, "hidden_dim": 16},
    }[family]
    original = ARCHITECTURES[name]
    try:
        ARCHITECTURES[name] = type(original)(family, sizes, "unused/unused", 16)
        return ImageBackbone(name, receivers)
    finally:
        ARCHITECTURES[name] = original


@pytest.mark.parametrize("family", ["convnext", "resnet", "vit", "efficientnet"])
def test_published_weights_are_adapted_to_the_receivers(family: str, tmp_path: Path) -> None:
    published = _small(family, 3)  # made here, three colours: stands in for the hub's
    for parameter in published.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    published.model.save_pretrained(tmp_path)
    backbone = _small(family, 6)
    backbone.load_published(str(tmp_path))
    first, adapted = (
        next(p for p in model.parameters() if p.ndim == 4 and p.shape[1] in (3, 6)) for model in (published, backbone)
    )
    # The same grey picture gives the same first layer
    torch.testing.assert_close(adapted.sum(1), first.sum(1))
    last = [list(model.parameters())[-1] for model in (published, backbone)]
    torch.testing.assert_close(*last)


def test_position_embeddings_of_a_square_image_are_resized() -> None:
    published = torch.zeros(1, 1 + 14 * 14, 2)
    published[:, 1:, 0] = torch.arange(14).repeat_interleave(14).float()
    published[:, 0] = 5
    resized = _resized_positions(published, 1 + 8 * 2)
    assert resized.shape == (1, 17, 2)
    assert (resized[:, 0] == 5).all()
    rows = resized[0, 1:, 0].reshape(8, 2)
    torch.testing.assert_close(rows[:, 0], rows[:, 1])
    assert (rows[1:, 0] > rows[:-1, 0]).all()


def test_weights_of_another_architecture_are_refused(tmp_path: Path) -> None:
    _small("resnet", 3).model.save_pretrained(tmp_path)
    bigger = ImageBackbone(Backbone.RESNET_50, 3)
    with pytest.raises(ConfigError, match="do not fit"):
        bigger.load_published(str(tmp_path))


def test_weights_that_cannot_be_had_name_the_flag_to_use(
    config: LocalizationConfig, data: LocalizationData, tmp_path: Path
) -> None:
    wanting = config.model_copy(
        update={"backbone": Backbone.VIT_BASE, "pretrained": True, "pretrained_weights": str(tmp_path / "none")}
    )
    with pytest.raises(ServiceError, match="--no-pretrained") as caught:
        LocalizationTask().module(wanting, data)
    assert caught.value.exit_code == 69


def test_ten_decibel_at_one_receiver_move_the_estimate(
    config: LocalizationConfig, data: LocalizationData, tmp_path: Path
) -> None:
    task = LocalizationTask()
    module = task.module(config, data)
    trainer(tmp_path).fit(module, datamodule=data)
    localizer = task.inference_module(module)
    session = open_dataset(Path(config.data)).sessions[0]
    samples = torch.from_numpy(read_samples(session.recordings[0], SAMPLES))[None]
    full_scale = torch.tensor([session.recordings[0].full_scale_dbm])
    louder = samples.clone()
    louder[:, 1] *= 10**0.5
    before, after = (localizer(band_powers(iq, full_scale)) for iq in (samples, louder))
    moved_km = torch.hypot((after[0] - before[0]) * 111, (after[1] - before[1]) * 79)
    assert float(moved_km.detach()) > 1.0


def test_a_checkpoint_of_plain_types_gives_the_same_estimate(
    module: LocalizationModule, data: LocalizationData, tmp_path: Path
) -> None:
    runner = trainer(tmp_path)
    runner.fit(module, datamodule=data)
    runner.save_checkpoint(tmp_path / "now.ckpt")  # the callback keeps the best epoch, which need not be the last
    features = torch.from_numpy(np.array(data.features[:5]))
    loaded = LocalizationTask().load(tmp_path / "now.ckpt")
    assert isinstance(loaded, LocalizationModule)
    with torch.no_grad():
        for found, expected in zip(loaded(features), module.eval()(features), strict=True):
            torch.testing.assert_close(found, expected)
    statistics = module.network.get_buffer("target_mean")
    torch.testing.assert_close(loaded.network.get_buffer("target_mean"), statistics)


def test_training_lowers_the_loss_and_logs_metres(
    module: LocalizationModule, data: LocalizationData, tmp_path: Path
) -> None:
    runner = trainer(tmp_path, epochs=15)
    before = runner.validate(module, datamodule=data, verbose=False)[0]
    runner.fit(module, datamodule=data)
    after = {name: float(value) for name, value in runner.callback_metrics.items()}
    assert after["train/epoch_loss"] < before["val/loss"]
    assert 1e3 < after["val/mae"] < 200e3
    assert {"train/loss", "val/loss", "val/mae", "val/coverage68"} <= set(after)
    tested = runner.test(module, datamodule=data, verbose=False)[0]
    assert {"test/loss", "test/mae"} <= set(tested)


def test_the_scale_of_the_uncertainty_is_fitted_on_the_validation_set(
    module: LocalizationModule, data: LocalizationData, tmp_path: Path
) -> None:
    trainer(tmp_path, epochs=1).fit(module, datamodule=data)
    features, truth = data.part(data.split.validation).__getitems__(range(len(data.split.validation)))
    with torch.no_grad():
        position, sigma = module.eval()(features)
    share = (((position - truth) / sigma).square().sum(1) <= 2.2795).float().mean()
    assert abs(float(share) - 0.68) <= 1 / len(truth)


def test_a_frozen_backbone_does_not_move(config: LocalizationConfig, data: LocalizationData, tmp_path: Path) -> None:
    task = LocalizationTask()
    module = task.module(config.model_copy(update={"freeze_backbone": True}), data)
    assert isinstance(module, LocalizationModule)
    before = [parameter.clone() for parameter in module.network.backbone.parameters()]
    head = module.network.position_head.weight.clone()
    trainer(tmp_path).fit(module, datamodule=data)
    for parameter, old in zip(module.network.backbone.parameters(), before, strict=True):
        assert torch.equal(parameter, old)
    assert not torch.equal(module.network.position_head.weight, head)


def test_stated_uncertainty_stays_within_its_bounds(module: LocalizationModule) -> None:
    module.eval()
    for level in (-1e4, 1e4):
        torch.nn.init.constant_(module.network.sigma_head.bias, level)
        _, sigma = module.network.estimate(torch.randn(2, 4, 128, 32) * 5 - 110)
        assert (sigma >= 0.1).all()
        assert (sigma <= 200).all()


def test_another_number_of_receivers_than_trained_with_is_refused(module: LocalizationModule) -> None:
    with pytest.raises(DataError, match="Wrong number of receivers: 3"):
        LocalizationTask().inference_module(module)(torch.zeros(1, 3, 128, 32))
