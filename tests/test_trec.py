"""TREC files: what pytrec_eval makes of them is what the rankings say, with ties and in 32 bits too."""

import numpy as np
import pytest
import pytrec_eval
from hypothesis import example, given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from hbt_ray.errors import BenchmarkError
from hbt_ray.evaluation.trec import falling_scores, qrels_writer, run_writer, write_qrels, write_run

SCORES = st.floats(-2, 2) | st.sampled_from([0.0, -0.0, 0.5, 1.0, 1.0 + 2**-40, 1.0 - 2**-40, 1e-300, -1e-40])


def evaluate(run, qrels, measures):
    """What pytrec_eval reads from the two files, per query."""
    with run.open() as run_lines, qrels.open() as qrels_lines:
        evaluator = pytrec_eval.RelevanceEvaluator(pytrec_eval.parse_qrel(qrels_lines), measures)
        return evaluator.evaluate(pytrec_eval.parse_run(run_lines))


def ranked(scores, relevant):
    """Columns by score, among equals the non-relevant before the relevant, then by column; and their scores."""
    order = np.lexsort((np.arange(len(scores)), relevant, -scores))
    return order, scores[order]


@given(arrays(np.float64, st.integers(1, 30), elements=SCORES))
@example(np.zeros(30))
@example(np.full(30, -1.0))
def test_pytrec_eval_reads_our_order(tmp_path_factory, scores):
    """The reciprocal rank of each candidate, alone relevant, is that of its place: ids are against us in ties."""
    folder = tmp_path_factory.mktemp("trec")
    order, falling = ranked(scores, np.zeros(len(scores), dtype=bool))
    # Ascending along the ranking: trec_eval, which puts the higher id first, would turn every tie round.
    ids = [f"d{place:03d}" for place in range(len(order))]
    queries = [f"q{place}" for place in range(len(order))]
    write_run(folder / "run", queries, [ids] * len(ids), np.tile(falling, (len(ids), 1)), "tag")
    write_qrels(folder / "qrels", queries, [[one] for one in ids], [[1]] * len(ids))
    measured = evaluate(folder / "run", folder / "qrels", {"recip_rank"})
    assert [measured[query]["recip_rank"] for query in queries] == pytest.approx(1 / np.arange(1, len(ids) + 1))


def test_pytrec_eval_gives_our_measures_with_ties(tmp_path):
    """mAP, recall, nDCG and MRR of graded runs full of ties equal those worked out from the pessimistic order."""
    generator = np.random.default_rng(0)
    queries, candidates, relevant_count = 40, 200, 6
    names = generator.permutation([f"d{i:04d}" for i in range(candidates)])
    rows, sorted_scores, judged, grades, truth = [], [], [], [], []
    for _ in range(queries):
        scores = generator.integers(0, 12, candidates) / 12  # about 17 candidates share each score
        grade = np.zeros(candidates, dtype=int)
        grade[generator.choice(candidates, relevant_count, replace=False)] = generator.integers(1, 4, relevant_count)
        order, falling = ranked(scores, grade > 0)
        rows.append(list(names[order]))
        sorted_scores.append(falling)
        judged.append(list(names[grade > 0]))
        grades.append(list(grade[grade > 0]))
        truth.append(by_hand(grade[order]))
    ids = [f"q{i}" for i in range(queries)]
    write_run(tmp_path / "run", ids, rows, np.array(sorted_scores), "ours")
    write_qrels(tmp_path / "qrels", ids, judged, grades)
    measured = evaluate(tmp_path / "run", tmp_path / "qrels", {"map", "recall.10,100", "ndcg_cut.10", "recip_rank"})
    for query, expected in zip(ids, truth, strict=True):
        assert {name: measured[query][name] for name in expected} == pytest.approx(expected, abs=1e-9)


def by_hand(grades):
    """Measures of one ranking from the grades along it."""
    ranks = np.flatnonzero(grades) + 1
    discount = 1 / np.log2(np.arange(2, 12))
    ideal = np.sort(grades)[::-1][:10]
    return {
        "map": float(np.mean(np.arange(1, len(ranks) + 1) / ranks)),
        "recall_10": float(np.mean(ranks <= 10)),
        "recall_100": float(np.mean(ranks <= 100)),
        "ndcg_cut_10": float(grades[:10] @ discount / (ideal @ discount)),
        "recip_rank": 1 / ranks[0],
    }


