"""Embeddings at rest, so that no text is encoded twice by the same model.

<folder>/<model hash>/<prompt hash>/part-<random>.npy        float32 [n, D], vectors of n texts
<folder>/<model hash>/<prompt hash>/part-<random>.keys.npy   S16 [n], the keys of these texts

A part is never changed. Both files get their name when they are whole, the keys last, so a part with keys is complete
and any number of processes may write at the same time.
"""

from __future__ import annotations

import hashlib
import logging
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from uuid import uuid4

import numpy as np
from numpy.typing import NDArray

from hbt_ray.errors import EmbeddingError

logger = logging.getLogger(__name__)

Vectors = NDArray[np.float32]
Keys = NDArray[np.bytes_]  # S16: numpy compares it padded with zeros to 16 bytes, so keys that end in zeros are safe

KEY_BYTES = 16
KEY = np.dtype(f"S{KEY_BYTES}")
PART_BYTES = 64 * 2**20  # vectors of a part: few files for tens of millions of texts
PART_SECONDS = 20.0  # a part is written at least this often, so that a killed process loses little work
KEYS_SUFFIX = ".keys.npy"
PARTIAL_SUFFIX = ".partial"


def text_keys(texts: Sequence[str]) -> Keys:
    """The 128-bit BLAKE2b hash of each text, S16 [n]: two of 33 million texts share one with probability 2e-24."""
    digests = (hashlib.blake2b(text.encode("utf-8"), digest_size=KEY_BYTES).digest() for text in texts)
    return np.fromiter(digests, dtype=KEY, count=len(texts))


