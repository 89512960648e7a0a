"""The cluster as one command: the real steps, run with programs in the place of aws, eksctl,
kubectl, helm, docker and curl that write down how they are called.
"""

import os
import re
import shlex
import shutil
import subprocess

import pytest
from k8s_rules import ROOT
from typer.testing import CliRunner

from recsys.core.params import RecsysError
from recsys.core.runs import read_json
from recsys.operate.cli import app
from recsys.operate.cluster_steps import (
    ClusterRunner,
    cluster_state_file,
    describe_undo,
    page_with_steps,
    plan_faults,
    read_cluster_plan,
    read_costs,
)

pytestmark = pytest.mark.xdist_group("cluster_steps")  # what is built once is used by all
PROGRAMS = ("aws", "eksctl", "kubectl", "helm", "docker", "curl")
INPUTS = dict(
    first_day="2026-01-01", alerts_url="http://a.invalid", watchdog_url="http://w.invalid"
)
STATUS = "*describe-stacks --stack-name {} *StackStatus*"
ANSWERS = [  # question (a pattern of sh), answer, the call that makes it so, and that unmakes it
    ("*get-caller-identity*", "111122223333", "", ""),
    ("*update-kubeconfig*", "", "eksctl create cluster", "eksctl delete cluster"),
    ("*create-service-linked-role*", "", "never", ""),  # the account has it already
    (STATUS.format("Karpenter-recsys"), "CREATE_COMPLETE", "deploy .*Karpenter-recsys", ""),
    (STATUS.format("recsys"), "CREATE_COMPLETE", "deploy --stack-name recsys ", ""),
    (STATUS.format("recsys-tables"), "CREATE_COMPLETE", "deploy --stack-name recsys-tables ", ""),
    ("*describe-stacks --stack-name recsys *", "found", "deploy --stack-name recsys ", ""),
    ("*describe-nodegroup*", "ACTIVE", "eksctl create cluster", ""),
    ("*list-pod-identity-associations*", "1", "eksctl create cluster", ""),
    ("*eks list-clusters*", "recsys", "", "eksctl delete cluster"),
    ("*eks describe-cluster*", "found", "eksctl create cluster", "eksctl delete cluster"),
    ("*describe-security-groups*", "1", "create-tags", ""),
    *(
        (f"*describe-images --repository-name recsys-{i} *", "0.1.0", f"docker push .*-{i}:", "")
        for i in ("training", "serving", "gateway", "worker")
    ),
    ("*get storageclass*", 'is-default-class: "true"', "apply -k k8s/cloud/storage", ""),
    ("*rollout status deployment/karpenter*", "", "install karpenter ", ""),
    ("*wait *ec2nodeclass/recsys*", "", "apply -k k8s/cloud/karpenter", ""),
    ("*get secret recsys-alerts*", "", "create secret generic recsys-alerts", ""),
    *(
        (f"helm status {name} *", "STATUS: deployed", f"install {name} ", "")
        for name in ("monitoring", "adapter", "external-secrets", "gpu-operator")
    ),
    ("*get serviceaccount*", "eks.amazonaws.com/role-arn: x", "annotate --overwrite", ""),
    ("*get deployment triton*", "", "apply -k k8s/overlays/prod", ""),
    ("*s3api list-buckets*", "recsys-bucket-x", "", "s3api delete-bucket"),
    ("*s3api list-object-versions*", '{"Objects": [{"Key": "k"}]}', "", "s3api delete-objects"),
    ("*efs describe-file-systems*", "fs-1", "", ""),
]
PROGRAM = """#!/bin/sh
home=${0%/bin/*} call="${0##*/} $*"
made() { grep -Eq "$1" "$home/calls"; }
answer() {  # answer, made by, unmade by
    if [ -n "$2" ] && ! made "$2"; then exit 254; fi
    if [ -n "$3" ] && made "$3"; then
        case $call in *describe-*|*kubeconfig*) exit 254 ;; esac
        exit
    fi
    echo "$1"
    exit
}
cat > /dev/null
if [ -f "$home/fault" ] && echo "$call" | grep -Eq "$(cat "$home/fault")"; then
    rm "$home/fault"
    exit 3
fi
echo "$call" >> "$home/calls"
case $call in
"""


