"""A small randomly initialised XLM-R encoder with a SentencePiece-style tokenizer trained on the corpus."""

from __future__ import annotations

import io
import unicodedata
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import sentencepiece
import torch
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast, XLMRobertaConfig, XLMRobertaModel

from hbt_ray.config import ScratchSection
from hbt_ray.errors import ConfigError
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
    """A Unigram tokenizer with NFKC and byte fallback, so scripts that the texts lack are still told apart.

    SentencePiece trains it because its result depends on nothing but the texts; the trainer of `tokenizers` gives
    another vocabulary at every call. Raises ConfigError if the texts' characters alone need a larger vocabulary.
    """
    pieces = _train_pieces(texts, vocabulary - len(SPECIAL) - len(BYTES))
    unused = min(score for _, score in pieces) - 10.0  # bytes only where no piece fits
    special = [(piece, 0.0) for piece in SPECIAL]
    tokenizer = Tokenizer(
        models.Unigram(
            special + pieces + [(byte, unused) for byte in BYTES], unk_id=SPECIAL.index("<unk>"), byte_fallback=True
        )
    )
    tokenizer.normalizer = normalizers.NFKC()
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Metaspace()])
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 2)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", unk_token="<unk>", pad_token="<pad>"
    )


def _train_pieces(texts: Iterable[str], count: int) -> list[tuple[str, float]]:
    """(piece, log probability) of a SentencePiece Unigram model, at most `count`."""
    model = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=(unicodedata.normalize("NFKC", text) for text in texts),
            model_writer=model,
            vocab_size=count + 3,  # its own <unk>, <s>, </s>
            model_type="unigram",
            character_coverage=1.0,
            hard_vocab_limit=False,  # small corpora have fewer pieces
            normalization_rule_name="identity",
            num_threads=1,
            minloglevel=2,
        )
    except RuntimeError as error:
        raise ConfigError(
            "model.scratch.vocabulary", f"too few pieces ({error})", "one per character at least", "Raise it."
        ) from None
    trained = sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())
    return [(trained.id_to_piece(i), trained.get_score(i)) for i in range(3, trained.get_piece_size())]
