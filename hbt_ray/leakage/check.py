"""The search for leakage as a command runs it: from addresses to a report beside the corpus."""

from __future__ import annotations

import json
import shlex
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict
from pathlib import Path
from typing import NamedTuple
from urllib.parse import quote

from hbt_ray.corpus.leakage_reports import ENDING, FINDINGS_ENDING, REPORTS
from hbt_ray.corpus.shards import open_corpus
from hbt_ray.corpus.spill import local_disk, scratch_folder
from hbt_ray.evaluation.benchmarks import load_benchmark
from hbt_ray.leakage.articles import read_titles
from hbt_ray.leakage.index import LeakageSettings
from hbt_ray.leakage.report import Finding, LeakageReport, check_reasons
from hbt_ray.leakage.search import find_leakage
from hbt_ray.storage import Folder


class Checked(NamedTuple):
    """A report, and the addresses of its file and of that with all findings."""

    report: LeakageReport
    address: str
    findings: str


def check_leakage(
    corpus: str,
    benchmark: str,
    data: Path,
    out: Path | None = None,
    *,
    datasets: Sequence[str] | None = None,
    languages: Sequence[str] | None = None,
    split: str | None = None,
    accept: Sequence[str] = (),
    settings: LeakageSettings | None = None,
) -> Checked:
    """Search a corpus for a benchmark; keep the report and all findings in `<corpus>/leakage`, for training to find.

    Args:
        corpus: a corpus root or a dataset, local or `s3://`.
        benchmark: its name.
        data: the folder with its files.
        out: where the report is written too, with `<out>.findings.jsonl` beside it.
        datasets: names of the datasets to search; None for all.
        languages: of the benchmark; None for all.
        split: of the benchmark, where it has several.
        accept: reasons to accept what is found.
        settings: thresholds; None for the defaults.

    Raises:
        ConfigError: an unknown benchmark or language, a reason without a word.
        CorpusError, BenchmarkError: data that are missing or not what they should be.
        ResourceError: a corpus that cannot be written; that is tried before the search.
    """
    check_reasons(accept)
    searched = open_corpus(Folder(corpus), datasets)
    kept = Folder(corpus) / REPORTS
    kept.check_writable()
    with scratch_folder() as scratch:
        loaded = load_benchmark(benchmark, data, languages, split=split, scratch=scratch)
        titles = read_titles(benchmark, data, loaded.languages)
        name = _name(loaded.name, languages, split)
        findings = scratch / "findings" / f"{name}{FINDINGS_ENDING}"
        with _lines(findings) as write:
            report = find_leakage(searched, loaded, titles, settings, write).accept(accept)
        kept.upload(findings.parent)
        kept.write(f"{name}{ENDING}", report.to_json().encode())
        if out is not None:
            out.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(findings, out.with_suffix(FINDINGS_ENDING))
            report.write(out)
    return Checked(report, (kept / f"{name}{ENDING}").uri, (kept / findings.name).uri)


@contextmanager
def _lines(path: Path) -> Iterator[Callable[[Finding], None]]:
    """Writes findings to a file on local disk, a JSON object each. Raises ResourceError if the disk is full."""
    with local_disk(str(path)):
        path.parent.mkdir()
        file = path.open("w", encoding="utf-8")

    def write(finding: Finding) -> None:
        with local_disk(str(path)):
            file.write(json.dumps(asdict(finding), ensure_ascii=False) + "\n")

    try:
        yield write
        with local_disk(str(path)):
            file.flush()
    finally:
        with suppress(OSError):  # of a full disk, which another error has told of
            file.close()


def _name(benchmark: str, languages: Sequence[str] | None, split: str | None) -> str:
    """Of the report: a part of a benchmark does not replace the whole."""
    return quote(".".join([benchmark, *([split] if split else []), *sorted(languages or ())]), safe=" +")


def leakage_command(corpus: str, benchmark: str, data: Path, languages: Sequence[str] | None, split: str | None) -> str:
    """The command line that searches a corpus for a benchmark."""
    chosen = [word for lang in languages or () for word in ("--language", lang)]
    wanted = ["--split", split] if split else []
    command = ["hbt-ray", "data", "leakage", corpus, "--benchmark", benchmark, "--data", str(data)]
    return shlex.join([*command, *chosen, *wanted])
