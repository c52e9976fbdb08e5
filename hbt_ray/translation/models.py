"""Translation models of three families, each with its own way of being told the languages.

    M2M100   `tokenizer.src_lang = "en"`, and the first token of the translation is forced to be that of "de"
    NLLB     the same with FLORES codes: eng_Latn, deu_Latn, zho_Hans
    Marian   one pair of languages, or `>>deu<<` before the text where the vocabulary has several such tokens

Weights come from safetensors only, and no code from a model's repository is run.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import warnings
from collections.abc import Iterable, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from math import ceil
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from babel.core import get_global
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError
from safetensors import SafetensorError
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer

from hbt_ray.errors import ModelError
from hbt_ray.model.encoder import pad, token_batches

Family = Literal["m2m100", "nllb", "marian"]

FAMILIES = "a translation model of the families M2M100, NLLB or Marian"
MODEL_FILES = ["*.json", "*.safetensors", "*.model", "*.spm"]
READ_BYTES = 1 << 24
SPARE_TOKENS = 16  # that a translation may have beyond its share of the source's tokens
START_TOKENS = 2  # of a decoder before its first own: start and language

TOO_LONG = "sentence has more tokens than the model takes"
CUT_OFF = "translation was cut off at the limit of tokens"

# CLDR code: FLORES code, where it is not the code itself or its likely script does not tell.
_FLORES_TABLE = """
af:afr_Latn am:amh_Ethi ar:arb_Arab as:asm_Beng az:azj_Latn ba:bak_Cyrl be:bel_Cyrl bg:bul_Cyrl bm:bam_Latn
bn:ben_Beng bo:bod_Tibt bs:bos_Latn ca:cat_Latn cs:ces_Latn cy:cym_Latn da:dan_Latn de:deu_Latn dz:dzo_Tibt
ee:ewe_Latn el:ell_Grek en:eng_Latn eo:epo_Latn es:spa_Latn et:est_Latn eu:eus_Latn fa:pes_Arab ff:fuv_Latn
fi:fin_Latn fil:tgl_Latn fj:fij_Latn fo:fao_Latn fr:fra_Latn ga:gle_Latn gd:gla_Latn gl:glg_Latn gn:grn_Latn
gu:guj_Gujr ha:hau_Latn he:heb_Hebr hi:hin_Deva hr:hrv_Latn ht:hat_Latn hu:hun_Latn hy:hye_Armn id:ind_Latn
ig:ibo_Latn is:isl_Latn it:ita_Latn ja:jpn_Jpan jv:jav_Latn ka:kat_Geor kg:kon_Latn ki:kik_Latn kk:kaz_Cyrl
km:khm_Khmr kn:kan_Knda ko:kor_Hang ku:kmr_Latn ky:kir_Cyrl lb:ltz_Latn lg:lug_Latn li:lim_Latn ln:lin_Latn
lo:lao_Laoo lt:lit_Latn lv:lvs_Latn mg:plt_Latn mi:mri_Latn mk:mkd_Cyrl ml:mal_Mlym mn:khk_Cyrl mr:mar_Deva
ms:zsm_Latn mt:mlt_Latn my:mya_Mymr nb:nob_Latn ne:npi_Deva nl:nld_Latn nn:nno_Latn no:nob_Latn ny:nya_Latn
oc:oci_Latn om:gaz_Latn or:ory_Orya pa:pan_Guru pl:pol_Latn ps:pbt_Arab pt:por_Latn qu:quy_Latn rn:run_Latn
ro:ron_Latn ru:rus_Cyrl rw:kin_Latn sa:san_Deva sc:srd_Latn sd:snd_Arab sg:sag_Latn si:sin_Sinh sk:slk_Latn
sl:slv_Latn sm:smo_Latn sn:sna_Latn so:som_Latn sq:als_Latn sr:srp_Cyrl ss:ssw_Latn st:sot_Latn su:sun_Latn
sv:swe_Latn sw:swh_Latn ta:tam_Taml te:tel_Telu tg:tgk_Cyrl th:tha_Thai ti:tir_Ethi tk:tuk_Latn tl:tgl_Latn
tn:tsn_Latn tr:tur_Latn ts:tso_Latn tt:tat_Cyrl tw:twi_Latn ug:uig_Arab uk:ukr_Cyrl ur:urd_Arab uz:uzn_Latn
vi:vie_Latn wo:wol_Latn xh:xho_Latn yi:ydd_Hebr yo:yor_Latn zh:zho_Hans zh_Hans:zho_Hans zh_Hant:zho_Hant
zu:zul_Latn
"""
_FLORES = dict(item.split(":") for item in _FLORES_TABLE.split())
_M2M100 = {"nb": "no", "fil": "tl", "nso": "ns", "zh_Hans": "zh"}
# Codes of ISO 639 for a language with its dialects, which Marian's models use beside FLORES's codes.
_MACROLANGUAGES = {
    **{"ar": ("ara",), "az": ("aze",), "et": ("est",), "fa": ("fas", "per"), "lv": ("lav",), "mg": ("mlg",)},
    **{"mn": ("mon",), "ms": ("msa",), "ne": ("nep",), "no": ("nor",), "nb": ("nor",), "or": ("ori",)},
    **{"ps": ("pus",), "sq": ("sqi",), "sw": ("swa",), "uz": ("uzb",), "yi": ("yid",)},
    **{"zh": ("cmn_Hans", "zho", "cmn"), "zh_Hans": ("cmn_Hans",), "zh_Hant": ("cmn_Hant", "zh_TW")},
}

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class ModelFolder:
    """A model that every node can find.

    Args:
        name: as the user wrote it.
        revision: commit of a hub model, None for a local folder.
        path: local folder of its files, on this machine.
        sha256: of the names and bytes of its files.
    """

    name: str
    revision: str | None
    path: Path
    sha256: str

    def here(self) -> Path:
        """Its folder on the machine this runs on; a hub model is downloaded if it is not there. Raises ModelError."""
        return self.path if self.revision is None else _snapshot(self.name, self.revision)


def find_model(name: str, revision: str | None = None) -> ModelFolder:
    """The model of a folder or hub name.

    Raises:
        ModelError: no such folder or hub model, no seq2seq model, no safetensors weights, a revision of a folder.
    """
    path = Path(name).expanduser()
    if path.is_dir():
        if revision is not None:
            raise ModelError("revision", revision, "no revision, as the model is a folder", "Remove it.")
        _check_files(path)
        return ModelFolder(name, None, path.absolute(), _files_sha256(path))
    if path.is_absolute() or name.startswith(".") or len(path.parts) > 2:
        raise ModelError(name, "no such folder", "a model folder or hub name", "Check the path.")
    path = _snapshot(name, revision)
    _check_files(path)
    return ModelFolder(name, path.name, path, _files_sha256(path))


def _snapshot(name: str, revision: str | None) -> Path:
    try:
        return Path(snapshot_download(name, revision=revision, allow_patterns=MODEL_FILES))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        raise ModelError(name, reason, "a model folder or a model of the hub", "Check name and network.") from None


def _check_files(folder: Path) -> None:
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ModelError(str(folder), "no config.json", "a transformers model folder", "Copy the file.") from None
    except ValueError as error:
        raise ModelError(f"{folder}/config.json", error, "JSON", "Copy the file again.") from None
    kind = config.get("model_type", "?")
    if not config.get("is_encoder_decoder", kind in ("marian", "m2m_100", "nllb-moe")):
        raise ModelError(str(folder), f"a model of type {kind!r}, which is no seq2seq model", FAMILIES, "Use another.")
    if not list(folder.glob("model*.safetensors")):
        raise ModelError(
            str(folder),
            "no safetensors weights",
            "model.safetensors",
            "Convert it once: AutoModelForSeq2SeqLM.from_pretrained(...).save_pretrained(folder).",
        )


def _files_sha256(folder: Path) -> str:
    """Of the files that decide what the model writes; what else lies in the folder does not matter."""
    digest = hashlib.sha256()
    names = sorted({path.name for pattern in MODEL_FILES for path in folder.glob(pattern)})
    for name in names:
        digest.update(f"{name}\0{(folder / name).stat().st_size}\0".encode())
        with (folder / name).open("rb") as file:
            while block := file.read(READ_BYTES):
                digest.update(block)
    return digest.hexdigest()


# --- languages -------------------------------------------------------------------------------------------------------


class Direction(NamedTuple):
    """How a model is told from which language to which.

    Args:
        source: what `tokenizer.src_lang` is set to; None where the family has none.
        first_token: id that a translation is forced to begin with; None for none.
        prefix: put before every text.
    """

    source: str | None
    first_token: int | None
    prefix: str


def load_tokenizer(folder: Path) -> tuple[Any, Family]:
    """Tokenizer and family of a model folder. Raises ModelError if it is of no known family."""
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Recommended: pip install sacremoses")  # which it would not use
            tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    except (OSError, ValueError, KeyError, ImportError, TypeError, RuntimeError) as error:
        reason = (str(error).strip() or repr(error)).splitlines()[0]
        raise ModelError(str(folder), reason, "the tokenizer of a translation model", "Copy its files.") from None
    kind = type(tokenizer).__name__
    families: dict[str, Family] = {"M2M100Tokenizer": "m2m100", "NllbTokenizer": "nllb", "MarianTokenizer": "marian"}
    if kind not in families:
        raise ModelError(str(folder), f"a {kind}", FAMILIES, "Use another model.")
    return tokenizer, families[kind]


def direction(tokenizer: Any, family: Family, source: str, target: str, where: str) -> Direction:
    """How to translate between two languages given by CLDR codes. Raises ModelError, which names the known ones."""
    if family == "marian":
        return _marian_direction(tokenizer, source, target, where)
    known, name = _tags(tokenizer, family)
    for key, code in (("source", source), ("target", target)):
        if name(code) not in known:
            raise _unknown(where, key, code, known)
    return Direction(name(source), known[name(target)], "")


def _tags(tokenizer: Any, family: Family) -> tuple[Mapping[str, int], Any]:
    """Token id by the model's own language code, and the function from a CLDR code to that code."""
    if family == "m2m100":
        return tokenizer.lang_code_to_id, lambda code: _M2M100.get(code, code)
    tokens = {token: i for token, i in tokenizer.get_vocab().items() if len(token) == 8 and token[3] == "_"}
    return tokens, flores_code


