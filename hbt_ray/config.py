"""Typed, frozen configuration: one YAML file, checked once at the edge, saved resolved beside every result.

Every mistake is a ConfigError that names the key (settings_file.py).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Discriminator, Field, Tag, model_validator

from hbt_ray.errors import ConfigError
from hbt_ray.languages import checked_codes
from hbt_ray.settings_file import Section, checked, parsed_setting, put, read_yaml

SAMPLE_ROOT = "sample://"
PATIENCE_MINUTES = 1.5  # for hosts on their way back; one that has to boot takes longer
LEARNED_TEMPERATURES = (0.01, 1.0)  # below, softmax is an argmax; above, it tells nothing apart

Fraction = Annotated[float, Field(ge=0.0, le=1.0)]
Positive = Annotated[float, Field(gt=0.0)]
Count = Annotated[int, Field(ge=1)]


def _checked_languages(codes: tuple[str, ...]) -> tuple[str, ...]:
    return checked_codes(codes, "")


def _checked_datasets(names: tuple[str, ...]) -> tuple[str, ...]:
    for name in names:
        if names.count(name) > 1:
            raise ConfigError("", f"{name!r} twice", "every dataset once", f"Remove one {name!r}.")
    return names


Languages = Annotated[tuple[str, ...], Field(min_length=1), AfterValidator(_checked_languages)]
Datasets = Annotated[tuple[str, ...], Field(min_length=1), AfterValidator(_checked_datasets)]


class RunSection(Section):
    """Who the run is and where it leaves its files."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]
    """Folder and MLflow run name; the same name resumes."""
    out: str = "runs"
    """Folder that receives `<name>/`; relative to HBT_RAY_HOME when set, else to the current folder."""
    storage: str | None = None
    """Where checkpoints go (`s3://...` or a folder all nodes share); null = the run folder."""
    seed: Annotated[int, Field(ge=0)] = 13
    chosen_on: tuple[str, ...] = ()
    """Benchmarks on which this configuration was chosen (a sweep fills it in); a study refuses to report on them."""


class HoldOutSection(Section):
    """Validation split: whole groups (documents, articles) of every dataset, the same in all languages."""

    fraction: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.05
    """Share of rows held out; 0 = no validation, no early stopping."""
    batches: Annotated[int, Field(ge=2)] = 8
    """Validation batches, half X-X-mono, half X-Y, with mix.mixed X-X as many again; their loss weighs them by α."""
    seed: Annotated[int, Field(ge=0)] | None = None
    """Seed of the choice of documents; null = run.seed. Runs that are compared hold out the same."""


class DataSection(Section):
    """Which parallel pairs to train on."""

    root: str
    """Corpus folder or `s3://...`; `sample://` is the embedded sample."""
    datasets: Datasets | None = None
    """Names of the datasets to use; null = all below the root."""
    languages: Languages | None = None
    """Languages to use; null = all that the datasets have."""
    fraction: Annotated[float, Field(gt=0.0, le=1.0)] = 1.0
    """Share of the documents left for training to use; a smaller share is part of every larger one."""
    hold_out: HoldOutSection = HoldOutSection()


class AlphaSchedule(Section):
    """α as a function of the step: points (step, α), constant before the first and after the last."""

    points: Annotated[tuple[tuple[Annotated[int, Field(ge=0)], Fraction], ...], Field(min_length=1)]
    interpolation: Literal["linear", "step"] = "linear"

    @model_validator(mode="after")
    def _steps_rise(self) -> AlphaSchedule:
        steps = [step for step, _ in self.points]
        if any(later <= earlier for earlier, later in pairwise(steps)):
            raise ConfigError(
                "points", f"steps {steps}", "steps that rise from point to point", "Put the points in order."
            )
        return self


_ALPHA_FORMS = ("(constant)", "(schedule)")


def _alpha_form(alpha: object) -> str:
    """Which form of α is meant, so that only the mistakes of that form are reported."""
    return _ALPHA_FORMS[isinstance(alpha, Mapping | AlphaSchedule)]


Alpha = Annotated[
    Annotated[Fraction, Tag(_ALPHA_FORMS[0])] | Annotated[AlphaSchedule, Tag(_ALPHA_FORMS[1])],
    Discriminator(_alpha_form),
]


