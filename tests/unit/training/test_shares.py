"""How samples are shared out between processes."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest
import torch
from torch.utils.data import DataLoader, SequentialSampler, TensorDataset

from child import context
from heimdall.training.loading import SeededSampler, shared

TWO = """
import torch
from torch import distributed
from heimdall.tasks.distributed import gather_rows, own_rows
from heimdall.training.agreement import Agreement
distributed.init_process_group("gloo", init_method="tcp://127.0.0.1:{port}", rank={rank}, world_size=2)
rows = torch.arange(14).reshape(7, 2)
asked = Agreement()
answers = [asked.any({rank} == 1 and number == 1, False) for number in range(4)]
torch.save({{"rows": gather_rows(own_rows(rows)), "answers": answers}}, {path!r})
"""


@pytest.mark.parametrize("count", [1, 2, 5, 8, 9, 16, 17, 23])
@pytest.mark.parametrize("world", [2, 3])
def test_each_validation_sample_is_seen_once_in_as_many_batches(count: int, world: int) -> None:
    loader = DataLoader(TensorDataset(torch.arange(count)), batch_size=4)
    shares = [[batch.tolist() for (batch,) in shared(loader, rank, world)] for rank in range(world)]
    assert len({len(batches) for batches in shares}) == 1
    seen = sorted(number for batches in shares for batch in batches for number in batch)
    assert seen == list(range(count)) if count >= world else set(seen) == set(range(count))
    assert all(batch for batches in shares for batch in batches)


def test_a_loader_of_another_kind_is_left_whole() -> None:
    loader = [1, 2, 3]
    assert shared(loader, 1, 2) is loader


def test_processes_see_together_what_one_sees() -> None:
    one = list(SeededSampler(10, seed=5, shuffle=True))
    two = [list(SeededSampler(10, seed=5, shuffle=True, rank=rank, world=2)) for rank in range(2)]
    assert [index for pair in zip(*two, strict=True) for index in pair] == one
    assert sorted(one) == list(SequentialSampler(one)) != one


def test_rows_are_gathered_in_order_and_answers_come_one_call_later(tmp_path: Path) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    paths = [tmp_path / str(rank) for rank in range(2)]
    codes = [TWO.format(port=port, rank=rank, path=str(path)) for rank, path in enumerate(paths)]
    processes = [context.Process(target=exec, args=(code, {})) for code in codes]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
        assert process.exitcode == 0
    for path in paths:
        found = torch.load(path, weights_only=True)
        assert found["rows"].tolist() == torch.arange(14).reshape(7, 2).tolist()
        assert found["answers"] == [[False, False], [False, False], [True, False], [False, False]]