def program(answers):
    "Return the text of a program that records its calls and knows some answers."
    cases = []
    for question, *rest in answers:
        pattern = re.sub(r"([^*]+)", lambda m: shlex.quote(m[1]), question)
        cases.append(f"{pattern}) answer {' '.join(shlex.quote(one) for one in rest)} ;;")
    return PROGRAM + "\n".join(cases) + "\nesac\n"


class FakeCloud:
    "A folder like the project's, with programs that record their calls."

    def __init__(self, folder):
        self.folder, self.bin = folder, folder / "bin"
        self.seen = len(self.log)

    @property
    def log(self):
        "All calls."
        return (self.folder / "calls").read_text().splitlines()

    @property
    def calls(self):
        "What was called since the last look."
        new = self.log[self.seen :]
        self.seen += len(new)
        return new

    def fail_once(self, pattern):
        "Let the next call that matches end with exit code 3."
        (self.folder / "fault").write_text(pattern)

    def runner(self, said=None):
        "Return a runner as the command makes it."
        say = said.append if said is not None else lambda line: None
        return ClusterRunner(read_cluster_plan(), say)


def enter(folder, patch):
    "Work in a folder as a person does who has the programs on PATH and has set the inputs."
    patch.chdir(folder)
    patch.setenv("RECSYS_OUTPUTS", str(folder / "outputs"))
    patch.setenv("PATH", f"{folder}/bin:/usr/bin:/bin")
    for name, value in INPUTS.items():
        patch.setenv(name, value)
    return FakeCloud(folder)


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    "The project's files in another folder, and recording programs."
    folder = tmp_path_factory.mktemp("project")
    for name in ("k8s", "params"):
        shutil.copytree(ROOT / name, folder / name)
    shutil.copy(ROOT / "settings.ini", folder)
    for name in ("recsys", "bin"):
        (folder / name).mkdir()
    (folder / "calls").touch()
    for name in PROGRAMS:
        (folder / "bin" / name).write_text(program(ANSWERS))
        (folder / "bin" / name).chmod(0o755)
    return folder


@pytest.fixture(scope="module")
def built(project, tmp_path_factory):
    "A folder in which all steps have run."
    folder = shutil.copytree(project, tmp_path_factory.mktemp("built") / "project")
    with pytest.MonkeyPatch.context() as patch:
        enter(folder, patch).runner().up()
    return folder


@pytest.fixture
def cloud(project, tmp_path, monkeypatch):
    "A cloud in which nothing is built."
    return enter(shutil.copytree(project, tmp_path / "project"), monkeypatch)


@pytest.fixture
def full_cloud(built, tmp_path, monkeypatch):
    "A cloud in which everything is built."
    return enter(shutil.copytree(built, tmp_path / "project"), monkeypatch)


def places(calls, *patterns):
    "Return where calls that match stand; each pattern has to match."
    found = [next((i for i, c in enumerate(calls) if re.search(p, c)), None) for p in patterns]
    assert None not in found, (patterns, calls)
    return found


def test_a_dry_run_calls_nothing(cloud):
    for command in (["up"], ["down"], ["down", "--data"], ["costs"]):
        done = CliRunner().invoke(app, ["cluster", *command])
        assert done.exit_code == 0, done.output
    assert cloud.calls == []
    assert not cluster_state_file("recsys").exists()


def test_a_failed_step_is_named_and_the_next_run_goes_on_there(cloud):
    cloud.fail_once("helm upgrade --install adapter")
    with pytest.raises(RecsysError) as caught:
        cloud.runner().up()
    message = str(caught.value)
    assert "step adapter failed: `helm upgrade --install adapter" in message
    assert "exit code 3" in message and "logs deployment/adapter" in message
    assert read_json(cluster_state_file("recsys"))["steps"]["adapter"]["state"] == "failed"
    first = cloud.calls
    places(first, "eksctl create cluster", "helm upgrade --install monitoring")
    assert not [c for c in first if "gpu-operator" in c]

    said = []
    cloud.runner(said).up()
    second = cloud.calls
    making = "eksctl|cloudformation deploy|create-tags|docker (build|push)|install monitoring"
    assert not [c for c in second if re.search(making, c)]
    places(second, "install adapter", "install gpu-operator", "apply -k k8s/overlays/prod")
    assert said.index("monitoring: is done") < said.index("adapter: about 2 min")
    states = {s["state"] for s in read_json(cluster_state_file("recsys"))["steps"].values()}
    assert states == {"done"}
    values = (cloud.folder / "k8s/overlays/prod/values.env").read_text()
    assert set(re.findall("=(.*)", values)) == {"found"}
    assert "s3://found/" in (cloud.folder / "params/cluster.yaml").read_text()


