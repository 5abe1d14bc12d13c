"""A registered model on new data, into a file."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from heimdall.errors import OutputError, UsageError
from heimdall.registry.export import Provider, Runtime
from heimdall.registry.load import open_model
from heimdall.tasks.base import Arrays, Predict

if TYPE_CHECKING:
    import pandas as pd

    from heimdall.settings import Settings


class Timed:
    """A :data:`Predict` that counts its samples and the seconds spent in it, and says so after each batch."""

    def __init__(self, predict: Predict, after_batch: Callable[[int], None] = lambda _count: None) -> None:
        self.predict, self.after_batch = predict, after_batch
        self.samples, self.seconds, self.warm = 0, 0.0, False

    def __call__(self, arrays: Arrays) -> Arrays:
        """Run one batch."""
        if not self.warm:  # what the first call sets up is not the network's speed
            self.predict({name: array[:1] for name, array in arrays.items()})
            self.warm = True
        started = time.perf_counter()
        outputs = self.predict(arrays)
        self.seconds += time.perf_counter() - started
        count = len(next(iter(arrays.values())))
        self.samples += count
        self.after_batch(count)
        return outputs

    @property
    def throughput(self) -> float:
        """Samples a second in the network alone."""
        return self.samples / self.seconds if self.seconds else 0.0


@dataclass(frozen=True, kw_only=True)
class Predicted:
    """How a prediction went."""

    rows: int
    throughput: float  # samples a second in the network alone
    runtime: Runtime


def predict_to_file(
    uri: str,
    source: str,
    output: Path,
    settings: Settings,
    *,
    runtime: Runtime = "onnx",
    provider: Provider = "auto",
    batch_size: int = 64,
    task: str = "",
    after_batch: Callable[[int], None] = lambda _count: None,
) -> Predicted:
    """Run the model behind ``uri`` over ``source`` and write one row a sample to ``output``.

    Raises :class:`UsageError` for an unknown file type before anything is run, :class:`OutputError` where the file
    cannot be written. The file appears whole or not at all.
    """
    write = writer_for(output)
    model = open_model(uri, settings, runtime, provider, task)
    timed = Timed(model.predict, after_batch)
    frame = model.task.predict(timed, source, settings.cache_dir, batch_size)
    _write_whole(frame, output, write)
    return Predicted(rows=len(frame), throughput=timed.throughput, runtime=runtime)


def measure(
    uri: str, source: str, settings: Settings, *, runtime: Runtime, provider: Provider, batch_size: int, task: str
) -> Predicted:
    """The same without a file, to compare one runtime with the other."""
    model = open_model(uri, settings, runtime, provider, task)
    timed = Timed(model.predict)
    frame = model.task.predict(timed, source, settings.cache_dir, batch_size)
    return Predicted(rows=len(frame), throughput=timed.throughput, runtime=runtime)


Write = Callable[["pd.DataFrame", Path], Any]


def writer_for(output: Path) -> Write:
    """How a file of this name is written. Raises :class:`UsageError` for an unknown ending."""
    writers: dict[str, Write] = {
        ".parquet": lambda frame, path: frame.to_parquet(path, index=False),
        ".csv": lambda frame, path: frame.to_csv(path, index=False),
        ".geojson": write_geojson,
    }
    if output.suffix.lower() not in writers:
        raise UsageError(f"{output} has no known ending.", mend=f"Choose one of: {', '.join(writers)}.")
    return writers[output.suffix.lower()]


def write_geojson(frame: pd.DataFrame, path: Path) -> None:
    """One point a row (RFC 7946: longitude first), everything else as properties.

    Raises :class:`UsageError` where the rows are no places.
    """
    names = next(
        (pair for pair in (("longitude", "latitude"), ("lon", "lat")) if set(pair) <= set(frame.columns)), None
    )
    if names is None:
        raise UsageError("These predictions are no places on the map.", mend="Write .parquet or .csv.")
    features = []
    for row in json.loads(frame.to_json(orient="records")):
        longitude, latitude = row.pop(names[0]), row.pop(names[1])
        known = longitude is not None and latitude is not None
        geometry = {"type": "Point", "coordinates": [longitude, latitude]} if known else None
        features.append({"type": "Feature", "geometry": geometry, "properties": row})
    path.write_text(json.dumps({"type": "FeatureCollection", "features": features}), encoding="utf-8")


def _write_whole(frame: pd.DataFrame, output: Path, write: Write) -> None:
    temporary = output.with_name(f".{output.name}.{os.getpid()}.part")
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        write(frame, temporary)
        temporary.replace(output)
    except OSError as error:
        raise OutputError(f"{output} cannot be written: {error.strerror or error}.") from error
    finally:
        temporary.unlink(missing_ok=True)
