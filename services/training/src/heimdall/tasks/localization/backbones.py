"""Image networks from ``transformers`` that take one channel a receiver, and the weights they start from.

Each takes (B, receivers, 128, 32) and gives (B, width). Input is 128 × 32 where the published networks saw 224 × 224:
they are built for this size, and what depends on it is adapted when published weights are loaded.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn

from heimdall.errors import ConfigError, ServiceError
from heimdall.tasks.localization.config import Backbone
from heimdall.tasks.localization.features import BANDS, FRAMES

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True)
class Architecture:
    """How a backbone is built, and where its published weights are."""

    family: str  # convnext, resnet, vit or efficientnet
    sizes: dict[str, Any]
    published: str
    width: int


def _convnext(depth: int, widths: list[int], name: str) -> Architecture:
    sizes = {"depths": [3, 3, depth, 3], "hidden_sizes": widths}
    return Architecture("convnext", sizes, f"facebook/convnext-{name}-224", widths[-1])


ARCHITECTURES: dict[Backbone, Architecture] = {
    Backbone.CONVNEXT_TINY: _convnext(9, [96, 192, 384, 768], "tiny"),
    Backbone.CONVNEXT_SMALL: _convnext(27, [96, 192, 384, 768], "small"),
    Backbone.CONVNEXT_MEDIUM: _convnext(27, [128, 256, 512, 1024], "base"),
    Backbone.CONVNEXT_LARGE: _convnext(27, [192, 384, 768, 1536], "large"),
    Backbone.RESNET_50: Architecture("resnet", {"depths": [3, 4, 6, 3]}, "microsoft/resnet-50", 2048),
    Backbone.RESNET_101: Architecture("resnet", {"depths": [3, 4, 23, 3]}, "microsoft/resnet-101", 2048),
    Backbone.VIT_BASE: Architecture("vit", {}, "google/vit-base-patch16-224-in21k", 768),
    Backbone.VIT_LARGE: Architecture(
        "vit",
        {"hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16, "intermediate_size": 4096},
        "google/vit-large-patch16-224-in21k",
        1024,
    ),
    Backbone.EFFICIENTNET_B3: Architecture(
        "efficientnet",
        {"width_coefficient": 1.2, "depth_coefficient": 1.4, "hidden_dim": 1536, "dropout_rate": 0.3},
        "google/efficientnet-b3",
        1536,
    ),
    Backbone.EFFICIENTNET_B4: Architecture(
        "efficientnet",
        {"width_coefficient": 1.4, "depth_coefficient": 1.8, "hidden_dim": 1792, "dropout_rate": 0.4},
        "google/efficientnet-b4",
        1792,
    ),
}


class ImageBackbone(nn.Module):
    """A ``transformers`` image model with its pooling: (B, R, 128, 32) → (B, width)."""

    def __init__(self, name: Backbone, receivers: int) -> None:
        super().__init__()
        self.architecture = ARCHITECTURES[name]
        self.width = self.architecture.width
        self.model = _build(self.architecture, receivers)

    def forward(self, images: Tensor) -> Tensor:
        """Standardised features to one vector a session."""
        output = self.model(pixel_values=images)
        if self.architecture.family == "vit":
            # The class token has been through the last layer norm; the pooler is not part of the published weights
            vector: Tensor = output.last_hidden_state[:, 0]
        else:
            vector = output.pooler_output.flatten(1)
        return vector

    def load_published(self, source: str) -> None:
        """Start from published weights: hub name or folder; empty means the architecture's own.

        The first layer is adapted to one channel a receiver: the mean over colours, scaled so that its output keeps its
        size. Raises :class:`~heimdall.errors.ServiceError` where the weights cannot be had.
        """
        weights = _published_weights(self.architecture, source or self.architecture.published)
        adapted = {name: _adapted(weights.get(name), own) for name, own in self.model.state_dict().items()}
        missing = [name for name, value in adapted.items() if value is None and "pooler" not in name]
        if missing:
            raise ConfigError(
                f"The weights {source or self.architecture.published!r} do not fit this backbone at {missing[0]}.",
                mend="Choose weights of the same architecture, or use --no-pretrained.",
            )
        self.model.load_state_dict({name: value for name, value in adapted.items() if value is not None}, strict=False)


def _build(architecture: Architecture, receivers: int) -> PreTrainedModel:
    import transformers

    sizes = architecture.sizes | {"num_channels": receivers}
    builders: dict[str, Callable[[], Any]] = {
        "convnext": lambda: transformers.ConvNextModel(transformers.ConvNextConfig(**sizes)),
        "resnet": lambda: transformers.ResNetModel(transformers.ResNetConfig(**sizes)),
        "vit": lambda: transformers.ViTModel(
            transformers.ViTConfig(**sizes, image_size=(BANDS, FRAMES)), add_pooling_layer=False
        ),
        "efficientnet": lambda: transformers.EfficientNetModel(transformers.EfficientNetConfig(**sizes)),
    }
    return cast("PreTrainedModel", builders[architecture.family]())


def _published_weights(architecture: Architecture, source: str) -> dict[str, Tensor]:
    import transformers

    model_class: Any = {
        "convnext": transformers.ConvNextModel,
        "resnet": transformers.ResNetModel,
        "vit": transformers.ViTModel,
        "efficientnet": transformers.EfficientNetModel,
    }[architecture.family]
    logging: Any = transformers.logging
    level = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        # safetensors only: older formats can run code when they are opened
        model = model_class.from_pretrained(source, use_safetensors=True)
    except Exception as error:  # hub, network and file errors share no base class
        if not isinstance(error, (OSError, ValueError, RuntimeError)) and "http" not in type(error).__module__:
            raise
        raise ServiceError(
            f"The pretrained weights {source!r} cannot be had ({type(error).__name__}).",
            mend="Use --no-pretrained to start from random weights, or --pretrained-weights FOLDER.",
        ) from error
    finally:
        logging.set_verbosity(level)
    weights: dict[str, Tensor] = model.state_dict()
    return weights


def _adapted(published: Tensor | None, own: Tensor) -> Tensor | None:
    """``published`` in the shape of ``own``; None where that cannot be done."""
    if published is None or published.shape == own.shape:
        return published
    if published.ndim == 4 and published.shape[0] == own.shape[0] and published.shape[2:] == own.shape[2:]:
        colours, channels = published.shape[1], own.shape[1]
        return published.mean(1, keepdim=True).repeat(1, channels, 1, 1) * (colours / channels)
    if published.ndim == 3 and published.shape[0] == 1 and published.shape[2] == own.shape[2]:
        return _resized_positions(published, own.shape[1])
    return None


def _resized_positions(published: Tensor, count: int) -> Tensor:
    """Position embeddings (1, 1 + side², width) of a square image for an image of 128 × 32, (1, count, width)."""
    side = round((published.shape[1] - 1) ** 0.5)
    high = round(((count - 1) * BANDS / FRAMES) ** 0.5)
    grid = published[:, 1:].reshape(1, side, side, -1).permute(0, 3, 1, 2)
    resized = nn.functional.interpolate(grid, size=(high, (count - 1) // high), mode="bicubic", align_corners=False)
    return torch.cat([published[:, :1], resized.flatten(2).transpose(1, 2)], dim=1)
