"""The search for leakage as a command runs it: from addresses to a report beside the findings."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from tempfile import TemporaryDirectory

from hbt_ray.corpus.shards import open_corpus
from hbt_ray.evaluation.benchmarks import load_benchmark
from hbt_ray.leakage.articles import read_titles
from hbt_ray.leakage.index import LeakageSettings
from hbt_ray.leakage.report import Finding, LeakageReport
from hbt_ray.leakage.search import find_leakage
from hbt_ray.storage import Folder


def check_leakage(
    corpus: str,
    benchmark: str,
    data: Path,
    out: Path,
    *,
    datasets: Sequence[str] | None = None,
    languages: Sequence[str] | None = None,
    split: str | None = None,
    accept: Sequence[str] = (),
    settings: LeakageSettings | None = None,
) -> LeakageReport:
    """Search a corpus for a benchmark; write the report to `out` and all findings to `<out>.findings.jsonl` beside it.

    Args:
        corpus: a corpus root or a dataset, local or `s3://`.
        benchmark: its name.
        data: the folder with its files.
        out: the report, JSON.
        datasets: names of the datasets to search; None for all.
        languages: of the benchmark; None for all.
        split: of the benchmark, where it has several.
        accept: reasons to accept what is found.
        settings: thresholds; None for the defaults.

    Raises:
        ConfigError: an unknown benchmark or language.
        CorpusError, BenchmarkError: data that are missing or not what they should be.
    """
    searched = open_corpus(Folder(corpus), datasets)
    out.parent.mkdir(parents=True, exist_ok=True)
    findings = out.with_suffix(".findings.jsonl")
    unfinished = findings.with_name(f"{findings.name}.partial")
    with TemporaryDirectory(prefix="hbt-ray-leakage-") as scratch, unfinished.open("w", encoding="utf-8") as file:

        def write(finding: Finding) -> None:
            file.write(json.dumps(asdict(finding), ensure_ascii=False) + "\n")

        loaded = load_benchmark(benchmark, data, languages, split=split, scratch=Path(scratch))
        titles = read_titles(benchmark, data, loaded.languages)
        report = find_leakage(searched, loaded, titles, settings, write).accept(accept)
    unfinished.replace(findings)
    report.write(out)
    return report
