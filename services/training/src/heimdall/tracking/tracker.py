"""The one object that callers see: :class:`MLflowTracker`, and :class:`NullTracker` beside it, which keeps nothing.

What survives a crash of whom:

- the tracking server, its database, S3, the network: all of it. Everything waits in the journal.
- the training process (``kill -9``, out of memory): all that a ``log_*`` call returned from. The courier delivers it
  and marks the run FAILED.
- the courier: all of it. The tracker starts another one within five seconds; later the next run or ``heimdall sync``.
- the machine (power cut): all but about the last five seconds.
- the journal's disk being full: 64 MiB of records wait in memory, loudly; beyond that they are counted as lost.
"""

from __future__ import annotations

import atexit
import os
import time
import weakref
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from struct import error as StructError
from types import TracebackType
from typing import Any, Self

from heimdall import logs
from heimdall.errors import OutputError, UndeliveredError, UsageError
from heimdall.settings import Settings
from heimdall.tracking import journal, staging
from heimdall.tracking.courier import start_courier
from heimdall.tracking.cursor import Cursor, is_delivered
from heimdall.tracking.null import EndStatus
from heimdall.tracking.null import NullTracker as NullTracker
from heimdall.tracking.queries import Gate, RunQueries
from heimdall.tracking.sweep import journal_of, left_behind
from heimdall.tracking.texts import Texts, numbers_only
from heimdall.tracking.watch import CourierWatch

POLL_SECONDS = 0.02
COMPLAINT_SECONDS = 10.0

log = logs.get(__name__)


def initialize_mlflow(settings: Settings | None = None) -> MLflowTracker:
    """A tracker for ``settings`` (default: the environment). What earlier processes left is delivered behind it."""
    tracker = MLflowTracker(settings or Settings())
    tracker.deliver_left_behind()
    return tracker


