"""The courier: a process of its own that reads a journal and delivers it, so that training never waits.

``python -m heimdall.tracking.courier JOURNAL`` delivers one run while it is written and afterwards;
``python -m heimdall.tracking.courier --sweep ROOT`` delivers what earlier processes left. Started by the tracker; it
detaches, keeps running when the trainer dies, and ends when everything is delivered, or some time after the trainer
ended (HEIMDALL_COURIER_LINGER_SECONDS): what is left then is delivered by the next run or by ``heimdall sync``.
Settings and secrets come through the environment, never through arguments.
"""

from __future__ import annotations

import contextlib
import os
import random
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # nothing heavy before the process has detached: the trainer waits for that
    from heimdall.settings import Settings
    from heimdall.tracking.delivery import Delivery

POLL_SECONDS = 0.1
SYNC_TO_DISK_SECONDS = 5.0
LONGEST_PAUSE_SECONDS = 10.0
FIRST_PAUSE_SECONDS = 0.25
NICENESS = 10


def pause_seconds(attempts: int) -> float:
    """Exponential backoff with jitter: 0.25 s doubling up to 10 s, each between half and all of that."""
    longest = min(LONGEST_PAUSE_SECONDS, FIRST_PAUSE_SECONDS * 2.0 ** min(attempts, 10))
    return longest * random.uniform(0.5, 1.0)  # noqa: S311 - not a secret


class Courier:
    """Drives one :class:`~heimdall.tracking.delivery.Delivery` with a thread each for records, files and the disk."""

    def __init__(self, delivery: Delivery, give_up: Callable[[float], bool]) -> None:
        """``give_up(idle_seconds)`` is asked while nothing can be delivered; idle is the time since something was."""
        self._delivery = delivery
        self._give_up = give_up
        self._stop = threading.Event()
        self._progress_at = time.monotonic()
        self._failure: BaseException | None = None

    def run(self) -> bool:
        """Deliver until nothing is left or it is time to give up; whether everything is delivered."""
        threads = [
            threading.Thread(target=self._guard, args=(work,), name=name, daemon=True)
            for name, work in (("files", self._deliver_files), ("disk", self._force_to_disk))
        ]
        for thread in threads:
            thread.start()
        try:
            return self._deliver_records()
        finally:
            self._stop.set()
            for thread in threads:
                thread.join(timeout=1.0)

    def _deliver_records(self) -> bool:
        from heimdall.tracking.sinks import TransientError

        attempts = 0
        while True:
            if self._failure:
                raise self._failure
            try:
                worked = self._delivery.deliver_records()
                if self._delivery.finish():
                    return True
                attempts = 0
            except TransientError:
                worked, attempts = False, attempts + 1
            if worked:
                self._progress_at = time.monotonic()
            elif self._give_up(time.monotonic() - self._progress_at):
                return False
            else:
                self._stop.wait(pause_seconds(attempts) if attempts else POLL_SECONDS)

    def _deliver_files(self) -> None:
        from heimdall.tracking.sinks import TransientError

        attempts = 0
        while not self._stop.is_set():
            try:
                worked = self._delivery.files.deliver_next()
                attempts = 0
            except TransientError:
                worked, attempts = False, attempts + 1
            if worked:
                self._progress_at = time.monotonic()
            else:
                self._stop.wait(pause_seconds(attempts) if attempts else POLL_SECONDS)

    def _guard(self, work: Callable[[], None]) -> None:
        try:
            work()
        except BaseException as error:  # noqa: BLE001 - handed to the thread that runs the courier
            self._failure = error

    def _force_to_disk(self) -> None:
        from heimdall.tracking.journal import segments

        # the trainer never waits for a disk; a power cut costs at most these few seconds, also while a server hangs
        forced = -1
        while not self._stop.wait(SYNC_TO_DISK_SECONDS):
            descriptor = os.open(segments(self._delivery.folder)[-1], os.O_RDONLY | os.O_CLOEXEC)
            try:
                if os.fstat(descriptor).st_size != forced:
                    forced = os.fstat(descriptor).st_size
                    os.fdatasync(descriptor)
            finally:
                os.close(descriptor)


