"""The tracker of the public face: its way into production leads through the gates.

The tracker knows nothing of gates; it takes a function. Here that function is made and handed over, so that
``transition_model_stage(model, version, "Production")`` is judged like ``heimdall models promote``.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from heimdall.errors import HoldError
from heimdall.settings import Settings

if TYPE_CHECKING:
    from heimdall.tracking.queries import Gate
    from heimdall.tracking.tracker import MLflowTracker


def stage_gate(settings: Settings, gates_file: Path | None = None, data: str = "") -> Gate:
    """A gate for a tracker: judges, records, moves the alias. Raises :class:`HoldError` with the reasons on HOLD."""

    def gate(name: str, version: str) -> None:
        from heimdall.registry.promote import promote

        decision = promote(
            name, version, settings, gates_file=gates_file, data=data, reason="transition_model_stage to Production"
        )
        if decision.held:
            raise HoldError(
                f"Version {version} of {name} was held back: {'; '.join(decision.entry.reasons)}.",
                mend=f"heimdall models promote {name} {version} --force --reason … overrides, and is recorded.",
            )

    return gate


def initialize_mlflow(settings: Settings | None = None, *, gated: bool = True) -> MLflowTracker:
    """A tracker for ``settings`` (default: the environment); what earlier processes left is delivered behind it.

    Its ``transition_model_stage(…, "Production")`` takes the gates unless ``gated`` is False.
    """
    from heimdall.tracking.tracker import MLflowTracker

    settings = settings or Settings()
    tracker = MLflowTracker(settings, gate=stage_gate(settings) if gated else None)
    tracker.deliver_left_behind()
    return tracker
