"""The documentation is true: every command parses and runs, every path, link and setting that it names exists."""

from __future__ import annotations

import ast
import gzip
import json
import re
import shlex
import tomllib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import typer
import yaml
from markdown_it import MarkdownIt
from markdown_it.token import Token

import hbt_ray
from hbt_ray.cli import app, run
from hbt_ray.config import Config
from hbt_ray.corpus.sample import sample_pairs, write_sample_benchmark
from hbt_ray.session import ray_session

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", *sorted(ROOT.glob("docs/*.md")), ROOT / "cluster/README.md", ROOT / "mlflow/README.md"]
CONFIGS = sorted(ROOT.glob("jobs/configs/*.yaml"))
JOBS = sorted(ROOT.glob("jobs/*.py"))
FENCES = {"", "bash", "sh", "shell", "console"}
ENDS = {"&&", "||", "|", "&", ";"}
COMMAND = re.compile(r"[\w./(~-]")  # begins one; comments and drawings do not
FOLDERS = ("benchmarks", "cluster", "docs", "hbt_ray", "jobs", "mlflow", "tests")

# --- what the documents say ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Command:
    """A command of a document."""

    where: str
    words: tuple[str, ...]

    def __str__(self) -> str:
        return " ".join(self.words)

    @property
    def program(self) -> str:
        """Its name without folders: pytest of .venv/bin/pytest."""
        return self.words[0].rpartition("/")[2]


@cache
def tokens(page: Path) -> list[Token]:
    return MarkdownIt("commonmark").enable("table").parse(page.read_text(encoding="utf-8"))


def inline(page: Path) -> Iterator[Token]:
    """The pieces of a page's running text: words, links, code in a line."""
    for token in tokens(page):
        yield from token.children or ()


def code_in_lines(page: Path) -> list[str]:
    return [token.content.replace("\\|", "|") for token in inline(page) if token.type == "code_inline"]


def blocks(document: Path) -> Iterator[list[str]]:
    """Where commands may stand: a page's blocks of code, a script's docstring, a configuration's comments."""
    if document.suffix == ".md":
        for token in tokens(document):
            if token.type == "code_block" or (token.type == "fence" and token.info.split(" ")[0] in FENCES):
                yield token.content.splitlines()
    elif document.suffix == ".py":
        yield from ([line] for line in joined(prose(document).splitlines()))
    else:
        comments = (line for line in document.read_text(encoding="utf-8").splitlines() if line.startswith("#"))
        yield from ([line] for line in joined(line.removeprefix("#") for line in comments))


def joined(lines: Iterable[str]) -> Iterator[str]:
    """Lines that end in a backslash with those that continue them."""
    whole = ""
    for line in lines:
        whole += line.strip().removesuffix("\\")
        if not line.rstrip().endswith("\\"):
            yield whole
            whole = ""


def commands_of(document: Path) -> Iterator[Command]:
    """All commands of the blocks in which one line or more begins with a program that is known."""
    where = document.relative_to(ROOT).as_posix()
    for block in blocks(document):
        lines = list(joined(block))
        if any(first_word(line).rpartition("/")[2] in (*PROGRAMS, *OTHERS) for line in lines):
            yield from (Command(where, words) for line in lines for words in pieces(line))


def first_word(line: str) -> str:
    return next((word for word in line.split() if not re.match("[A-Z_]+=", word)), "")


def pieces(line: str) -> Iterator[tuple[str, ...]]:
    """The commands of a shell line, without variables that are set for them and redirections.

    Brackets around what may be left out, and dots, are not part of them; nor is what stands in $(…).
    """
    if not COMMAND.match(line):
        return
    lexer = shlex.shlex(re.sub(r"\$\([^()]*\)", "SUBSTITUTED", line), posix=True, punctuation_chars="|&;")
    lexer.whitespace_split = True
    words: list[str] = []
    for word in [*lexer, ";"]:
        if word not in ENDS:
            words.append(word)
            continue
        cut = words[: words.index(">")] if ">" in words else words
        while cut and (cut[0] in ("do", "then") or re.match("[A-Z_]+=", cut[0])):
            cut = cut[1:]
        words = []
        if meant := tuple(word for word in map(unbracketed, cut) if word not in ("", "…", "...")):
            yield meant


def unbracketed(word: str) -> str:
    """Without the bracket that begins or ends what may be left out: `[--out`, `DIR]`, but not `a=[1]`."""
    word = word.removeprefix("[")
    return word if "[" in word else word.removesuffix("]")


def documented() -> list[Command]:
    """Every command once, in the order in which a reader meets it: README first."""
    found: dict[tuple[str, ...], Command] = {}
    for document in (*PAGES, *CONFIGS, *JOBS):
        for command in commands_of(document):
            found.setdefault(command.words, command)
    return list(found.values())


# --- what there is ---------------------------------------------------------------------------------------------------


def resolved(command: Any, words: Iterable[str]) -> tuple[Any, list[str]]:
    """The innermost command that words name, and the words after it."""
    rest = list(words)
    while rest and rest[0] in getattr(command, "commands", {}):
        command = command.commands[rest.pop(0)]
    return command, rest


def options(command: Any) -> set[str]:
    """The options of a command and of all below it."""
    own = {name for param in command.params for name in (*param.opts, *param.secondary_opts)}
    return own.union({"--help"}, *(options(inner) for inner in getattr(command, "commands", {}).values()))


def unknown(command: Any, words: Iterable[str]) -> list[str]:
    """Subcommands and options among words that a command does not have; a word in capitals stands for anything."""
    command, rest = resolved(command, words)
    given = [word.partition("=")[0] for word in rest]
    wrong = [word for word in given if word.startswith("-") and word not in options(command)]
    missing = hasattr(command, "commands") and rest and not rest[0].startswith("-") and not rest[0].isupper()
    return wrong + (rest[:1] if missing else [])


@cache
def ours() -> Any:
    return typer.main.get_command(app)


def not_ours(words: Iterable[str]) -> str | None:
    """Why `hbt-ray` would refuse words; it is parsed as the command line does, and nothing is run."""
    command, rest = resolved(ours(), words)
    if hasattr(command, "commands"):
        return f"no command {rest}"
    try:
        command.make_context("hbt-ray", list(rest))
    except typer.TyperException as error:
        return str(error.format_message())  # type: ignore[attr-defined]
    return refused_job(rest) if command.name == "submit" else None


def refused_job(words: list[str]) -> str | None:
    """Why the job that `hbt-ray submit` hands over would refuse its arguments."""
    names = [word for word in words if (ROOT / "jobs" / f"{word}.py").is_file()]
    if not names:
        return f"no job in {words}"
    return refused_by_python([f"jobs/{names[0]}.py", *words[words.index(names[0]) + 1 :]])


def refused_by_python(words: list[str]) -> str | None:
    """Why a script would refuse its options: those of jobs/ are commands of ours, those of benchmarks/ use argparse."""
    if words[0] == "-c":
        compile(words[1], "-c", "exec")
        return None
    if words[0] == "-m":
        return None if find_spec(words[1]) else f"no module {words[1]}"
    path = ROOT / words[0]
    if not path.is_file():
        return f"no file {words[0]}"
    tree = ast.parse(path.read_text(encoding="utf-8"))
    calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call)]
    if path.parent.name == "jobs":
        (call,) = [call for call in calls if ast.unparse(call.func) == "run"]
        before = [part.value for part in call.args[0].elts if isinstance(part, ast.Constant)]  # type: ignore[attr-defined]
        return not_ours([*map(str, before), *words[1:]])
    known = {ast.literal_eval(call.args[0]) for call in calls if ast.unparse(call.func).endswith("add_argument")}
    wrong = [word for word in words[1:] if word.startswith("--") and word not in known]
    return f"no options {wrong}" if wrong else None


def refused_by_ray(words: list[str]) -> str | None:
    from ray.scripts.scripts import cli

    before = words[: words.index("--")] if "--" in words else words
    wrong = unknown(cli, before)
    return f"ray has no {wrong}" if wrong else refused(words[len(before) + 1 :])


def refused_by_mlflow(words: list[str]) -> str | None:
    from mlflow.cli import cli

    wrong = unknown(cli, words)
    return f"mlflow has no {wrong}" if wrong else None


def refused_by_make(words: list[str]) -> str | None:
    targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
    wrong = [word for word in words if word not in targets]
    return f"no targets {wrong}" if wrong else None


def refused_by_pytest(words: list[str]) -> str | None:
    wrong = [word for word in words if word.startswith("tests/") and not (ROOT / word.partition("::")[0]).exists()]
    return f"no files {wrong}" if wrong else None


def refused_by_pip(words: list[str]) -> str | None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["optional-dependencies"]
    asked = {extra for word in words for found in re.findall(r"hbt_ray\[(.*)\]", word) for extra in found.split(",")}
    return f"no extras {asked - set(extras)}" if asked - set(extras) else None


PROGRAMS: Mapping[str, Callable[[list[str]], str | None]] = {
    "hbt-ray": not_ours,
    "python": refused_by_python,
    "python3": refused_by_python,
    "ray": refused_by_ray,
    "mlflow": refused_by_mlflow,
    "make": refused_by_make,
    "pytest": refused_by_pytest,
    "pip": refused_by_pip,
}
# Their command lines cannot be parsed here; what checks the files that they are given is said in HOW.
OTHERS = (
    "apt-get",
    "aws",
    "curl",
    "docker",
    "helm",
    "kubectl",
    "pg_dump",
    "pg_restore",
    "prometheus",
    "sed",
    "ssh",
    "sudo",
)
SHELL = ("(umask", "cp", "done", "export", "for", "mkdir")


def refused(words: Iterable[str]) -> str | None:
    """Why a command would be refused, None for one that would not."""
    program, *rest = list(words) or ["export"]
    name = program.rpartition("/")[2]
    if name in PROGRAMS:
        return PROGRAMS[name](rest)
    return None if name in (*OTHERS, *SHELL) else f"{program} is no program that this test knows"


# --- everything that is named exists ---------------------------------------------------------------------------------


def test_every_command_parses() -> None:
    """Commands, their subcommands and options are those of the command lines themselves."""
    commands = documented()
    assert len(commands) > 20
    assert {str(command): why for command in commands if (why := refused(command.words))} == {}


@pytest.mark.parametrize(
    "line",
    [
        "hbt-ray trian x.yaml",
        "hbt-ray train x.yaml --stes 3",
        "hbt-ray train",
        "hbt-ray compare a b --resamples many",
        "python jobs/train.py x.yaml --no-such-option",
        "python jobs/no_such_job.py",
        "python benchmarks/plan.py --repeat 3",
        "ray job sbmit -- python jobs/train.py x.yaml",
        "ray job submit --wokring-dir . -- python jobs/train.py x.yaml",
        "ray job submit --working-dir . -- python jobs/train.py",
        "mlflow server --backend-store sqlite:///x.db",
        "make chekc",
        ".venv/bin/pytest tests/test_none.py",
        "pip install 'hbt_ray[minilmm]'",
        "RAY_AUTH_MODE=token hbt-ray plan",
    ],
)
def test_a_mistake_in_a_command_is_found(line: str) -> None:
    """Misspelt commands, options, files, targets and values, arguments left out."""
    (words,) = pieces(line)
    assert refused(words)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_in_running_text_have_the_options_they_show(page: Path) -> None:
    """`hbt-ray …` in a sentence or a table, and `--option` alone."""
    from mlflow.cli import cli as mlflow
    from ray.scripts.scripts import cli as ray

    scripts = " ".join(path.read_text(encoding="utf-8") for path in ROOT.glob("benchmarks/*.py"))
    known = (
        options(ours()) | options(ray) | options(mlflow) | set(re.findall(r'add_argument\(\s*"(--[\w-]+)"', scripts))
    )
    wrong = []
    for code in code_in_lines(page):
        words = [word for word in map(unbracketed, code.split()) if word not in ("", "…", "...")]
        if words[:1] == ["hbt-ray"]:
            wrong += [(code, word) for word in unknown(ours(), words[1:])]
        elif words and words[0].startswith("--"):
            wrong += [(code, word) for word in words if word.startswith("--") and word.partition("=")[0] not in known]
    assert wrong == []


def test_every_command_of_ours_is_in_the_readme() -> None:
    """A command that nobody can find does not exist."""

    def leaves(command: Any, path: str) -> Iterator[str]:
        inner = getattr(command, "commands", None)
        if inner is None or path.endswith("import"):
            yield path
        for name, one in (inner or {}).items() if not path.endswith("import") else ():
            yield from leaves(one, f"{path} {name}")

    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert [path for path in leaves(ours(), "hbt-ray") if path not in text] == []


MADE_BY_THE_READER = {"mlflow/.env"}
PATH = re.compile(rf"(?<![\w/.:-])(?:{'|'.join(FOLDERS)})/[\w./*-]*\w(?:\.\w+)?/?")


def prose(document: Path) -> str:
    """What a document says: of a script, its docstring."""
    text = document.read_text(encoding="utf-8")
    return ast.get_docstring(ast.parse(text)) or "" if document.suffix == ".py" else text


def paths_in(text: str) -> list[str]:
    return [path.rstrip(".") for path in PATH.findall(text) if path not in MADE_BY_THE_READER]


@pytest.mark.parametrize("document", [*PAGES, *CONFIGS, *JOBS], ids=lambda path: path.relative_to(ROOT).as_posix())
def test_every_path_of_the_repository_exists(document: Path) -> None:
    """Files and folders of ours that a document names, also with a star."""
    named = paths_in(prose(document))
    assert [path for path in named if not list(ROOT.glob(path.rstrip("/")))] == []


def test_paths_are_found_in_sentences() -> None:
    """At the end of a sentence, with stars, in code; not inside addresses or longer paths."""
    text = "See `hbt_ray/cli.py`, jobs/*.py and docs/method.md. Not s3://b/docs/x.md, /data/jobs/x.py or my-tests/x.py."
    assert paths_in(text) == ["hbt_ray/cli.py", "jobs/*.py", "docs/method.md"]


def slug(heading: str) -> str:
    """A heading's anchor, as GitHub makes it."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


def anchors(page: Path) -> set[str]:
    found = tokens(page)
    return {slug(found[i + 1].content) for i, token in enumerate(found) if token.type == "heading_open"}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_every_link_leads_somewhere(page: Path) -> None:
    """Links to files, folders and pictures beside the page, and to headings."""
    wrong = []
    for token in inline(page):
        link = token.attrs.get("href") or token.attrs.get("src")
        if not isinstance(link, str) or "://" in link:
            continue
        target, _, anchor = link.partition("#")
        file = (page.parent / target).resolve() if target else page
        if not file.exists() or (anchor and anchor not in anchors(file)):
            wrong.append(link)
    assert wrong == []


SECTIONS = "|".join(Config.model_fields)
FILES = re.compile(r"\.(?:py|yaml|json|jsonl|md|txt|db|html|parquet|npy|safetensors|bin)$")


def has_setting(key: str) -> bool:
    """Whether a dotted key is a setting or a section of a training configuration."""
    section: Any = Config
    for part in key.split("."):
        fields = getattr(section, "model_fields", None)
        if fields is None:
            return part == "points"  # of a schedule, which stands where a number may
        if part not in fields:
            return False
        section = fields[part].annotation
    return True


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_setting_that_is_named_exists(page: Path) -> None:
    """`section.key` and `section.key: value` in code, and `--set section.key=value`, of training configurations."""
    named = {
        match[1]
        for code in code_in_lines(page)
        for match in re.finditer(rf"(?:^|--set )((?:{SECTIONS})\.[a-z_.]+[a-z_])(?=$|[:=\s])", code)
        if not FILES.search(match[1])
    }
    assert [key for key in sorted(named) if not has_setting(key)] == []


def test_every_setting_of_a_training_command_exists() -> None:
    """`--set section.key=value` of `plan` and `train`, on this machine and as a job."""
    trainings = [command for command in documented() if {"plan", "train", "jobs/train.py"} & set(command.words[:3])]
    pairs = [(command, pair) for command in trainings for pair in zip(command.words, command.words[1:], strict=False)]
    named = {(str(command), value.partition("=")[0]) for command, (option, value) in pairs if option == "--set"}
    assert len(trainings) > 2
    assert [(command, key) for command, key in sorted(named) if not has_setting(key)] == []


def test_the_citation_is_of_this_version() -> None:
    """CITATION.cff has what its format asks for, and the version of the package."""
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert {"cff-version", "message", "title", "authors"} <= set(citation)
    assert citation["version"] == hbt_ray.__version__
    assert all({"type", "title", "authors"} <= set(reference) for reference in citation["references"])


# --- every command runs ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Run:
    """The command is run below, made small.

    Args:
        add: words put after it.
        instead: what is replaced in it.
        leaves: what is there afterwards.
        code: its exit code.
    """

    add: tuple[str, ...] = ()
    instead: Mapping[str, str] = field(default_factory=dict)
    leaves: tuple[str, ...] = ()
    code: int = 0


@dataclass(frozen=True)
class By:
    """Another test runs the same command, or the same through a job."""

    test: str


@dataclass(frozen=True)
class Not:
    """It cannot run in a test: why, and what is checked of it beyond what is parsed above."""

    reason: str
    test: str | None = None


def added(*settings: str) -> tuple[str, ...]:
    return tuple(word for setting in settings for word in ("--set", setting))


FEW_STEPS = ("train.steps=4", "train.validate_every=2", "train.warmup_steps=0", "train.batch_size=8")
SMALL = (*FEW_STEPS, "cluster.workers=1", "cluster.cpus_per_worker=0.5", "data.hold_out.batches=2")
TWO_LANGUAGES = ("--languages", "en,de", "--actors", "1")
JOB = By("tests/test_jobs.py::test_a_submitted_job_trains_and_is_in_mlflow")
RAY_JOB = By("tests/test_jobs.py::test_a_submitted_sweep_is_one_parent_with_its_trials")
SWEEP = By("tests/test_jobs.py::test_a_submitted_sweep_is_one_parent_with_its_trials")
STUDY = By("tests/test_study.py::test_a_killed_study_goes_on_where_it_was")
CONFIGURATION = By("tests/test_cli.py::test_shipped_configurations_are_valid")
MEASUREMENT = Not("measures for minutes to hours on a machine that does nothing else")
TESTS = Not("runs the tests")
EC2 = Not("starts machines in somebody's account", "tests/test_cluster.py::test_ray_up_takes_the_file")
ROLES = Not("changes somebody's account", "tests/test_cluster.py::test_roles_allow_little_and_only_what_exists")
KUBERNETES = Not("there is no Kubernetes here", "tests/test_cluster.py::test_kuberay_takes_the_manifest")
IMAGE = Not("there is no Docker here", "tests/test_cluster.py::test_the_image_has_the_pinned_packages_and_no_root")
COMPOSE = Not("there is no Docker here", "tests/test_mlflow_server.py::test_compose_starts_the_server_of_the_readme")
MLFLOW_SERVER = By("tests/test_mlflow_server.py::test_training_outlives_the_tracking_server")
OPERATOR = By("tests/test_mlflow_server.py::test_the_operators_commands_work")
SERVING = By("tests/test_mlflow_server.py::test_from_quickstart_to_a_served_champion")
INSTALLATION = Not("installs packages")

# By the beginning of the command; the longest that fits counts.
HOW: Mapping[str, Run | By | Not] = {
    # the shell, tests and measurements
    **dict.fromkeys(SHELL, Not("a shell's own, or it copies what is to be filled in")),
    "make quickstart": By("tests/test_mlflow_server.py::test_from_quickstart_to_a_served_champion"),
    "make test": TESTS,
    "make slow": TESTS,
    "make check": Not("ruff and mypy on the whole project: CI runs it before the tests"),
    ".venv/bin/pytest": TESTS,
    "python benchmarks/": MEASUREMENT,
    # data
    "hbt-ray data import squad-mt --source $DATA/squad-dev-mt": Run(leaves=("data/squad-mt/squad-mt/manifest.json",)),
    "hbt-ray data import squad-mt --source $DATA/xquad-r": Run(leaves=("data/texts/xquad/manifest.json",)),
    "hbt-ray data import squad-mt --source DIR": Run(
        instead={
            "DIR": "$DATA/squad-dev-mt", "FILE": "$DATA/squad-en/dev.json.gz",
            "XQUAD-R-EN": "$DATA/xquad-r/en.json.gz", "--out data/squad-mt": "--out data/again",
        },
    ),
    "hbt-ray data import jsonl": Run(leaves=("data/mine/mine/manifest.json",)),
    "hbt-ray data validate": Run(),
    "hbt-ray data leakage": Run(
        instead={"leakage CORPUS": "leakage data/mine", "--data DIR": "--data $DATA"}, leaves=("report.json",)
    ),
    "hbt-ray data translate --corpus data": Run(
        added("generation.tokens_per_token=0.5", "actors=1"),
        instead={
            "--corpus data --dataset squad": "--corpus sample --dataset tongues", "de,tr,ar": "sw",
            "facebook/m2m100_418M": "m2m100",
        },
    ),
    "hbt-ray data translate --config": CONFIGURATION,
    # training and evaluation
    "hbt-ray plan": Run(),
    "hbt-ray train jobs/configs/minilm-squad-mt.yaml": Run(
        added(*SMALL, "train.precision=fp32", "model.max_passage_tokens=48"), leaves=("runs/minilm-squad-mt/model",)
    ),
    "hbt-ray train jobs/configs/sample.yaml": Run(added(*SMALL), leaves=("runs/sample-hybrid/model",)),
    "hbt-ray evaluate --model runs/minilm-squad-mt/model": Run(TWO_LANGUAGES, leaves=("results/trained/report.html",)),
    "hbt-ray evaluate --model runs/sample-hybrid/model --benchmark miracl": Run(
        TWO_LANGUAGES, instead={"--benchmark miracl": "--benchmark xquad-r"}, leaves=("results/miracl/runs",)
    ),
    "hbt-ray evaluate --model package:": Run(TWO_LANGUAGES, leaves=("results/untrained/metrics.json", "cache")),
    "hbt-ray compare results/untrained": Run(("--resamples", "500"), leaves=("results/comparison/report.html",)),
    "hbt-ray compare results/a": Run(
        instead={"results/a": "results/untrained", "results/b results/c": "results/trained"}
    ),
    # registry
    "hbt-ray evaluate --model models:/hbt-minilm/3": Run(TWO_LANGUAGES, instead={"hbt-minilm/3": "hbt-minilm/1"}),
    "hbt-ray promote": Run(instead={"--version 3": "--version 1"}),
    "hbt-ray embed": Run(
        instead={"s3://corpora/passages": "texts.parquet", "s3://corpora/vectors": "vectors"},
        leaves=("vectors/_SUCCESS",),
    ),
    "hbt-ray search": Run(),
    "hbt-ray tracking sync": Run(instead={"RUN_DIR RUN_DIR": "runs"}),
    "mlflow models serve": SERVING,
    "curl": SERVING,
    # many trainings
    "hbt-ray sweep jobs/configs/sweep-sample.yaml": SWEEP,
    "hbt-ray sweep jobs/configs/sweep-population.yaml": CONFIGURATION,
    "hbt-ray study jobs/configs/study-sample.yaml": STUDY,
    "hbt-ray study jobs/configs/study-": CONFIGURATION,
    # clusters
    "hbt-ray submit": JOB,
    "ray start": JOB,
    "ray job submit": RAY_JOB,
    "ray get-auth-token": Not("writes a token into the user's home"),
    **dict.fromkeys(("ray up", "ray down", "ray dashboard"), EC2),
    "aws iam": ROLES,
    **dict.fromkeys(("aws ec2", "aws efs", "aws ssm", "ssh"), EC2),
    "docker build": IMAGE,
    "docker push": IMAGE,
    **dict.fromkeys(("kubectl", "helm"), KUBERNETES),
    "sed": By("tests/test_cluster.py::test_every_mark_is_explained_and_set_by_the_guide"),
    "prometheus": By("tests/test_cluster.py::test_prometheus_takes_its_files"),
    "python -c import secrets": Not("makes a token"),
    # the MLflow server
    "mlflow server --backend-store-uri": Not("serves until it is stopped", MLFLOW_SERVER.test),
    "mlflow server --app-name": MLFLOW_SERVER,
    **dict.fromkeys(("mlflow db upgrade", "python -m mlflow.server.auth", "pg_dump", "pg_restore"), OPERATOR),
    "aws s3 sync": Not("copies somebody's bucket"),
    "python -c import mlflow": Not("asks for a password", MLFLOW_SERVER.test),
    "docker compose": COMPOSE,
    **dict.fromkeys(("apt-get", "sudo", "python3 -m venv", "server/bin/pip"), INSTALLATION),
}  # fmt: skip


def beginning_of(command: Command) -> str | None:
    return max((beginning for beginning in HOW if f"{command} ".startswith(beginning)), key=len, default=None)


def how(command: Command) -> Run | By | Not | None:
    beginning = beginning_of(command)
    return None if beginning is None else HOW[beginning]


def test_every_command_is_run_or_listed_with_the_reason() -> None:
    """A command that a page has is run here or by a test that is named, or cannot be run; no entry is left over."""
    commands = documented()
    assert [f"{command.where}: {command}" for command in commands if how(command) is None] == []
    used = {beginning_of(command) for command in commands}
    assert [beginning for beginning in HOW if beginning not in used] == []


@pytest.mark.parametrize("name", sorted({how.test for how in HOW.values() if not isinstance(how, Run) and how.test}))
def test_a_test_that_is_named_exists(name: str) -> None:
    """Tests that run what is not run here."""
    path, _, function = name.partition("::")
    tree = ast.parse((ROOT / path).read_text(encoding="utf-8"))
    assert function in {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}


DATA_LANGUAGES = ("de", "tr", "zh")


def write_data(folder: Path) -> None:
    """What README calls $DATA, in the same folders and formats, made of the sample: SQuAD files of the training pairs,
    XQuAD-R files of the benchmark.
    """
    for name in ("squad-dev-mt", "squad-en", "xquad-r"):
        (folder / name).mkdir(parents=True)
    write_sample_benchmark(folder / "xquad-r")
    english = folder / "xquad-r" / "en.json"
    (folder / "xquad-r" / "en.json.gz").write_bytes(gzip.compress(english.read_bytes()))
    english.unlink()
    pairs = sample_pairs()["countries"]
    for language in ("en", *DATA_LANGUAGES):
        articles: dict[str, list[Any]] = {}
        for pair in pairs:
            if language in pair.query and language in pair.passage:
                question = {"id": pair.pair_id, "question": pair.query[language]}
                articles.setdefault(pair.group, []).append({"context": pair.passage[language], "qas": [question]})
        data = [{"title": title, "paragraphs": paragraphs} for title, paragraphs in articles.items()]
        path = folder / ("squad-en/dev.json.gz" if language == "en" else f"squad-dev-mt/{language}.json.gz")
        path.write_bytes(gzip.compress(json.dumps({"data": data}).encode()))


@pytest.fixture
def reader(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of somebody who reads the documentation: the repository's jobs, $DATA, pairs of their own."""
    from hbt_ray.translation.scratch import write_m2m100

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DATA", str(tmp_path / "datasets"))
    (tmp_path / "jobs").symlink_to(ROOT / "jobs")
    write_data(tmp_path / "datasets")
    assert run(["data", "sample", "--out", "sample"]) == 0
    pairs = [
        {
            "pair_id": str(i),
            "language": language,
            "query": f"{language} question {i}",
            "passage": f"{language} text {i}",
        }
        for i in range(20)
        for language in ("en", "de")
    ]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(pair) + "\n" for pair in pairs), encoding="utf-8")
    pq.write_table(pa.table({"text": [pair["passage"] for pair in pairs]}), tmp_path / "texts.parquet")
    passages = [{"id": pair["pair_id"], "text": pair["passage"]} for pair in pairs]
    (tmp_path / "passages.jsonl").write_text("".join(json.dumps(row) + "\n" for row in passages), encoding="utf-8")
    english = [pair.query["en"] for pair in sample_pairs()["countries"] if "en" in pair.query]
    write_m2m100(tmp_path / "m2m100", english)
    return tmp_path


def made_small(command: Command, run: Run, data: str) -> list[str]:
    """The words after `hbt-ray`, replaced and added to."""
    text = shlex.join(command.words[1:])
    for documented, meant in run.instead.items():
        text = text.replace(documented, meant)
    return [word.replace("$DATA", data) for word in (*shlex.split(text), *run.add)]


@pytest.mark.slow
@pytest.mark.ray
@pytest.mark.timeout(900)
def test_every_command_runs(reader: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """In the order of the documents, in one folder, each made small as HOW says: the exit code and what it leaves."""
    with ray_session(2.0):  # started in the reader's folder, where relative paths begin for its processes too
        for command in documented():
            small = how(command)
            if not isinstance(small, Run):
                continue
            words = made_small(command, small, str(reader / "datasets"))
            assert run(words) == small.code, f"{command.where}: {command}\n{capfd.readouterr().err}"
            assert [name for name in small.leaves if not (reader / name).exists()] == [], str(command)