class MixSection(Section):
    """How a batch is composed (arXiv 2408.10536, section 3)."""

    alpha: Alpha = 0.5
    """Probability that a batch is X-X-mono; 1 = X-X-mono only, 0 = mixed batches only."""
    mixed: Literal["X-Y", "X-X"] = "X-Y"
    """What the other batches are: query and passage languages differ (X-Y), or agree but vary by pair (X-X)."""
    pair_scope: Literal["pair", "batch"] = "pair"
    """Draw the two languages of X-Y for every pair, or once for the whole batch."""
    size_exponent: Annotated[float, Field(ge=0.0)] = 1.0
    """ρ: a dataset is drawn with probability proportional to size^ρ; 1 is the paper's."""


class ScratchSection(Section):
    """Shape of a randomly initialised XLM-R encoder (`backbone: scratch`)."""

    vocabulary: Annotated[int, Field(ge=512)] = 8000
    layers: Count = 3
    hidden: Count = 192
    heads: Count = 4
    feed_forward: Count = 768
    dropout: Fraction = 0.1


class ModelSection(Section):
    """The dual encoder: one set of weights for queries and passages."""

    backbone: str
    """Folder, model hub name, `package:NAME` for weights shipped in a Python package, or `scratch`."""
    revision: str | None = None
    """Revision of a hub model."""
    scratch: ScratchSection = ScratchSection()
    pooling: Literal["mean", "cls", "pooler"] = "mean"
    """`pooler` is LaBSE's: tanh(dense(CLS)). Embeddings are always L2-normalised."""
    query_prefix: str = "Query: "
    passage_prefix: str = "Passage: "
    max_query_tokens: Annotated[int, Field(ge=4)] = 64
    max_passage_tokens: Annotated[int, Field(ge=4)] = 256
    attention: Literal["sdpa", "eager", "flash_attention_2"] = "sdpa"
    """Attention kernels of transformers; `flash_attention_2` (GPU, package flash-attn) computes no padding."""


class TrainSection(Section):
    """Optimisation."""

    steps: Count
    batch_size: Annotated[int, Field(ge=2)]
    """Global batch: pairs of one step over all workers."""
    temperature: Positive = 0.05
    """τ of InfoNCE: logits are cosine / τ."""
    learn_temperature: bool = False
    """Train τ too, from `temperature` on, inside [0.01, 1]."""
    symmetric: bool = False
    """Add the loss of each passage over all queries, and halve the sum."""
    hard_negatives: Annotated[int, Field(ge=0)] = 0
    """Hard negatives per query, of those its pair has in the passage's language."""
    gradient_cache: bool = False
    """Keep embeddings only and encode again, chunk by chunk, for the gradient: the memory of one chunk."""
    chunk_tokens: Count | None = None
    """Tokens encoded at once by a worker, padding included; null: 1024 on a CPU, 65536 on a GPU."""
    activation_checkpointing: bool = False
    """Keep only the layers' inputs of a chunk and compute the rest again: less memory, about a third more time."""
    compile: bool = False
    """torch.compile the backbone (about a minute at the start; needs a C++ compiler)."""
    optimizer: Literal["adamw", "cpu_adamw"] = "adamw"
    """`cpu_adamw`: DeepSpeed's AdamW with its states in host memory (ZeRO-Offload; needs cluster.zero_stage >= 1)."""
    learning_rate: Positive = 3e-5
    weight_decay: Annotated[float, Field(ge=0.0)] = 1e-2
    warmup_steps: Annotated[int, Field(ge=0)] = 0
    schedule: Literal["linear", "constant"] = "linear"
    max_gradient_norm: Annotated[float, Field(ge=0.0)] = 1.0
    """0 = no clipping."""
    precision: Literal["fp32", "bf16"] = "fp32"
    validate_every: Count = 100
    """Steps between validations; each also writes a checkpoint with an export of the encoder."""
    checkpoint_every: Count | None = None
    """Steps between checkpoints besides those of validations; null: only those."""
    patience: Count | None = None
    """Validations without a better loss before stopping; null = never stop early."""
    log_every: Count = 10

    @model_validator(mode="after")
    def _warm_up_fits(self) -> TrainSection:
        if self.warmup_steps > self.steps:
            raise ConfigError(
                "warmup_steps",
                self.warmup_steps,
                f"at most train.steps ({self.steps})",
                "Lower train.warmup_steps or raise train.steps.",
            )
        return self

    @model_validator(mode="after")
    def _learned_temperature_starts_inside_its_bounds(self) -> TrainSection:
        low, high = LEARNED_TEMPERATURES
        if self.learn_temperature and not low < self.temperature < high:
            raise ConfigError(
                "temperature",
                self.temperature,
                f"a start between {low} and {high}, the bounds of a learned temperature",
                "Change train.temperature, or set train.learn_temperature: false.",
            )
        return self


