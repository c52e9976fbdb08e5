"""Whether a result may be called zero-shot: whether its benchmark is known not to be in the training data.

A search that was not made proves nothing, so without a report of exactly these data there is no claim.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from hbt_ray.corpus.leakage_reports import KeptReport
from hbt_ray.leakage.report import ACCEPTED, CLEAN, INCOMPLETE, LEAKAGE, counted

Training = Mapping[str, Any]  # content of training.json

_BY_WEIGHT = (CLEAN, ACCEPTED, LEAKAGE, INCOMPLETE, "stale")  # of several reports the first counts


@dataclass(frozen=True, slots=True)
class ZeroShot:
    """What metrics.json says of it.

    Args:
        claim: whether the result is called zero-shot.
        why: the line that reports show: the claim with what it rests on, or what it lacks.
        corpus: address of the training data to search, where a search is what the claim lacks.
    """

    claim: bool
    why: str
    corpus: str | None = None


def zero_shot(training: Training, benchmark: str, benchmark_hash: str) -> ZeroShot:
    """Judge the claim by what training.json says.

    Args:
        training: of the encoder; {} where it was not trained by hbt_ray.
        benchmark: name of the benchmark as it is searched for, without `+context`.
        benchmark_hash: of the same.

    Every training counts, also those that made the backbone. What a backbone from elsewhere saw is not known to
    anyone here, and the claim says so.
    """
    stages = list(_stages(training))
    if not all(stage.get("data_hashes") for stage in stages):
        whose = "this encoder" if not training.get("data_hashes") else "the backbone of this encoder"
        return _refusal(f"what {whose} was trained on is not known")
    if any(benchmark in [name.partition("+")[0] for name in stage["chosen_on"]] for stage in stages):
        return _refusal("the configuration was chosen on this benchmark")
    verdicts = [_verdict(stage, benchmark, benchmark_hash) for stage in stages]
    for stage, (holds, why) in zip(stages, verdicts, strict=True):
        if not holds:
            return _refusal(why, stage["corpus"])
    reasons = list(dict.fromkeys(why for _, why in verdicts))
    if stages[-1]["backbone"] != "scratch":
        reasons.append("what the backbone had seen before is not known")
    return ZeroShot(True, f"Zero-shot: {'; '.join(reasons)}.")


def _stages(training: Training) -> Iterator[Training]:
    """The training, the one of its backbone, and so on."""
    yield training
    if before := training.get("backbone_training"):
        yield from _stages(before)


def _refusal(why: str, corpus: str | None = None) -> ZeroShot:
    return ZeroShot(False, f"Not claimed zero-shot: {why}.", corpus)


def _verdict(stage: Training, benchmark: str, benchmark_hash: str) -> tuple[bool, str]:
    """Whether a training's data are known to be free of a benchmark, and why (not)."""
    reports = [KeptReport.model_validate(report) for report in stage["leakage"]]
    by_status = {report.status: report for report in reports if report.benchmark_hash == benchmark_hash}
    report = next((by_status[status] for status in _BY_WEIGHT if status in by_status), None)
    if report is None:
        return False, _missing([report for report in reports if report.benchmark == benchmark])
    if report.status == "stale":
        return False, "the leakage report for this benchmark is of other training data"
    if report.status == CLEAN:
        texts_only = f" (articles: not comparable, {report.not_comparable})" if report.not_comparable else ""
        what = "question or candidate" if report.not_comparable else "question, candidate or article"
        return True, f"no {what} of this benchmark was found in the training data{texts_only}"
    if report.status == INCOMPLETE:
        return False, f"articles: not comparable, {report.not_comparable}, and nobody has accepted that"
    found = f"{counted(report.counts['text'], 'text')} and {counted(report.counts['article'], 'article')}"
    found += f" (articles: not comparable, {report.not_comparable})" if report.not_comparable else ""
    if report.status == ACCEPTED:
        reasons = "; ".join(report.reasons)
        return True, f"of this benchmark the training data hold {found}, which is accepted: {reasons}"
    return False, f"of this benchmark the training data hold {found}, and nobody has accepted that"


def _missing(others: Sequence[KeptReport]) -> str:
    """Why none of the reports of this name is one for these evaluation data."""
    if any(report.status == "unreadable" for report in others):
        return "the leakage report for this benchmark cannot be read"
    if others:
        return "the leakage report for this benchmark is of other evaluation data or other languages"
    return "no leakage report of these training data for this benchmark; `hbt-ray data leakage` makes one"
