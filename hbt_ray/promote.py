"""Promotion: a challenger becomes the champion if the gate lets it, and the evidence stays with the version."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from hbt_ray import __version__
from hbt_ray.commands import output_root
from hbt_ray.errors import BenchmarkError, ConfigError
from hbt_ray.evaluation.comparison import compare
from hbt_ray.evaluation.gate import DEFAULT_MARGIN, Judgement, check_margin, figures, judge
from hbt_ray.tracking.promotion import StoredResults, download_results, move_champion, record_evidence, stored_results
from hbt_ray.tracking.registry import Registry, Version, champion_of, existing_store, find_version, open_registry

PROMOTED, REFUSED, UNCHANGED = "promoted", "refused", "unchanged"
REFUSED_CODE = 4  # exit code: no mistake in the input, and not what was asked for
TABLE_HEADER = ["measure", "champion", "challenger", "difference", "95% interval", "margin", "verdict"]
RUNS = "runs"  # the output folder whose store is meant where no server is named


@dataclass(frozen=True)
class Promotion:
    """How a promotion ended.

    Args:
        status: PROMOTED, REFUSED, or UNCHANGED where the version was the champion already.
        address: of the challenger.
        judgements: per measure; empty where nothing was compared.
        evidence: what was recorded, JSON values.
        reason: one sentence: why it was promoted, or was not.
    """

    status: str
    address: str
    judgements: list[Judgement]
    evidence: dict[str, Any]
    reason: str

    @property
    def exit_code(self) -> int:
        """Of the command."""
        return REFUSED_CODE if self.status == REFUSED else 0

    def table(self) -> list[list[object]]:
        """A row per measure, under TABLE_HEADER."""
        return [
            [
                judged.measure,
                f"{judged.champion:.4f}",
                f"{judged.challenger:.4f}",
                f"{judged.difference:+.4f}",
                f"{judged.low:+.4f} to {judged.high:+.4f}",
                f"{judged.margin:.4f}",
                judged.verdict,
            ]
            for judged in self.judgements
        ]

    def summary(self) -> dict[str, Any]:
        """The last line of `hbt-ray promote`."""
        return {"model": self.address, "status": self.status, "reason": self.reason, "evidence": self.evidence}


@dataclass(frozen=True)
class _Verdict:
    """What the gate says: whether the challenger passes, why, and what it went by."""

    passed: bool
    reason: str
    benchmark: str | None
    signatures: dict[str, str]
    judgements: list[Judgement]
    method: dict[str, Any]


def promote(
    name: str,
    version: int,
    *,
    benchmark: str | None = None,
    margin: float = DEFAULT_MARGIN,
    force: str | None = None,
    resamples: int = 10_000,
    seed: int = 0,
) -> Promotion:
    """Move the alias `champion` to a version that the gate finds significantly not worse, and record the evidence.

    Args:
        name: of the registered model.
        version: the challenger's number.
        benchmark: whose stored results to compare; None for the one that both have.
        margin: the largest loss that counts as none, as a share of the champion's value.
        force: why to promote whatever the gate says, for the record.
        resamples: of test and intervals.
        seed: of both.

    Raises:
        ConfigError: an empty reason, a margin that is none, too few resamples, several benchmarks to choose from.
        ModelError: no such model, version or store.
        BenchmarkError: results that are missing or cannot be compared, unless forced.
        ResourceError: a store that does not serve.
    """
    check_margin(margin)
    if force is not None and not force.strip():
        raise ConfigError("--force", repr(force), "the reason", "Say why, for the record.")
    registry = open_registry(existing_store(output_root(RUNS)))
    challenger = find_version(registry, name, version)
    champion = champion_of(registry, name)
    if champion == challenger:
        reason = f"{challenger.address} is the champion already"
        return Promotion(UNCHANGED, challenger.address, [], {}, reason)
    try:
        with TemporaryDirectory(prefix="hbt-ray-promote-") as scratch:
            verdict = _verdict(registry, challenger, champion, Path(scratch), benchmark, margin, resamples, seed)
    except BenchmarkError as error:
        if force is None:
            raise
        verdict = _Verdict(False, f"not compared: {error}", benchmark, {}, [], {})
    status = PROMOTED if verdict.passed or force is not None else REFUSED
    reason = verdict.reason if force is None else f"forced ({force}); the gate: {verdict.reason}"
    evidence = _evidence(challenger, champion, verdict, status, reason, force, margin)
    record_evidence(registry, challenger, evidence, _tags(evidence))
    if status == PROMOTED:
        move_champion(registry, challenger, champion)
    return Promotion(status, challenger.address, verdict.judgements, evidence, reason)


def _verdict(
    registry: Registry,
    challenger: Version,
    champion: Version | None,
    scratch: Path,
    benchmark: str | None,
    margin: float,
    resamples: int,
    seed: int,
) -> _Verdict:
    """Apply the gate to stored results. Raises BenchmarkError, ConfigError."""
    theirs = stored_results(registry, challenger, scratch / "challenger")
    if champion is None:
        return _first(challenger, theirs, benchmark)
    ours = stored_results(registry, champion, scratch / "champion")
    chosen = _common(challenger, theirs, champion, ours, benchmark)
    folders = [
        download_results(registry, version, results[chosen], scratch / side)
        for side, version, results in (("champion", champion, ours), ("challenger", challenger, theirs))
    ]
    try:
        comparison = compare(folders, resamples=resamples, seed=seed)
    except BenchmarkError as error:
        where = f"stored results of {champion.address} (the first) and {challenger.address} (the second)"
        raise BenchmarkError(where, error.received, error.expected, error.fix) from None
    judgements = judge(comparison, margin)
    signatures = {
        side: system["signature"]
        for side, system in zip(("champion", "challenger"), comparison["systems"], strict=True)
    }
    passed = all(judgement.passes for judgement in judgements)
    reason = f"on {chosen}, {'; '.join(map(str, judgements))}"
    return _Verdict(passed, reason, chosen, signatures, judgements, comparison["method"])


def _first(challenger: Version, theirs: dict[str, StoredResults], benchmark: str | None) -> _Verdict:
    """The first champion needs stored results, which the next challenger will be compared with, and nothing else."""
    chosen = benchmark or next(iter(theirs), None)
    if chosen is None or chosen not in theirs:
        raise _missing(challenger, theirs, benchmark)
    metrics = theirs[chosen].metrics
    values = ", ".join(f"{measure} {value:.4f}" for measure, value in figures(metrics).items())
    reason = f"the first champion, so not compared; on {chosen}: {values}"
    return _Verdict(True, reason, chosen, {"challenger": metrics["signature"]}, [], {})


def _common(
    challenger: Version,
    theirs: dict[str, StoredResults],
    champion: Version,
    ours: dict[str, StoredResults],
    benchmark: str | None,
) -> str:
    """The benchmark to compare on. Raises BenchmarkError, ConfigError."""
    for version, results in ((challenger, theirs), (champion, ours)):
        if not results or (benchmark and benchmark not in results):
            raise _missing(version, results, benchmark or next(iter({**theirs, **ours}), None))
    common = sorted(theirs.keys() & ours.keys())
    if benchmark:
        return benchmark
    if not common:
        raise BenchmarkError(
            f"{challenger.address} and {champion.address}",
            f"results on {', '.join(theirs)} and on {', '.join(ours)}",
            "results of both on one benchmark",
            f"Evaluate one of them: {_command(challenger, next(iter(ours)))}",
        )
    if len(common) > 1:
        raise ConfigError("--benchmark", "nothing", f"one of {', '.join(common)}", "Say which of them decides.")
    return common[0]


def _missing(version: Version, results: dict[str, StoredResults], benchmark: str | None) -> BenchmarkError:
    received = f"results on {', '.join(results)} only" if results else "no stored results of this very model"
    expected = f"results on {benchmark}" if benchmark else "results on a benchmark"
    return BenchmarkError(version.address, received, expected, f"Run: {_command(version, benchmark)}")


def _command(version: Version, benchmark: str | None) -> str:
    """The command that stores a version's results."""
    name, _, setting = (benchmark or "NAME").partition("+")
    name = "beir" if name.startswith("beir-") else name
    text = f" --candidate-text sentence+{setting}" if setting else ""
    out = f"results/{version.name}-{version.number}"
    return f"hbt-ray evaluate --model {version.address} --benchmark {name}{text} --data DIR --out {out}"


def _evidence(
    challenger: Version,
    champion: Version | None,
    verdict: _Verdict,
    status: str,
    reason: str,
    force: str | None,
    margin: float,
) -> dict[str, Any]:
    return {
        "date": datetime.now(UTC).isoformat(timespec="milliseconds"),
        "status": status,
        "reason": reason,
        "forced": force,
        "challenger": asdict(challenger),
        "champion_before": None if champion is None else asdict(champion),
        "benchmark": verdict.benchmark,
        "signatures": verdict.signatures,
        "margin": margin,
        "measures": [judgement._asdict() for judgement in verdict.judgements],
        "method": verdict.method,
        "hbt_ray": __version__,
    }


def _tags(evidence: dict[str, Any]) -> dict[str, str]:
    """What a person sees first beside the version."""
    before = evidence["champion_before"]
    return {
        "status": evidence["status"],
        "date": evidence["date"],
        "reason": evidence["reason"],
        "forced": evidence["forced"] or "no",
        "champion_before": "none" if before is None else str(before["number"]),
    }
