"""Reports of `hbt-ray data leakage`, kept beside the data they are about.

    <corpus or dataset>/leakage/<benchmark>.json              the report
    <corpus or dataset>/leakage/<benchmark>.findings.jsonl    all that was found, a line each

Training takes over what an evaluation needs of them. It reads the files as they are, so this room needs nothing of the
one that makes them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from hbt_ray.storage import Folder

REPORTS = "leakage"
ENDING, FINDINGS_ENDING = ".json", ".findings.jsonl"

Status = Literal["clean", "accepted", "leakage", "incomplete", "stale", "unreadable"]


class KeptReport(BaseModel):
    """What training notes of a report, in training.json.

    Args:
        report: its address.
        benchmark: name of the benchmark.
        benchmark_hash: of its data, as evaluation signs them; empty if the report cannot be read.
        status: the report's own, `stale` if it is not about these training data, or `unreadable`.
        reasons: why what was found is accepted, or why the report cannot be read.
        counts: texts and articles of the benchmark found in the data.
        not_comparable: why articles, or some, could not be compared; empty if all were.
    """

    model_config = ConfigDict(frozen=True)

    report: str
    benchmark: str
    benchmark_hash: str = ""
    status: Status
    reasons: tuple[str, ...] = ()
    counts: Mapping[Literal["text", "article"], int] = {}
    not_comparable: str = ""


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, strict=True)


class _Searched(_Part):
    name: str
    hash: str


class _Acceptance(_Part):
    reason: str


class _Report(_Part):
    """The part of a report that training needs."""

    benchmark: str
    benchmark_hash: str
    status: Literal["clean", "accepted", "leakage", "incomplete"]
    severity: dict[Literal["text", "article"], int]
    not_comparable: str
    datasets: list[_Searched]
    accepted: list[_Acceptance]


def kept_reports(folders: Sequence[Folder], hashes: Mapping[str, str]) -> list[KeptReport]:
    """The reports kept in some folders, as they stand to training on some datasets.

    A report that is about other datasets too covers training on these; one that lacks a dataset, or has another hash
    of it, is stale. A file that is no report is noted as such: a training does not fail over it.

    Args:
        folders: of the corpus and of its datasets; one named twice counts once.
        hashes: dataset -> `ShardedDataset.data_hash`.
    """
    return [_as_kept(*file, hashes) for folder in dict.fromkeys(folders) for file in _files(folder / REPORTS)]


def _files(folder: Folder) -> Iterator[tuple[str, str, bytes]]:
    """Address, name without ending and content."""
    for name in folder.entries():
        if name.endswith(ENDING):
            yield (folder / name).uri, name.removesuffix(ENDING), folder.read(name)


def _as_kept(address: str, name: str, content: bytes, hashes: Mapping[str, str]) -> KeptReport:
    try:
        report = _Report.model_validate_json(content)
    except ValidationError as error:
        reason = " ".join(str(error).split())
        return KeptReport(report=address, benchmark=name, status="unreadable", reasons=(reason,))
    searched = {dataset.name: dataset.hash for dataset in report.datasets}
    return KeptReport(
        report=address,
        benchmark=report.benchmark,
        benchmark_hash=report.benchmark_hash,
        status=report.status if hashes.items() <= searched.items() else "stale",
        reasons=tuple(acceptance.reason for acceptance in report.accepted),
        counts=report.severity,
        not_comparable=report.not_comparable,
    )
