"""The compiled pipelines: what the pinned backend can run, when tasks are tried again, and a run
of their tasks on this machine.
"""

import copy
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml
from compiled_run import CompiledRun
from tiny import ROOT, tiny_run

from recsys.core.params import default_params
from recsys.core.runs import read_json, write_json
from recsys.core.stages import FULL, LISTS
from recsys.operate.kubeflow import UNDISTURBED, task_arguments, task_name

pytestmark = pytest.mark.xdist_group("pipelines")  # one run for all
PIPELINES = {name: ROOT / f"k8s/pipelines/{name}.yaml" for name in LISTS}
FACTS = yaml.safe_load((ROOT / "tests/facts/kfp.yaml").read_text())
CONTROLLER = ROOT / "k8s/cloud/kubeflow/workflow-defaults.yaml"


def documents(name):
    "The two documents of a compiled pipeline."
    return list(yaml.safe_load_all(PIPELINES[name].read_text()))


def version(text):
    "A version as numbers that can be compared."
    return tuple(map(int, text.split(".")))


def pinned_backend():
    "The version of the backend that the deployment page installs."
    page = (ROOT / "k8s/README.md").read_text()
    versions = set(re.findall(r"kubeflow/pipelines/\S+\?ref=([0-9.]+)", page))
    more = (ROOT / "k8s/cloud/kubeflow").glob("*.yaml")
    versions |= {
        v for f in more for v in re.findall(r"kubeflow/pipelines/\S+\?ref=([0-9.]+)", f.read_text())
    }
    assert len(versions) == 1, f"the page and the manifests name {sorted(versions)}"
    return versions.pop()


def features(spec, platform):
    "Which features a compiled pipeline needs of its backend."
    found = {"exit_handler"} if "finish" in spec["root"]["dag"]["tasks"] else set()
    root = spec["root"]["dag"]["tasks"].values()
    inner = [
        task
        for part in spec["components"].values()
        for task in part.get("dag", dict(tasks={}))["tasks"].values()
    ]
    for name, tasks in (("root_retry", root), ("inner_retry", inner)):
        found |= {name for task in tasks if "retryPolicy" in task}
    for task in [*root, *inner]:
        for source in task.get("inputs", {}).get("parameters", {}).values():
            found |= {"task_final_status"} if "taskFinalStatus" in source else set()
            constant = source.get("runtimeValue", {}).get("constant", "")
            found |= {"pipeline_job_id"} if "pipeline_job_uuid" in str(constant) else set()
    names = dict(
        pvcMount="pvc_mount",
        secretAsEnv="secret_as_env",
        configMapAsEnv="config_map_as_env",
        nodeSelector="node_selector",
        tolerations="tolerations",
        activeDeadlineSeconds="timeout",
        podMetadata="pod_annotations",
    )
    for executor in platform["platforms"]["kubernetes"]["deploymentSpec"]["executors"].values():
        found |= {names[key] for key in executor}
    return found


def not_runnable(needed, backend):
    "Features that a version of the backend does not run."
    known = FACTS["features"]
    return sorted(f for f in needed if version(known[f]) > version(backend))


@pytest.mark.parametrize("name", LISTS)
def test_the_pinned_backend_runs_every_feature_of_a_pipeline(name):
    assert not not_runnable(features(*documents(name)), pinned_backend())


def test_a_pipeline_with_a_final_status_is_refused_for_backend_2_5():
    spec, platform = documents("full")
    parameters = spec["root"]["dag"]["tasks"]["finish"]["inputs"]["parameters"]
    parameters["status"] = dict(taskFinalStatus=dict(producerTask="exit-handler-1"))
    wrong = not_runnable(features(spec, platform), "2.5.0")
    assert "task_final_status" in wrong and "inner_retry" in wrong


def all_tasks(spec):
    "Name and specification of each task that starts a container."
    for part in [spec["root"], *spec["components"].values()]:
        for name, task in part.get("dag", dict(tasks={}))["tasks"].items():
            if "dag" not in spec["components"][task["componentRef"]["name"]]:
                yield name, task