def start_courier(place: Path, settings: Settings, *, sweep: bool = False) -> None:
    """Start a courier for the journal at ``place``, or for all below it. Returns when it has detached (about 50 ms).

    Harmless where one is at work already.
    """
    folder = place if sweep or place.is_dir() else place.parent
    arguments = ["--sweep", str(place)] if sweep else [str(place)]
    with (folder / "courier.log").open("ab") as log:
        subprocess.run(
            # -P: the working folder may hold a file named like a module
            [sys.executable, "-P", "-m", "heimdall.tracking.courier", *arguments],
            env={**os.environ, **environment_of(settings), "MALLOC_ARENA_MAX": "2", "OPENBLAS_NUM_THREADS": "1"},
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            check=False,
            timeout=60,
        )


def environment_of(settings: Settings) -> dict[str, str]:
    """Environment variables that make the same settings in another process."""
    from pydantic import SecretStr

    values = {name.upper(): getattr(settings, name) for name in type(settings).model_fields}
    plain = {n: v.get_secret_value() if isinstance(v, SecretStr) else str(v) for n, v in values.items()}
    return {**plain, "HEIMDALL_HOME": str(settings.home)}


def deliver_run(
    folder: Path, settings: Settings, give_up: Callable[[float], bool], *, wait_seconds: float = 5.0
) -> bool:
    """Deliver one journal; whether all of it is delivered. Waits ``wait_seconds`` for somebody who delivers it now.

    Raises :class:`~heimdall.errors.ConfigError` where it belongs to another server.
    """
    from heimdall.tracking.cursor import Cursor, is_delivered
    from heimdall.tracking.delivery import Delivery
    from heimdall.tracking.locks import ProcessLock
    from heimdall.tracking.mlflow_sink import MLflowSink

    lock = ProcessLock(folder / "courier.lock")
    if not lock.acquire(timeout_seconds=wait_seconds):
        return is_delivered(folder)
    sink = MLflowSink(settings)
    try:
        if is_delivered(folder) and not Cursor.load(folder).set_aside:
            return True
        place, experiment = settings.tracking_place, settings.mlflow_experiment_name
        return Courier(Delivery(folder, sink, place=place, experiment=experiment), give_up).run()
    finally:
        sink.close()
        lock.release()


def _follow(folder: Path, settings: Settings) -> None:
    from heimdall.tracking.journal import is_written

    closed_at: list[float] = []

    def give_up(_idle_seconds: float) -> bool:
        if is_written(folder):
            closed_at.clear()
            return False
        closed_at[:] = closed_at or [time.monotonic()]
        return time.monotonic() - closed_at[0] > settings.heimdall_courier_linger_seconds

    deliver_run(folder, settings, give_up)


def _sweep(root: Path, settings: Settings) -> None:
    from heimdall.tracking.locks import ProcessLock
    from heimdall.tracking.sweep import left_behind

    lock = ProcessLock(root / "sweep.lock")
    if not lock.acquire():
        return
    try:
        for folder in left_behind(root, settings.tracking_place):
            deliver_run(folder, settings, lambda idle: idle > settings.heimdall_courier_linger_seconds)
    finally:
        lock.release()


def _give_way() -> None:
    """Let training have the cores first. Delivery goes on where all are busy: it still gets about a tenth of one."""
    os.nice(NICENESS)
    # Linux may weigh whole sessions against each other, and this is one of its own: then niceness within it is nothing
    with contextlib.suppress(OSError):
        Path("/proc/self/autogroup").write_text(str(NICENESS), encoding="ascii")


def main(arguments: list[str]) -> None:
    """Detach, then deliver."""
    if os.fork():
        os._exit(0)  # the trainer's child is gone at once: nothing for it to wait for or to reap
    os.setsid()  # Ctrl-C in the trainer's terminal is not for us
    _give_way()
    from heimdall import logs
    from heimdall.settings import Settings

    logs.configure()
    settings = Settings()
    try:
        if arguments[0] == "--sweep":
            _sweep(Path(arguments[1]), settings)
        else:
            _follow(Path(arguments[0]), settings)
    except FileNotFoundError:
        logs.get(__name__).info("The journal was cleaned away.", journal=arguments[-1])
    except Exception as error:  # noqa: BLE001 - the last stop: MLflow's texts may hold a password
        logs.get(__name__).error("The courier stopped.", reason=logs.redact(f"{type(error).__name__}: {error}"))
    sys.stderr.flush()
    os._exit(0)  # no exit hooks of MLflow's, which wait for threads


if __name__ == "__main__":
    main(sys.argv[1:])
