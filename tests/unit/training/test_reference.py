from __future__ import annotations

from pathlib import Path

from heimdall.training.reference import DEFAULT_FILE, reference

ROOT = Path(__file__).parents[3]


def test_the_page_in_docs_is_what_the_declarations_say() -> None:
    assert (ROOT / DEFAULT_FILE).read_text(encoding="utf-8") == reference(), (
        "run: .venv/bin/python -m heimdall.training.reference"
    )
