"""From `up` to a trained, tracked and registered model; who can reach what; what outlives the containers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import browser
import compose
import pytest

pytestmark = [pytest.mark.stack, pytest.mark.timeout(1800)]

REACH = "import socket,sys; socket.create_connection((sys.argv[1], int(sys.argv[2])), timeout=4)"
S3_CALL = """
import sys, boto3
from heimdall.settings import Settings
client, bucket = boto3.client("s3", **Settings().s3_options()), sys.argv[1]
for call in (
    lambda: client.list_objects_v2(Bucket=bucket),
    lambda: client.get_object(Bucket=bucket, Key="theirs"),
    lambda: client.put_object(Bucket=bucket, Key="ours", Body=b"x"),
    lambda: client.create_bucket(Bucket=bucket + "2"),
):
    try:
        call()
        print("allowed")
    except client.exceptions.ClientError as error:
        print(error.response["Error"]["Code"])
"""


@pytest.fixture(scope="module")
def run(stack: compose.Stack) -> dict[str, Any]:
    """The run of the compose file's own job, once it has ended."""
    compose.wait_for(lambda: stack.state("training")["State"]["Status"] == "exited", "the job ends", 600)
    state = stack.state("training")["State"]
    assert state["ExitCode"] == 0, stack.compose("logs", "training").stdout[-4000:]
    (found,) = [run for run in stack.runs() if run["info"]["status"] == "FINISHED"]
    return found


def test_the_job_leaves_a_whole_run_in_the_tracking_api(stack: compose.Stack, run: dict[str, Any]) -> None:
    epochs = stack.history(run["info"]["run_id"], "val/loss")
    assert len(epochs) == len({point["step"] for point in epochs}) == 3
    assert {"epochs", "learning_rate", "seed"} <= {param["key"] for param in run["data"]["params"]}


def test_its_rows_are_in_postgresql(stack: compose.Stack, run: dict[str, Any]) -> None:
    identifier = run["info"]["run_id"]
    assert stack.sql(f"SELECT status FROM runs WHERE run_uuid = '{identifier}'") == "FINISHED"  # noqa: S608
    logged = sum(len(stack.history(identifier, metric["key"])) for metric in run["data"]["metrics"])
    rows = stack.sql(f"SELECT count(*) FROM metrics WHERE run_uuid = '{identifier}'")  # noqa: S608
    assert int(rows) == logged > 10


def test_its_artifacts_went_to_s3(stack: compose.Stack, run: dict[str, Any]) -> None:
    assert run["info"]["artifact_uri"].startswith("s3://heimdall-mlflow/")
    prefix = run["info"]["artifact_uri"].removeprefix("s3://heimdall-mlflow/")
    found = stack.s3().list_objects_v2(Bucket="heimdall-mlflow", Prefix=prefix)["Contents"]
    assert any(item["Key"].endswith(".png") for item in found)
    assert any(item["Size"] > 100_000 for item in found), "a checkpoint or model"


def test_its_model_is_registered(stack: compose.Stack, run: dict[str, Any]) -> None:
    versions = stack.api(f"model-versions/search?filter=name%3D'{compose.EXPERIMENT}'")["model_versions"]
    assert [(version["version"], version["run_id"]) for version in versions] == [("1", run["info"]["run_id"])]
    assert versions[0]["status"] == "READY"


def picture_of(stack: compose.Stack, identifier: str, folder: str = "") -> str:
    """Path of some PNG among the run's artifacts."""
    reply = stack.api(f"artifacts/list?run_id={identifier}&path={folder}")
    for item in reply.get("files", []):
        if item["path"].endswith(".png"):
            return str(item["path"])
        if item.get("is_dir") and (found := picture_of(stack, identifier, item["path"])):
            return found
    return ""


def test_people_see_run_curves_picture_and_model(
    stack: compose.Stack, run: dict[str, Any], pictures: Path, tmp_path: Path
) -> None:
    experiment, identifier = run["info"]["experiment_id"], run["info"]["run_id"]
    name, picture = run["info"]["run_name"], picture_of(stack, identifier)
    home = f"{stack.url}/#/experiments/{experiment}"
    has_text = "document.body && document.body.innerText.includes({!r})".format
    with browser.Browser(tmp_path) as chromium:
        chromium.picture(f"{home}/runs", has_text(name), pictures / "run-list.png")
        curves = "document.querySelectorAll('.js-plotly-plot .scatterlayer .trace').length > 2"
        chromium.open(f"{home}/runs/{identifier}/model-metrics", curves, pictures / "run-curves.png")
        chromium.fill('input[placeholder="Search metric charts"]', "loss")
        text = chromium.keep(pictures / "run-curves.png")
        assert "val" in text
        assert "train" in text
        drawn = "[...document.images].some(image => image.src.startsWith('blob:') && image.naturalWidth > 300) || \
            document.querySelector('.js-plotly-plot .imagelayer image')"
        chromium.picture(f"{home}/runs/{identifier}/artifacts/{picture}", drawn, pictures / "artifact.png")
        model = f"{stack.url}/#/models/{compose.EXPERIMENT}"
        chromium.picture(model, has_text("Version 1"), pictures / "model.png")


