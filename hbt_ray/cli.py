"""The command line: parses, calls a command, prints. `hbt-ray COMMAND --help` explains each."""

from __future__ import annotations

import gc
import json
import logging
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from hbt_ray.corpus.formats import FORMATS
from hbt_ray.errors import HbtError, Interrupted, UserError
from hbt_ray.session import prepare_environment

if TYPE_CHECKING:
    from hbt_ray.corpus.shards import Manifest

USER_MISTAKE = 2
OUR_FAILURE = 1
INTERRUPTED = 130
TERMINATED = 143  # 128 + SIGTERM, as shells count
NEW_OBJECTS = 10_000  # until garbage is looked for; with Python's 700 a training's imports take a sixth longer

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Hybrid batch training of multilingual dense retrievers on Ray.",
)
data = typer.Typer(no_args_is_help=True, help="Make and check parallel training shards.")
importing = typer.Typer(no_args_is_help=True, help="Import parallel question-passage pairs.")
tracking = typer.Typer(no_args_is_help=True, help="What MLflow is to know.")
app.add_typer(data, name="data")
app.add_typer(tracking, name="tracking")
data.add_typer(importing, name="import")

ConfigFile = Annotated[Path, typer.Argument(metavar="CONFIG", help="YAML configuration.")]
Settings = Annotated[list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Replace section.key.")]
ModelAddress = Annotated[
    str, typer.Option("--model", metavar="DIR_OR_URI", help="Model folder, or models:/name@alias.")
]
OutFolder = Annotated[str, typer.Option("--out", metavar="DIR", help="Folder or s3:// address to write to.")]
DatasetName = Annotated[str, typer.Option("--dataset", metavar="NAME", help="Name of the dataset folder.")]


def main() -> None:
    """Entry point: exit code 0 done, 2 the user's mistake (one message, no traceback), 1 our failure.

    130 is Ctrl-C, 143 SIGTERM.
    """
    sys.exit(run(sys.argv[1:]))


def run(arguments: list[str]) -> int:
    """Run one command and return its exit code."""
    gc.set_threshold(NEW_OBJECTS)
    if arguments[:1] != ["submit"]:  # which speaks to a cluster with the user's own token
        prepare_environment()
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s")
    os.environ.setdefault("MLFLOW_LOGGING_LEVEL", "WARNING")
    try:
        result = app(arguments, prog_name="hbt-ray", standalone_mode=False)
    except typer.TyperException as error:
        error.show()  # type: ignore[attr-defined]  # every usage error has it
        return USER_MISTAKE
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return USER_MISTAKE
    except Interrupted as error:
        print(error, file=sys.stderr)
        return TERMINATED
    except HbtError as error:
        print(f"error: {error}", file=sys.stderr)
        return OUR_FAILURE
    if result == INTERRUPTED:  # Typer's answer to Ctrl-C
        print("interrupted: run the same command again to go on where it stopped", file=sys.stderr)
    return result if isinstance(result, int) else 0


def _finish(result: dict[str, Any]) -> None:
    """The last line on stdout of a command is one JSON object."""
    sys.stdout.flush()
    print(json.dumps(result, ensure_ascii=False), flush=True)


def _print_table(title: str, header: list[str], rows: list[list[object]]) -> None:
    table = Table()
    for i, name in enumerate(header):
        table.add_column(name, justify="left" if i == 0 else "right")
    for row in rows:
        table.add_row(*(f"{value:,}" if isinstance(value, int) else str(value) for value in row))
    width = None if sys.stdout.isatty() else max(160, 12 * len(header))  # no more than the table needs is used
    console = Console(width=width)
    console.print(title, style="bold", soft_wrap=True)
    console.print(table)


@app.command()
def quickstart(
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="Folder for everything it makes.")] = Path(
        "quickstart"
    ),
    steps: Annotated[int | None, typer.Option("--steps", min=1, help="Of each training, for a shorter look.")] = None,
) -> None:
    """Sample -> train X-X-mono, X-Y and hybrid arms -> evaluate -> compare -> register -> report."""
    from hbt_ray.quickstart import quickstart as run_quickstart

    result = run_quickstart(out, steps=steps)
    _print_table(
        "Sample benchmark, mAP (higher is better) and rank distance (lower is better)",
        ["arm", "monolingual", "cross-lingual", "multilingual", "rank distance"],
        [
            [
                name,
                *(f"{metrics[setting]['mAP']:.4f}" for setting in ("monolingual", "cross_lingual", "multilingual")),
                f"{metrics['language_bias']['rank_distance']:.1f}",
            ]
            for name, metrics in result["arms"].items()
        ],
    )
    print(f"Report:           {result['report']}")
    print(f"MLflow store:     {result['mlflow_tracking_uri']}")
    print(f"Registered model: {result['registered_model']} (version {result['model_version']})")
    _finish(result)


