"""All checks, in the order in which one builds on the other."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial

from heimdall.doctor.findings import Check, Finding, examine
from heimdall.doctor.host import check_gpu, check_home, check_shared_memory
from heimdall.doctor.storage import check_storage
from heimdall.doctor.tracking import check_tracking
from heimdall.settings import Settings


def examine_all(settings: Settings, buckets: Sequence[str], *, need_gpu: bool) -> Iterator[Finding]:
    """Findings as they come; every check is made, whatever an earlier one found."""
    checks: dict[str, Check] = {
        "home": partial(check_home, settings),
        "shared memory": check_shared_memory,
        "gpu": partial(check_gpu, needed=need_gpu),
        "object store": partial(check_storage, settings, buckets),
        "tracking": partial(check_tracking, settings),
    }
    for name, check in checks.items():
        yield from examine(name, check)
