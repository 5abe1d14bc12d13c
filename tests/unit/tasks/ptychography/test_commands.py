"""The commands as their users type them, each in a process of its own."""

from __future__ import annotations

import csv
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

SMALL = ["--n_images", "12", "--width", "8", "--physics_steps", "4", "--preview_every", "1", "--accelerator", "cpu"]


def run(module: str, *words: object, folder: Path) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}
    return subprocess.run(
        [sys.executable, "-m", module, *map(str, words)],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )


@pytest.fixture(scope="module")
def trained(scan_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the old training command leaves behind, with every old flag given once."""
    folder = tmp_path_factory.mktemp("old-command")
    words = ["--train_data_file", scan_file, "--output_dir", "outputs/experiment_1", "--logger", "csv"]
    words += ["--max_epochs", 2, "--gridsize", 1, "--batch_size", 4, "--torch-loss-mode", "poisson"]
    words += ["--deterministic", "--num-workers", 0, "--learning-rate", 1e-3, "--accumulate-grad-batches", 1]
    words += ["--enable-checkpointing", "--checkpoint-save-top-k", 1, "--checkpoint-monitor", "poisson_val_loss"]
    words += ["--checkpoint-mode", "min", "--early-stop-patience", 100, "--log_every_n_steps", 1]
    done = run("ptycho_torch.train", *words, *SMALL, folder=folder)
    assert done.returncode == 0, done.stderr
    assert "kept for" in done.stdout
    return folder / "outputs" / "experiment_1"


def test_old_training_command_leaves_the_files_its_users_look_for(trained: Path) -> None:
    assert (trained / "checkpoints" / "last.ckpt").is_file()
    assert (trained / "wts.h5.zip").is_file()
    assert (trained / "lightning_logs" / "version_0" / "hparams.yaml").is_file()
    assert list((trained / "report" / "previews").glob("epoch-*.png"))
    with (trained / "lightning_logs" / "version_0" / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    wanted = {"epoch", "step", "learning_rate", "poisson_train_loss_step", "poisson_train_loss_epoch"}
    assert wanted | {"poisson_val_loss"} <= set(rows[0])
    losses = [float(row["poisson_val_loss"]) for row in rows if row["poisson_val_loss"]]
    assert len(losses) == 2
    assert np.isfinite(losses).all()


def test_reconstruct_writes_pictures_arrays_and_the_misfit(trained: Path, other_file: Path, tmp_path: Path) -> None:
    words = ["--model-path", trained / "wts.h5.zip", "--test-data", other_file, "--output-dir", tmp_path / "out"]
    done = run("heimdall.cli", "reconstruct", *words, "--refine", 2, "--accelerator", "cpu", folder=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "misfit" in done.stdout
    for name in ("reconstructed_amplitude.png", "reconstructed_phase.png", "reconstruction.json"):
        assert (tmp_path / "out" / name).stat().st_size > 0
    with np.load(tmp_path / "out" / "reconstruction.npz", allow_pickle=False) as arrays:
        assert np.iscomplexobj(arrays["object"])
        assert arrays["object"].shape == (len(arrays["rows"]), len(arrays["columns"]))


def test_bad_data_ends_with_65_one_sentence_and_no_result(trained: Path, other_file: Path, tmp_path: Path) -> None:
    with np.load(other_file) as arrays:
        content = dict(arrays)
    content["diff3d"][3, 4, 5] = np.nan
    bad = tmp_path / "bad.npz"
    np.savez(bad, **content)
    words = ["--model_path", trained / "wts.h5.zip", "--test_data", bad, "--output_dir", tmp_path / "out"]
    inference = run("ptycho_torch.inference", *words, folder=tmp_path)
    words = ["--train_data_file", bad, "--output_dir", tmp_path / "out", "--logger", "none", "--quiet"]
    training = run("ptycho_torch.train", *words, folder=tmp_path)
    for done in (inference, training):
        assert done.returncode == 65
        assert "not finite, the first in pattern 3" in done.stderr
        assert len(done.stderr.strip().splitlines()) == 1
    left = [path.name for path in (tmp_path / "out").rglob("*")] if (tmp_path / "out").exists() else []
    assert not [name for name in left if name.endswith((".png", ".ckpt", ".zip", ".csv"))]


def test_deprecated_flag_still_works_and_says_what_to_write(scan_file: Path, tmp_path: Path) -> None:
    words = ["--train-data-file", scan_file, "--output-dir", tmp_path / "out", "--disable_mlflow"]
    words += ["--max-epochs", 1, "--disable-checkpointing"]
    done = run("ptycho_torch.train", *words, *SMALL, folder=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "--logger none" in done.stderr
    assert (tmp_path / "out" / "wts.h5.zip").is_file()