@data.command("sample")
def data_sample(out: OutFolder) -> None:
    """Write the embedded sample: training shards and the held-out benchmark."""
    from hbt_ray.commands import write_sample

    _print_manifests(write_sample(out))


@importing.command("squad-mt")
def import_squad_mt(
    source: Annotated[str, typer.Option("--source", metavar="DIR", help="Folder of <lang>.json[.gz] files.")],
    english: Annotated[str, typer.Option("--english", metavar="FILE", help="English file with all question ids.")],
    out: OutFolder,
    exclude: Annotated[
        list[str] | None, typer.Option("--exclude", metavar="FILE", help="Drop paragraphs with its question ids.")
    ] = None,
    dataset: DatasetName = "squad-mt",
) -> None:
    """SQuAD-format files of several languages, joined by question id."""
    from hbt_ray import commands

    manifest = commands.import_squad_mt(source, english, exclude or [], out, dataset)
    _print_table(
        "Usable pairs (row: language of the question, column: language of the passage)",
        ["", *manifest.languages],
        [[lang, *row] for lang, row in zip(manifest.languages, commands.pair_table(out, dataset), strict=True)],
    )
    _print_imported(manifest, out)


def _print_imported(manifest: Manifest, out: str) -> None:
    _print_manifests([manifest])
    rejected = sum(manifest.provenance["rejected"].values())
    if rejected:
        print(f"{rejected:,} rows left out, with reasons, in {out}/{manifest.dataset}/rejected/import.jsonl")


def _import_records(source: str, dataset: str, out: str) -> None:
    from hbt_ray import commands

    _print_imported(commands.import_records(source, out, dataset), out)


RecordsFile = Annotated[str, typer.Option("--source", metavar="FILE", help="pair_id, language, query, passage rows.")]


@importing.command("jsonl")
def import_jsonl(source: RecordsFile, dataset: DatasetName, out: OutFolder) -> None:
    """JSON lines, one per (pair_id, language)."""
    _import_records(source, dataset, out)


@importing.command("parquet")
def import_parquet(source: RecordsFile, dataset: DatasetName, out: OutFolder) -> None:
    """A Parquet file, one row per (pair_id, language)."""
    _import_records(source, dataset, out)


SourcePath = Annotated[
    str, typer.Option("--source", metavar="PATH", help="File or folder, `.gz` or not, local or s3://.")
]
Negatives = Annotated[int | None, typer.Option("--negatives", min=0, help="Hard negatives of a pair, at most.")]
Split = Annotated[str | None, typer.Option("--split", help="train, dev or test.")]


def _import_format(name: str, source: str, dataset: str, out: str, **options: Any) -> None:
    from hbt_ray import commands

    _print_imported(commands.import_format(name, source, out, dataset, **options), out)


def _add_format(name: str, negatives: bool) -> None:
    """A command for a format that has no options of its own but, perhaps, hard negatives."""
    if negatives:

        def command(source: SourcePath, dataset: DatasetName, out: OutFolder, negatives: Negatives = None) -> None:
            _import_format(name, source, dataset, out, negatives=negatives)
    else:

        def command(source: SourcePath, dataset: DatasetName, out: OutFolder) -> None:  # type: ignore[misc]
            _import_format(name, source, dataset, out)

    importing.command(name, help=FORMATS[name])(command)