def test_a_second_run_only_checks(full_cloud):
    full_cloud.runner().up()
    making = "eksctl|cloudformation deploy|create-tags|docker|upgrade|apply|annotate"
    calls = full_cloud.calls
    assert calls and not [c for c in calls if re.search(making, c)]


def test_a_check_that_does_not_succeed_ends_the_run(cloud):
    never = ("*get storageclass*", "", "never", "")
    (cloud.bin / "kubectl").write_text(program([never, *ANSWERS]))
    with pytest.raises(RecsysError, match=r"step storage failed: `kubectl get storageclass gp3"):
        cloud.runner().up()
    assert not [c for c in cloud.calls if "karpenter --version" in c]


def test_tear_down_is_in_reverse_order_and_keeps_data(full_cloud):
    said = []
    full_cloud.runner(said).down()
    calls = full_cloud.calls
    order = places(
        calls,
        "delete -k k8s/overlays/prod",
        "delete namespace kubeflow",
        "uninstall monitoring",
        "delete -k k8s/cloud/karpenter",
        "uninstall karpenter",
        "delete-stack --stack-name recsys-tables",
        "delete-stack --stack-name recsys$",
        "eksctl delete cluster",
        "delete-stack --stack-name Karpenter-recsys",
    )
    assert order == sorted(order)
    data = "s3api|efs|ecr delete|delete-bucket"
    assert not [c for c in calls if re.search(data, c)]
    assert "cloud: its data are kept (DATA=1 removes them)" in said

    full_cloud.runner().down(data=True)
    calls = full_cloud.calls
    places(calls, "delete-objects --bucket recsys-bucket-x", "delete-bucket", "delete-file-system")
    n_images = len(list((ROOT / "k8s/images").glob("*/Dockerfile")))
    assert len([c for c in calls if "ecr delete-repository" in c]) == n_images
    assert not [c for c in calls if re.search("eksctl|delete-stack|helm|kubectl", c)]
    full_cloud.runner().down(data=True)
    assert not [c for c in full_cloud.calls if re.search(data, c)]


def test_tear_down_goes_on_where_it_stopped(full_cloud):
    full_cloud.fail_once("delete-stack --stack-name recsys$")
    with pytest.raises(RecsysError, match=r"step cloud failed: .*exit code 3.*DOWN=1 APPLY=1"):
        full_cloud.runner().down()
    assert "eksctl delete" not in str(full_cloud.calls)
    full_cloud.runner().down()
    calls = full_cloud.calls
    places(calls, "delete-stack --stack-name recsys$", "eksctl delete cluster")
    assert not [c for c in calls if "helm uninstall" in c]


def test_tear_down_of_a_half_built_cluster_leaves_out_what_was_never_begun(cloud):
    cloud.fail_once("install karpenter")
    with pytest.raises(RecsysError, match="step karpenter failed"):
        cloud.runner().up()
    assert cloud.calls
    cloud.runner().down()
    calls = cloud.calls
    places(calls, "helm uninstall karpenter", "eksctl delete cluster")
    assert not [c for c in calls if re.search("overlays/prod|namespace|cloud/karpenter", c)]


def test_steps_of_a_cluster_that_is_gone_are_not_taken_back_one_by_one(full_cloud):
    subprocess.run([full_cloud.bin / "eksctl", "delete", "cluster"], check=True)
    assert full_cloud.calls
    full_cloud.runner().down()
    calls = full_cloud.calls
    assert not [c for c in calls if re.search("helm|kubectl", c)]
    places(calls, "delete-stack --stack-name recsys$")


@pytest.mark.parametrize("work", ["up", "down"])
def test_a_missing_program_is_named_before_the_first_step(cloud, work):
    (cloud.bin / "helm").unlink()
    with pytest.raises(RecsysError, match=r"not on PATH: helm\. No step was run"):
        getattr(cloud.runner(), work)()
    assert cloud.calls == []


