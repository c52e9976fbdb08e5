"""The gate before the champion: is a challenger significantly not worse, in retrieval and in language bias?

The rule is a non-inferiority test with a ratchet. For each measure of CRITERIA, from the 95% interval of the paired
difference between challenger and champion, clustered by question (docs/significance.md):

    better       the whole interval is a gain
    not worse    the interval holds zero, and the loss at its bad end is no more than the margin
    worse        the whole interval is a loss, however small: margins of many promotions must not add up
    undecided    the interval holds zero, and losses beyond the margin: too few questions to tell

Every measure must come out better or not worse. Both claims are needed at once, so neither is corrected for the other
(intersection-union test, Berger 1982).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from hbt_ray.errors import BenchmarkError, ConfigError
from hbt_ray.evaluation.comparison import FEW_CLUSTERS

DEFAULT_MARGIN = 0.05  # of the champion's value
BETTER, NOT_WORSE, WORSE, UNDECIDED = "better", "not worse", "worse", "undecided"


class Criterion(NamedTuple):
    """A measure that must not get worse.

    Args:
        section: of `comparison.compare`'s result: a setting, or `language_bias`.
        measure: in it.
        higher_is_better: which way it points.
    """

    section: str
    measure: str
    higher_is_better: bool


CRITERIA = (Criterion("multilingual", "mAP", True), Criterion("language_bias", "rank_distance", False))


class Judgement(NamedTuple):
    """One criterion applied.

    Args:
        measure: its name, with the setting.
        champion: the champion's value.
        challenger: the challenger's.
        difference: challenger - champion.
        low: lower end of the 95% interval of the difference.
        high: upper end.
        p_value: two-sided, of the randomisation test; for the record, the interval decides.
        clusters: questions.
        margin: the largest loss that counts as none, in the measure's unit.
        verdict: BETTER, NOT_WORSE, WORSE or UNDECIDED.
    """

    measure: str
    champion: float
    challenger: float
    difference: float
    low: float
    high: float
    p_value: float
    clusters: int
    margin: float
    verdict: str

    @property
    def passes(self) -> bool:
        """Whether the challenger may take the champion's place as far as this measure goes."""
        return self.verdict in (BETTER, NOT_WORSE)

    def __str__(self) -> str:
        return (
            f"{self.measure} {self.verdict}: {self.champion:.4f} -> {self.challenger:.4f}, "
            f"difference {self.difference:+.4f} (95% {self.low:+.4f} to {self.high:+.4f}, margin {self.margin:.4f}, "
            f"{self.clusters} questions)"
        )


def judge(comparison: Mapping[str, Any], margin: float = DEFAULT_MARGIN) -> list[Judgement]:
    """Apply CRITERIA to what `compare([champion, challenger])` returns.

    Args:
        comparison: the champion is its baseline.
        margin: the largest loss that counts as none, as a share of the champion's value.

    Raises:
        ConfigError: a margin below 0, or of 1 and more.
        BenchmarkError: a benchmark that does not define a measure, or has too few questions for an interval.
    """
    check_margin(margin)
    sections = {**comparison["settings"], "language_bias": comparison["language_bias"]}
    rows = _defined(comparison["benchmark"], sections)
    clusters = min(row["clusters"] for row in rows.values())
    if clusters < FEW_CLUSTERS:
        raise BenchmarkError(
            f"benchmark {comparison['benchmark']}",
            f"{clusters} questions",
            f"at least {FEW_CLUSTERS}, for intervals to go by",
            "Evaluate champion and challenger on a larger benchmark.",
        )
    return [_judgement(criterion, row, margin) for criterion, row in rows.items()]


def figures(metrics: Mapping[str, Any]) -> dict[str, float]:
    """What the gate goes by, by name, from the metrics.json of one evaluation. Raises BenchmarkError."""
    return {_name(criterion): value for criterion, value in _defined(metrics["benchmark"], metrics).items()}


def check_margin(margin: float) -> None:
    """Raise ConfigError for what is no margin."""
    if not 0 <= margin < 1:
        raise ConfigError("--margin", margin, "a share of the champion's value, from 0 to below 1", "Take 0.05.")


def _defined(benchmark: str, sections: Mapping[str, Any]) -> dict[Criterion, Any]:
    """What stands in the sections under the measure of each criterion. Raises BenchmarkError where nothing does."""
    found = {criterion: (sections[criterion.section] or {}).get(criterion.measure) for criterion in CRITERIA}
    undefined = [_name(criterion) for criterion, value in found.items() if value is None]
    if undefined:
        raise BenchmarkError(
            f"benchmark {benchmark}",
            f"no {' and no '.join(undefined)}",
            "both, from a merged pool of several languages ranked at full depth",
            "Evaluate champion and challenger on a benchmark such as xquad-r, with --ranking scores.",
        )
    return found


def _judgement(criterion: Criterion, row: Mapping[str, Any], share: float) -> Judgement:
    margin = share * abs(row["baseline"])
    return Judgement(
        measure=_name(criterion),
        champion=row["baseline"],
        challenger=row["system"],
        difference=row["difference"],
        low=row["low"],
        high=row["high"],
        p_value=row["p_value"],
        clusters=row["clusters"],
        margin=margin,
        verdict=_verdict(criterion, row["low"], row["high"], margin),
    )


def _verdict(criterion: Criterion, low: float, high: float, margin: float) -> str:
    worst, best = (low, high) if criterion.higher_is_better else (-high, -low)  # ends of the gain's interval
    if worst > 0:
        return BETTER
    if best < 0:
        return WORSE
    return NOT_WORSE if worst >= -margin else UNDECIDED


def _name(criterion: Criterion) -> str:
    return f"{criterion.section.replace('_', ' ')} {criterion.measure.replace('_', ' ')}"
