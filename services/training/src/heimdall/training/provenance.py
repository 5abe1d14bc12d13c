"""Where a run comes from: commit, versions, host."""

from __future__ import annotations

import os
import platform
import subprocess
from importlib.metadata import version
from typing import Any

VERSIONS = ("heimdall-training", "torch", "lightning", "numpy", "mlflow")


def provenance() -> dict[str, str]:
    """Commit, versions and host, as parameters of a run."""
    found = {f"version/{name}": version(name) for name in VERSIONS}
    return {
        "git/commit": git_commit(),
        "host/name": platform.node(),
        "host/system": platform.platform(),
        "host/cpus": str(os.cpu_count()),
        "version/python": platform.python_version(),
        **found,
    }


def git_commit() -> str:
    """Commit of the working tree, with ``+changes`` where it differs; ``HEIMDALL_GIT_COMMIT`` where there is no git."""
    try:
        commit = _git("rev-parse", "HEAD")
        return commit + ("+changes" if _git("status", "--porcelain", "--untracked-files=no") else "")
    except (OSError, subprocess.SubprocessError):
        return os.environ.get("HEIMDALL_GIT_COMMIT", "unknown")


def device_name(device: Any) -> str:
    """What a torch device is, for people: the card's name, or the processor's."""
    import torch

    if device.type == "cuda":
        return str(torch.cuda.get_device_name(device))
    return platform.processor() or platform.machine()


def _git(*words: str) -> str:
    done = subprocess.run(["git", *words], capture_output=True, text=True, check=True, timeout=5)
    return done.stdout.strip()