class MLflowTracker(RunQueries):
    """Tracks one run at a time. ``log_*`` calls append to the journal (microseconds), never wait for a network and

    never raise for a server's sake. With ``strict``, a full disk and an undelivered end of the run raise instead of
    being reported. Thread-safe. A forked child (data-loader worker) has no run; its calls do nothing.
    """

    def __init__(self, settings: Settings, *, strict: bool = False, gate: Gate | None = None) -> None:
        """``gate`` is what :meth:`transition_model_stage` leads through on the way to Production."""
        super().__init__(settings, gate=gate)
        self.strict = strict
        self._journal: journal.JournalWriter | None = None
        self._folder: Path | None = None
        self._key = self._id = ""
        self._numbers = 0
        self._complained_at = -COMPLAINT_SECONDS
        self._watch: CourierWatch | None = None
        self._texts = Texts(settings)
        forget = weakref.WeakMethod(self._forget)
        os.register_at_fork(after_in_child=lambda: (method := forget()) and method())

    @property
    def run_key(self) -> str:
        """The run's own name, known from the start; empty before."""
        return self._key

    @property
    def run_id(self) -> str:
        """MLflow's run id as soon as it is known, the run's key until then; every command takes either."""
        if not self._id and self._folder is not None:
            self._id = Cursor.load(self._folder).run_id
        return self._id or self._key

    @property
    def undelivered(self) -> int:
        """Records and files that the server has not got yet; 0 once everything has arrived."""
        if self._folder is None:
            return 0
        cursor = Cursor.load(self._folder)
        newest = len(journal.segments(self._folder))
        numbers = self._journal.number if self._journal else self._numbers
        records = max(0, numbers - (cursor.number if cursor.segment == newest else 0))
        waiting = records + len(cursor.pending) + len(cursor.set_aside)
        return waiting if self._journal or is_delivered(self._folder, cursor) else max(1, waiting)

    def start_run(
        self, run_name: str | None = None, tags: Mapping[str, str] | None = None, *, resume: str | None = None
    ) -> str:
        """Begin a run, or go on with the one that ``resume`` names (MLflow's id or the run's key).

        Returns MLflow's run id, or the run's own key where no server answers within HEIMDALL_START_WAIT_SECONDS.

        Raises :class:`UsageError` where a run is open, :class:`OutputError` where the journal cannot be written.
        """
        if self._journal is not None:
            raise UsageError(f"The run {self._key} is still open.", mend="Call end_run() first.")
        root = self.settings.journal_dir
        folder = journal_of(root, resume) if resume else None
        is_foreign_id = resume is not None and folder is None and not resume.startswith("hd-")
        self._key = folder.name if folder else resume if resume and not is_foreign_id else journal.new_run_key()
        self._folder = folder or root / self._key
        start = {
            "run_key": self._key,
            "run_name": run_name or self._key,
            "experiment": self.settings.mlflow_experiment_name,
            "place": self.settings.tracking_place,
            "tags": self._texts.of(tags or {}),
            "run_id": resume if is_foreign_id else "",
        }
        self._id = resume or "" if is_foreign_id else ""
        self._journal = journal.JournalWriter(self._folder, start, on_problem=self._journal_failed)
        atexit.register(self._at_exit)
        self._watch = CourierWatch(self._folder, self.settings, self._journal)
        self._watch.start()
        self.deliver_left_behind()
        deadline = time.monotonic() + self.settings.heimdall_start_wait_seconds
        while not Cursor.load(self._folder).run_id and time.monotonic() < deadline:
            time.sleep(POLL_SECONDS)
        if self.run_id == self._key and self.settings.heimdall_start_wait_seconds > 0:
            place = self.settings.tracking_place
            log.warning("No tracking server answers yet; the run is kept here and delivered later.", server=place)
        return self.run_id

    def end_run(self, status: EndStatus = "FINISHED") -> None:
        """Close the run and wait for delivery, at most HEIMDALL_END_WAIT_SECONDS; says what is left. Idempotent.

        Raises :class:`UndeliveredError` where something is left and the tracker is strict.
        """
        if self._journal is None or self._folder is None:
            return
        self._close(status, "")
        deadline = time.monotonic() + self.settings.heimdall_end_wait_seconds
        while not is_delivered(self._folder) and time.monotonic() < deadline:
            time.sleep(POLL_SECONDS)
        self._stop_watching()
        if not is_delivered(self._folder):
            self._tell_what_is_left()

    def log_params(self, params: Mapping[str, Any]) -> None:
        """Keep parameters; lists and dicts become JSON. A value logged before stays, the change becomes a tag."""
        self._append("p", self._texts.of(params))

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Keep the values of one step (default 0), with the time of this call. NaN and infinities are kept."""
        writer = self._journal
        if writer is None:
            return
        step = 0 if step is None else int(step)
        try:
            writer.append_metrics(metrics, step)
        except (StructError, TypeError, ValueError, OverflowError):
            writer.append_metrics(numbers_only(metrics), step)

    def set_tags(self, tags: Mapping[str, str]) -> None:
        """Set tags; the last value wins."""
        self._append("t", self._texts.of(tags))

    def log_artifact(self, path: str | Path, artifact_path: str | None = None) -> None:
        """Keep a file as it is now and upload it in the background, into the folder ``artifact_path`` of the run.

        Files of 1 MiB and more are linked, not copied: replace them, do not change them in place.
        Raises :class:`OutputError` where the file cannot be read.
        """
        file = Path(path)
        self._stage(file, str(PurePosixPath(artifact_path or "") / file.name))

    def log_artifacts_dir(self, folder: str | Path, artifact_path: str | None = None) -> None:
        """:meth:`log_artifact` for every file below ``folder``; its own name is not part of their paths."""
        root = Path(folder)
        if not root.is_dir():
            raise OutputError(f"The folder {root} does not exist.", mend="Log it before it is removed.")
        for file, inner in staging.files_below(root):
            self._stage(file, str(PurePosixPath(artifact_path or "") / inner))

    def flush(self, timeout_seconds: float) -> bool:
        """Wait until all that was logged so far has arrived, at most ``timeout_seconds``; whether it has."""
        self._append("f")
        if self._folder is None:
            return True
        if self._watch is not None:
            self._watch.look()
        deadline = time.monotonic() + timeout_seconds
        while self.undelivered:
            if time.monotonic() >= deadline:
                return False
            time.sleep(POLL_SECONDS)
        return True

    def deliver_left_behind(self) -> None:
        """Deliver in the background what earlier processes left in the journal's folder for this server."""
        root = self.settings.journal_dir
        if left_behind(root, self.settings.tracking_place):
            start_courier(root, self.settings, sweep=True)

    def __enter__(self) -> Self:
        """Start a run unless one is open."""
        if self._journal is None:
            self.start_run()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, _error: BaseException | None, _trace: TracebackType | None
    ) -> None:
        """FINISHED, KILLED for an interrupt, FAILED for any other exception."""
        interrupted = kind is not None and not issubclass(kind, Exception)
        self.end_run("KILLED" if interrupted else "FAILED" if kind else "FINISHED")

    def _append(self, kind: str, *content: Any) -> None:
        if self._journal is not None:
            self._journal.append(kind, *content)

    def _stage(self, file: Path, destination: str) -> None:
        if self._journal is None:
            return
        try:
            self._journal.stage(file, destination)
        except OSError as error:
            if not staging.is_no_space(error):
                raise OutputError(f"The artifact {file} cannot be read: {error.strerror}.") from error
            self._journal.lost += 1
            self._journal_failed(error)

    def _journal_failed(self, error: OSError) -> None:
        kept, lost = (self._journal.unwritten, self._journal.lost) if self._journal else (0, 0)
        sentence = f"The journal {self._folder} cannot be written: {error.strerror}."
        mend = f"Free some space there; {kept} records wait in memory, {lost} are lost."
        if self.strict:
            raise OutputError(sentence, mend=mend) from error
        if time.monotonic() > self._complained_at + COMPLAINT_SECONDS:
            self._complained_at = time.monotonic()
            log.error(f"{sentence} {mend}")

    def _close(self, status: str, reason: str) -> None:
        writer = self._journal
        if writer is None:
            return
        atexit.unregister(self._at_exit)
        try:
            writer.append("e", status, reason)
        finally:
            self._journal = None
            self._numbers = writer.number
            writer.close()
        if writer.lost:
            log.error("Records were lost: the journal's disk was full for too long.", lost=writer.lost)

    def _tell_what_is_left(self) -> None:
        cursor = Cursor.load(self._folder) if self._folder else Cursor()
        left = self.undelivered
        slow = "the server is slower than this run" if cursor.run_id else "the server has not answered yet"
        reason = cursor.problem or slow
        sentence = f"{left} records or files of the run {self.run_id} are not delivered yet: {reason}."
        if self.strict:
            raise UndeliveredError(sentence, mend="Nothing is lost; run `heimdall sync` when the server answers.")
        log.warning(f"{sentence} Delivery goes on in the background; see `heimdall status`.")

    def _forget(self) -> None:
        self._journal = self._watch = None

    def _stop_watching(self) -> None:
        if self._watch is not None:
            self._watch.stop()
            self._watch = None

    def _at_exit(self) -> None:
        self._stop_watching()
        self._close("FAILED", "The training process ended without calling end_run.")