class EmbeddingCache:
    """The vectors that one model gave texts behind one prompt.

    In memory are a sorted table of 24 bytes per text (16 of the key, 8 of the row; 0.8 GB for the 33 million passages
    of English MIRACL; twice that for a moment while it is sorted) and up to PART_BYTES of vectors not yet written.

    Args:
        folder: of the caches of all models; made when something is written.
        model_hash: of the model folder (`hbt_ray.model.export.model_hash`).
        prompt: what is put before each text; keys are those of the text without it.

    Raises:
        EmbeddingError: a part is damaged, or parts differ in dimension.
    """

    def __init__(self, folder: Path, model_hash: str, prompt: str) -> None:
        self.prompt = prompt
        self.folder = folder / model_hash / hashlib.blake2b(prompt.encode("utf-8"), digest_size=8).hexdigest()
        self.width: int | None = None
        self._parts: list[Path] = []
        self._starts = np.zeros(1, dtype=np.int64)  # rows starts[i]:starts[i + 1] of all parts together are in part i
        self._keys = np.empty(0, dtype=KEY)  # sorted
        self._rows = np.empty(0, dtype=np.int64)
        self._unwritten: list[tuple[Keys, Vectors]] = []
        self._last_write = time.monotonic()
        self.refresh()
        self._report_torn_parts()

    def __len__(self) -> int:
        """Rows of the parts known since the last `refresh`; a text that two processes encoded counts twice."""
        return len(self._keys)

    def refresh(self) -> None:
        """Take in the parts written since the last time, by this process or another."""
        known = set(self._parts)
        vectors = (Path(str(path).removesuffix(KEYS_SUFFIX) + ".npy") for path in self.folder.glob(f"*{KEYS_SUFFIX}"))
        new = sorted(path for path in vectors if path not in known)
        if not new:
            return
        keys = [self._checked_keys(path) for path in new]
        first_row = self._starts[-1]
        self._parts += new
        self._starts = np.append(self._starts, first_row + np.cumsum([len(part) for part in keys], dtype=np.int64))
        unsorted = np.concatenate([self._keys, *keys])
        rows = np.concatenate([self._rows, np.arange(first_row, self._starts[-1], dtype=np.int64)])
        order = np.argsort(unsorted, kind="stable")
        self._keys, self._rows = unsorted[order], rows[order]

    def find(self, keys: Keys) -> NDArray[np.int64]:
        """The row of each key, to be handed to `read`; -1 where there is none. int64 [len(keys)]."""
        if not len(self._keys):
            return np.full(len(keys), -1, dtype=np.int64)
        at = np.minimum(np.searchsorted(self._keys, keys), len(self._keys) - 1)
        return np.where(self._keys[at] == keys, self._rows[at], -1)

    def read(self, rows: NDArray[np.int64]) -> Vectors:
        """The vectors of rows that `find` gave, float32 [len(rows), D]; not of an empty cache, which has no D.

        Raises:
            EmbeddingError: a part is damaged.
        """
        assert self.width is not None
        vectors = np.empty((len(rows), self.width), dtype=np.float32)
        part_of_row = np.searchsorted(self._starts, rows, side="right") - 1
        for part in np.unique(part_of_row):
            here = np.flatnonzero(part_of_row == part)
            path = self._parts[part]
            found = _mapped(path)[rows[here] - self._starts[part]]
            if not np.isfinite(found).all():
                raise _damaged(path, "a value that is not finite", "finite float32 vectors")
            vectors[here] = found
        return vectors

    def add(self, keys: Keys, vectors: Vectors) -> None:
        """Keep the vectors [n, D] of n texts; they are written together with others, see `flush`.

        Raises:
            EmbeddingError: not the dimension of the vectors that are there, or a value that is not finite.
        """
        self._check_width(vectors.shape[1], str(self.folder))
        if not np.isfinite(vectors).all():
            raise EmbeddingError(
                str(self.folder), "a vector that is not finite", "finite vectors", "Look at the model's precision."
            )
        self._unwritten.append((keys, vectors))
        waiting = sum(part.nbytes for _, part in self._unwritten)
        if waiting >= PART_BYTES or time.monotonic() - self._last_write >= PART_SECONDS:
            self.flush()

    def flush(self) -> None:
        """Write what was added as one part; `find` knows it after the next `refresh`."""
        self._last_write = time.monotonic()
        if not self._unwritten:
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        part = self.folder / f"part-{uuid4().hex}"
        _write_whole(part.with_suffix(".npy"), np.concatenate([vectors for _, vectors in self._unwritten]))
        _write_whole(part.with_suffix(KEYS_SUFFIX), np.concatenate([keys for keys, _ in self._unwritten]))
        self._unwritten = []

    def _checked_keys(self, path: Path) -> Keys:
        """The keys of a part whose two files fit together."""
        keys_path = path.with_suffix(KEYS_SUFFIX)
        keys = np.array(_load(keys_path))
        if keys.dtype != KEY or keys.ndim != 1:
            raise _damaged(keys_path, f"{keys.dtype} of shape {keys.shape}", "one S16 key per text")
        vectors = _mapped(path)
        if len(vectors) != len(keys):
            raise _damaged(path, f"{len(vectors)} vectors", f"{len(keys)}, one per key")
        self._check_width(vectors.shape[1], str(path))
        return keys

    def _check_width(self, width: int, where: str) -> None:
        if self.width is None:
            self.width = width
        elif width != self.width:
            raise EmbeddingError(
                where,
                f"vectors of {width} dimensions",
                f"{self.width}, as the others of this model hash",
                f"Delete {self.folder} if the model's files were changed.",
            )

    def _report_torn_parts(self) -> None:
        whole = {path.name for path in self._parts}
        whole |= {path.with_suffix(KEYS_SUFFIX).name for path in self._parts}
        torn = sorted(path.name for path in self.folder.glob("part-*") if path.name not in whole)
        if torn:
            logger.warning(
                "%s: %d unfinished files left out, such as %s; another process is writing them or was killed",
                self.folder,
                len(torn),
                torn[0],
            )


def _write_whole(path: Path, values: NDArray[np.generic]) -> None:
    """The file has its name only once all of it is on the disk."""
    partial = path.with_name(path.name + PARTIAL_SUFFIX)
    with partial.open("wb") as file:
        np.save(file, values, allow_pickle=False)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)


def _mapped(path: Path) -> Vectors:
    """A part's vectors, memory-mapped."""
    vectors = _load(path)
    if vectors.dtype != np.float32 or vectors.ndim != 2:
        raise _damaged(path, f"{vectors.dtype} of shape {vectors.shape}", "float32 vectors [n, D]")
    return vectors


def _load(path: Path) -> np.memmap[Any, Any]:
    try:
        values = np.lib.format.open_memmap(path, mode="r")
    except (OSError, ValueError, EOFError) as error:
        raise _damaged(path, error, "a whole .npy file") from error
    if path.stat().st_size != values.offset + values.nbytes:
        raise _damaged(path, f"{path.stat().st_size} bytes", f"{values.offset + values.nbytes}")
    return values


def _damaged(path: Path, received: object, expected: str) -> EmbeddingError:
    names = sorted({path.name.removesuffix(KEYS_SUFFIX).removesuffix(".npy") + end for end in (".npy", KEYS_SUFFIX)})
    return EmbeddingError(
        str(path), received, expected, f"Delete {' and '.join(names)} there; their texts will be encoded again."
    )
