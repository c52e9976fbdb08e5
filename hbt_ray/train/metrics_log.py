"""metrics.jsonl: one line per step, written by the controller, followed on the driver."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from ray.train import UserCallback

POLL_SECONDS = 0.5

Rows = list[dict[str, Any]]


class MetricsLog(UserCallback):  # type: ignore[misc]
    """Appends every reported step to metrics.jsonl; runs in the controller, on the driver's node.

    After a restart the steps between the checkpoint and the failure come again, equal; each is written once.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._written: int | None = None  # last step in the file; looked up once per controller

    def after_report(self, run_context: Any, metrics: list[dict[str, Any]], checkpoint: Any) -> None:
        """Append the new steps and, with a checkpoint, what the validation found."""
        if self._written is None:
            self._written = _last_step(self._path)
        self._written = append(self._path, metrics[0], self._written)


def append(path: Path, report: Mapping[str, Any], written: int) -> int:
    """Append the steps of a report that come after step `written`; the last step that is now in the file."""
    rows = [row for row in report["log"] if row["step"] > written]
    if not rows:
        return written
    rows[-1] = rows[-1] | validated(report)
    with path.open("a", encoding="utf-8") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)
    return int(rows[-1]["step"])


def validated(report: Mapping[str, Any]) -> dict[str, Any]:
    """What a validation found, of all that was reported with a checkpoint."""
    return {key: value for key, value in report.items() if key.startswith(("validation_loss", "validation/"))}


def cut_unfinished_line(path: Path) -> None:
    """Drop the end of a line that a killed controller could not finish; it comes again."""
    if not path.exists():
        return
    with path.open("rb+") as file:
        file.truncate(file.read().rfind(b"\n") + 1)


def complete(path: Path, report: Mapping[str, Any]) -> None:
    """Append what the newest checkpoint's report says of steps that a killed controller had no time to write."""
    append(path, report, _last_step(path))


def _last_step(path: Path) -> int:
    """Last step of a metrics log, -1 if there is none."""
    if not path.exists():
        return -1
    lines = path.read_text(encoding="utf-8").splitlines()
    return int(json.loads(lines[-1])["step"]) if lines else -1


class Follower:
    """Within the context a thread hands every new row of a growing JSONL file to a function."""

    def __init__(self, path: Path, on_rows: Callable[[Rows], None]) -> None:
        self._path = path
        self._on_rows = on_rows
        self._offset = path.stat().st_size if path.exists() else 0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> None:
        self._thread.start()

    def __exit__(self, *exception: object) -> None:
        self._stop.set()
        self._thread.join()
        self._hand_over()

    def _watch(self) -> None:
        while not self._stop.wait(POLL_SECONDS):
            self._hand_over()

    def _hand_over(self) -> None:
        if not self._path.exists():
            return
        with self._path.open("rb") as file:
            file.seek(self._offset)
            lines = file.read()
        complete = lines[: lines.rfind(b"\n") + 1]
        self._offset += len(complete)
        if complete:
            self._on_rows([json.loads(line) for line in complete.splitlines()])