for _name in ("dpr-nq", "entity-questions", "wikiqa"):
    _add_format(_name, negatives=True)
for _name in ("belebele", "duorc", "mfaq", "yahoo-qa"):
    _add_format(_name, negatives=False)


@importing.command("mmarco", help=FORMATS["mmarco"])
def import_mmarco(
    source: SourcePath,
    dataset: DatasetName,
    out: OutFolder,
    negatives: Negatives = None,
    languages: Annotated[str | None, typer.Option("--languages", help="Codes, such as de,fr; default all.")] = None,
    scratch: Annotated[Path | None, typer.Option("--scratch", metavar="DIR", help="For temporary files.")] = None,
) -> None:
    """Collections, queries and triples."""
    codes = languages.split(",") if languages else None
    _import_format("mmarco", source, dataset, out, negatives=negatives, languages=codes, scratch=scratch)


@importing.command("mr-tydi", help=FORMATS["mr-tydi"])
def import_mr_tydi(
    source: SourcePath, dataset: DatasetName, out: OutFolder, negatives: Negatives = None, split: Split = None
) -> None:
    """A language's folder, or a folder of them."""
    _import_format("mr-tydi", source, dataset, out, negatives=negatives, split=split)


@importing.command("newsqa", help=FORMATS["newsqa"])
def import_newsqa(source: SourcePath, dataset: DatasetName, out: OutFolder, split: Split = None) -> None:
    """One JSON or CSV file."""
    _import_format("newsqa", source, dataset, out, split=split)


@importing.command("squad", help=FORMATS["squad"])
def import_squad(
    source: SourcePath,
    dataset: DatasetName,
    out: OutFolder,
    language: Annotated[str, typer.Option("--language", help="Code of the passages' language.")],
    question_language: Annotated[
        str | None, typer.Option("--question-language", help="Code, if it is another one than the passages'.")
    ] = None,
) -> None:
    """A file of the SQuAD family."""
    _import_format("squad", source, dataset, out, language=language, question_language=question_language)


@importing.command("afriqa", help=FORMATS["afriqa"])
def import_afriqa(
    source: SourcePath,
    dataset: DatasetName,
    out: OutFolder,
    splits: Annotated[list[str] | None, typer.Option("--split", help="train, dev or test; several allowed.")] = None,
) -> None:
    """Questions in African languages with passages in the pivot."""
    _import_format("afriqa", source, dataset, out, splits=splits)


@importing.command("hf-datasets", help=FORMATS["hf-datasets"])
def import_hf_datasets(
    source: SourcePath,
    dataset: DatasetName,
    out: OutFolder,
    columns: Annotated[
        list[str],
        typer.Option("--column", metavar="OURS=THEIRS", help="query=, passage=, pair_id=, language=, group= ..."),
    ],
    language: Annotated[str | None, typer.Option("--language", help="Code, where no column has it.")] = None,
    split: Split = None,
) -> None:
    """Columns of a saved dataset."""
    from hbt_ray.settings_file import parsed_setting

    named = dict(parsed_setting(column, "ours=theirs", "query=question") for column in columns)
    _import_format("hf-datasets", source, dataset, out, columns=named, language=language, split=split)


CorpusFolder = Annotated[str, typer.Argument(metavar="DIR", help="Corpus or dataset folder, local or s3://.")]


