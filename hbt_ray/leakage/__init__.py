"""Proof that training shards hold no evaluation data: questions, sentences and articles of a benchmark, searched for.

`check_leakage` searches a corpus and writes the report; docs/leakage.md says what counts as a finding.
"""

from hbt_ray.leakage.articles import read_titles
from hbt_ray.leakage.check import check_leakage
from hbt_ray.leakage.index import LeakageSettings
from hbt_ray.leakage.report import LeakageReport, read_report
from hbt_ray.leakage.search import find_leakage

__all__ = [
    "LeakageReport",
    "LeakageSettings",
    "check_leakage",
    "find_leakage",
    "read_report",
    "read_titles",
]
