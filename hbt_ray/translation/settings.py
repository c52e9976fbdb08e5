"""What a translation is asked for: one YAML file or the command line's values, checked at the edge."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from hbt_ray.config import Count, Fraction, Languages
from hbt_ray.errors import ConfigError
from hbt_ray.languages import language
from hbt_ray.settings_file import Section, checked, parsed_setting, put, read_yaml

Texts = Literal["query", "passage", "negatives"]


class PieceSection(Section):
    """How long texts become pieces that a model translates one by one."""

    sentences: bool = True
    """Split at the ends of sentences; translation models are trained on sentences and drop some of what is longer."""
    max_characters: Annotated[int, Field(ge=20)] = 400
    """Longer sentences are split at a clause or a space; a character is at most a token, so this bounds tokens too."""
    characters_per_unit: Annotated[int, Field(ge=1)] = 262_144
    """About how much is translated between two files of results; what a kill can lose per actor."""


class GenerationSection(Section):
    """How the model writes; there is no sampling."""

    beams: Count = 4
    """1 = greedy."""
    tokens_per_token: Annotated[float, Field(gt=0.0)] = 2.0
    """Longest translation of a batch in tokens per token of its longest text, and 16 more."""
    batch_tokens: Count | None = None
    """Tokens of a batch, padding and beams included; null = 4,096 on CPU, 65,536 on GPU."""
    precision: Literal["fp32", "bf16"] | None = None
    """null = bf16 on GPU, fp32 on CPU."""


class GateSection(Section):
    """When a translation counts as a missing cell; null turns a gate off. Lengths are in characters."""

    cut_off: bool = True
    """Reject what reached the limit of tokens without an end."""
    script: Fraction | None = 0.3
    """Least share of letters in the target language's script, where the source's is another one."""
    language: Fraction | None = 0.99
    """Reject what is in another language with at least this probability ..."""
    language_letters: Count = 60
    """... if it has so many letters (an ideograph counts for three); names mislead in shorter texts."""
    length_ratio: Annotated[float, Field(gt=1.0)] | None = 3.0
    """Largest factor between the lengths of translation and source, after the script's characters per letter."""
    length_slack: Annotated[int, Field(ge=0)] = 20
    """Letters added to both lengths, so that short texts may differ more."""
    repetition: Annotated[int, Field(ge=2)] | None = 4
    """Reject a run of words or characters that stands so often in a row, unless the source has one too."""
    copied_letters: Annotated[int, Field(ge=1)] | None = 24
    """Reject a translation that repeats its source of at least so many letters."""
    numbers: Fraction | None = 0.5
    """Least share of the source's numbers (of two digits or more) that the translation has."""
    answers: bool = True
    """Reject a passage that has neither an answer's translation nor the answer itself, where answers are given."""
    embedding: Annotated[float, Field(ge=-1.0, le=1.0)] | None = None
    """Least cosine of source and translation in `encoder`."""
    encoder: str | None = None
    """Model folder for `embedding`, on all nodes."""
    round_trip: Fraction | None = None
    """Least chrF of the source and its translation there and back."""

    @model_validator(mode="after")
    def _embedding_has_an_encoder(self) -> GateSection:
        if (self.embedding is None) != (self.encoder is None):
            there, missing = ("embedding", "encoder") if self.encoder is None else ("encoder", "embedding")
            raise ConfigError(missing, "nothing", f"a value, as {there} is given", f"Add gates.{missing}.")
        return self


class TranslationSettings(Section):
    """Everything a translation depends on."""

    corpus: Annotated[str, Field(min_length=1)]
    """Corpus folder or `s3://...`."""
    dataset: Annotated[str, Field(min_length=1)]
    """Name of the dataset in it that receives the languages."""
    source: str = "en"
    """Language to translate from."""
    targets: Languages
    """Languages to add."""
    model: Annotated[str, Field(min_length=1)]
    """Model folder (at this path on all nodes) or hub name, of the families M2M100, NLLB, Marian."""
    revision: str | None = None
    """Commit, tag or branch of a hub model; null = its main branch."""
    back_model: str | None = None
    """Model of the way back for gates.round_trip; null = `model`."""
    texts: Annotated[tuple[Texts, ...], Field(min_length=1)] = ("query", "passage", "negatives")
    """What to translate; the rest stays missing."""
    answers: str | None = None
    """JSON lines {"pair_id": ..., "answers": [...]} in the source language, for gates.answers; null = none."""
    replace: bool = False
    """Whether a target language that the dataset has from elsewhere may be replaced."""
    actors: Count | None = None
    """Processes that translate; null = one per GPU, or one per CPU."""
    pieces: PieceSection = PieceSection()
    generation: GenerationSection = GenerationSection()
    gates: GateSection = GateSection()

    @model_validator(mode="after")
    def _targets_differ_from_the_source(self) -> TranslationSettings:
        language(self.source, "source")
        if self.source in self.targets:
            raise ConfigError(
                "targets", repr(self.source), f"languages other than the source {self.source!r}", "Remove it."
            )
        return self


def translation_settings(
    path: Path | None = None, values: Mapping[str, Any] | None = None, settings: Sequence[str] = ()
) -> TranslationSettings:
    """Settings of a YAML file, with `values` on top that are not None, and `key=value` settings on top of those.

    Raises ConfigError: file absent, unknown key, value out of range.
    """
    raw = {} if path is None else read_yaml(path, "a translation's YAML file", "corpus, dataset, targets, model")
    raw |= {key: value for key, value in (values or {}).items() if value is not None}
    for setting in settings:
        key, value = parsed_setting(setting, "key=value or section.key=value", "generation.beams=1")
        put(raw, key.split("."), value)
    return checked(TranslationSettings, raw, str(path) if path else "translation settings")