@data.command("translate")
def data_translate(
    corpus: Annotated[str | None, typer.Option("--corpus", metavar="DIR", help="Corpus folder or s3://.")] = None,
    dataset: Annotated[str | None, typer.Option("--dataset", metavar="NAME", help="What receives languages.")] = None,
    source: Annotated[str | None, typer.Option("--from", metavar="CODE", help="Language to translate from.")] = None,
    to: Annotated[str | None, typer.Option("--to", metavar="CODES", help="Languages to add: de,tr.")] = None,
    model: Annotated[str | None, typer.Option("--model", metavar="DIR_OR_NAME", help="M2M100, NLLB, Marian.")] = None,
    config: Annotated[Path | None, typer.Option("--config", metavar="FILE", help="YAML with settings.")] = None,
    settings: Settings = None,
) -> None:
    """Add machine-translated languages to a dataset; the same command goes on where it stopped."""
    from hbt_ray import commands
    from hbt_ray.progress import EncodingProgress

    targets = to.split(",") if to else None
    values = {"corpus": corpus, "dataset": dataset, "source": source, "targets": targets, "model": model}
    with EncodingProgress("translate", 0) as progress:
        result = commands.translate_dataset(config, values, settings or (), progress.texts)
    _finish(result)


@data.command("clean")
def data_clean(corpus: CorpusFolder, out: OutFolder, settings: Settings = None) -> None:
    """Write a cleaned copy: normalised texts, no pair twice, near-equal passages under one id."""
    from hbt_ray import commands
    from hbt_ray.settings_file import parsed_setting

    asked = dict(parsed_setting(setting, "key=value", "near_query=0.95") for setting in settings or ())
    cleaned = commands.clean_corpus(corpus, out, asked)
    _print_manifests([one.manifest for one in cleaned])
    for one in cleaned:
        for reason, count in sorted(one.rejected.items()):
            print(f"{one.manifest.dataset}: {count:,} left out, {reason}")


@data.command("describe")
def data_describe(
    corpus: CorpusFolder,
    html: Annotated[Path | None, typer.Option("--html", metavar="FILE", help="Also write a page.")] = None,
) -> None:
    """Sizes, languages, missing cells, lengths, samples."""
    from hbt_ray import commands
    from hbt_ray.description.page import summary, table_rows

    for description in commands.describe_corpus(corpus, html):
        header, rows = table_rows(description)
        _print_table(description.name, list(header), [list(row) for row in rows])
        for line in summary(description):
            print(line)


@data.command("leakage")
def data_leakage(
    corpus: CorpusFolder,
    benchmark: Annotated[str, typer.Option("--benchmark", metavar="NAME", help="As `evaluate` takes it.")],
    folder: Annotated[Path, typer.Option("--data", metavar="DIR", help="Folder of the benchmark's files.")],
    out: Annotated[Path | None, typer.Option("--out", metavar="FILE", help="Write the report there too.")] = None,
    accept: Annotated[
        list[str] | None, typer.Option("--accept", metavar="REASON", help="Accept what is found, and say why.")
    ] = None,
    languages: Annotated[list[str] | None, typer.Option("--language", help="Of the benchmark; default all.")] = None,
    split: Annotated[str | None, typer.Option("--split", help="Of the benchmark, where it has several.")] = None,
) -> None:
    """Find evaluation data in training shards; exit code 0 clean or accepted, 3 leakage.

    The report is kept in DIR/leakage: training takes it over, and without it no evaluation says "zero-shot".
    """
    from hbt_ray.leakage.check import check_leakage

    checked = check_leakage(corpus, benchmark, folder, out, accept=accept or (), languages=languages, split=split)
    report = checked.report
    _print_table(
        f"{benchmark}: {report.status}",
        ["language", "questions found", "of", "candidates found", "of"],
        [
            [code, report.questions[code].found, report.questions[code].of, found.found, found.of]
            for code, found in report.candidates.items()
        ],
    )
    if report.has_titles:
        print(f"{len(report.articles):,} articles of the benchmark are training documents")
    if report.not_comparable:
        print(f"articles: not comparable: {report.not_comparable}")
    print(f"Report:   {checked.address}")
    print(f"Findings: {checked.findings}")
    _finish(
        {
            "status": report.status,
            "text": report.text_findings,
            "article": len(report.articles),
            "not_comparable": report.not_comparable,
            "report": checked.address,
        }
    )
    raise typer.Exit(report.exit_code)


@data.command("validate")
def data_validate(folder: Annotated[str, typer.Argument(metavar="DIR", help="Corpus or dataset folder.")]) -> None:
    """Check checksums, alignment, ids and presence bits of every dataset below a folder."""
    from hbt_ray.commands import validate_corpus

    _print_manifests(validate_corpus(folder))
    print("valid")


