"""``heimdall reconstruct``: an object from diffraction patterns, by a trained network and, if asked for, refinement."""

from __future__ import annotations

from pathlib import Path

import click


@click.command(name="reconstruct")
@click.option(
    "--model-path",
    "--model",
    required=True,
    help="wts.h5.zip, a checkpoint, or a registered model: models:/heimdall-ptychography@champion.",
)
@click.option("--test-data", required=True, type=click.Path(path_type=Path), help="Scan to reconstruct, an NPZ file.")
@click.option("--output-dir", required=True, type=click.Path(path_type=Path), help="Folder for pictures and arrays.")
@click.option("--refine", default=0, type=click.IntRange(0), help="Sweeps of gradient descent to add.  [0]")
@click.option("--batch-size", default=16, type=click.IntRange(1), help="Groups of patterns at once.  [16]")
@click.option("--accelerator", default="auto", type=click.Choice(["auto", "cpu", "cuda", "gpu"]), help="[auto]")
@click.option("--seed", default=0, type=click.IntRange(0), help="Order of the patterns when refining.  [0]")
def command(
    model_path: str, test_data: Path, output_dir: Path, refine: int, batch_size: int, accelerator: str, seed: int
) -> None:
    """Reconstruct the object of a scan.

    Writes reconstructed_amplitude.png, reconstructed_phase.png, probe.png, misfit.png, reconstruction.npz (the complex
    object with its pixel coordinates) and reconstruction.json into OUTPUT_DIR.
    """
    from heimdall.registry.load import fetch_checkpoint
    from heimdall.settings import Settings
    from heimdall.tasks.ptychography.session import run

    for line in run(
        fetch_checkpoint(model_path, Settings()), test_data, output_dir, refine, batch_size, accelerator, seed
    ):
        click.echo(line)
