"""Progress of long work on stderr: a bar on a terminal, plain lines in a job log."""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

SECONDS_BETWEEN_LINES = 10.0


class _Reporter:
    """A bar or lines, used as a context."""

    def __init__(self, name: str, total: int) -> None:
        self._name = name
        self._total = total
        self._task: TaskID | None = None
        self._spoke_at = 0.0
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[note]}"),
            TimeRemainingColumn(),
        )
        self._bar = Progress(*columns, console=Console(stderr=True)) if sys.stderr.isatty() else None

    def __enter__(self) -> Any:
        if self._bar:
            self._bar.start()
            self._task = self._bar.add_task(self._name, total=self._total, note="starting")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar:
            self._bar.stop()

    def show(self, done: int, note: str, *, important: bool = False) -> None:
        """Where the work is; a log gets a line now and then, and for everything important."""
        if self._bar and self._task is not None:
            self._bar.update(self._task, completed=done, note=note)
            return
        now = time.monotonic()
        if important or done >= self._total or now - self._spoke_at >= SECONDS_BETWEEN_LINES:
            self._spoke_at = now
            print(f"{self._name}: {done}/{self._total} {note}", file=sys.stderr, flush=True)


class TrainingProgress(_Reporter):
    """Takes rows of metrics.jsonl."""

    def __init__(self, name: str, steps: int) -> None:
        super().__init__(name, steps)
        self._validation = ""

    def rows(self, rows: list[dict[str, Any]]) -> None:
        """Show the newest row, with the last validation loss."""
        validated = [row["validation_loss"] for row in rows if "validation_loss" in row]
        if validated:
            self._validation = f", validation {validated[-1]:.4f}"
        last = rows[-1]
        note = (
            f"loss {last['loss']:.4f}{self._validation}, {last['tokens_per_second']:,.0f} tokens/s, "
            f"data wait {last['data_wait_share']:.1%}"
        )
        self.show(last["step"] + 1, note, important=bool(validated))


class EncodingProgress(_Reporter):
    """Takes (texts done, texts in all, of what)."""

    def texts(self, done: int, total: int, part: str = "") -> None:
        """Show how many texts are encoded; `part` names the collection where a benchmark has several."""
        self._total = total
        if self._bar and self._task is not None:
            self._bar.update(self._task, total=total)
        self.show(done, f"texts of {part}" if part else "texts")