def _print_manifests(manifests: list[Any]) -> None:
    _print_table(
        "Datasets",
        ["dataset", "pairs", "documents", "languages", "monolingual pairs by language"],
        [
            [
                m.dataset,
                m.rows,
                m.groups,
                len(m.languages),
                " ".join(f"{lang} {m.usable[lang]['pairs']:,}" for lang in m.languages),
            ]
            for m in manifests
        ],
    )


@app.command()
def plan(
    config: ConfigFile,
    steps: Annotated[int | None, typer.Option("--steps", min=1, metavar="N", help="Default: train.steps.")] = None,
    settings: Settings = None,
) -> None:
    """The realised mixture of a configuration: modes, datasets, languages, pairs. Nothing is trained."""
    from hbt_ray.commands import mixture
    from hbt_ray.config import load_config

    loaded = load_config(config, settings or [])
    found = mixture(loaded, steps or loaded.train.steps)
    for title, counts in (
        ("Batches by mode", found.modes),
        ("Batches by dataset", found.datasets),
        ("X-X-mono batches by language", found.mono_languages),
    ):
        rows: list[list[object]] = [
            [name, count, f"{count / sum(counts.values()):.3f}"] for name, count in sorted(counts.items())
        ]
        _print_table(title, ["", "batches", "share"], rows)
    languages = sorted({lang for pair in found.pairs for lang in pair})
    _print_table(
        f"Training pairs of {found.batches:,} batches (row: language of the query, column: of the passage)",
        ["", *languages],
        [[q, *(found.pairs[q, p] for p in languages)] for q in languages],
    )


@app.command()
def train(config: ConfigFile, settings: Settings = None) -> None:
    """Train, track and register a retriever; the same run name resumes."""
    from hbt_ray import commands
    from hbt_ray.config import load_config
    from hbt_ray.progress import TrainingProgress

    loaded = load_config(config, settings or [])
    with TrainingProgress(loaded.run.name, loaded.train.steps) as progress:
        trained = commands.train(loaded, progress.rows)
    _finish(trained.summary())


@app.command()
def evaluate(
    benchmark: Annotated[
        str, typer.Option("--benchmark", metavar="NAME", help="xquad-r, mlqa-r, sample, miracl, beir or tatoeba.")
    ],
    data: Annotated[Path, typer.Option("--data", metavar="DIR", help="Folder of the benchmark's files.")],
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="Folder for the results.")],
    model: Annotated[
        str | None, typer.Option("--model", metavar="DIR_OR_URI", help="Model folder, or models:/name@alias.")
    ] = None,
    embeddings: Annotated[
        Path | None, typer.Option("--embeddings", metavar="DIR", help="Score these instead of a model.")
    ] = None,
    languages: Annotated[str | None, typer.Option("--languages", metavar="en,de,...", help="Default: all.")] = None,
    candidate_text: Annotated[
        str, typer.Option("--candidate-text", metavar="TEXT", help="sentence, or sentence+context (LAReQA sets).")
    ] = "sentence",
    split: Annotated[
        str | None, typer.Option("--split", metavar="NAME", help="MIRACL: dev, train, dev+train. BEIR: test, ...")
    ] = None,
    ranking: Annotated[
        str, typer.Option("--ranking", metavar="HOW", help="scores (full depth), faiss (the best --depth) or auto.")
    ] = "auto",
    depth: Annotated[
        int | None, typer.Option("--depth", min=1, metavar="K", help="Candidates that FAISS keeps; default 1000.")
    ] = None,
    trec: Annotated[bool, typer.Option("--trec", help="Write TREC runs and qrels of every cell.")] = False,
    trec_depth: Annotated[
        int | None, typer.Option("--trec-depth", min=1, metavar="K", help="Candidates per query in runs; default 100.")
    ] = None,
    cache: Annotated[
        Path | None, typer.Option("--cache", metavar="DIR", help="Keep embeddings by model, text and prompt.")
    ] = None,
    save_embeddings: Annotated[
        Path | None, typer.Option("--save-embeddings", metavar="DIR", help="Keep the embeddings there.")
    ] = None,
    actors: Annotated[int, typer.Option("--actors", min=1, help="Encoding and ranking actors.")] = 2,
) -> None:
    """Every language pair and the merged pool, every bias, from one encoding."""
    from hbt_ray import commands
    from hbt_ray.errors import ConfigError
    from hbt_ray.progress import EncodingProgress

    if (model is None) == (embeddings is None):
        received = "neither" if model is None else "both"
        raise ConfigError("--model, --embeddings", received, "one of the two", "Give a model or an embeddings folder.")
    for option, value in (("--save-embeddings", save_embeddings), ("--cache", cache)):
        if embeddings is not None and value is not None:
            raise ConfigError(option, value, "--model with it", "Leave it out.")
    if trec_depth is not None and not trec:
        raise ConfigError("--trec-depth", trec_depth, "--trec with it", "Add --trec.")
    request = commands.EvaluationRequest(
        benchmark=benchmark,
        data=data,
        out=out,
        languages=_codes(languages),
        candidate_text=candidate_text,
        split=split,
        actors=actors,
        ranking=ranking,
        depth=depth,
        trec=trec,
        trec_depth=trec_depth,
        save_embeddings=save_embeddings,
        cache=cache,
    )
    if embeddings is not None:
        _finish(commands.evaluate_embeddings_folder(embeddings, request))
        return
    assert model is not None
    with EncodingProgress("encode", 0) as progress:
        metrics = commands.evaluate_model(model, request, progress.texts)
    _finish(metrics)


