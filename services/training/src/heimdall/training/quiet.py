"""What libraries say that is not the business of whoever trains a model."""

from __future__ import annotations

import logging
import os
import warnings

NOT_THE_USERS_BUSINESS = (
    r".*does not have many workers which may be a bottleneck.*",  # num_workers is an option, 0 is right for small data
    r".*The number of training batches .* is smaller than the logging interval.*",  # epoch metrics are logged anyway
    r".*`isinstance\(treespec, LeafSpec\)` is deprecated.*",  # Lightning calling torch
    r".*Checkpoint directory .* exists and is not empty.*",
    r".*could not find the monitored key in the returned metrics.*",  # checked by Checkpoints, with the mend
    r".*GPU available but not used.*",
    r".*Found \d+ module\(s\) in eval mode at the start of training.*",  # a frozen backbone
    r".*You're resuming from a checkpoint that ended before the epoch ended.*",  # ours resume exactly
    r".*`training_step` returned `None`.*",
    r".*Starting from v1\.9\.0, `tensorboardX`.*",
    r".*lr_scheduler\.step\(\)` before `optimizer\.step\(\)`.*",  # true of the first step with a gradient scaler
    r".*recommended to use `self\.log\(.*sync_dist=True\)`.*",
)


def quiet_libraries() -> None:
    """Silence exactly those; everything else is still heard."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    for name in ("lightning.pytorch", "lightning.fabric", "lightning"):
        logging.getLogger(name).setLevel(logging.WARNING)
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)  # operators of torchvision, which nobody here uses
    for message in NOT_THE_USERS_BUSINESS:
        warnings.filterwarnings("ignore", message=message)
