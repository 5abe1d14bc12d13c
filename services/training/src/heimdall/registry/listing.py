"""What is registered, and how to take it away."""

from __future__ import annotations

import shutil
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import BaseModel, ConfigDict

from heimdall.errors import OutputError
from heimdall.registry.client import asking, connect
from heimdall.registry.load import fetch_bundle
from heimdall.registry.model import read_manifest

if TYPE_CHECKING:
    from mlflow.entities.model_registry import ModelVersion

    from heimdall.settings import Settings


class ListedVersion(BaseModel):
    """One version, as ``heimdall models list`` shows it."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    version: str
    aliases: tuple[str, ...]
    stage: str
    created: str
    run_id: str
    verdict: str


def list_versions(settings: Settings) -> list[ListedVersion]:
    """All versions of all registered models: models by name, versions latest first."""
    client = connect(settings)
    found: list[ListedVersion] = []
    with asking(settings, "list the models"):
        for model in sorted(client.search_registered_models(max_results=1000), key=lambda model: model.name):
            aliases: dict[str, list[str]] = {}
            for alias, holder in model.aliases.items():
                aliases.setdefault(str(holder), []).append(alias)
            versions = client.search_model_versions(f"name = '{model.name}'", max_results=1000)
            latest_first = sorted(versions, key=lambda version: -int(version.version))
            found += [_listed(version, aliases.get(str(version.version), [])) for version in latest_first]
    return found


def _listed(version: ModelVersion, aliases: list[str]) -> ListedVersion:
    return ListedVersion(
        name=version.name,
        version=str(version.version),
        aliases=tuple(sorted(aliases)),
        stage=str(version.current_stage),
        created=datetime.fromtimestamp(version.creation_timestamp / 1000, UTC).isoformat(timespec="seconds"),
        run_id=str(version.run_id or ""),
        verdict=version.tags.get("heimdall.verdict", ""),
    )


def export_model(uri: str, output: Path, settings: Settings) -> list[Path]:
    """Copy the model behind ``uri`` into the new folder ``output``; returns its files.

    Raises :class:`OutputError` where the folder exists or cannot be written.
    """
    if output.exists():
        raise OutputError(f"{output} exists already.", mend="Name a folder that does not.")
    source = fetch_bundle(uri, settings)
    read_manifest(source)  # refuse what is not a model of ours before anything is written
    try:
        shutil.copytree(source, output)
    except OSError as error:
        raise OutputError(f"The model cannot be written to {output}: {error.strerror or error}.") from error
    return sorted(path for path in output.rglob("*") if path.is_file())
