"""What a tracking server takes; the rest is mapped or moved into an artifact, never cut in silence."""

from __future__ import annotations

import json
import posixpath
import re
from dataclasses import dataclass, field
from hashlib import sha256

# mlflow.utils.validation of 3.17.2
NAME_CHARACTERS = 250
PARAM_CHARACTERS = 6000
TAG_CHARACTERS = 8000
BATCH_METRICS = 1000
BATCH_PARAMS = 100
BATCH_TAGS = 100
BATCH_BYTES = 900_000  # of 1 000 000; the rest is for the envelope

_GOOD_NAME = re.compile(r"[/\w.\- :]{1,250}")
_BAD_CHARACTER = re.compile(r"[^/\w.\- :]")
_MAPPED_CHARACTERS = 180


def server_name(name: str) -> str:
    """``name`` where the server takes it, else a readable stand-in with a digest, so that no two names become one."""
    if (
        _GOOD_NAME.fullmatch(name)
        and posixpath.normpath(name) == name
        and not name.startswith(("..", "/"))
        and name != "."
    ):
        return name
    readable = posixpath.normpath(_BAD_CHARACTER.sub("_", name)).strip("./")[:_MAPPED_CHARACTERS].rstrip("./ ")
    return f"{readable or 'unnamed'}-{_digest(name)[:12]}"


def storable(text: str, limit: int) -> bool:
    """Whether the server keeps ``text`` as it is."""
    return len(text) <= limit and "\x00" not in text and not any("\ud800" <= letter <= "\udfff" for letter in text)


def stand_in(text: str, artifact: str) -> str:
    """What a value says that had to go into an artifact as a whole."""
    return f"sha256:{_digest(text)} ({len(text)} characters, whole in the artifact {artifact})"


def _digest(text: str) -> str:
    return sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


@dataclass(frozen=True, slots=True)
class Point:
    """One value of one metric."""

    name: str
    value: float
    timestamp_ms: int
    step: int


@dataclass
class Batch:
    """What one call delivers; at most the server's limits."""

    points: list[Point] = field(default_factory=list)
    params: dict[str, tuple[str, int]] = field(default_factory=dict)  # name -> (text, milliseconds)
    tags: dict[str, str] = field(default_factory=dict)

    def __bool__(self) -> bool:
        return bool(self.points or self.params or self.tags)

    def __len__(self) -> int:
        return len(self.points) + len(self.params) + len(self.tags)

    def parts(self) -> list[Batch]:
        """This batch cut into such as the server takes."""
        made: list[Batch] = [Batch()]
        size = 0

        def room(kind: int, limit: int, cost: int) -> Batch:
            nonlocal size
            last = made[-1]
            count = (len(last.points), len(last.params), len(last.tags))[kind]
            if count >= limit or len(last) >= BATCH_METRICS or (size + cost > BATCH_BYTES and last):
                made.append(Batch())
                size = 0
            size += cost
            return made[-1]

        for name, (text, timestamp) in self.params.items():
            room(1, BATCH_PARAMS, _cost(name, text)).params[name] = (text, timestamp)
        for name, text in self.tags.items():
            room(2, BATCH_TAGS, _cost(name, text)).tags[name] = text
        for point in self.points:
            room(0, BATCH_METRICS, 110 + 2 * len(point.name)).points.append(point)
        return [part for part in made if part]

    def halves(self) -> list[Batch]:
        """Two smaller batches, to find the entry that the server refuses."""
        entries: list[Batch] = [Batch(points=[point]) for point in self.points]
        entries += [Batch(params={name: value}) for name, value in self.params.items()]
        entries += [Batch(tags={name: text}) for name, text in self.tags.items()]
        middle = len(entries) // 2
        return [_joined(entries[:middle]), _joined(entries[middle:])]


def _joined(entries: list[Batch]) -> Batch:
    whole = Batch()
    for entry in entries:
        whole.points += entry.points
        whole.params |= entry.params
        whole.tags |= entry.tags
    return whole


def _cost(name: str, text: str) -> int:
    return 40 + len(json.dumps(name)) + len(json.dumps(text))