@app.command()
def compare(
    folders: Annotated[list[Path], typer.Argument(metavar="DIR_A DIR_B [DIR_C ...]", help="Results folders.")],
    out: Annotated[
        Path | None, typer.Option("--out", metavar="DIR", help="Write comparison.json and report.html there.")
    ] = None,
    seen_languages: Annotated[
        str | None,
        typer.Option("--seen-languages", metavar="en,de,...", help="Training languages; default: what the models say."),
    ] = None,
    resamples: Annotated[
        int, typer.Option("--resamples", help="Of the randomisation test and the bootstrap.")
    ] = 10_000,
    seed: Annotated[int, typer.Option("--seed", help="Of both.")] = 0,
) -> None:
    """Test the differences from the first results folder: per cell, setting and group, clustered by question."""
    from hbt_ray import commands
    from hbt_ray.evaluation.comparison import headline_rows

    comparison = commands.compare_results(
        folders, out=out, seen_languages=_codes(seen_languages), resamples=resamples, seed=seed
    )
    _print_table(
        f"Differences from {comparison['baseline']} ({comparison['method']['clusters']} questions)",
        ["system", "setting", "measure", "difference", "95% interval", "p", "p (Holm)"],
        [
            [
                row.system,
                row.setting,
                row.measure,
                f"{row.row['difference']:+.4f}",
                f"{row.row['low']:+.4f} to {row.row['high']:+.4f}",
                f"{row.row['p_value']:.4f}",
                f"{row.row['p_holm']:.4f}",
            ]
            for row in headline_rows(comparison)
        ],
    )
    if out:
        print(f"Report: {out / 'report.html'}")
    _finish(comparison)


@app.command()
def sweep(
    config: Annotated[Path, typer.Argument(metavar="SWEEP", help="YAML file: what to search, where, what is good.")],
    settings: Settings = None,
) -> None:
    """Search α, τ or any key of a training configuration; the same command goes on after an interruption."""
    from hbt_ray.progress import EncodingProgress
    from hbt_ray.sweep.run import run_sweep, summary, trial_table
    from hbt_ray.sweep.search import number_of_trials
    from hbt_ray.sweep.settings import load_sweep

    loaded = load_sweep(config, settings or [])
    with EncodingProgress(loaded.name, number_of_trials(loaded)) as progress:
        found = run_sweep(loaded, lambda done, note: progress.show(done, note, important=True))
    _print_table(f"Trials of {found['name']}, chosen on {found['benchmark']}", *trial_table(found))
    for key, value in found["best"]["settings"].items():
        print(f"Best {key}: {value}")
    line = summary(loaded, found)
    print(f"Report: {line['report']}")
    _finish(line)