def retried(spec, platform, controller, how, backend="2.17.0"):
    "Tasks that are tried again where they fail after the half of their time limit."
    defaults = FACTS["retries"][backend]
    strategy = {}
    if controller is not None:
        strategy = yaml.safe_load(controller["data"]["workflowDefaults"])["spec"][
            "templateDefaults"
        ]["retryStrategy"]
    executors = platform["platforms"]["kubernetes"]["deploymentSpec"]["executors"]
    found = set()
    for name, task in all_tasks(spec):
        where = "root" if name in spec["root"]["dag"]["tasks"] else "inner"
        causes = defaults[where]
        if strategy.get("retryPolicy") == "Always":
            causes = ["gone", "exit"]
        component = spec["components"][task["componentRef"]["name"]]
        limit = int(executors[component["executorLabel"]]["activeDeadlineSeconds"])
        policy = task["retryPolicy"]
        longest = float(policy["backoffMaxDuration"][:-1])
        pause = float(policy["backoffDuration"][:-1])
        in_time = limit / 2 + pause < longest
        if how in causes and in_time and policy["maxRetryCount"] > 0:
            found.add(name)
    return found


def controller_patch():
    "The config map that is patched into Kubeflow's controller."
    return yaml.safe_load(CONTROLLER.read_text())


PUBLISHED = """
apiVersion: v1
kind: ConfigMap
metadata: {name: workflow-controller-configmap, namespace: kubeflow}
data: {workflowDefaults: "spec: {}", executor: "imagePullPolicy: IfNotPresent"}
---
apiVersion: apps/v1
kind: Deployment
metadata: {name: workflow-controller, namespace: kubeflow}
spec:
  selector: {matchLabels: {app: workflow-controller}}
  template:
    metadata: {labels: {app: workflow-controller}}
    spec:
      containers:
      - {name: workflow-controller, image: controller, env: [{name: LEADER, value: a}]}
---
apiVersion: v1
kind: PersistentVolumeClaim
metadata: {name: mysql-pv-claim, namespace: kubeflow}
spec: {accessModes: [ReadWriteOnce], resources: {requests: {storage: 20Gi}}}
"""


@pytest.mark.needs("kubectl")
def test_our_patches_meet_the_published_objects_and_keep_what_else_they_have(tmp_path):
    shutil.copytree(ROOT / "k8s/cloud/kubeflow", tmp_path / "kubeflow")
    kustomization = tmp_path / "kubeflow/kustomization.yaml"
    text = kustomization.read_text()
    kustomization.write_text(re.sub(r"(?m)^- github.com\S+", "- published.yaml", text))
    (tmp_path / "kubeflow/published.yaml").write_text(PUBLISHED)
    command = ["kubectl", "kustomize", tmp_path / "kubeflow"]
    made = subprocess.run(command, capture_output=True, text=True)
    assert made.returncode == 0, made.stderr
    objects = {d["kind"]: d for d in yaml.safe_load_all(made.stdout)}
    data = objects["ConfigMap"]["data"]
    assert data["executor"] and "Always" in data["workflowDefaults"]
    (container,) = objects["Deployment"]["spec"]["template"]["spec"]["containers"]
    names = {one["name"] for one in container["env"]}
    assert names == {"LEADER", "ARGO_POD_STATUS_CAPTURE_FINALIZER"} and container["image"]
    assert objects["PersistentVolumeClaim"]["spec"]["storageClassName"] == "gp3"


@pytest.mark.parametrize("how", ["gone", "exit"])
@pytest.mark.parametrize("name", LISTS)
def test_every_task_that_fails_at_half_of_its_time_is_tried_again(name, how):
    spec, platform = documents(name)
    names = {task for task, _ in all_tasks(spec)}
    assert retried(spec, platform, controller_patch(), how) == names


def test_without_the_patch_or_with_half_an_hour_nothing_long_is_tried_again():
    spec, platform = documents("full")
    assert not retried(spec, platform, None, "exit")
    short = copy.deepcopy(spec)
    for _, task in all_tasks(short):
        task["retryPolicy"]["backoffMaxDuration"] = "1800s"
    assert "dlrm" not in retried(short, platform, controller_patch(), "gone")


def test_every_attempt_of_a_task_may_run_to_its_end():
    spec, platform = documents("full")
    executors = platform["platforms"]["kubernetes"]["deploymentSpec"]["executors"]
    for name, task in all_tasks(spec):
        label = spec["components"][task["componentRef"]["name"]]["executorLabel"]
        limit = int(executors[label]["activeDeadlineSeconds"])
        attempts = task["retryPolicy"]["maxRetryCount"] + 1
        assert float(task["retryPolicy"]["backoffMaxDuration"][:-1]) >= attempts * limit, name


