from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from hashlib import sha256
from itertools import permutations
from math import sqrt
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from scipy.stats import chisquare  # type: ignore[import-untyped]

from hbt_ray.config import AlphaSchedule, MixSection
from hbt_ray.errors import ConfigError
from hbt_ray.mixing import plan as plan_module
from hbt_ray.mixing.plan import BatchPlan, BatchSpec, DatasetRows

LANGUAGES = ("en", "de", "sw", "th")
BoolArray = npt.NDArray[np.bool_]
GOLDEN = "8b918afd4dcce86e08992feda452b9e915b162d07dac11251d7a1ca411c629e8"


@dataclass(frozen=True)
class Presence:
    """Which cells a dataset has, unpacked: the independent truth that plans are held against.

    `query` and `passage` are bool [languages, rows]; `kept` is bool [rows], None for all rows.
    """

    name: str
    query: BoolArray
    passage: BoolArray
    group_starts: tuple[int, ...]
    kept: BoolArray | None = None

    def packed(self) -> DatasetRows:
        return DatasetRows(
            self.name,
            np.packbits(self.query, axis=1),
            np.packbits(self.passage, axis=1),
            np.packbits(self.keeps()),
            np.array(self.group_starts, dtype=np.int64),
        )

    def keeps(self) -> BoolArray:
        return np.ones(self.query.shape[1], dtype=bool) if self.kept is None else self.kept

    def pairs(self, row: int, mode: str) -> set[tuple[int, int]]:
        """The (query, passage) languages in which a mode can use a row."""
        codes = range(len(self.query))
        return {
            (q, p)
            for q in codes
            for p in codes
            if self.keeps()[row] and self.query[q, row] and self.passage[p, row] and (q != p) == (mode == "X-Y")
        }

    def usable(self, mode: str, pair: tuple[int, int] | None) -> set[int]:
        """The rows that a stream should visit; `pair` is what it fixes."""
        found = {row: self.pairs(row, mode) for row in range(self.query.shape[1])}
        return {row for row, pairs in found.items() if (pair in pairs if pair else pairs)}


def complete(name: str, rows: int, languages: Iterable[int] = range(4), group: int = 8) -> Presence:
    """A dataset that has every cell of some of the four languages."""
    present = np.zeros((len(LANGUAGES), rows), dtype=bool)
    present[list(languages)] = True
    return Presence(name, present, present.copy(), (*range(0, rows, group), rows))


def make_plan(
    datasets: Sequence[Presence], batch_size: int = 8, seed: int = 13, leave_out: bool = False, **mix: Any
) -> BatchPlan:
    languages = LANGUAGES[: len(datasets[0].query)]
    return BatchPlan(
        [dataset.packed() for dataset in datasets],
        languages,
        MixSection.model_validate(mix),
        batch_size,
        seed,
        small_streams="leave out" if leave_out else "refuse",
    )


def content(spec: BatchSpec) -> tuple[object, ...]:
    codes = (spec.query_language.tolist(), spec.passage_language.tolist())
    return spec.step, spec.dataset, spec.mode, spec.rows.tolist(), *codes


def pairs_of(spec: BatchSpec) -> list[tuple[int, int]]:
    return list(zip(spec.query_language.tolist(), spec.passage_language.tolist(), strict=True))


def fixed_pair(spec: BatchSpec, pair_scope: str) -> tuple[int, int] | None:
    """The languages that the stream of a batch fixes, None if it draws them for every pair."""
    return pairs_of(spec)[0] if spec.mode == "X-X-mono" or (spec.mode == "X-Y" and pair_scope == "batch") else None


def likely(observed: Counter[Any], expected: dict[Any, float]) -> bool:
    """Whether counts agree with probabilities; a right plan fails this for one seed in ten thousand."""
    assert set(observed) <= set(expected)
    counts = np.array([observed[key] for key in expected], dtype=float)
    probabilities = np.array(list(expected.values()))
    return bool(chisquare(counts, counts.sum() * probabilities / probabilities.sum()).pvalue > 1e-4)


