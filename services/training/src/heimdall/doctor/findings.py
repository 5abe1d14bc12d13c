"""What a check found, in one line, with the mend."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

from heimdall.logs import redact

Status = Literal["ok", "warning", "failed", "skipped"]


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One line of the doctor's report. ``failed`` is kept for what training cannot do without."""

    name: str
    status: Status
    said: str
    mend: str = ""

    def line(self) -> str:
        """The finding as people read it; never holds a secret."""
        text = f"{self.status:<8} {self.name:<16} {self.said}"
        return redact(f"{text} -> {self.mend}" if self.mend else text)


Check = Callable[[], Iterator[Finding]]


def examine(name: str, check: Check) -> Iterator[Finding]:
    """The findings of ``check``; an error that it did not foresee is a finding too, never a traceback."""
    try:
        yield from check()
    except Exception as error:  # noqa: BLE001 - one broken check must not hide the others
        sentence = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        yield Finding(name=name, status="failed", said=f"could not be checked: {sentence}")