def flores_code(code: str) -> str:
    """FLORES code of a CLDR code: deu_Latn of de; of one that is not listed the code with its likely script."""
    if code in _FLORES:
        return _FLORES[code]
    script = get_global("likely_subtags").get(code, "").split("_")[1:2]
    return "_".join([code, *script])


def _marian_direction(tokenizer: Any, source: str, target: str, where: str) -> Direction:
    tags = {tag[2:-2]: tag for tag in tokenizer.supported_language_codes}
    own_source, own_target = tokenizer.source_lang, tokenizer.target_lang
    if own_source in _language_names() and own_source not in _names(source):
        raise _unknown(where, "source", source, [own_source])
    if tags:
        tag = next((tags[name] for name in _names(target) if name in tags), None)
        if tag is None:
            raise _unknown(where, "target", target, tags)
        return Direction(None, None, f"{tag} ")
    if own_target not in _names(target):
        raise _unknown(where, "target", target, [str(own_target)])
    return Direction(None, None, "")


def _names(code: str) -> tuple[str, ...]:
    """What Marian's models may call a language, the likeliest first."""
    flores = flores_code(code)
    return (code, *_MACROLANGUAGES.get(code, ()), flores, flores[:3])


def _language_names() -> set[str]:
    """Every name of one language; others are of groups of languages, such as ROMANCE or mul."""
    return {name for code in _FLORES for name in _names(code)}


