"""A small randomly initialised XLM-R encoder with a SentencePiece-style tokenizer trained on the corpus."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast, XLMRobertaConfig, XLMRobertaModel

from hbt_ray.config import ScratchSection
from hbt_ray.model.encoder import DualEncoder, EncoderSettings
from hbt_ray.model.export import export_encoder

SPECIAL = ["<s>", "<pad>", "</s>", "<unk>"]  # XLM-R's order: position ids start after <pad> = 1
BYTES = [f"<0x{byte:02X}>" for byte in range(256)]


def build_scratch(
    texts: Iterable[str], shape: ScratchSection, settings: EncoderSettings, seed: int, folder: Path
) -> None:
    """Train the tokenizer on `texts`, draw the weights from `seed`, export the untrained encoder to `folder`."""
    tokenizer = train_tokenizer(texts, shape.vocabulary)
    torch.manual_seed(seed)
    backbone = XLMRobertaModel(
        XLMRobertaConfig(
            vocab_size=len(tokenizer),
            hidden_size=shape.hidden,
            num_hidden_layers=shape.layers,
            num_attention_heads=shape.heads,
            intermediate_size=shape.feed_forward,
            hidden_dropout_prob=shape.dropout,
            attention_probs_dropout_prob=shape.dropout,
            max_position_embeddings=settings.max_tokens + 2,  # XLM-R's positions start at pad id + 1 = 2
            type_vocab_size=1,
            pad_token_id=1,
            bos_token_id=0,
            eos_token_id=2,
        )
    )
    export_encoder(DualEncoder(backbone, settings.pooling), tokenizer, folder, settings)


def train_tokenizer(texts: Iterable[str], vocabulary: int) -> Any:
    """A Unigram tokenizer with NFKC and byte fallback, so scripts that the texts lack are still told apart."""
    trained = _unigram(models.Unigram())
    trainer = trainers.UnigramTrainer(
        vocab_size=vocabulary - len(BYTES), special_tokens=SPECIAL, unk_token="<unk>", show_progress=False
    )
    trained.train_from_iterator(texts, trainer)
    pieces = [(piece, score) for piece, score in _pieces(trained)]
    lowest = min(score for _, score in pieces)
    unk = SPECIAL.index("<unk>")
    model = models.Unigram(pieces + [(byte, lowest - 10.0) for byte in BYTES], unk_id=unk, byte_fallback=True)
    tokenizer = _unigram(model)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 2)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", unk_token="<unk>", pad_token="<pad>"
    )


def _unigram(model: Any) -> Tokenizer:
    tokenizer = Tokenizer(model)
    tokenizer.normalizer = normalizers.NFKC()
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Metaspace()])
    return tokenizer


def _pieces(tokenizer: Tokenizer) -> list[tuple[str, float]]:
    """(piece, log probability) of a trained Unigram model, in id order."""
    return [(piece, score) for piece, score in json.loads(tokenizer.to_str())["model"]["vocab"]]
