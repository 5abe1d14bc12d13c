"""The manifests for clusters say what their schedulers understand, and what our command line understands."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import click
import jsonschema
import pytest
import yaml

REPOSITORY = Path(__file__).parents[3]
EXAMPLES = REPOSITORY / "examples"
SCHEMA = json.loads(Path(__file__).with_name("trainjob.schema.json").read_text())
SBATCH = {  # option of sbatch -> what its value looks like, None: it takes none
    "job-name": r"[\w.-]+",
    "nodes": r"\d+(-\d+)?",
    "ntasks-per-node": r"\d+",
    "gpus-per-node": r"([\w.]+:)?\d+",
    "cpus-per-task": r"\d+",
    "mem": r"\d+[KMGT]?",
    "time": r"(\d+-)?\d+(:\d+){0,2}",
    "requeue": None,
    "open-mode": r"append|truncate",
    "signal": r"([RB]{1,2}:)?\w+(@\d+)?",
    "output": r"\S+",
}


def manifest(name: str) -> Any:
    return yaml.safe_load((EXAMPLES / "kubernetes" / name).read_text())


def check(content: Any, kind: str) -> None:
    jsonschema.validate(content, {**SCHEMA, "$ref": f"#/$defs/{kind}"}, cls=jsonschema.Draft202012Validator)


def options_of(words: list[str]) -> dict[str, str]:
    """What ``heimdall train …`` understands of ``words``."""
    from heimdall.commands.train import command as train

    command = train.get_command(click.Context(train), "localization")
    context = click.Context(command, token_normalize_func=lambda token: token.replace("_", "-"))
    found, _, _ = command.make_parser(context).parse_args(list(words))
    return {name: str(value) for name, value in found.items()}


@pytest.mark.parametrize(("name", "kind"), [("trainjob.yaml", "trainJob"), ("runtime.yaml", "trainingRuntime")])
def test_the_kubernetes_manifests_follow_the_schema(name: str, kind: str) -> None:
    check(manifest(name), kind)


def test_a_misspelt_key_would_be_found() -> None:
    content = manifest("trainjob.yaml")
    content["spec"]["trainer"]["numProcsPerNode"] = content["spec"]["trainer"].pop("numProcPerNode")
    with pytest.raises(jsonschema.ValidationError, match="numProcsPerNode"):
        check(content, "trainJob")


def test_the_job_asks_for_the_runtime_that_is_there_and_for_processes_that_fit() -> None:
    job, runtime = manifest("trainjob.yaml")["spec"], manifest("runtime.yaml")
    assert (job["runtimeRef"]["kind"], job["runtimeRef"]["name"]) == (runtime["kind"], runtime["metadata"]["name"])
    trainer = job["trainer"]
    assert trainer["args"][:2] == ["train", "localization"]
    said = options_of(trainer["args"][2:])
    assert (said["num_nodes"], said["devices"]) == (str(trainer["numNodes"]), str(trainer["numProcPerNode"]))
    assert trainer["resourcesPerNode"]["limits"]["nvidia.com/gpu"] == str(trainer["numProcPerNode"])
    assert said["resume"] == "auto"
    pod = runtime["spec"]["template"]["spec"]["replicatedJobs"][0]["template"]["spec"]["template"]["spec"]
    mounted = {mount["name"] for mount in pod["containers"][0]["volumeMounts"]}
    assert mounted == {volume["name"] for volume in pod["volumes"]}


def test_the_slurm_script_is_a_script_with_options_that_sbatch_knows() -> None:
    path = EXAMPLES / "slurm" / "train.sbatch"
    bash = shutil.which("bash")
    assert bash
    subprocess.run([bash, "-n", path], check=True)
    text = path.read_text()
    given = re.findall(r"^#SBATCH --([\w-]+)(?:=(.*))?$", text, flags=re.MULTILINE)
    assert len(given) == len(re.findall(r"^#SBATCH", text, flags=re.MULTILINE))
    for name, value in given:
        assert name in SBATCH, name
        assert re.fullmatch(SBATCH[name] or "", value), f"--{name}={value}"
    assert dict(given)["gpus-per-node"] == re.findall(r"GPUS_PER_NODE=(\d+)", text)[0]
    called = text[text.index("train localization") :].split(" &\n")[0].replace("\\\n", " ").replace('"', "").split()
    assert options_of(called[2:])["resume"] == "auto"


def test_the_two_nodes_of_the_compose_file_run_one_command() -> None:
    content = yaml.safe_load((REPOSITORY / "docker-compose.distributed.yml").read_text())
    nodes = content["services"]
    assert list(nodes) == ["training-0", "training-1"]
    words = nodes["training-0"]["command"]
    assert nodes["training-1"]["command"] == words
    assert "--rdzv-endpoint=training-0:29400" in words
    assert options_of(words[words.index("localization") + 1 :])["num_nodes"] == "2"
