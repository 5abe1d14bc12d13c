"""Delivers the staged files of a journal, one after the other, and keeps the list of what the run holds."""

from __future__ import annotations

import json
import shutil
import time
from hashlib import file_digest
from pathlib import Path
from typing import TYPE_CHECKING, Any

from heimdall.tracking.cursor import replace_file
from heimdall.tracking.sinks import MANIFEST, Manifest, PermanentError, TransientError

if TYPE_CHECKING:
    from heimdall.tracking.delivery import Delivery

MANIFEST_SECONDS = 10.0


class FileDelivery:
    """The files' side of a :class:`~heimdall.tracking.delivery.Delivery`."""

    def __init__(self, delivery: Delivery) -> None:
        self._delivery = delivery
        self._list = delivery.folder / "artifacts.json"
        self._manifest: Manifest = self._load()
        self._manifest_at = 0.0
        self._ours = bool(self._manifest)

    def learn(self, remote: Manifest) -> None:
        """Believe the run's own list where this journal has none: it was delivered from another copy before."""
        if not self._ours:
            self._manifest = dict(remote)

    def deliver_next(self) -> bool:
        """Upload one file, or the list; whether there was anything to do. Raises :class:`TransientError`."""
        delivery = self._delivery
        if not delivery.run_id:
            return False
        with delivery.mutex:
            pending = list(delivery.cursor.pending)
        if not pending:
            return self._deliver_manifest()
        item, later = pending[0], pending[1:]
        path = delivery.folder / "staged" / item["staged"]
        if any(other["destination"] == item["destination"] for other in later):
            self._drop(item)  # a newer version of it waits already
            return True
        try:
            self._upload(path, item["destination"])
        except PermanentError as error:
            with delivery.mutex:
                delivery.cursor.refuse(f"{item['destination']}: {error}")
                delivery.cursor.set_aside.append(item)
        except TransientError as error:
            with delivery.mutex:
                delivery.cursor.stumbled(f"{item['destination']}: {error}")
                delivery.save()
            raise
        self._drop(item, keep=item in delivery.cursor.set_aside)
        return True

    def clear(self) -> None:
        """Remove staged files that no record names any more."""
        kept = {item["staged"].split("/")[0] for item in self._delivery.cursor.set_aside}
        for place in (self._delivery.folder / "staged").glob("*"):
            if place.name not in kept:
                shutil.rmtree(place, ignore_errors=True)

    def _upload(self, path: Path, destination: str) -> None:
        run_id, sink = self._delivery.run_id, self._delivery.sink
        if not path.is_file():
            if destination in self._manifest:
                return  # delivered from here before, and then removed
            raise PermanentError("the staged file is gone")
        size = path.stat().st_size
        digest = ""
        same_as: list[str] = []
        if any(entry["bytes"] == size for entry in self._manifest.values()):
            # only then can it be known already; else it is read once, by the upload
            digest = _sha256(path)
            same_as = [name for name, entry in self._manifest.items() if entry["sha256"] == digest]
        if destination not in same_as:
            sink.upload(run_id, path, destination, same_as=same_as[0] if same_as else "")
        with self._delivery.mutex:
            self._manifest[destination] = {"sha256": digest or _sha256(path), "bytes": size}
            replace_file(self._list, json.dumps(self._manifest, indent=1, sort_keys=True))
            self._ours = True
            self._delivery.cursor.manifest_sent = False

    def _drop(self, item: dict[str, Any], *, keep: bool = False) -> None:
        delivery = self._delivery
        with delivery.mutex:
            delivery.cursor.pending.remove(item)
            delivery.cursor.went_on()
            delivery.save()
        if not keep:
            shutil.rmtree((delivery.folder / "staged" / item["staged"]).parent, ignore_errors=True)

    def _deliver_manifest(self) -> bool:
        delivery = self._delivery
        hurried = delivery.cursor.complete
        if delivery.cursor.manifest_sent or not (hurried or time.monotonic() > self._manifest_at + MANIFEST_SECONDS):
            return False
        try:
            delivery.sink.upload(delivery.run_id, self._list, MANIFEST)
        except PermanentError as error:
            with delivery.mutex:
                delivery.cursor.refuse(f"{MANIFEST}: {error}")
        self._manifest_at = time.monotonic()
        with delivery.mutex:
            delivery.cursor.manifest_sent = True
            delivery.save()
        return True

    def _load(self) -> Manifest:
        try:
            found: Manifest = json.loads(self._list.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}
        return found


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return file_digest(file, "sha256").hexdigest()
