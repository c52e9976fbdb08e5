"""Proof that training shards hold no evaluation data: questions, sentences and articles of a benchmark, searched for.

`check_leakage` searches a corpus and writes the report, `zero_shot` says what a training with such reports may claim;
docs/leakage.md says what counts as a finding.
"""

from hbt_ray.leakage.articles import read_titles
from hbt_ray.leakage.check import Checked, check_leakage, leakage_command
from hbt_ray.leakage.claim import ZeroShot, zero_shot
from hbt_ray.leakage.index import LeakageSettings
from hbt_ray.leakage.report import LeakageReport, read_report
from hbt_ray.leakage.search import find_leakage

__all__ = [
    "Checked",
    "LeakageReport",
    "LeakageSettings",
    "ZeroShot",
    "check_leakage",
    "find_leakage",
    "leakage_command",
    "read_report",
    "read_titles",
    "zero_shot",
]