@given(arrays(np.float64, st.tuples(st.integers(1, 3), st.integers(1, 40)), elements=SCORES))
def test_written_scores_fall_strictly_and_stay_near(scores):
    """In float32 each score is below the one before it, by no more than the ties above it call for."""
    rows = -np.sort(-scores, axis=1)
    falling = falling_scores(rows)
    assert falling.dtype == np.float32
    assert (np.diff(falling.astype(np.float64), axis=1) < 0).all()
    step = np.spacing(np.float32(2))  # the widest distance between neighbours up to 4
    assert (np.abs(falling - rows) <= step * rows.shape[1]).all()


def test_scores_apart_are_written_as_they_are(tmp_path):
    """Where no two scores meet in 32 bits, the file has them to nine digits, in the format of trec_eval."""
    write_run(tmp_path / "run", ["q"], [["b", "a"]], [[0.75, -0.125]], "tag")
    write_qrels(tmp_path / "qrels", ["q"], [["b", "c"]], [[1, 3]])
    assert (tmp_path / "run").read_text() == "q Q0 b 1 0.75 tag\nq Q0 a 2 -0.125 tag\n"
    assert (tmp_path / "qrels").read_text() == "q 0 b 1\nq 0 c 3\n"


def test_blocks_give_the_file_of_one_call(tmp_path):
    """Queries written a block at a time, of different depths even, make the same file."""
    scores = -np.arange(12.0).reshape(4, 3)
    ids, rows = ["q0", "q1", "q2", "q3"], [["a", "b", "c"]] * 4
    whole = write_run(tmp_path / "whole", ids, rows, scores, "t").read_bytes()
    with run_writer(tmp_path / "blocks", "t") as write, qrels_writer(tmp_path / "qrels") as write_relevant:
        write(ids[:1], rows[:1], scores[:1])
        assert not (tmp_path / "blocks").exists(), "an unfinished file has no name yet"
        write(ids[1:], rows[1:], scores[1:])
        write_relevant(ids[:1], [["a"]], [[1]])
    assert (tmp_path / "blocks").read_bytes() == whole


def test_an_error_leaves_no_file(tmp_path):
    """A run that breaks off leaves the file of before, and nothing beside it."""
    write_run(tmp_path / "run", ["q"], [["a"]], [[1.0]], "t")
    before = (tmp_path / "run").read_bytes()
    with pytest.raises(BenchmarkError, match="'p' twice"):
        write_run(tmp_path / "run", ["p", "p"], [["a"], ["a"]], [[1.0], [1.0]], "t")
    assert [path.name for path in tmp_path.iterdir()] == ["run"]
    assert (tmp_path / "run").read_bytes() == before


@pytest.mark.parametrize(
    ("queries", "candidates", "scores", "tag", "message"),
    [
        (["q 1"], [["a"]], [[1.0]], "t", r"query: got 'q 1'; expected an id without whitespace"),
        ([""], [["a"]], [[1.0]], "t", r"query: got ''"),
        (["q"], [["a", "b\u00a0c"]], [[1.0, 0.5]], "t", r"candidate of query 'q': got 'b\\xa0c'"),
        (["q"], [["a"]], [[1.0]], "two words", r"tag: got 'two words'"),
        (["q", "q"], [["a"], ["a"]], [[1.0], [1.0]], "t", r"got 'q' twice"),
        (["q"], [["a", "b", "a"]], [[3, 2, 1]], "t", r"candidates of query 'q': got 'a' twice"),
        (["q"], [["a", "b"]], [[0.1, 0.2]], "t", r"query 'q', place 2: got a score that is rising"),
        (["q"], [["a", "b"]], [[0.1, np.nan]], "t", r"query 'q', place 2: got a score that is not finite"),
        (["q"], [["a", "b"]], [[0.1]], "t", r"scores: got shape \(1, 1\); expected \(1, 2\)"),
    ],
)
def test_what_the_format_cannot_hold_is_refused(tmp_path, queries, candidates, scores, tag, message):
    """Whitespace, repeated ids and scores out of order are errors that name the id, never a broken file."""
    with pytest.raises(BenchmarkError, match=message):
        write_run(tmp_path / "run", queries, candidates, scores, tag)
    assert list(tmp_path.iterdir()) == []


def test_whitespace_in_qrels_is_refused(tmp_path):
    """Relevance files have the same rule."""
    with pytest.raises(BenchmarkError, match=r"candidate of query 'q': got 'a\\tb'"):
        write_qrels(tmp_path / "qrels", ["q"], [["a\tb"]], [[1]])