def group_bounds(draw: st.DrawFn, rows: int) -> tuple[int, ...]:
    inner = draw(st.sets(st.integers(1, rows - 1), max_size=12)) if rows > 1 else set()
    return (0, *sorted(inner), rows)


@st.composite
def random_datasets(draw: st.DrawFn) -> list[Presence]:
    """One to three datasets with random cells, question-only and passage-only ones among them."""
    languages = draw(st.integers(1, 4))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    result = []
    for number in range(draw(st.integers(1, 3))):
        rows = draw(st.integers(1, 70))
        density = draw(st.sampled_from([0.1, 0.5, 0.9, 1.0]))
        query, passage = rng.random((2, languages, rows)) < density
        kept = rng.random(rows) < draw(st.sampled_from([0.6, 1.0]))
        result.append(Presence(f"d{number}", query, passage, group_bounds(draw, rows), kept))
    return result


MIXES = st.fixed_dictionaries(
    {
        "alpha": st.sampled_from([0.0, 0.3, 0.5, 1.0]),
        "mixed": st.sampled_from(["X-Y", "X-X"]),
        "pair_scope": st.sampled_from(["pair", "batch"]),
        "size_exponent": st.sampled_from([0.0, 0.5, 1.0]),
    }
)


# --- every batch ---------------------------------------------------------------------------------------------------


@settings(max_examples=120, deadline=None)
@given(random_datasets(), MIXES, st.integers(1, 9), st.integers(0, 2**40))
def test_every_batch_keeps_the_rules(datasets: list[Presence], mix: dict[str, Any], batch_size: int, seed: int) -> None:
    """Whatever cells exist: a batch has one mode and dataset, only present cells, and the languages its mode allows."""
    try:
        plan = make_plan(datasets, batch_size, seed, leave_out=True, **mix)
    except ConfigError:
        assume(False)
    by_name = {dataset.name: dataset for dataset in datasets}
    modes = {0.0: {mix["mixed"]}, 1.0: {"X-X-mono"}}.get(mix["alpha"], {"X-X-mono", mix["mixed"]})
    for spec in plan.steps(0, 40):
        dataset = by_name[spec.dataset]
        assert spec.mode in modes
        assert [str(a.dtype) for a in (spec.rows, spec.query_language, spec.passage_language)] == [
            "int64",
            "int8",
            "int8",
        ]
        assert len(spec.rows) == len(spec.query_language) == len(spec.passage_language) == batch_size
        assert dataset.keeps()[spec.rows].all()
        assert dataset.query[spec.query_language, spec.rows].all()
        assert dataset.passage[spec.passage_language, spec.rows].all()
        same = spec.query_language == spec.passage_language
        assert not same.any() if spec.mode == "X-Y" else same.all()
        if spec.mode == "X-X-mono" or (spec.mode == "X-Y" and mix["pair_scope"] == "batch"):
            assert len(set(pairs_of(spec))) == 1


@settings(max_examples=60, deadline=None)
@given(random_datasets(), MIXES, st.integers(1, 9), st.integers(0, 2**40), st.sampled_from([1, 2, 3, 2**16]))
def test_no_row_repeats_before_all_were_seen(
    datasets: list[Presence], mix: dict[str, Any], batch_size: int, seed: int, block: int
) -> None:
    """Each stream visits every usable row exactly once per epoch, across batches, row groups and blocks of any size."""
    walks: dict[tuple[str, str, tuple[int, int] | None], list[int]] = defaultdict(list)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(plan_module, "BLOCK", block)
        try:
            plan = make_plan(datasets, batch_size, seed, leave_out=True, **mix)
        except ConfigError:
            assume(False)
        for spec in plan.steps(0, 250):
            walks[spec.dataset, spec.mode, fixed_pair(spec, str(mix["pair_scope"]))] += spec.rows.tolist()
    by_name = {dataset.name: dataset for dataset in datasets}
    for (name, mode, pair), walk in walks.items():
        usable = by_name[name].usable(mode, pair)
        for start in range(0, len(walk), len(usable)):
            epoch = walk[start : start + len(usable)]
            assert len(set(epoch)) == len(epoch)
            assert set(epoch) == usable if len(epoch) == len(usable) else set(epoch) < usable