@app.command()
def study(
    config: Annotated[Path, typer.Argument(metavar="STUDY", help="YAML file: arms, seeds, benchmarks.")],
    settings: Settings = None,
) -> None:
    """Train arms with several seeds, and test their differences; the same command goes on after an interruption."""
    from hbt_ray.study.run import difference_table, run_study, summary, value_table
    from hbt_ray.study.settings import load_study

    loaded = load_study(config, settings or [])
    found = run_study(loaded, lambda line: print(f"{loaded.name}: {line}", file=sys.stderr, flush=True))
    for name, benchmark in found["benchmarks"].items():
        _print_table(
            f"{name}: {len(loaded.seeds)} seed(s), 95% intervals over questions and seeds", *value_table(benchmark)
        )
        _print_table(f"{name}: differences from {found['baseline']}", *difference_table(benchmark))
        for note in benchmark["notes"]:
            print(f"Note: {note}")
    line = summary(loaded, found)
    print(f"Report: {line['report']}")
    _finish(line)


@app.command()
def promote(
    model: Annotated[str, typer.Option("--model", metavar="NAME", help="Name of the registered model.")],
    version: Annotated[int, typer.Option("--version", min=1, metavar="N", help="The challenger.")],
    benchmark: Annotated[
        str | None,
        typer.Option("--benchmark", metavar="NAME", help="Whose stored results decide, where there are several."),
    ] = None,
    margin: Annotated[
        float,
        typer.Option("--margin", metavar="SHARE", help="Largest loss that counts as none, of the champion's value."),
    ] = 0.05,
    force: Annotated[
        str | None, typer.Option("--force", metavar="REASON", help="Promote whatever the gate says; recorded.")
    ] = None,
    resamples: Annotated[
        int, typer.Option("--resamples", help="Of the bootstrap and the randomisation test.")
    ] = 10_000,
    seed: Annotated[int, typer.Option("--seed", help="Of both.")] = 0,
) -> None:
    """Make a version the champion if it is significantly not worse; exit code 4 if it is refused."""
    from hbt_ray import promote as promotion

    outcome = promotion.promote(
        model, version, benchmark=benchmark, margin=margin, force=force, resamples=resamples, seed=seed
    )
    if outcome.judgements:
        _print_table(f"{outcome.address} against the champion", promotion.TABLE_HEADER, outcome.table())
    print(f"{outcome.status}: {outcome.reason}", file=sys.stderr if outcome.exit_code else sys.stdout)
    if outcome.exit_code:
        print("--force REASON promotes it nonetheless, and is recorded.", file=sys.stderr)
    _finish(outcome.summary())
    raise typer.Exit(outcome.exit_code)


@app.command()
def embed(
    model: ModelAddress,
    source: Annotated[str, typer.Option("--input", metavar="PARQUET", help="Parquet file or folder, local or s3://.")],
    output: Annotated[str, typer.Option("--output", metavar="DIR", help="New folder, local or s3://.")],
    column: Annotated[str, typer.Option("--column", metavar="NAME", help="With the texts.")] = "text",
    prompt: Annotated[
        str, typer.Option("--prompt", help="passage, query or none: what stands before texts.")
    ] = "passage",
    batch_size: Annotated[int, typer.Option("--batch-size", min=1, help="Rows of a file of the output.")] = 16_384,
    actors: Annotated[int | None, typer.Option("--actors", min=1, help="Default: one per GPU, or per core.")] = None,
    device: Annotated[str, typer.Option("--device", help="auto, cpu or cuda.")] = "auto",
) -> None:
    """Vectors of the texts of Parquet files, on Ray Data; the same command goes on where it stopped."""
    from hbt_ray.progress import EncodingProgress
    from hbt_ray.serving.embed import embed as run_embedding

    with EncodingProgress("embed", 0) as progress:
        done = run_embedding(
            model,
            source,
            output,
            column=column,
            prompt=prompt,
            batch_rows=batch_size,
            actors=actors,
            device=device,
            on_progress=progress.texts,
        )
    _finish(vars(done))


