"""checkov over what would be applied: rendered overlays and components, the pod that the notebook
controller makes, CloudFormation templates and Dockerfiles. It runs in an environment of its own.
"""

import hashlib
import json
import re
import shutil
import subprocess
import sys

import pytest
import yaml
from filelock import FileLock
from k8s_rules import ROOT, kinds, notebook_pod, prod_with, rendered_text
from test_images import run_uv, skip_offline

K8S = ROOT / "k8s"
LOCK = ROOT / "tests/checkov/requirements.lock"
FOLDERS = ("overlays/prod", "overlays/dev", "cloud/karpenter", "cloud/storage")
COMPONENTS = ("entry", "events", "notebook", "serving-gpu")
BROKEN = """
apiVersion: v1
kind: Pod
metadata: {name: broken, namespace: recsys}
spec:
  containers:
  - {name: a, image: "a:1", securityContext: {privileged: true}}
"""
BROKEN_STACK = """
AWSTemplateFormatVersion: "2010-09-09"
Resources: {Open: {Type: "AWS::S3::Bucket", Properties: {AccessControl: PublicRead}}}
"""


def checkov():
    "Return checkov's program, installed once from its lock."
    wanted = hashlib.sha256(LOCK.read_bytes() + sys.executable.encode()).hexdigest()
    home = ROOT / "outputs/.checkov"
    home.parent.mkdir(exist_ok=True)
    with FileLock(f"{home}.lock"):
        done = home / "done"
        if not done.is_file() or done.read_text() != wanted:
            shutil.rmtree(home, ignore_errors=True)
            made = run_uv("venv", "-q", "--python", sys.executable, str(home))
            assert made.returncode == 0, made.stderr
            install = ("pip", "install", "-q", "--python", str(home / "bin/python"))
            made = run_uv(*install, "--require-hashes", "--no-deps", "-r", str(LOCK))
            skip_offline(made)
            assert made.returncode == 0, made.stderr[-3000:]
            done.write_text(wanted)
    return home / "bin/checkov"


def write_subjects(folder):
    "Write everything that is checked into a folder."
    for path in FOLDERS:
        (folder / f"{path.replace('/', '-')}.yaml").write_text(rendered_text(K8S / path))
    for name in COMPONENTS:
        (folder / name).mkdir()
        text = rendered_text(prod_with(name, folder / name))
        (folder / name / "kustomization.yaml").unlink()
        for d in kinds([d for d in yaml.safe_load_all(text) if d], "Notebook"):
            pod = notebook_pod(d)
            spec = dict(serviceName="x", selector=dict(matchLabels={}), template=pod)
            made = dict(apiVersion="apps/v1", kind="StatefulSet", metadata=d["metadata"], spec=spec)
            text += "\n---\n" + yaml.safe_dump(made)
        (folder / name / "component.yaml").write_text(text)
    for path in ("stack.yaml", "events.yaml", "tables.json"):
        shutil.copy(K8S / "cloud" / path, folder / f"cloud-{path}")
    for path in (K8S / "images").glob("*/Dockerfile"):
        (folder / "images" / path.parent.name).mkdir(parents=True)
        shutil.copy(path, folder / "images" / path.parent.name)
    (folder / "broken").mkdir()
    (folder / "broken/pod.yaml").write_text(BROKEN)
    (folder / "broken/stack.yaml").write_text(BROKEN_STACK)


@pytest.fixture(scope="module")
def failed(tmp_path_factory):
    "Return (check, file, resource) of everything that checkov refuses, without any skip list."
    folder = tmp_path_factory.mktemp("subjects")
    write_subjects(folder)
    command = [checkov(), "-d", folder, "--compact", "--quiet", "--skip-download", "-o", "json"]
    frameworks = ["--framework", "kubernetes", "cloudformation", "dockerfile"]
    done = subprocess.run([*command, *frameworks], capture_output=True, text=True)
    reports = json.loads(done.stdout)
    counts = {r["check_type"]: r["summary"]["resource_count"] for r in reports}
    assert set(counts) == {"kubernetes", "cloudformation", "dockerfile"} and all(counts.values())
    return {
        (one["check_id"], one["file_path"], one["resource"])
        for report in reports
        for one in report["results"]["failed_checks"]
    }


def skipped():
    "Return check -> reason of the skip list."
    text = (K8S / "checkov.yaml").read_text()
    found = dict(re.findall(r"^- (CKV\w+) +# (.+)$", text, re.M))
    assert list(found) == yaml.safe_load(text)["skip-check"]
    return found


@pytest.mark.needs("kubectl", "uv")
def test_checkov_refuses_what_has_a_reason_and_nothing_else(failed):
    ours = {row for row in failed if not row[1].startswith("/broken/")}
    assert {check for check, *_ in ours} == set(skipped()), sorted(ours)


@pytest.mark.needs("kubectl", "uv")
def test_the_reasons_name_the_containers_that_they_are_about(failed):
    for check in ("CKV_K8S_8", "CKV_K8S_9"):
        about = {row[2].rpartition(".")[2] for row in failed if row[0] == check}
        assert about - {"broken"} == {"triton"}, about  # whose second container is `follow`


@pytest.mark.needs("kubectl", "uv")
def test_checkov_goes_red(failed):
    refused = {check for check, path, _ in failed if path.startswith("/broken/")}
    assert {"CKV_K8S_16", "CKV_K8S_20", "CKV_AWS_20"} <= refused - set(skipped()), refused


def test_every_skip_has_a_reason():
    assert all(len(reason.split()) > 8 for reason in skipped().values())
