"""The compiled loops against plain float64 arithmetic, query by query and candidate by candidate."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from hbt_ray.evaluation import counting
from hbt_ray.evaluation.counting import pair_scores, scan, spread_ranks, summation_order

UNLIMITED = 10**9


class Scored(NamedTuple):
    """Queries, candidates and relevance, with approximate scores that are wrong by less than `error`."""

    queries: NDArray[np.float64]
    vectors: NDArray[np.floating]
    starts: NDArray[np.int64]
    relevant: list[list[int]]
    approximate: NDArray[np.floating]
    error: NDArray[np.float64]

    @property
    def exact(self) -> NDArray[np.float64]:
        return np.array([[(q * x).sum() for x in self.vectors.astype(np.float64)] for q in self.queries])


@st.composite
def scored(draw: st.DrawFn, dtype: str) -> Scored:
    """Small pools with ties, empty languages, queries without relevant candidates; widths around that of a chunk."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    sizes = draw(st.sampled_from([[1], [0, 1, 0], [63], [64], [65, 3], [130, 0, 70], [5, 5, 5, 200]]))
    levels = draw(st.sampled_from([0, 1, 3, 100]))  # few levels make many ties, 0 nothing but ties
    dim, queries, width = draw(st.sampled_from([1, 9])), draw(st.integers(1, 5)), sum(sizes)
    left = rng.integers(-levels, levels + 1, (queries, dim)).astype(np.float64)
    right = rng.integers(-levels, levels + 1, (width, dim)).astype(draw(st.sampled_from(["float32", "float64"])))
    error = np.full(queries, draw(st.sampled_from([0.0, 0.25, 3.0, np.inf])))
    off = rng.uniform(-1, 1, (queries, width)) * np.minimum(error[:, None], 3.0) * 0.9
    relevant = [sorted(rng.choice(width, rng.integers(0, min(width, 6) + 1), replace=False).tolist()) for _ in left]
    approximate = (left @ right.T.astype(np.float64) + off).astype(dtype)
    return Scored(left, right, np.cumsum([0, *sizes]), relevant, approximate, error)


class Found(NamedTuple):
    """What `scan` gives."""

    finished: bool
    own: list[int]
    every: list[int]
    best: NDArray[np.int64]
    scores: NDArray[np.float64]


def scanned(case: Scored, k: int = 1, limit: int = UNLIMITED) -> Found:
    dtype = case.approximate.dtype
    order = summation_order(case.queries.shape[1])
    offsets = np.cumsum([0, *map(len, case.relevant)])
    column = np.array([column for columns in case.relevant for column in columns], dtype=np.int64)
    row = np.repeat(np.arange(len(case.queries)), np.diff(offsets))
    language = np.searchsorted(case.starts, column, side="right") - 1
    score = pair_scores(case.queries, case.vectors, order, row, column)
    masked = case.approximate.copy()
    masked[row, column] = -np.inf
    finite = np.finfo(dtype)
    low, high = (np.clip(score + side * case.error[row], finite.min, finite.max).astype(dtype) for side in (-1, 1))
    own, every = np.full(len(column), -7), np.full(len(column), -7)
    best, scores = np.full((len(case.queries), k), -7), np.zeros((len(case.queries), k))
    finished = scan(masked, case.error, case.starts, case.queries, case.vectors, order, offsets, language, score,
                    low, high, limit, own, every, best, scores)  # fmt: skip
    return Found(finished, own.tolist(), every.tolist(), best, scores)


