"""Write an encoder as a plain folder that `AutoModel` and `SentenceTransformer` both load, prompts included."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import Tensor

from hbt_ray.model.encoder import LENGTH_FILE, MODULES_FILE, PROMPTS_FILE, DualEncoder, EncoderSettings

TRAINING_FILE = "training.json"


def export_encoder(
    encoder: DualEncoder,
    tokenizer: Any,
    folder: Path,
    settings: EncoderSettings,
    weights: dict[str, Tensor] | None = None,
) -> None:
    """Write weights (safetensors), tokenizer and the SentenceTransformer files into `folder`.

    `weights` replaces the backbone's own, for engines that hold them sharded.
    """
    folder.mkdir(parents=True, exist_ok=True)
    encoder.backbone.save_pretrained(folder, state_dict=weights)  # type: ignore[operator]
    tokenizer.save_pretrained(folder)
    width = encoder.width
    modules = ["sentence_transformers.models.Transformer", "sentence_transformers.models.Pooling"]
    pooling = {
        "word_embedding_dimension": width,
        "pooling_mode_cls_token": settings.pooling != "mean",
        "pooling_mode_mean_tokens": settings.pooling == "mean",
        "include_prompt": True,
    }
    _write(folder / "1_Pooling" / "config.json", pooling)
    if settings.pooling == "pooler":
        modules.append("sentence_transformers.models.Dense")
        _export_pooler(encoder, folder / "2_Dense", width, weights)
    modules.append("sentence_transformers.models.Normalize")
    _write(folder / MODULES_FILE, [_module(i, kind) for i, kind in enumerate(modules)])
    _write(folder / LENGTH_FILE, {"max_seq_length": settings.max_tokens, "do_lower_case": False})
    prompts = {"query": settings.query_prefix, "passage": settings.passage_prefix}
    _write(
        folder / PROMPTS_FILE,
        {"prompts": prompts, "default_prompt_name": None, "similarity_fn_name": "cosine"},
    )


def _module(index: int, kind: str) -> dict[str, object]:
    name = kind.rpartition(".")[2]
    path = "" if name == "Transformer" else f"{index}_{name}"
    return {"idx": index, "name": str(index), "path": path, "type": kind}


def _export_pooler(encoder: DualEncoder, folder: Path, width: int, weights: dict[str, Tensor] | None) -> None:
    """BERT's pooler, tanh(dense(CLS)), as the Dense module that follows CLS pooling."""
    config = {
        "in_features": width,
        "out_features": width,
        "bias": True,
        "activation_function": "torch.nn.modules.activation.Tanh",
    }
    _write(folder / "config.json", config)
    state = encoder.backbone.state_dict() if weights is None else weights
    dense = {f"linear.{name}": state[f"pooler.dense.{name}"].contiguous() for name in ("weight", "bias")}
    save_file(dense, folder / "model.safetensors")


def _write(path: Path, content: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def write_training(folder: Path, facts: dict[str, Any]) -> None:
    """Put what the encoder was trained on beside it, for reports: languages, datasets, mix, seed, steps, notes.

    `data_hashes`, `leakage`, `chosen_on` and the like in `backbone_training` are what a claim of zero-shot rests on.
    """
    _write(folder / TRAINING_FILE, facts)


def read_training(folder: Path) -> dict[str, Any]:
    """What `write_training` wrote; {} for a model from elsewhere."""
    path = folder / TRAINING_FILE
    return dict(json.loads(path.read_text(encoding="utf-8"))) if path.is_file() else {}


def model_hash(folder: Path) -> str:
    """12 hex digits over weights, tokenizer and settings: equal exactly when the model embeds alike."""
    digest = hashlib.sha256()
    for path in sorted(folder.rglob("*")):
        if path.suffix in {".safetensors", ".json", ".model", ".txt"} and path.name != TRAINING_FILE:
            digest.update(path.relative_to(folder).as_posix().encode())
            digest.update(path.read_bytes())
    return digest.hexdigest()[:12]
