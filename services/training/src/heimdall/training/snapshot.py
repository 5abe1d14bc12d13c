"""The one part of a save that training waits for: a copy of the checkpoint in host memory, in plain types."""

from __future__ import annotations

import threading
from collections import OrderedDict, defaultdict
from collections.abc import Iterable, Iterator, Mapping
from enum import Enum
from pathlib import PurePath
from typing import Any

import torch
from torch import Tensor

PLAIN = (str, int, float, bool, bytes, complex, type(None), torch.dtype, torch.Size, torch.device)
MANY = (list, tuple, set, frozenset)

Shape = tuple[torch.Size, torch.dtype, bool]


class SnapshotMemory:
    """Host memory for one snapshot, kept from save to save: fresh pages cost many times what the copy does.

    One thread takes snapshots, another may reserve and release.
    """

    def __init__(self) -> None:
        self._free: dict[Shape, list[Tensor]] = defaultdict(list)
        self._used: list[tuple[Shape, Tensor]] = []
        self._mutex = threading.Lock()

    def reserve(self, shapes: Iterable[Shape]) -> None:
        """Have memory ready for tensors of these shapes (see :func:`shape_of`), pages and all."""
        wanted: dict[Shape, int] = defaultdict(int)
        for shape in shapes:
            wanted[shape] += 1
        for shape, count in wanted.items():
            with self._mutex:
                held = len(self._free[shape]) + sum(used == shape for used, _ in self._used)
            for _ in range(count - held):
                fresh = _allocate(shape).zero_()
                with self._mutex:
                    self._free[shape].append(fresh)

    def take(self, checkpoint: Mapping[str, Any]) -> Any:
        """A copy of ``checkpoint`` that later steps cannot change and ``torch.load(weights_only=True)`` takes.

        It must be released before the next one is taken. Paths become text, enumerations their values, numbers of NumPy
        plain ones. Raises TypeError, naming the place, where something else is not of a plain type.
        """
        try:
            copy = self._plain(checkpoint, "checkpoint")
        except BaseException:
            self.release()
            raise
        if torch.accelerator.is_available():
            torch.accelerator.synchronize()
        return copy

    def release(self) -> None:
        """The snapshot is done with; its memory serves the next one, and what fitted nothing is given back."""
        with self._mutex:
            self._free = defaultdict(list)
            for shape, tensor in self._used:
                self._free[shape].append(tensor)
            self._used = []

    def _copy(self, tensor: Tensor) -> Tensor:
        shape = shape_of(tensor)
        with self._mutex:
            target = self._free[shape].pop() if self._free[shape] else _allocate(shape)
            self._used.append((shape, target))
        return target.copy_(tensor.detach(), non_blocking=True)

    def _plain(self, value: Any, place: str) -> Any:
        if isinstance(value, Tensor):
            return self._copy(value)
        if isinstance(value, Enum):
            return self._plain(value.value, place)
        if type(value) in PLAIN:
            return value
        if isinstance(value, Mapping):
            pairs = {self._plain(key, place): self._plain(item, f"{place}.{key}") for key, item in value.items()}
            return _like(value, pairs)
        for kind in MANY:
            if isinstance(value, kind):
                return kind(self._plain(item, f"{place}[{number}]") for number, item in enumerate(value))
        return _number_or_text(value, place)


def _number_or_text(value: Any, place: str) -> Any:
    if isinstance(value, PurePath):
        return str(value)
    if getattr(value, "shape", None) == ():  # a number of NumPy's
        return value.item()
    for base in (int, float, str):
        if isinstance(value, base):
            return base(value)
    raise TypeError(
        f"{place} is a {type(value).__module__}.{type(value).__qualname__}, which no checkpoint can hold: "
        "only tensors, numbers, text, lists and dictionaries load again without running code."
    )


def shapes_in(value: Any) -> Iterator[Shape]:
    """The shapes of all tensors in ``value``, for :meth:`SnapshotMemory.reserve`."""
    if isinstance(value, Tensor):
        yield shape_of(value)
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from shapes_in(item)
    elif isinstance(value, MANY):
        for item in value:
            yield from shapes_in(item)


def shape_of(tensor: Tensor) -> Shape:
    """What two tensors must share for one to be copied into the memory of the other."""
    return tensor.shape, tensor.dtype, tensor.is_cuda


def _allocate(shape: Shape) -> Tensor:
    size, dtype, is_cuda = shape
    return torch.empty(size, dtype=dtype, pin_memory=is_cuda)  # pinned: the GPU then copies at full speed


def _like(value: Mapping[Any, Any], pairs: dict[Any, Any]) -> dict[Any, Any]:
    if not isinstance(value, OrderedDict):
        return pairs
    ordered = OrderedDict(pairs)
    if hasattr(value, "_metadata"):  # the versions of a state_dict's modules
        ordered._metadata = OrderedDict(value._metadata)  # type: ignore[attr-defined]
    return ordered
