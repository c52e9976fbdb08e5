"""Small translation models with random weights in the real file layout of their family.

They translate into gibberish, deterministically: enough to run and to time everything but the quality.
"""

from __future__ import annotations

import io
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import sentencepiece
import torch
from transformers import (
    M2M100Config,
    M2M100ForConditionalGeneration,
    M2M100Tokenizer,
    MarianConfig,
    MarianMTModel,
    NllbTokenizer,
)

SPECIAL = ["<s>", "<pad>", "</s>", "<unk>"]  # fairseq's order, M2M100's and NLLB's
SHAPE = {"d_model": 32, "encoder_layers": 1, "decoder_layers": 1, "encoder_ffn_dim": 64, "decoder_ffn_dim": 64}
HEADS = {"encoder_attention_heads": 2, "decoder_attention_heads": 2}
LANGUAGE_TOKENS = 108  # of M2M100: a hundred languages and eight made-up words after the vocabulary


def write_m2m100(folder: Path, texts: Iterable[str], *, seed: int = 13, vocabulary: int = 300, **shape: int) -> None:
    """An M2M100 model: vocab.json, sentencepiece.bpe.model, tokenizer_config.json, model.safetensors."""
    folder.mkdir(parents=True, exist_ok=True)
    pieces = _write_sentencepiece(folder / "sentencepiece.bpe.model", texts, vocabulary)
    _write_json(folder / "vocab.json", {piece: i for i, piece in enumerate([*SPECIAL, *pieces])})
    M2M100Tokenizer(str(folder / "vocab.json"), str(folder / "sentencepiece.bpe.model")).save_pretrained(folder)
    _write_m2m100_model(folder, len(SPECIAL) + len(pieces) + LANGUAGE_TOKENS, seed, shape)


def write_nllb(
    folder: Path,
    texts: Iterable[str],
    languages: Sequence[str],
    *,
    seed: int = 13,
    vocabulary: int = 300,
    **shape: int,
) -> None:
    """An NLLB model: tokenizer.json with FLORES language codes, tokenizer_config.json, M2M100 weights."""
    folder.mkdir(parents=True, exist_ok=True)
    trained = _trained_sentencepiece(texts, vocabulary)
    characters = sorted({character for piece in _pieces(trained) for character in piece})
    vocabulary_ids = {token: i for i, token in enumerate([*SPECIAL, *characters])}
    tokenizer = NllbTokenizer(vocab=vocabulary_ids, merges=[], extra_special_tokens=list(languages))
    tokenizer.save_pretrained(folder)
    _write_m2m100_model(folder, len(tokenizer), seed, shape)


def write_marian(
    folder: Path,
    texts: Iterable[str],
    source: str,
    targets: Sequence[str],
    *,
    seed: int = 13,
    vocabulary: int = 300,
    **shape: int,
) -> None:
    """A Marian model: vocab.json, source.spm, target.spm, tokenizer_config.json, model.safetensors.

    With one target it is a model of one pair; with several their `>>xxx<<` tokens are in its vocabulary.
    """
    folder.mkdir(parents=True, exist_ok=True)
    pieces = _write_sentencepiece(folder / "source.spm", texts, vocabulary)
    (folder / "target.spm").write_bytes((folder / "source.spm").read_bytes())
    tags = [f">>{target}<<" for target in targets] if len(targets) > 1 else []
    tokens = ["</s>", "<unk>", *pieces, *tags, "<pad>"]  # padding is the last, and the decoder starts with it
    _write_json(folder / "vocab.json", {token: i for i, token in enumerate(tokens)})
    target = targets[0] if len(targets) == 1 else "mul"
    _write_json(
        folder / "tokenizer_config.json",
        {"tokenizer_class": "MarianTokenizer", "source_lang": source, "target_lang": target, "model_max_length": 512},
    )
    pad = len(tokens) - 1
    torch.manual_seed(seed)
    config = MarianConfig(
        vocab_size=len(tokens),
        pad_token_id=pad,
        decoder_start_token_id=pad,
        eos_token_id=0,
        forced_eos_token_id=0,
        max_position_embeddings=512,
        **{**SHAPE, **HEADS, **shape},
    )
    _save(MarianMTModel(config), folder)


def _write_m2m100_model(folder: Path, tokens: int, seed: int, shape: dict[str, int]) -> None:
    torch.manual_seed(seed)
    _save(M2M100ForConditionalGeneration(M2M100Config(vocab_size=tokens, **{**SHAPE, **HEADS, **shape})), folder)


def _save(model: Any, folder: Path) -> None:
    """Layers drawn so wide that they drown a token's own embedding; no pair of tokens stands twice, so texts vary."""
    with torch.no_grad():
        for name, weights in model.named_parameters():
            if weights.dim() > 1 and "position" not in name:
                weights.normal_(std=0.05 if "embed" in name or "shared" in name else 0.5)
    model.generation_config.no_repeat_ngram_size = 2
    model.save_pretrained(folder)


def _write_sentencepiece(path: Path, texts: Iterable[str], vocabulary: int) -> list[str]:
    trained = _trained_sentencepiece(texts, vocabulary)
    path.write_bytes(trained.serialized_model_proto())
    return _pieces(trained)


def _trained_sentencepiece(texts: Iterable[str], vocabulary: int) -> Any:
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(texts),
        model_writer=model,
        vocab_size=vocabulary,
        model_type="unigram",
        character_coverage=1.0,
        hard_vocab_limit=False,  # few texts have fewer pieces
        num_threads=1,
        minloglevel=2,
    )
    return sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())


def _pieces(trained: Any) -> list[str]:
    return [trained.id_to_piece(i) for i in range(3, trained.get_piece_size())]  # after <unk>, <s>, </s>


def _write_json(path: Path, value: object) -> None:
    path.write_text(json.dumps(value, ensure_ascii=False), encoding="utf-8")