@settings(deadline=None, max_examples=120)
@given(scored("float32") | scored("float64"), st.integers(1, 80))
def test_scan_equals_plain_loops(case: Scored, k: int) -> None:
    """However wrong the approximate scores: the counts are of exact scores, in the own language and in all, and
    the best k are those of a sort by exact score and column, the relevant ones left out, -inf where there are fewer.
    """
    found, exact, own, every = scanned(case, k), case.exact, [], []
    for row, (values, relevant) in enumerate(zip(exact, case.relevant, strict=True)):
        others = [n for n in range(len(values)) if n not in relevant]
        for column in relevant:
            home = np.searchsorted(case.starts, column, side="right") - 1
            above = [n for n in others if values[n] >= values[column]]
            every.append(len(above))
            own.append(sum(case.starts[home] <= n < case.starts[home + 1] for n in above))
        order = sorted(others, key=lambda n: (-values[n], n))[:k]
        best = sorted(zip(-found.scores[row], found.best[row].tolist(), strict=True))
        assert [column for _, column in best[: len(order)]] == order
        assert [-score for score, _ in best] == [*values[order], *[-np.inf] * (k - len(order))]
    assert found[:3] == (True, own, every)


def test_each_pair_is_scored_once_and_never_beyond_the_limit() -> None:
    """100 tied candidates, 5 of them relevant, need 95 exact scores for all counts and the best: 94 are too few."""
    approximate = np.full((1, 100), 3.0, dtype=np.float32)
    case = Scored(
        np.ones((1, 3)), np.ones((100, 3)), np.array([0, 40, 100]), [[1, 2, 3, 50, 60]], approximate, np.array([1e-3])
    )
    found = scanned(case, k=2, limit=95)
    assert found[:3] == (True, [37, 37, 37, 58, 58], [95] * 5)
    assert sorted(found.best[0]) == [0, 4]
    assert not scanned(case, k=2, limit=94).finished


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("dim", [1, 7, 8, 9, 15, 127, 128, 129, 136, 255, 384, 768, 1000, 1024, 4096])
def test_scores_are_summed_in_the_order_of_numpy(dim: int, dtype: str) -> None:
    """Bit for bit the sum that NumPy makes of the products, an independent program with the same fixed order."""
    rng = np.random.default_rng(dim)
    queries = rng.standard_normal((4, dim)) * 10.0 ** rng.integers(-6, 7, dim)
    vectors = (rng.standard_normal((5, dim)) * 10.0 ** rng.integers(-6, 7, dim)).astype(dtype)
    rows, columns = np.divmod(np.arange(20), 5)
    expected = [(queries[row] * vectors[column]).sum() for row, column in zip(rows, columns, strict=True)]
    assert pair_scores(queries, vectors, summation_order(dim), rows, columns).tolist() == expected


def test_spread_ranks() -> None:
    """Sorted keys, a column in their lowest bits, become ranks at these columns; equal keys share the mean rank."""
    values = [[-2.0, 1.0, 1.0, 5.0], [0.5, 0.5, 0.5, 0.5], [1.0, 2.0, 3.0, 4.0]]
    columns = [[2, 0, 3, 1], [0, 1, 2, 3], [3, 2, 1, 0]]
    keys = np.array(values).view(np.int64) | np.array(columns)
    ranks = np.empty((3, 4), dtype=np.float32)
    spread_ranks(keys, 29, ranks)
    assert ranks.tolist() == [[2.5, 4.0, 1.0, 2.5], [2.5] * 4, [4.0, 3.0, 2.0, 1.0]]


def test_without_a_folder_for_machine_code(tmp_path: Path) -> None:
    """Where neither the package's folder nor the user's can be written, the loops are compiled in memory."""
    shutil.copy(counting.__file__, tmp_path / "counting.py")
    (tmp_path / "__pycache__").write_text("a file where a folder is wanted", encoding="utf-8")
    program = (
        "import numpy, counting\n"
        "first, second = numpy.array([0]), numpy.array([1])\n"
        "one = numpy.ones((1, 3)), numpy.ones((2, 3)), counting.summation_order(3), first, second\n"
        "print(counting.pair_scores(*one), counting.pair_scores.stats.cache_path)\n"
    )
    nowhere = {"XDG_CACHE_HOME": str(tmp_path / "__pycache__"), "NUMBA_CACHE_DIR": ""}
    done = subprocess.run(
        [sys.executable, "-B", "-W", "error", "-c", program],
        cwd=tmp_path, env=os.environ | nowhere, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.stdout == "[3.] None\n", done.stderr
