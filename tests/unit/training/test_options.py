from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Any, Literal

import pytest
from pydantic import BaseModel, ConfigDict, Field

from heimdall.errors import ConfigError
from heimdall.training import options
from heimdall.training.config import RunConfig
from heimdall.training.declared import options_of


class Shape(StrEnum):
    ROUND = "ROUND"
    VERY_SQUARE = "VERY_SQUARE"


class Example(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    learning_rate: float = Field(1e-3, gt=0, description="Rate.")
    pretrained: bool = Field(False, description="Whether.")
    shape: Shape = Field(Shape.ROUND, description="Shape.")
    speed: Literal["fast", "slow"] = Field("fast", description="Speed.")
    layers: list[int] = Field([1, 2], description="Widths.")
    limit: int | None = Field(None, description="Limit.")
    place: str = Field("", description="Place.")


@pytest.fixture(autouse=True)
def elsewhere(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def read(flags: dict[str, Any] | None = None, **how: Any) -> Example:
    found = options.read([Example], flags or {}, **how)[0]
    assert isinstance(found, Example)
    return found


def test_each_source_outranks_those_below_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    file = tmp_path / "c.toml"
    assert read().learning_rate == 1e-3
    assert read(saved={"learning_rate": 0.1}).learning_rate == 0.1
    file.write_text("learning-rate = 0.2")
    assert read(file=file, saved={"learning_rate": 0.1}).learning_rate == 0.2
    (tmp_path / ".env").write_text("HEIMDALL_LEARNING_RATE=0.3\nSOMETHING_ELSE=1\nHEIMDALL_OTHER=2\n")
    assert read(file=file).learning_rate == 0.3
    monkeypatch.setenv("HEIMDALL_LEARNING_RATE", "0.4")
    assert read(file=file).learning_rate == 0.4
    assert read({"learning_rate": "0.5", "pretrained": None}, file=file).learning_rate == 0.5


def test_an_empty_variable_says_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HEIMDALL_LEARNING_RATE", "")
    assert read().learning_rate == 1e-3


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("c.json", '{"learning_rate": 0.2, "layers": [3]}'),
        ("c.toml", "learning_rate = 0.2\nlayers = [3]"),
        ("c.yaml", "learning_rate: 0.2\nlayers: [3]"),
    ],
)
def test_a_file_may_be_json_toml_or_yaml(name: str, text: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text(text)
    found = read(file=tmp_path / name)
    assert (found.learning_rate, found.layers) == (0.2, [3])


@pytest.mark.parametrize("text", ["1,2, 3", "[1, 2, 3]"])
def test_a_list_is_json_or_has_commas(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert read({"layers": text}).layers == [1, 2, 3]
    monkeypatch.setenv("HEIMDALL_LAYERS", text)
    assert read().layers == [1, 2, 3]


def test_choices_do_not_mind_case_and_dashes() -> None:
    assert read({"shape": "very-square", "speed": "SLOW"}) == read({"shape": "VERY_SQUARE", "speed": "slow"})


def test_none_can_be_said_where_it_is_a_value() -> None:
    assert read({"limit": "none"}, saved={"limit": 3}).limit is None


def test_an_unknown_key_is_named_with_those_that_are_close(tmp_path: Path) -> None:
    (tmp_path / "c.toml").write_text("learnig_rate = 0.2")
    with pytest.raises(ConfigError, match=r"unknown key 'learnig_rate'\. Did you mean learning_rate\?"):
        read(file=tmp_path / "c.toml")


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        ({"learning_rate": "-1"}, "--learning-rate must be greater than 0, not -1."),
        ({"speed": "warp"}, "--speed must be one of fast, slow; not 'warp'."),
        ({"shape": "oval"}, "--shape must be one of ROUND, VERY_SQUARE; not 'oval'."),
        ({"limit": "many"}, "--limit must be a valid integer, unable to parse string as an integer, not many."),
    ],
)
def test_a_wrong_value_is_one_sentence_that_names_the_flag(flags: dict[str, str], sentence: str) -> None:
    with pytest.raises(ConfigError) as caught:
        read(flags)
    assert str(caught.value) == sentence


def test_a_wrong_value_names_the_variable_or_the_file_it_came_from(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    file = tmp_path / "c.toml"
    file.write_text("learning_rate = -2")
    with pytest.raises(ConfigError, match=rf"learning_rate in {file} must be greater than 0, not -2"):
        read(file=file)
    monkeypatch.setenv("HEIMDALL_LEARNING_RATE", "-3")
    with pytest.raises(ConfigError, match=r"^HEIMDALL_LEARNING_RATE must be greater than 0, not -3\.$"):
        read(file=file)


def test_a_password_in_a_wrong_value_is_not_repeated() -> None:
    class Strict(BaseModel):
        place: int = 0

    with pytest.raises(ConfigError) as caught:
        options.read([Strict], {"place": "s3://me:hunter22@host/x"})
    assert "hunter22" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "text", "sentence"),
    [
        ("c.toml", "a = = 1", "cannot be understood"),
        ("c.yaml", "- 1", "holds no table"),
        ("c.ini", "a=1", "of no kind we read"),
        ("c.json", b"\xff\xfe", "not text"),
    ],
)
def test_a_file_that_cannot_be_used_is_one_sentence(
    name: str, text: str | bytes, sentence: str, tmp_path: Path
) -> None:
    (tmp_path / name).write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(ConfigError, match=sentence):
        read(file=tmp_path / name)


def test_a_missing_file_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read: No such file"):
        read(file=tmp_path / "none.toml")


def test_every_option_has_a_description_and_no_two_share_a_flag() -> None:
    from heimdall.tasks.base import find_task, task_names

    for name in task_names():
        declared = [*options_of(RunConfig), *options_of(find_task(name).config_model)]
        flags = [flag for o in declared for flag in (o.flag, *o.aliases, *([o.off_flag] if o.is_switch else []))]
        assert len(flags) == len(set(flags)), name
        assert all(option.info.description for option in declared), name
