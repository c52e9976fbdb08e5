"""Typed, picklable errors; each says what was received, where, what was expected and what to do.

    HbtError
    ├── UserError            the caller can mend it: exit code 2, one message, no traceback
    │   ├── ConfigError      a configuration key or command-line value
    │   ├── CorpusError      training shards and files to import
    │   ├── BenchmarkError   evaluation data
    │   ├── EmbeddingError   embeddings handed in for evaluation
    │   ├── ModelError       a model folder or registry address
    │   └── ResourceError    workers, CPUs, GPUs, storage
    ├── TrainingError        a run that failed through no mistake in its input: exit code 1
    └── Interrupted          a run that was asked to stop and can go on: exit code 143

Ray moves exceptions between processes by pickling them, so every field travels in `args`.
"""

from __future__ import annotations


class HbtError(Exception):
    """Base of everything hbt_ray raises on purpose."""


class UserError(HbtError):
    """A mistake in what the user handed in.

    Args:
        where: file, row, key or option at fault.
        received: the value found there.
        expected: what would have been right.
        fix: the action that mends it, as a sentence.
    """

    def __init__(self, where: str, received: object, expected: str, fix: str) -> None:
        super().__init__(where, received, expected, fix)
        self.where = where
        self.received = received
        self.expected = expected
        self.fix = fix

    def __str__(self) -> str:
        return f"{self.where}: got {self.received}; expected {self.expected}. {self.fix}"


class ConfigError(UserError, ValueError):
    """A configuration key or command-line value; a ValueError, so that pydantic takes it from a validator."""


class CorpusError(UserError):
    """Training shards or a file to import."""


class BenchmarkError(UserError):
    """Evaluation data."""


class EmbeddingError(UserError):
    """Embeddings handed in for evaluation."""


class ModelError(UserError):
    """A model folder or registry address."""


class ResourceError(UserError):
    """Workers, CPUs, GPUs or storage that are not there."""


class TrainingError(HbtError):
    """A training run that failed through no mistake in its input."""


class Interrupted(HbtError):  # noqa: N818  # no error: like KeyboardInterrupt
    """A run that SIGTERM ended; the same command resumes it.

    Args:
        step: steps done in the checkpoint that was written on the way out; None if there was no time for one.
    """

    def __init__(self, step: int | None = None) -> None:
        super().__init__(step)
        self.step = step

    def __str__(self) -> str:
        where = "its newest checkpoint" if self.step is None else f"step {self.step}, where a checkpoint was written"
        return f"interrupted: the same command resumes at {where}"