def test_inputs_and_the_account_are_looked_at_before_the_first_step(cloud, monkeypatch):
    monkeypatch.delenv("alerts_url")
    with pytest.raises(RecsysError, match=r"set in the environment: alerts_url \(the webhook"):
        cloud.runner().up()
    monkeypatch.setenv("alerts_url", "x")
    cloud.fail_once("sts get-caller-identity")
    with pytest.raises(RecsysError, match="AWS names no account"):
        cloud.runner().up()
    runner = cloud.runner()
    runner.state["account"] = "444455556666"
    with pytest.raises(RecsysError, match="is of account 444455556666, you are in 111122223333"):
        runner.down()
    assert {c for c in cloud.calls if "sts" not in c} == set()


def test_the_command_ends_with_an_exit_code(cloud):
    cloud.fail_once("eksctl create cluster")
    done = CliRunner().invoke(app, ["cluster", "up", "--apply"])
    assert isinstance(done.exception, RecsysError) and "step cluster failed" in str(done.exception)


def test_make_hands_its_variables_on():
    def printed(*variables):
        command = ["make", "-n", "--no-print-directory", "cluster", *variables]
        env = {k: v for k, v in os.environ.items() if not k.startswith("MAKE")}  # `make test`'s own
        done = subprocess.run(command, cwd=ROOT, capture_output=True, env=env)
        return done.stdout.decode().splitlines()[-1].split()

    assert printed() == ["recsys", "cluster", "up"]
    assert printed("APPLY=1") == ["recsys", "cluster", "up", "--apply"]
    assert printed("APPLY=0", "DATA=1") == ["recsys", "cluster", "up"]
    assert printed("DOWN=1") == ["recsys", "cluster", "down"]
    expected = ["recsys", "cluster", "down", "--data", "--apply"]
    assert printed("DOWN=1", "DATA=1", "APPLY=1") == expected


# ---- the file


def scripts(step):
    "Return all texts of a step."
    return "\n".join((step.command, step.check, step.undo, step.undo_data, step.gone))


def undeclared(plan):
    "Return programs and variables that a step uses without saying so."
    wrong = []
    for step in plan.steps:
        text = "\n".join([scripts(step), *(plan.variables[name] for name in step.uses)])
        called = set(re.findall(r"(?:^|[|;(&!]|\bdo|\bthen|\bif) *(\w+)(?= )", text, re.M))
        programs = {*PROGRAMS, "sed", "cut"} & called
        wrong += [f"{step.name} calls {x}" for x in sorted(programs - set(step.tools))]
        read = set(re.findall(r"\$(\w+)|\$\((out)\b", scripts(step)))
        names = {x or y for x, y in read} & {*plan.variables, *plan.inputs}
        wrong += [f"{step.name} reads {x}" for x in sorted(names - {*step.uses, *step.inputs})]
        if re.search(r"\b(kubectl|helm)\b", scripts(step)) and "kubeconfig" not in step.uses:
            wrong.append(f"{step.name} takes whatever cluster kubectl speaks to")
    return wrong


def test_steps_declare_what_they_use():
    plan = read_cluster_plan()
    assert undeclared(plan) == [] == plan_faults(plan)
    spoilt = read_cluster_plan()
    vars(spoilt.steps[8]).update(tools=("aws",), uses=())
    assert undeclared(spoilt) == [
        "karpenter calls helm",
        "karpenter calls kubectl",
        "karpenter takes whatever cluster kubectl speaks to",
    ]


def test_only_undo_data_removes_data():
    dangerous = r"delete-bucket|delete-objects|s3 rb|delete-file-system|delete-repository"
    plan = read_cluster_plan()
    assert [s.name for s in plan.steps if re.search(dangerous, s.undo_data)] == ["cloud"]
    others = "\n".join(f"{s.command}{s.check}{s.undo}{s.gone}" for s in plan.steps)
    assert not re.search(dangerous, others)
    assert not re.search(dangerous, "\n".join(describe_undo(plan)))


def test_the_page_shows_the_steps_of_the_file():
    page = (ROOT / "k8s/README.md").read_text()
    plan, costs = read_cluster_plan(), read_costs()
    assert page_with_steps(page, plan, costs) == page, "run `make export`"
    vars(plan.steps[0])["command"] = "echo another"
    assert page_with_steps(page, plan, costs) != page


def test_costs_name_their_source_and_day():
    costs = read_costs()
    page = (ROOT / "k8s/README.md").read_text()
    assert f"as of {costs['taken']}" in page and costs["region"] in page
    used = {item["price"] for items in costs["clusters"].values() for item in items}
    assert used == set(costs["prices"])
    for name, price in costs["prices"].items():
        assert price["source"].startswith("https://") and price["usd"] > 0, name