@app.command()
def search(
    question: Annotated[str, typer.Argument(metavar="QUESTION", help="In any language.")],
    model: ModelAddress,
    passages: Annotated[Path, typer.Option("--passages", metavar="FILE", help=".jsonl, .tsv or .txt, plain or .gz.")],
    k: Annotated[int, typer.Option("--k", min=1, help="Passages to show.")] = 10,
    cache: Annotated[
        Path | None, typer.Option("--cache", metavar="DIR", help="Keep embeddings by model, text and prompt.")
    ] = None,
) -> None:
    """The passages of a file that a model finds nearest to a question."""
    from rich.markup import escape

    from hbt_ray.progress import EncodingProgress
    from hbt_ray.serving.search import TABLE_HEADER
    from hbt_ray.serving.search import search as run_search

    with EncodingProgress("encode", 0) as progress:
        found = run_search(model, passages, question, k=k, cache=cache, on_progress=progress.texts)
    _print_table(f"{escape(found.question)} ({found.passages:,} passages)", TABLE_HEADER, found.table())
    _finish(found.summary())


@app.command(context_settings={"allow_interspersed_args": False})
def submit(
    job: Annotated[str, typer.Argument(metavar="JOB", help="A script in jobs/: train, sweep, evaluate, …")],
    arguments: Annotated[list[str] | None, typer.Argument(metavar="[ARGS]...", help="Those of the job.")] = None,
    address: Annotated[
        str | None,
        typer.Option("--address", metavar="URL", help="Of the cluster's dashboard; else RAY_API_SERVER_ADDRESS."),
    ] = None,
    working_dir: Annotated[
        Path, typer.Option("--working-dir", metavar="DIR", help="The project, which is uploaded.")
    ] = Path(),
    exclude: Annotated[
        list[str] | None, typer.Option("--exclude", metavar="PATTERN", help="Do not upload, as in a .gitignore.")
    ] = None,
    env: Annotated[
        list[str] | None,
        typer.Option("--env", metavar="NAME[=VALUE]", help="A variable for the job; no credentials."),
    ] = None,
    cpus: Annotated[float, typer.Option("--cpus", min=0, help="For the script itself; 0: on the head node.")] = 0.0,
    memory: Annotated[float, typer.Option("--memory", min=0, metavar="GIB", help="For the script itself.")] = 0.0,
    no_wait: Annotated[bool, typer.Option("--no-wait", help="Do not follow the job.")] = False,
) -> None:
    """Run a job on a Ray cluster: upload the project, follow the log, end with the job's exit code."""
    from hbt_ray.submission import JobRequest
    from hbt_ray.submission import submit as submit_job

    request = JobRequest(
        job, tuple(arguments or ()), address, working_dir, tuple(exclude or ()), tuple(env or ()), cpus, memory,
        not no_wait,
    )  # fmt: skip
    done = submit_job(request)
    if no_wait:
        _finish({"job_id": done.job_id, "address": done.address, "status": done.status})
    raise typer.Exit(done.exit_code)


@tracking.command("sync")
def tracking_sync(
    folders: Annotated[
        list[Path], typer.Argument(metavar="RUN_DIR...", help="Run folders, or folders that hold some.")
    ],
) -> None:
    """Deliver what MLflow lacks of runs: rows, tags, reports, models to register."""
    from hbt_ray.tracking.runs import sync

    _finish({"runs": sync(folders, lambda folder, sent: print(f"{folder}: {sent}"))})


def _codes(text: str | None) -> tuple[str, ...] | None:
    return tuple(code.strip() for code in text.split(",")) if text else None


if __name__ == "__main__":
    main()
