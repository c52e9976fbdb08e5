"""The benchmarks by name."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from hbt_ray.errors import ConfigError
from hbt_ray.evaluation.benchmarks.beir import load_beir
from hbt_ray.evaluation.benchmarks.bitext import load_tatoeba
from hbt_ray.evaluation.benchmarks.collection import Benchmark
from hbt_ray.evaluation.benchmarks.lareqa import LAREQA_LANGUAGES, SENTENCE, load_published
from hbt_ray.evaluation.benchmarks.miracl import FULL, SLICE, load_miracl

BEIR, TATOEBA = "beir", "tatoeba"
BENCHMARKS = (*LAREQA_LANGUAGES, FULL, SLICE, BEIR, TATOEBA)

_DEFAULT_SPLIT = {FULL: "dev", SLICE: "dev", BEIR: "test"}  # the benchmarks that have splits


def load_benchmark(
    name: str,
    data: Path,
    languages: Sequence[str] | None = None,
    *,
    candidate_text: str = SENTENCE,
    split: str | None = None,
    scratch: Path | None = None,
) -> Benchmark:
    """The benchmark of a name in BENCHMARKS.

    Args:
        name: "xquad-r", "mlqa-r", "sample", "miracl", "miracl-slice", "beir" or "tatoeba".
        data: the folder with its files; for all but "beir" also the folder above.
        languages: the languages to load, by default all; for a BEIR folder that names none, its one language.
        candidate_text: "sentence" or, for benchmarks of sentences in paragraphs, "sentence+context".
        split: by default "dev" for MIRACL ("train", "dev+train") and "test" for BEIR (any that the folder has).
        scratch: folder for Arrow files that the corpora of MIRACL and BEIR are memory-mapped from; without it they stay
            in memory. Other processes that get such a benchmark map the same files, so they must see this folder.

    Raises:
        ConfigError: an unknown benchmark, language or split, or an option that the benchmark does not have.
        BenchmarkError: files that are missing or not what they should be.
    """
    if name not in BENCHMARKS:
        raise ConfigError("benchmark", repr(name), f"one of {', '.join(BENCHMARKS)}", "Choose one of these names.")
    if split is not None and name not in _DEFAULT_SPLIT:
        raise ConfigError("split", repr(split), f"no split: {name} has only one", "Leave the split out.")
    if name in LAREQA_LANGUAGES:
        return load_published(name, data, languages, candidate_text=candidate_text)
    if candidate_text != SENTENCE:
        raise ConfigError(
            "candidate_text",
            repr(candidate_text),
            f"{SENTENCE!r}: {name} has no sentences with a context",
            f"Leave it out, or choose one of {', '.join(LAREQA_LANGUAGES)}.",
        )
    if name == TATOEBA:
        return load_tatoeba(data, languages)
    split = split or _DEFAULT_SPLIT[name]
    if name == BEIR:
        return load_beir(data, languages, split=split, scratch=scratch)
    return load_miracl(data, languages, split=split, scratch=scratch, name=name)
