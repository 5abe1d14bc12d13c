"""What the server does not take is mapped or moved, never cut or mixed up."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st
from mlflow.utils import validation

from heimdall.tracking.limits import Batch, Point, server_name, storable

NAMES = st.text(max_size=400)


@given(NAMES)
@settings(max_examples=60)
def test_mlflow_takes_every_name(name: str) -> None:
    known = server_name(name)
    validation._validate_metric_name(known)
    validation._validate_tag_name(f"heimdall.name.{known}")
    assert len(f"heimdall.name.{known}") <= validation.MAX_ENTITY_KEY_LENGTH or known == name


@given(NAMES, NAMES)
def test_two_names_never_become_one(first: str, second: str) -> None:
    assert first == second or server_name(first) != server_name(second)


def test_names_that_the_server_takes_are_left_alone() -> None:
    for name in ("val/loss", "accuracy at 5", "train.loss-1", "größe", ".hidden", "a:b"):
        assert server_name(name) == name


def test_near_twins_stay_apart() -> None:
    twins = ["a+b", "a*b", "a_b", "a//b", "a/b", "../a/b", "a/./b", "a/b/", "x" * 251, "x" * 252, "", ".", "/"]
    assert len({server_name(name) for name in twins}) == len(twins)


def test_text_that_no_database_keeps_is_not_storable() -> None:
    assert storable("x" * 6000, 6000)
    assert not storable("x" * 6001, 6000)
    assert not storable("a\x00b", 6000)
    assert not storable("\ud800", 6000)


def test_parts_keep_to_the_limits_and_lose_nothing() -> None:
    batch = Batch(
        points=[Point(f"m{n % 7}", n, n, n) for n in range(3456)],
        params={f"p{n}": ("ä" * 6000, 0) for n in range(250)},
        tags={f"t{n}": "v" for n in range(250)},
    )
    parts = batch.parts()
    assert max(len(part.points) for part in parts) <= 1000
    assert max(len(part) for part in parts) <= 1000
    assert max(len(part.params) for part in parts) <= 100
    assert all(sum(6 * len(text) for text, _ in part.params.values()) < 1_000_000 for part in parts)
    assert [point for part in parts for point in part.points] == batch.points
    assert {name: value for part in parts for name, value in part.params.items()} == batch.params
    assert {name: text for part in parts for name, text in part.tags.items()} == batch.tags