def test_the_doctor_in_the_training_image_finds_all_well(stack: compose.Stack, run: dict[str, Any]) -> None:
    ended = stack.compose("run", "--rm", "-T", "training", "heimdall", "doctor")  # the words that people use
    lines = ended.stdout.splitlines()
    assert not [line for line in lines if line.startswith("failed")]
    for name in ("run", "artifact", "other buckets", *(f"bucket {bucket}" for bucket in compose.BUCKETS)):
        assert any(line.startswith("ok") and line[9:].startswith(name) for line in lines), name


def test_the_doctor_tells_a_refused_host_name(stack: compose.Stack, run: dict[str, Any]) -> None:
    networks = stack.state("mlflow")["NetworkSettings"]["Networks"]
    address = networks[f"{stack.name}_service"]["IPAddress"]
    words = (
        "run",
        "--rm",
        "--no-deps",
        "-T",
        "-e",
        f"MLFLOW_TRACKING_URI=http://{address}:5000",
        "training",
        "heimdall",
        "doctor",
    )
    ended = stack.compose(*words, check=False)
    assert ended.returncode == 69
    assert "refuses the host name" in ended.stdout
    assert "MLFLOW_EXTRA_HOSTS" in ended.stdout


def test_training_reaches_mlflow_and_the_store_but_not_postgres(stack: compose.Stack, run: dict[str, Any]) -> None:
    stack.run("python", "-c", REACH, "mlflow", "5000")
    stack.run("python", "-c", REACH, "minio", "9000")
    by_name = stack.run("python", "-c", REACH, "postgres", "5432", check=False)
    assert by_name.returncode != 0
    assert "gaierror" in by_name.stderr
    (network,) = stack.state("postgres")["NetworkSettings"]["Networks"].values()
    by_address = stack.run("python", "-c", REACH, network["IPAddress"], "5432", check=False)
    assert by_address.returncode != 0
    assert "timed out" in by_address.stderr or "unreachable" in by_address.stderr


def test_the_keys_of_training_open_no_other_bucket(stack: compose.Stack, run: dict[str, Any]) -> None:
    root = stack.s3(root=True)
    root.create_bucket(Bucket="theirs")
    root.put_object(Bucket="theirs", Key="theirs", Body=b"x")
    assert stack.run("python", "-c", S3_CALL, "theirs").stdout.split() == ["AccessDenied"] * 4
    assert [item["Key"] for item in root.list_objects_v2(Bucket="theirs")["Contents"]] == ["theirs"]


def test_no_container_runs_as_root_or_could_become_it(stack: compose.Stack, run: dict[str, Any]) -> None:
    for service in ("postgres", "minio", "mlflow"):
        text = stack.compose("exec", "-T", service, "cat", "/proc/self/status", "/proc/1/status").stdout
        fields = [line.split() for line in text.splitlines()]
        uids = {uid for words in fields if words[0] == "Uid:" for uid in words[1:]}
        assert uids, service
        assert "0" not in uids, service
        assert {words[1] for words in fields if words[0] in {"CapPrm:", "CapEff:", "CapBnd:"}} == {"0" * 16}, service
        assert {words[1] for words in fields if words[0] == "NoNewPrivs:"} == {"1"}, service
    for service in (*compose.SERVICES, "training"):
        state = stack.state(service)
        assert state["Config"]["User"].split(":")[0] not in {"", "0", "root"}, service
        assert state["HostConfig"]["ReadonlyRootfs"], service
    for service in ("minio", "mlflow", "training"):  # the images themselves, whoever starts them
        image = stack.state(service)["Image"]
        user = stack.command("docker", "image", "inspect", "--format", "{{.Config.User}}", image).stdout.strip()
        assert user.split(":")[0] not in {"", "0", "root"}, service


def test_no_secret_is_in_a_log(stack: compose.Stack, run: dict[str, Any]) -> None:
    logs = stack.compose("logs", "--no-color").stdout
    for name, value in stack.settings.items():
        if name.endswith(("PASSWORD", "SECRET_KEY", "SECRET_ACCESS_KEY")):
            assert value not in logs, name


def test_buckets_and_user_can_be_made_again_without_harm(stack: compose.Stack, run: dict[str, Any]) -> None:
    before = stack.s3().list_objects_v2(Bucket="heimdall-mlflow")["KeyCount"]
    stack.compose("up", "--no-deps", "--force-recreate", "minio-init")
    assert stack.state("minio-init")["State"]["ExitCode"] == 0
    assert stack.s3().list_objects_v2(Bucket="heimdall-mlflow")["KeyCount"] == before > 0


def test_down_and_up_loses_nothing(stack: compose.Stack, run: dict[str, Any]) -> None:
    identifier, picture = run["info"]["run_id"], picture_of(stack, run["info"]["run_id"])
    stack.down()
    stack.compose("up", "--detach", "--wait", "mlflow")
    again = stack.api(f"runs/get?run_id={identifier}")["run"]
    assert again["data"]["metrics"] == run["data"]["metrics"]
    key = again["info"]["artifact_uri"].removeprefix("s3://heimdall-mlflow/") + "/" + picture
    assert stack.s3().get_object(Bucket="heimdall-mlflow", Key=key)["Body"].read(4) == b"\x89PNG"
    assert stack.run("heimdall", "status").returncode == 0
    files = stack.run("ls", "outputs/quick").stdout
    assert "run.json" in files