class ClusterSection(Section):
    """Workers of Ray Train."""

    workers: Count = 1
    min_workers: Count | None = None
    """Go on with as few workers while nodes are missing, and grow again when they are back; null: wait for all."""
    gpu: bool = False
    cpus_per_worker: Positive = 1.0
    zero_stage: Literal[0, 1, 2, 3] = 0
    max_failures: Annotated[int, Field(ge=0)] = 2
    """Restarts of the worker group before the run is given up."""
    patience_minutes: Annotated[float, Field(ge=0)] = PATIENCE_MINUTES
    """How long a start waits for CPUs and GPUs that a cluster lacks; some minutes more where machines must boot."""

    @property
    def fewest_workers(self) -> int:
        """Workers that a training needs to go on."""
        return self.min_workers or self.workers

    @model_validator(mode="after")
    def _fewest_and_most_workers(self) -> ClusterSection:
        if self.min_workers is not None and self.min_workers > self.workers:
            raise ConfigError(
                "min_workers",
                self.min_workers,
                f"at most cluster.workers ({self.workers})",
                "Lower cluster.min_workers or raise cluster.workers.",
            )
        return self


class TrackingSection(Section):
    """MLflow; the store is MLFLOW_TRACKING_URI, else `mlflow.db` in the output folder."""

    experiment: str = "hbt_ray"
    registered_model: str | None = None
    """Registered model that receives the run's best encoder; null = do not register."""
    alias: str = "challenger"


class Config(Section):
    """Everything a training run depends on."""

    run: RunSection
    data: DataSection
    mix: MixSection = MixSection()
    model: ModelSection
    train: TrainSection
    cluster: ClusterSection = ClusterSection()
    tracking: TrackingSection = TrackingSection()

    @model_validator(mode="after")
    def _world_size_divides_batch(self) -> Config:
        if self.train.batch_size % self.cluster.workers:
            raise ConfigError(
                "train.batch_size",
                self.train.batch_size,
                f"a multiple of cluster.workers ({self.cluster.workers})",
                "Change train.batch_size or cluster.workers.",
            )
        return self

    @model_validator(mode="after")
    def _optimizer_fits_zero_stage(self) -> Config:
        if self.train.optimizer == "cpu_adamw" and self.cluster.zero_stage == 0:
            raise ConfigError(
                "train.optimizer",
                "cpu_adamw with cluster.zero_stage 0",
                "ZeRO stage 1, 2 or 3, whose partitions it keeps in host memory",
                "Set cluster.zero_stage: 1 or more, or train.optimizer: adamw.",
            )
        return self

    @model_validator(mode="after")
    def _chunk_is_part_of_the_batch(self) -> Config:
        if not self.train.gradient_cache or self.train.chunk_tokens is None:
            return self
        pairs = self.train.batch_size // self.cluster.workers
        passages = (1 + self.train.hard_negatives) * self.model.max_passage_tokens
        tokens = pairs * (self.model.max_query_tokens + passages)
        if self.train.chunk_tokens >= tokens:
            raise ConfigError(
                "train.chunk_tokens",
                self.train.chunk_tokens,
                f"less than a worker's whole batch ({tokens} tokens), or train.gradient_cache: false",
                "A gradient cache of one chunk encodes everything twice and saves nothing: lower train.chunk_tokens.",
            )
        return self

    def replaced(self, settings: Mapping[str, Any]) -> Config:
        """A copy with the values of dotted keys replaced, checked anew. Raises ConfigError."""
        raw = self.model_dump(mode="json")
        for key, value in settings.items():
            put(raw, key.split("."), value)
        return checked(Config, raw, "settings")


def load_config(path: Path, settings: Sequence[str] = ()) -> Config:
    """Read and check a YAML file with `section.key=value` settings on top.

    Raises:
        ConfigError: file absent, not YAML, unknown key, value out of range; names the key and the nearest known one.
    """
    raw = read_yaml(path, "a YAML configuration file", "run, data, model, train")
    for setting in settings:
        key, value = parsed_setting(setting, "section.key=value", "mix.alpha=0.5")
        put(raw, key.split("."), value)
    return checked(Config, raw, str(path))
