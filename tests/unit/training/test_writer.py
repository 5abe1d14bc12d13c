from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

from heimdall.training.writer import CheckpointWriter, is_whole, link, write


def test_a_link_of_a_file_to_itself_leaves_nothing_behind(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("1")
    link(tmp_path / "a", tmp_path / "b")
    link(tmp_path / "a", tmp_path / "b")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b"]


def test_a_link_takes_the_place_of_what_was_there(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("new")
    (tmp_path / "b").write_text("old")
    link(tmp_path / "a", tmp_path / "b")
    assert (tmp_path / "b").read_text() == "new"


def test_later_changes_of_the_weights_do_not_reach_the_file(tmp_path: Path) -> None:
    weights = torch.zeros(1000, 1000)
    with CheckpointWriter() as writer:
        writer.save_checkpoint({"w": weights}, tmp_path / "c.ckpt")
        weights.fill_(1)
    assert torch.load(tmp_path / "c.ckpt", weights_only=True)["w"].sum() == 0


def test_what_follows_a_save_waits_for_it_and_does_not_happen_if_it_failed(tmp_path: Path) -> None:
    done: list[bool] = []
    with CheckpointWriter() as writer:
        writer.save_checkpoint({"w": torch.zeros(9)}, tmp_path / "c.ckpt")
        writer.then(lambda: done.append((tmp_path / "c.ckpt").exists()))
    assert done == [True]
    (tmp_path / "file").write_text("")
    writer = CheckpointWriter()
    writer.save_checkpoint({"w": torch.zeros(9)}, tmp_path / "file" / "c.ckpt")
    writer.then(lambda: done.append(True))
    with pytest.raises(OSError, match="file"):
        writer.teardown()
    assert done == [True]


@pytest.mark.parametrize("place", [0.1, 0.5, 0.9])
def test_one_changed_byte_of_the_data_is_noticed(place: float, tmp_path: Path) -> None:
    path = tmp_path / "c.ckpt"
    write({"w": torch.rand(5000)}, path)
    assert is_whole(path)
    data = bytearray(path.read_bytes())
    data[int(place * len(data))] ^= 1
    path.write_bytes(data)
    assert not is_whole(path)


def test_a_cut_off_checkpoint_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "c.ckpt"
    write({"w": torch.rand(5000)}, path)
    os.truncate(path, path.stat().st_size // 2)
    assert not is_whole(path)
