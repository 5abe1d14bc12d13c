"""Aliases are the truth; MLflow's legacy stages follow them as long as MLflow has stages."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING

from heimdall.errors import UsageError
from heimdall.registry.client import alias_target

if TYPE_CHECKING:
    from mlflow import MlflowClient

CHAMPION, CHALLENGER = "champion", "challenger"
STAGE_OF = {CHAMPION: "Production", CHALLENGER: "Staging"}
ALIAS_OF = {stage.lower(): alias for alias, stage in STAGE_OF.items()}


def known_alias(alias: str) -> str:
    """``alias`` in lower case. Raises :class:`UsageError` for any but champion and challenger."""
    if alias.lower() not in STAGE_OF:
        raise UsageError(f"There is no alias {alias!r} to promote to.", mend="Choose champion or challenger.")
    return alias.lower()


def follow_stages(client: MlflowClient, name: str) -> None:
    """Bring the stages of all versions of ``name`` in line with its aliases; does nothing where they are."""
    if not hasattr(client, "transition_model_version_stage"):
        return  # a future MLflow without stages
    holders = {alias: alias_target(client, name, alias) for alias in STAGE_OF}
    wanted = {str(held.version): STAGE_OF[alias] for alias, held in reversed(holders.items()) if held is not None}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that stages are deprecated is the reason why they only follow
        for version in client.search_model_versions(f"name = '{name}'"):
            now = str(version.current_stage)
            target = wanted.get(str(version.version), "Archived" if now in STAGE_OF.values() else now)
            if target != now:
                client.transition_model_version_stage(name, str(version.version), target)