def _unknown(where: str, key: str, code: str, known: Iterable[str]) -> ModelError:
    listed = ", ".join(sorted(known))
    return ModelError(f"{where}: {key}", repr(code), f"a language the model has, one of {listed}", "Use another model.")


# --- translation -----------------------------------------------------------------------------------------------------


class Translation(NamedTuple):
    """What a model made of a text: the text, and what is wrong with it (TOO_LONG with no text, CUT_OFF) or None."""

    text: str
    fault: str | None


@dataclass
class Work:
    """Tokens that a translator has seen: of the sources, and of the batches with their padding."""

    source_tokens: int = 0
    padded_tokens: int = 0


class Translator:
    """A model ready to translate; what the actors hold.

    Args:
        folder: of the model, on this machine.
        device: "cpu" or "cuda".
        precision: "fp32" or "bf16".
        beams: 1 = greedy.
        batch_tokens: tokens of a batch, padding and beams included.
        tokens_per_token: longest translation of a batch per token of its longest source, beside SPARE_TOKENS.
    """

    def __init__(
        self, folder: Path, device: str, precision: str, beams: int, batch_tokens: int, tokens_per_token: float
    ) -> None:
        os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
        self.work = Work()
        self._where = str(folder)
        self._tokenizer, self._family = load_tokenizer(folder)
        self._model = _load_weights(folder, torch.bfloat16 if precision == "bf16" else torch.float32).to(device)
        # What is None in a call is taken from here; a forced end would hide that a translation has none.
        self._model.generation_config.forced_eos_token_id = None
        self._model.generation_config.max_length = None
        self._device = device
        self._beams = beams
        self._budget = max(1, batch_tokens // beams)
        self._tokens_per_token = tokens_per_token
        self._positions = int(self._model.config.max_position_embeddings)
        self._unwritten = _unwritten_tokens(self._tokenizer, self._family)

    @torch.inference_mode()
    def translate(self, texts: Sequence[str], source: str, target: str) -> list[Translation]:
        """The texts' translations, in their order.

        Batches depend on nothing but the texts handed over together: the same call gives the same translations.
        """
        way = direction(self._tokenizer, self._family, source, target, self._where)
        token_ids = self._token_ids(texts, way)
        translations = [Translation("", TOO_LONG)] * len(texts)
        rows = [row for row, ids in enumerate(token_ids) if len(ids) <= self._positions]
        for batch in token_batches([len(token_ids[row]) for row in rows], self._budget):
            chosen = [rows[i] for i in batch.tolist()]
            for row, translation in zip(chosen, self._generate([token_ids[row] for row in chosen], way), strict=True):
                translations[row] = translation
        return translations

    def _token_ids(self, texts: Sequence[str], way: Direction) -> list[list[int]]:
        if not texts:
            return []
        if way.source is not None:
            self._tokenizer.src_lang = way.source
        tokens = self._tokenizer([way.prefix + text for text in texts], return_attention_mask=False, verbose=False)
        return tokens["input_ids"]  # type: ignore[no-any-return]

    def _generate(self, token_ids: list[list[int]], way: Direction) -> list[Translation]:
        ids, mask = pad(token_ids, self._tokenizer.pad_token_id)
        self.work.source_tokens += int(mask.sum())
        self.work.padded_tokens += ids.numel()
        longest = ids.shape[1]
        config = deepcopy(self._model.generation_config)
        config.update(
            do_sample=False,
            num_beams=self._beams,
            max_new_tokens=min(ceil(self._tokens_per_token * longest) + SPARE_TOKENS, self._positions - START_TOKENS),
            forced_bos_token_id=way.first_token,
        )
        written = self._model.generate(
            input_ids=ids.to(self._device), attention_mask=mask.to(self._device), generation_config=config
        )
        return [self._read(row) for row in written[:, 1:].tolist()]  # the first token starts the decoder

    def _read(self, ids: list[int]) -> Translation:
        end = self._tokenizer.eos_token_id
        fault = None if end in ids else CUT_OFF
        kept = [i for i in (ids if fault else ids[: ids.index(end)]) if i not in self._unwritten]
        options = {"use_source_tokenizer": False} if self._family == "marian" else {}
        text = self._tokenizer.decode(kept, clean_up_tokenization_spaces=False, **options)
        return Translation(text.strip(), fault)


def _load_weights(folder: Path, dtype: torch.dtype) -> Any:
    try:
        model = AutoModelForSeq2SeqLM.from_pretrained(
            folder, trust_remote_code=False, use_safetensors=True, dtype=dtype
        )
    except (OSError, ValueError, KeyError, RuntimeError, ImportError, SafetensorError) as error:
        reason = str(error).strip().splitlines()[0]
        raise ModelError(str(folder), reason, "the weights of a translation model", "Copy the files.") from None
    return model.eval()


def _unwritten_tokens(tokenizer: Any, family: Family) -> frozenset[int]:
    """Ids that are no text; transformers does not count language codes of M2M100 and Marian among special tokens."""
    special = set(tokenizer.all_special_ids) - {tokenizer.unk_token_id}
    if family == "marian":
        codes = tokenizer.convert_tokens_to_ids(tokenizer.supported_language_codes)
    else:
        codes = _tags(tokenizer, family)[0].values()
    return frozenset({*special, *codes})