def test_no_node_is_emptied_under_a_task():
    for name in LISTS:
        spec, platform = documents(name)
        executors = platform["platforms"]["kubernetes"]["deploymentSpec"]["executors"]
        for label, executor in executors.items():
            assert executor["podMetadata"]["annotations"] == {UNDISTURBED: "true"}, label
    pools = yaml.safe_load_all((ROOT / "k8s/cloud/karpenter/pools.yaml").read_text())
    longest = max(stage.resources.hours for stage in FULL)
    for pool in pools:
        if "training" in pool["metadata"]["name"]:
            spec = pool["spec"]["template"]["spec"]  # a node too old ends when its tasks have
            assert int(spec["terminationGracePeriod"].removesuffix("h")) >= longest


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory):
    """A tiny run as if its notebooks had just been executed: the stages are finished, so that its
    tasks take seconds; `make prove` runs them for real.
    """
    outputs = tiny_run(tmp_path_factory.mktemp("compiled") / "outputs")
    for stage in FULL:
        notebook = outputs / "tiny/notebooks" / f"{stage.notebook}.ipynb"
        notebook.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(ROOT / f"nbs/{stage.notebook}.ipynb", notebook)
    return outputs


def pipeline_run(outputs, folder, job, kill=None, **changes):
    "A run of the compiled full pipeline over the tiny run."
    arguments = task_arguments("full", default_params()) | changes
    env = {"RECSYS_OUTPUTS": str(outputs), "MPLBACKEND": "agg"}
    return CompiledRun(PIPELINES["full"], arguments, Path(folder), env, job, kill or {})


@pytest.fixture(scope="module")
def finished(run_folder, tmp_path_factory):
    "The states of all tasks, and the run; the first task is killed once."
    run = pipeline_run(run_folder, tmp_path_factory.mktemp("kfp"), "job-1", {"ingest": 0.5})
    return run.run(), run


def test_the_compiled_pipeline_runs_to_its_end(finished):
    states, run = finished
    assert set(states.values()) == {"succeeded"}, states
    assert set(states) >= {task_name(stage.name) for stage in FULL}
    assert "pipeline full succeeded" in run.attempts[-1].output


def test_a_killed_task_is_tried_again(finished):
    codes = [a.code for a in finished[1].attempts if a.task == "ingest"]
    assert codes == [-9, 0]


def test_each_task_hands_its_digest_to_the_tasks_behind_it(finished):
    run = finished[1]
    digests = {p.parent.parent.name: p.read_text() for p in run.folder.glob("*/*/digest.txt")}
    assert len(digests) == len(FULL)
    assert all(re.fullmatch("[0-9a-f]{64}", digest) for digest in digests.values())


def test_the_lease_is_given_back_at_the_end(finished, run_folder):
    assert not (run_folder / ".pipeline.json").exists()
    outcome = read_json(run_folder / "tiny/.outcomes/promote.json")
    assert outcome["job"] == "job-1" and not outcome["error"]


def test_a_failed_stage_fails_the_pipeline_and_is_named_at_its_end(finished, run_folder, tmp_path):
    changes = dict(RUN="broken", SOURCE="parquet", INTERACTIONS="none/*.parquet")
    run = pipeline_run(run_folder, tmp_path, "job-2", **changes)
    states = run.run()
    assert states["ingest"] == "failed" and states["dlrm"] == "skipped"
    assert states["exit-handler-1"] == "failed" and states["finish"] == "succeeded"
    assert len([a for a in run.attempts if a.task == "ingest"]) == 3
    last = run.attempts[-1]
    assert last.task == "finish" and "pipeline full failed: stage ingest:" in last.output
    assert "none/*.parquet" in last.output
    assert not (run_folder / ".pipeline.json").exists()


def test_a_second_pipeline_does_not_start_while_one_is_at_work(finished, run_folder, tmp_path):
    lease = dict(job="job-0", run="tiny", since=0, until=10**11)
    write_json(run_folder / ".pipeline.json", lease)
    run = pipeline_run(run_folder, tmp_path, "job-3", RUN="second")
    for task in run.components["comp-exit-handler-1"]["dag"]["tasks"].values():
        task["retryPolicy"]["maxRetryCount"] = 0
    states = run.run()
    assert states["ingest"] == "failed"
    assert "job job-0 is at work on run tiny" in run.attempts[0].output
    assert read_json(run_folder / ".pipeline.json") == lease
    assert not (run_folder / "second/ingest/interactions.parquet").exists()
