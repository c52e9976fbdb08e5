"""One importer per format: the original files of published QA sets as parallel pairs."""

FORMATS = {  # of published sets, with what they are
    "mmarco": "mMARCO: collections, queries and triples of ids, up to fourteen languages.",
    "mr-tydi": "Mr. TyDi: a language's folder, or a folder of them.",
    "dpr-nq": "DPR's training files (Natural Questions): JSON with positive and hard negative passages.",
    "duorc": "DuoRC: questions about the plots of films, JSON.",
    "newsqa": "NewsQA: combined-newsqa-data-v1 as JSON or CSV.",
    "wikiqa": "WikiQA: TSV of questions and labelled sentences.",
    "entity-questions": "EntityQuestions with retrieved passages (ctxs).",
    "yahoo-qa": "Yahoo Answers: XML (L5, L6), JSON lines or CSV.",
    "mfaq": "MFAQ: JSON lines of pages with questions and answers.",
    "squad": "SQuAD and its family in one language: JSON.",
    "belebele": "Belebele: JSON lines, one file per language.",
    "afriqa": "AfriQA: JSON lines of questions and pivot passages.",
    "hf-datasets": "A folder that the `datasets` library saved, or Parquet files, with named columns.",
}
