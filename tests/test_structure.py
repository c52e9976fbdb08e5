"""The house rules that no single module can keep: who imports whom, what is pure, what happens at import."""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "hbt_ray"
MODULES = sorted(PACKAGE.rglob("*.py"))

BASE = {"config", "credentials", "errors", "languages", "session", "settings_file", "storage"}
ALL = BASE | {
    *(
        "actor_pool",
        "commands",
        "corpus",
        "description",
        "evaluation",
        "leakage",
        "mixing",
        "model",
        "progress",
        "promote",
    ),
    *("quickstart", "serving", "study", "submission", "sweep", "tracking", "train", "translation"),
}
# A room is a folder of hbt_ray or a module beside them; it may always import itself and the version in hbt_ray.
MAY_IMPORT = {
    "errors": set(),
    "languages": {"errors"},
    "settings_file": {"credentials", "errors"},
    "credentials": {"errors"},
    "config": {"credentials", "errors", "languages", "settings_file"},
    "session": {"config", "errors"},
    "storage": {"credentials", "errors"},
    "progress": set(),
    "actor_pool": {"errors"},
    "corpus": BASE,
    "translation": BASE | {"actor_pool", "corpus", "model"},
    "leakage": BASE | {"corpus", "evaluation"},
    "description": BASE | {"corpus", "evaluation"},
    "mixing": BASE | {"corpus"},
    "model": BASE,
    "train": BASE | {"corpus", "mixing", "model"},
    "evaluation": BASE | {"model"},
    "tracking": BASE | {"model"},
    "submission": {"credentials", "errors", "session", "settings_file"},
    "promote": BASE | {"commands", "evaluation", "tracking"},
    "serving": BASE | {"actor_pool", "commands", "corpus", "evaluation", "model", "tracking", "train"},
    "sweep": ALL - {"cli", "quickstart", "study"},
    "study": ALL - {"cli", "quickstart"},
    "commands": ALL,
    "quickstart": ALL,
    "cli": ALL,
}
PURE = [
    "evaluation/bias.py",
    "evaluation/counting.py",
    "evaluation/gate.py",
    "evaluation/metrics.py",
    "evaluation/ranking.py",
    "evaluation/significance.py",
    "mixing/mixture.py",
    "mixing/plan.py",
    "model/loss.py",
]


def imported(path: Path) -> Iterator[str]:
    """Absolute names of everything a file imports, inside functions too; `from a import b` gives a.b."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative imports hide the room they come from"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def room(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def rooms_imported(path: Path) -> set[str]:
    ours = [name.split(".") for name in imported(path) if name.split(".")[0] == "hbt_ray"]
    return {parts[1] for parts in ours if len(parts) > 1 and parts[1] != "__version__"}


def packages_imported(path: Path) -> set[str]:
    return {name.split(".")[0] for name in imported(path)}


def module_name(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def loaded_after(program: str, folder: Path) -> set[str]:
    """Top-level packages that a fresh interpreter has loaded after a program, started in an empty folder."""
    code = f"{program}\nimport json, sys\nprint(json.dumps(sorted({{m.partition('.')[0] for m in sys.modules}})))"
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=folder, env=environment, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    return set(json.loads(done.stdout.splitlines()[-1]))


@pytest.mark.parametrize("path", MODULES, ids=module_name)
def test_rooms_import_only_what_they_may(path: Path) -> None:
    """Every import between rooms is in the table, and every room is."""
    if path == PACKAGE / "__init__.py":
        assert rooms_imported(path) == set()
        return
    assert room(path) in MAY_IMPORT, f"{room(path)} is a new room: say in the table what it may import"
    assert rooms_imported(path) <= MAY_IMPORT[room(path)] | {room(path)}


def test_only_tracking_imports_mlflow() -> None:
    """MLflow can be replaced, or be down, without another room noticing."""
    importers = {room(path) for path in MODULES if "mlflow" in packages_imported(path)}
    assert importers <= {"tracking"}


@pytest.mark.parametrize("name", PURE)
def test_the_pure_core_imports_no_cluster(name: str) -> None:
    """The modules that decide numbers take arrays and return arrays: no Ray, no MLflow."""
    assert packages_imported(PACKAGE / name).isdisjoint({"ray", "mlflow"})


def test_the_pure_core_loads_no_cluster(tmp_path: Path) -> None:
    """Nor do they load Ray or MLflow through what they import."""
    names = [module_name(PACKAGE / name) for name in PURE]
    assert {"ray", "mlflow"}.isdisjoint(loaded_after(f"import {', '.join(names)}", tmp_path))


@pytest.mark.parametrize("folder", ["mlflow", "cluster"])
def test_folders_of_configuration_hold_no_python(folder: str) -> None:
    """A Python file in mlflow/ would shadow the real package; cluster/ is configuration only."""
    assert (ROOT / folder).is_dir()
    assert list((ROOT / folder).rglob("*.py")) == []


def test_mlflow_is_the_real_package() -> None:
    """From the root of the repository `import mlflow` finds the installed package, not the folder of that name."""
    code = "import importlib.util; print(importlib.util.find_spec('mlflow').origin)"
    origin = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert origin.strip().endswith("mlflow/__init__.py")
    assert Path(origin.strip()).parent != ROOT / "mlflow"


def test_every_module_is_named_by_what_it_holds() -> None:
    """There is no drawer for leftovers."""
    assert {path.stem for path in MODULES}.isdisjoint({"utils", "util", "common", "helpers", "misc"})


def test_the_command_line_starts_light(tmp_path: Path) -> None:
    """`hbt-ray --help` answers at once, so cli.py imports what a command needs only when it runs."""
    if not (PACKAGE / "cli.py").exists():
        pytest.skip("hbt_ray/cli.py does not exist")
    assert {"ray", "torch", "mlflow"}.isdisjoint(loaded_after("import hbt_ray.cli", tmp_path))


def test_rays_controller_starts_light(tmp_path: Path) -> None:
    """What Ray Train's controller and its data manager take of ours costs no seconds of torch or transformers."""
    names = ("data", "gauges", "metrics_log", "retention")
    program = f"import {', '.join(f'hbt_ray.train.{name}' for name in names)}"
    assert {"torch", "transformers", "mlflow"}.isdisjoint(loaded_after(program, tmp_path))


def test_nothing_happens_at_import(tmp_path: Path) -> None:
    """Importing every module starts no Ray, makes no file in the current folder and sets up no logging."""
    names = [module_name(path) for path in MODULES]
    program = f"import {', '.join(names)}\nimport logging, ray\nassert not ray.is_initialized()\n"
    loaded_after(program + "assert not logging.getLogger('hbt_ray').handlers", tmp_path)
    assert list(tmp_path.iterdir()) == []
