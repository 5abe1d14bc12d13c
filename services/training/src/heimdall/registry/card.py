"""The model card: markdown for people, shown on the model's page of MLflow's UI and kept beside the weights."""

from __future__ import annotations

import math
import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote

if TYPE_CHECKING:
    from heimdall.registry.model import Manifest
    from heimdall.tasks.base import Report

PICTURES = (".png", ".jpg", ".jpeg", ".svg")
DESCRIPTION_LIMIT = 5000  # characters, MLflow's column for descriptions in PostgreSQL
PAGE_LIMIT = 4700  # of a version's page: the model's own page shows it too, below a line on the champion
PAGE_WIDTH = 640  # pixels: MLflow's page does not scale pictures down
PAGE_FOLDER = "page"
MOST_METRICS_SHOWN = 40


def pictures(report: Report) -> list[Path]:
    """The pictures among a report's files."""
    return [path for path in report.files if path.suffix.lower() in PICTURES]


def figure(value: float | None) -> str:
    """A number with four significant digits; "not finite" for NaN and infinity."""
    if value is None or not math.isfinite(value):
        return "not finite"
    return f"{value:,.4g}" if abs(value) < 1e4 else f"{value:,.0f}"


def table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A markdown table."""
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join("| " + " | ".join(str(cell).replace("|", "\\|") for cell in line) + " |" for line in lines)


def _head(manifest: Manifest, description: str) -> str:
    return "\n\n".join(
        part
        for part in (
            f"# {manifest.name}",
            description,
            f"Task **{manifest.task}**. Inputs {_names(manifest.inputs)}; outputs {_names(manifest.outputs)}. "
            f"{manifest.parameters:,} parameters.",
        )
        if part
    )


def _names(names: Sequence[str]) -> str:
    return ", ".join(f"`{name}`" for name in names)


def _origin(manifest: Manifest) -> str:
    rows = [
        ("run", f"`{manifest.run_id}`"),
        ("checkpoint, sha256", f"`{manifest.checkpoint_sha256[:16]}…`"),
        ("training data, digest", f"`{manifest.training_data_digest[:16]}…`"),
        (
            "ONNX Runtime against torch",
            f"largest deviation {manifest.parity.max_deviation:.3g} in `{manifest.parity.worst_output}`, "
            f"{manifest.parity.relative:.2g} of its spread (tolerance {manifest.parity.tolerance:.2g})",
        ),
        ("latency, one sample, ONNX Runtime", f"{manifest.latency_ms:.2f} ms where it was registered"),
        ("made with", ", ".join(f"{name} {value}" for name, value in manifest.environment.items())),
    ]
    return "## Where it comes from\n\n" + table(("what", "value"), rows)


def _figures(report: Report) -> str:
    rows = [table(report.columns, report.rows)] if report.rows else []
    return "\n\n".join(["## Figures on the test set", *rows, *report.notes])


def _metrics(manifest: Manifest) -> str:
    shown = list(manifest.metrics.items())[:MOST_METRICS_SHOWN]
    rows = [(f"`{name}`", figure(value)) for name, value in shown]
    return "## All metrics\n\n" + table(("metric", "value"), rows)


USE = """## How to use it

```
heimdall predict --model models:/{name}@champion --input DIR --output out.parquet
python -c "import mlflow; print(mlflow.pyfunc.load_model('models:/{name}@champion'))"
mlflow models serve -m models:/{name}@champion --env-manager local
```

No file of this model is a pickle; opening it runs no code that came with it."""


def write_card(manifest: Manifest, report: Report, description: str) -> str:
    """The whole card; pictures are linked as ``pictures/NAME``, where they lie beside it."""
    images = [f"![{path.stem}](pictures/{quote(path.name)})" for path in pictures(report)]
    seen = ["## Pictures", *images] if images else []
    use = USE.format(name=manifest.name)
    parts = [_head(manifest, description), _figures(report), *seen, _origin(manifest), _metrics(manifest), use, ""]
    return "\n\n".join(parts)


def store_pictures(report: Report, folder: Path) -> None:
    """Copy the report's pictures into ``folder``/pictures, and into ``folder``/page as small as the page needs them."""
    from PIL import Image

    for name in ("pictures", PAGE_FOLDER):
        (folder / name).mkdir(parents=True)
    for path in pictures(report):
        shutil.copy(path, folder / "pictures")
        small = folder / PAGE_FOLDER / path.name
        if path.suffix.lower() == ".svg":
            shutil.copy(path, small)
            continue
        with Image.open(path) as image:
            image.thumbnail((PAGE_WIDTH, 4 * PAGE_WIDTH))
            image.save(small)


def champion_page(text: str, version: str, who: str, when: str) -> str:
    """The page of the registered model: who is champion, and the champion's own page."""
    return f"**Champion: version {version}**, since {when[:16].replace('T', ' ')} UTC, by {who}.\n\n{text}"[
        :DESCRIPTION_LIMIT
    ]


def page(manifest: Manifest, report: Report, description: str, model_id: str) -> str:
    """The card for the version's page in MLflow's UI: small pictures linked through the server, in 4700 characters.

    Where the whole does not fit, parts are left out from the end, and the page says where they are.
    """
    route = f"ajax-api/2.0/mlflow/logged-models/{model_id}/artifacts/files?artifact_file_path="
    images = [
        f"![{path.stem}]({route}{quote(f'heimdall/{PAGE_FOLDER}/{path.name}', safe='')})" for path in pictures(report)
    ]
    parts = [_head(manifest, description), _figures(report), *images, _origin(manifest), _metrics(manifest)]
    closing = "The whole card: `heimdall/card.md` among the artifacts of this model."
    room = PAGE_LIMIT - len(closing) - 2
    chosen: list[str] = []
    for part in parts:
        if len(part) + 2 <= room:
            chosen.append(part)
            room -= len(part) + 2
    return "\n\n".join([*chosen, closing])