def test_several_epochs_in_several_orders() -> None:
    """A walk of many row groups of odd sizes covers each epoch exactly, in another order every time."""
    starts = tuple(np.cumsum([0, *([1, 7, 13, 2, 9] * 12)]).tolist())  # 60 row groups: four windows
    rows = starts[-1]
    present = np.ones((1, rows), dtype=bool)
    present[0, ::5] = False
    plan = make_plan([Presence("d", present, present, starts)], batch_size=11, alpha=1.0)
    usable = set(np.flatnonzero(present[0]).tolist())
    walk = np.concatenate([spec.rows for spec in plan.steps(0, 4 * len(usable) // 11)]).tolist()
    epochs = [walk[start : start + len(usable)] for start in range(0, 3 * len(usable), len(usable))]
    assert all(sorted(epoch) == sorted(usable) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 3
    assert all(epoch != sorted(epoch) for epoch in epochs)


def test_a_walk_stays_within_a_window_of_row_groups() -> None:
    """Consecutive rows come from WINDOW row groups at a time, other ones in each epoch, shuffled among these."""
    window, size = plan_module.WINDOW, 10
    plan = make_plan([complete("d", 5 * window * size, [0], group=size)], batch_size=size, alpha=1.0)
    rows = np.concatenate([spec.rows for spec in plan.steps(0, 10 * window)]).reshape(10, window * size)
    groups = rows // size
    windows = [frozenset(part.tolist()) for part in groups]
    assert [len(found) for found in windows] == [window] * 10
    assert len(set(windows)) == 10
    assert (np.diff(groups, axis=1) == 0).mean() < 0.2  # one in sixteen by chance


# --- purity --------------------------------------------------------------------------------------------------------

MIXED_DATASETS = [complete("a", 60), complete("b", 200, [0, 2]), complete("c", 90, [3])]


def test_a_plan_is_a_pure_function() -> None:
    """Any order of access, in the same or a fresh plan, gives the same batches."""
    in_order = [content(spec) for spec in make_plan(MIXED_DATASETS).steps(0, 200)]
    shuffled = np.random.default_rng(0).permutation(200).tolist()
    plan = make_plan(MIXED_DATASETS)
    again = {step: content(plan[step]) for step in [*shuffled, *shuffled]}
    assert [again[step] for step in range(200)] == in_order
    assert content(make_plan(MIXED_DATASETS)[150]) == in_order[150]


def test_the_seed_decides() -> None:
    """Another seed gives other draws, other rows and other languages."""
    one, two = (make_plan(MIXED_DATASETS, seed=seed) for seed in (1, 2))
    assert [spec.mode for spec in one.steps(0, 50)] != [spec.mode for spec in two.steps(0, 50)]
    one, two = (make_plan([complete("d", 60)], seed=seed, alpha=0.0) for seed in (1, 2))
    assert one[0].rows.tolist() != two[0].rows.tolist()
    assert pairs_of(one[0]) != pairs_of(two[0])


def test_tables_of_draws_differ(monkeypatch: pytest.MonkeyPatch) -> None:
    """The draws do not repeat from one table of draws to the next."""
    monkeypatch.setattr(plan_module, "CHUNK", 50)
    modes = [spec.mode for spec in make_plan(MIXED_DATASETS).steps(0, 150)]
    assert modes[:50] != modes[50:100] != modes[100:]


def test_steps_beyond_the_first_table_of_draws(monkeypatch: pytest.MonkeyPatch) -> None:
    """A step reached by a jump over many tables of draws equals the same step reached one by one."""
    monkeypatch.setattr(plan_module, "CHUNK", 16)
    in_order = [content(spec) for spec in make_plan(MIXED_DATASETS).steps(0, 400)]
    for step in (399, 16, 15, 17, 255, 256, 0):
        assert content(make_plan(MIXED_DATASETS)[step]) == in_order[step]
    jumping = make_plan(MIXED_DATASETS)
    assert [content(jumping[step]) for step in (399, 3, 160)] == [in_order[step] for step in (399, 3, 160)]


def test_walks_go_on_over_tables_of_draws(monkeypatch: pytest.MonkeyPatch) -> None:
    """Counting earlier draws over table borders leaves no gap in a walk and repeats nothing."""
    monkeypatch.setattr(plan_module, "CHUNK", 5)
    plan = make_plan([complete("d", 56, [0, 1])], batch_size=8, alpha=0.5)
    walks: dict[object, list[int]] = defaultdict(list)
    for spec in plan.steps(0, 80):
        walks[fixed_pair(spec, "pair")] += spec.rows.tolist()
    assert set(walks) == {None, (0, 0), (1, 1)}
    for walk in walks.values():
        assert len(walk) >= 112
        assert sorted(walk[:56]) == sorted(walk[56:112]) == list(range(56))


def test_negative_steps_do_not_count_from_the_end() -> None:
    """A plan is endless, so a negative step is an error."""
    with pytest.raises(IndexError, match="-1"):
        make_plan(MIXED_DATASETS)[-1]


@given(st.integers(1, 200), st.data())
def test_slices_of_the_ranks_are_the_global_batch(batch_size: int, data: st.DataObject) -> None:
    """Any number of ranks sees the same global batch: their slices in order are it, and no two differ by two pairs."""
    world_size = data.draw(st.integers(1, batch_size))
    rng = np.random.default_rng(batch_size)
    query, passage = rng.integers(0, 9, (2, batch_size), dtype=np.int8)
    spec = BatchSpec(7, "d", "X-Y", rng.permutation(10 * batch_size)[:batch_size], query, passage)
    parts = [spec.part(rank, world_size) for rank in range(world_size)]
    sizes = [len(part.rows) for part in parts]
    assert set(sizes) == {batch_size // world_size, -(-batch_size // world_size)}
    assert {(part.step, part.dataset, part.mode) for part in parts} == {(7, "d", "X-Y")}
    for name in ("rows", "query_language", "passage_language"):
        pieces = [getattr(part, name) for part in parts]
        assert [len(piece) for piece in pieces] == sizes
        joined = np.concatenate(pieces)
        assert joined.tolist() == getattr(spec, name).tolist()
        assert joined.dtype == getattr(spec, name).dtype


def test_more_ranks_than_pairs() -> None:
    """A rank without a single pair is a mistake in the configuration."""
    spec = make_plan(MIXED_DATASETS)[0]
    assert [len(spec.part(rank, 8).rows) for rank in range(8)] == [1] * 8
    with pytest.raises(ConfigError, match="each of the 9 workers") as info:
        spec.part(0, 9)
    assert info.value.where == "train.batch_size"


def test_golden_digest() -> None:
    """The first 50 batches are those of every earlier release: a run can be resumed, a result repeated.

    If this fails, either the plan was changed, and then old runs cannot be resumed, which the changelog has to
    say; or numpy gives other random numbers than before.
    """
    numbers = np.arange(90)
    holes = np.array([numbers % 3 != 0, numbers % 4 != 1, numbers >= 0, numbers % 7 != 2])
    gaps = Presence("gaps", holes, ~holes | (numbers % 2 == 0), (0, 11, 40, 41, 90))
    plan = make_plan([complete("full", 64), gaps], batch_size=8, seed=13, alpha=0.5, size_exponent=0.5)
    digest = sha256()
    for spec in plan.steps(0, 50):
        digest.update(repr(content(spec)).encode())
    assert digest.hexdigest() == GOLDEN


def nine_languages() -> list[Presence]:
    """Two datasets in nine languages with holes in every one; row groups that do not end on whole bytes."""
    result = []
    for number, (name, rows, size) in enumerate((("large", 9001, 61), ("small", 1403, 16))):
        row = np.arange(rows)
        query = np.array([row * (code + 3) % 11 > code // 2 for code in range(9)])
        passage = np.array([row * (code + 5) % 13 > (8 - code) // 2 + number for code in range(9)])
        result.append(Presence(name, query, passage, (*range(0, rows, size), rows)))
    return result


@pytest.mark.parametrize(
    ("mix", "expected"),
    [
        ({"alpha": 1.0}, "9862e3b6dc7411170daefef5e0aa8082a140a993d6a3228fc681122c94968ba8"),
        ({"alpha": 0.0}, "f2097ac497f7ba37dce1f768d9b1aee6b3dac0b6ae79759ffccb6e1be2c89bf5"),
        ({"alpha": 0.0, "mixed": "X-X"}, "f21a50f33b778e1fee5c8e006d4e2432f7a312b48c98c0418675576431962652"),
        (
            {"alpha": 0.0, "pair_scope": "batch", "size_exponent": 0.5},
            "09f5de66f100b1bdfd57d0a964a09091dfb2741d2749c891a60971726f0f2802",
        ),
        (
            {"alpha": {"points": [[0, 1.0], [150, 0.0]]}, "size_exponent": 0.0},
            "53cfc991adf40ae7092a76ab9d184b5b591cb1f67c231fba6ef412c7062b010e",
        ),
    ],
    ids=str,
)
def test_golden_digests_of_every_mix(mix: dict[str, Any], expected: str) -> None:
    """Every kind of mix draws what it drew before plans were worked out in blocks: many windows, epochs, far steps."""
    plan = BatchPlan(
        [dataset.packed() for dataset in nine_languages()],
        [f"l{code}" for code in range(9)],
        MixSection.model_validate(mix),
        batch_size=48,
        seed=7,
    )
    digest = sha256()
    for step in [*range(300), 70_000, 140_001]:
        digest.update(repr(content(plan[step])).encode())
    assert digest.hexdigest() == expected


@given(st.integers(2, 9), st.sampled_from(["X-Y", "X-X"]), st.integers(0, 2**32))
def test_language_pairs_are_counted_as_in_a_table(languages: int, mode: Any, seed: int) -> None:
    """The pair drawn is number floor(uniform · n) in the list of the row's pairs, by query, then passage language."""
    rng = np.random.default_rng(seed)
    query, passage = (rng.random((2, languages, 50)) < rng.random()).astype(np.int16)
    row = Presence("d", query.astype(bool), passage.astype(bool), (0, 50))
    tables = [sorted(row.pairs(i, mode)) for i in range(50)]
    usable = [i for i in range(50) if tables[i]]
    assume(usable)
    uniform = rng.random(len(usable))
    uniform[0] = np.nextafter(1, 0)
    asked, answered = plan_module._language_pairs(query[:, usable], passage[:, usable], mode, uniform)
    expected = [tables[i][int(u * len(tables[i]))] for i, u in zip(usable, uniform, strict=True)]
    assert list(zip(asked.tolist(), answered.tolist(), strict=True)) == expected


# --- what is drawn how often ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("alpha", [0.0, 0.1, 0.5, 0.9, 1.0])
def test_the_realised_alpha(alpha: float) -> None:
    """The share of X-X-mono batches is α within four standard deviations, and exact at 0 and 1."""
    steps = 3000
    mono = sum(spec.mode == "X-X-mono" for spec in make_plan([complete("d", 40)], alpha=alpha).steps(0, steps))
    assert abs(mono - alpha * steps) <= 4 * sqrt(steps * alpha * (1 - alpha))


def mono_share(plan: BatchPlan, start: int, stop: int) -> float:
    return sum(spec.mode == "X-X-mono" for spec in plan.steps(start, stop)) / (stop - start)


def test_a_linear_schedule() -> None:
    """α is constant before the first point and after the last, and linear between."""
    alpha = AlphaSchedule(points=((500, 1.0), (2500, 0.0)))
    plan = make_plan([complete("d", 40)], alpha=alpha)
    assert mono_share(plan, 0, 501) == 1.0
    assert mono_share(plan, 2500, 3000) == 0.0
    for start, expected in ((500, 0.875), (1000, 0.625), (1500, 0.375), (2000, 0.125)):
        assert mono_share(plan, start, start + 500) == pytest.approx(expected, abs=4 * sqrt(0.25 / 500))


def test_a_step_schedule() -> None:
    """A step schedule keeps each point's α until the next point, the first one's also before it."""
    plan = make_plan(
        [complete("d", 40)], alpha=AlphaSchedule(points=((50, 0.0), (100, 1.0), (150, 0.0)), interpolation="step")
    )
    assert [mono_share(plan, start, start + 50) for start in (0, 50, 100, 150, 200)] == [0, 0, 1, 0, 0]


@pytest.mark.parametrize("mix", [{"alpha": 1.0}, {"alpha": 0.0}, {"alpha": 0.0, "mixed": "X-X"}], ids=str)
@pytest.mark.parametrize("rho", [0.0, 0.5, 1.0])
def test_datasets_by_size(mix: dict[str, Any], rho: float) -> None:
    """A dataset is drawn with probability proportional to size^ρ, in every mode."""
    sizes = {"a": 40, "b": 160, "c": 360}
    plan = make_plan([complete(name, size) for name, size in sizes.items()], size_exponent=rho, **mix)
    drawn = Counter(spec.dataset for spec in plan.steps(0, 2500))
    assert likely(drawn, {name: size**rho for name, size in sizes.items()})


def test_size_is_what_the_mode_can_use() -> None:
    """A dataset counts with the rows that the mode can use, not with the rows it has."""
    large, small = complete("large", 400, [0, 1]), complete("small", 100, [0, 1])
    large.query[1, 40:] = False
    large.passage[1, 40:] = False  # 40 of 400 rows are left for X-Y and for German
    mixed = Counter(spec.dataset for spec in make_plan([large, small], alpha=0.0).steps(0, 2500))
    assert likely(mixed, {"large": 40, "small": 100})
    mono = Counter((spec.dataset, pairs_of(spec)[0]) for spec in make_plan([large, small], alpha=1.0).steps(0, 2500))
    english = {("large", (0, 0)): 0.5 * 0.8, ("small", (0, 0)): 0.5 * 0.2}
    german = {("large", (1, 1)): 0.5 * 40 / 140, ("small", (1, 1)): 0.5 * 100 / 140}
    assert likely(mono, english | german)


def test_the_size_of_a_dataset_does_not_depend_on_the_scope() -> None:
    """With one pair for a whole batch too, a dataset counts with all its X-Y rows, not with those of each pair."""
    halves, whole = complete("halves", 200), complete("whole", 200, [0, 1])
    for cells in (halves.query, halves.passage):
        cells[[0, 1], :100] = False  # en and de in one half of the rows, sw and th in the other
        cells[[2, 3], 100:] = False
    plan = make_plan([halves, whole], alpha=0.0, pair_scope="batch")
    drawn = Counter(spec.dataset for spec in plan.steps(0, 2500))
    assert likely(drawn, {"halves": 0.5, "whole": 0.5})


def test_languages_are_uniform() -> None:
    """X-X-mono draws languages uniformly, however few datasets and rows a language has."""
    datasets = [complete("a", 400, [0, 1]), complete("b", 80, [0, 1, 2]), complete("c", 16, [3])]
    drawn = Counter(LANGUAGES[spec.query_language[0]] for spec in make_plan(datasets, alpha=1.0).steps(0, 3000))
    assert likely(drawn, dict.fromkeys(LANGUAGES, 0.25))


@pytest.mark.parametrize("mode", ["X-Y", "X-X"])
def test_language_pairs_are_uniform_over_those_of_a_row(mode: str) -> None:
    """Each pair of a batch draws uniformly among the language pairs that its own row has, and no other."""
    query = np.zeros((4, 80), dtype=bool)
    passage = np.zeros((4, 80), dtype=bool)
    query[[0, 1, 2], :40] = True  # rows of one kind: questions in three languages, passages in two others or the same
    passage[[1, 2, 3], :40] = True
    query[:, 40:] = True  # rows of another kind: everything
    passage[:, 40:] = True
    dataset = Presence("d", query, passage, (0, 33, 80))
    kinds: dict[bool, Counter[Any]] = {True: Counter(), False: Counter()}
    for spec in make_plan([dataset], alpha=0.0, mixed=mode).steps(0, 1500):
        for row, pair in zip(spec.rows, pairs_of(spec), strict=True):
            kinds[bool(row < 40)][pair] += 1
    for first_kind, row in ((True, 0), (False, 40)):
        assert likely(kinds[first_kind], dict.fromkeys(dataset.pairs(row, mode), 1.0))


def test_one_language_pair_for_a_whole_batch() -> None:
    """With scope `batch` a batch has one ordered pair, uniform, and a dataset's weight ignores how many it has."""
    two, four = complete("two", 120, [0, 1]), complete("four", 240)
    plan = make_plan([two, four], alpha=0.0, pair_scope="batch")
    drawn: Counter[Any] = Counter()
    for spec in plan.steps(0, 4000):
        (pair,) = set(pairs_of(spec))
        drawn[spec.dataset, pair] += 1
    expected = {("two", pair): 1 / 3 / 2 for pair in permutations(range(2), 2)}
    expected |= {("four", pair): 2 / 3 / 12 for pair in permutations(range(4), 2)}
    assert likely(drawn, expected)


@pytest.mark.parametrize("pair_scope", ["pair", "batch"])
def test_a_dataset_of_one_language_is_monolingual_only(pair_scope: str) -> None:
    """A dataset of one language is drawn in X-X-mono batches and never in X-Y batches."""
    datasets = [complete("one", 800, [2]), complete("two", 80, [0, 1])]
    drawn = Counter(
        (spec.mode, spec.dataset) for spec in make_plan(datasets, alpha=0.5, pair_scope=pair_scope).steps(0, 400)
    )
    assert set(drawn) == {("X-X-mono", "one"), ("X-X-mono", "two"), ("X-Y", "two")}


# --- what cannot be planned ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("alpha", [0.99, AlphaSchedule(points=((0, 1.0), (10, 0.5)))], ids=str)
def test_one_language_has_no_cross_lingual_batches(alpha: object) -> None:
    """α below 1, now or later, with a single language is refused and the way out named."""
    datasets = [complete("a", 80, [0]), complete("b", 80, [1])]
    with pytest.raises(ConfigError, match="two languages or more") as info:
        make_plan(datasets, alpha=alpha)
    assert info.value.where == "mix.alpha"
    assert "mix.alpha: 1" in info.value.fix
    assert make_plan(datasets, alpha=1.0)[0].mode == "X-X-mono"


@pytest.mark.parametrize(
    ("mix", "names"),
    [
        ({"alpha": 1.0}, ["'small'", "X-X-mono batches, de", "at most 5"]),
        ({"alpha": 0.0}, ["'small'", "X-Y batches", "at most 5"]),
        ({"alpha": 0.0, "pair_scope": "batch"}, ["'small'", "X-Y batches, de-sw", "at most 5"]),
        ({"alpha": 0.0, "mixed": "X-X"}, ["'small'", "X-X batches", "at most 5"]),
    ],
    ids=str,
)
def test_a_batch_larger_than_a_stream(mix: dict[str, Any], names: list[str]) -> None:
    """A stream with fewer rows than a batch is refused by dataset, mode, language and its number of rows."""
    with pytest.raises(ConfigError) as info:
        make_plan([complete("large", 80), complete("small", 5, [1, 2])], **mix)
    assert info.value.where == "train.batch_size"
    assert all(name in str(info.value) for name in names)


def test_small_streams_can_be_left_out() -> None:
    """For validation a stream smaller than a batch is left out instead; the others are drawn as if it did not exist."""
    datasets = [complete("large", 80), complete("small", 7)]
    plan = make_plan(datasets, leave_out=True)
    assert {spec.dataset for spec in plan.steps(0, 200)} == {"large"}
    with pytest.raises(ConfigError, match=r"train\.batch_size"):
        make_plan(datasets[1:], leave_out=True, alpha=1.0)
    with pytest.raises(ConfigError, match="8 rows"):
        make_plan(datasets[1:], leave_out=True, alpha=0.0)
