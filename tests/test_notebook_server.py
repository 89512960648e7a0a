"""The researcher's notebook server: the component against the rules of all overlays, and against
what is known of Kubeflow's notebook controller.
"""

import copy

import kubernetes_validate
import pytest
import yaml
from k8s_rules import ROOT, RULES, get, kinds, notebook_pod, prod_with, rendered_docs
from reachability import reaches

FACTS = yaml.safe_load((ROOT / "tests/facts/cluster.yaml").read_text())["notebooks"]


@pytest.fixture(scope="module")
def manifests(tmp_path_factory):
    "The prod overlay with the component."
    return rendered_docs(prod_with("notebook", tmp_path_factory.mktemp("notebook")))


def controller_faults(notebook):
    "Return what the controller would cut off, replace or refuse."
    wrong, where = [], notebook["metadata"]
    if notebook["apiVersion"] != FACTS["api"]:
        wrong.append(f"{notebook['apiVersion']} is not served")
    if set(notebook["spec"]) != {"template"} or set(notebook["spec"]["template"]) != {"spec"}:
        wrong.append("the CRD knows spec.template.spec only")
    pod = notebook["spec"]["template"]["spec"]
    wrong += [f"the CRD does not know {field}" for field in sorted(set(pod) - set(FACTS["fields"]))]
    for one in pod["containers"] + pod.get("initContainers", []):
        wrong += [f"a container has no {field}" for field in FACTS["needed"] if field not in one]
    server = pod["containers"][0]
    prefix = FACTS["prefix"].format(namespace=where["namespace"], name=where["name"])
    set_here = [e["value"] for e in server["env"] if e["name"] == "NB_PREFIX"]
    if set_here != [prefix]:
        wrong.append(f"NB_PREFIX will be {prefix}, here it is {set_here}")
    for kind in ("startupProbe", "readinessProbe", "livenessProbe"):
        if server[kind]["httpGet"]["path"] != f"{prefix}/api":
            wrong.append(f"{kind} asks another path than {prefix}/api")
    if "securityContext" not in pod or "workingDir" not in server:
        wrong.append("the controller fills fsGroup 100 or /home/jovyan in")
    wrong += [
        f"the annotation {key} does not reach the pod"
        for key in where.get("annotations", {})
        if any(word in key for word in FACTS["kept_out"])
    ]
    return wrong


@pytest.mark.needs("kubectl")
def test_the_component_keeps_the_rules_of_all_overlays(manifests):
    assert [x for rule in RULES for x in rule(manifests)] == []
    pod = get(manifests, "Notebook", "workbook", "kubeflow")["spec"]["template"]["spec"]
    assert {c["image"].partition("/")[0] for c in pod["containers"] + pod["initContainers"]} == {
        "111122223333.dkr.ecr.eu-central-1.amazonaws.com"
    }


BREAKS = {  # words of the rule that must say so -> how to break the pod's spec
    "there is no claim other": lambda pod: pod["volumes"][0]["persistentVolumeClaim"].update(
        claimName="other"
    ),
    "there is no service account nobody": lambda pod: pod.update(serviceAccountName="nobody"),
    "does not bear the taint recsys.io/pool=training": lambda pod: pod.pop("tolerations"),
    "serves from nodes that may be taken away": lambda pod: pod["nodeSelector"].pop(
        "karpenter.sh/capacity-type"
    ),
    "container workbook may write into its image": lambda pod: pod["containers"][0][
        "securityContext"
    ].pop("readOnlyRootFilesystem"),
    "runs no command of recsys": lambda pod: pod["containers"][0].update(command=["sh"]),
    "which workbook does not answer": lambda pod: pod["containers"][0]["readinessProbe"].update(
        httpGet=dict(path="/api", port="http")
    ),
    "recsys-notebok:0.1.0 is not one that k8s/images builds": lambda pod: pod["containers"][
        0
    ].update(image="r/recsys-notebok:0.1.0"),
}


@pytest.mark.needs("kubectl")
@pytest.mark.parametrize("words", BREAKS)
def test_rules_go_red(manifests, words):
    docs = copy.deepcopy(manifests)
    BREAKS[words](get(docs, "Notebook", "workbook", "kubeflow")["spec"]["template"]["spec"])
    found = [x for rule in RULES for x in rule(docs)]
    assert any(words in x for x in found), found


@pytest.mark.needs("kubectl")
def test_the_controller_takes_the_resource_as_it_is(manifests):
    notebook = get(manifests, "Notebook", "workbook", "kubeflow")
    assert controller_faults(notebook) == []
    assert set(FACTS["pod_labels"]) < set(notebook_pod(notebook)["metadata"]["labels"])
    for words, change in (
        ("kubeflow.org/v2 is not served", lambda d: d.update(apiVersion="kubeflow.org/v2")),
        ("spec.template.spec only", lambda d: d["spec"]["template"].update(metadata={})),
        ("NB_PREFIX will be /notebook/other", lambda d: d["metadata"].update(namespace="other")),
        (
            "does not know runtimeClas",
            lambda d: d["spec"]["template"]["spec"].update(runtimeClas=1),
        ),
        (
            "example.org/notebook-x does not reach",
            lambda d: d["metadata"]["annotations"].update({"example.org/notebook-x": "1"}),
        ),
    ):
        broken = copy.deepcopy(notebook)
        change(broken)
        assert any(words in x for x in controller_faults(broken)), words


@pytest.mark.needs("kubectl")
def test_its_pod_and_the_rest_are_what_their_schemas_say(manifests):
    version = yaml.safe_load((ROOT / "k8s/cloud/cluster.yaml").read_text())["metadata"]["version"]
    notebook = get(manifests, "Notebook", "workbook", "kubeflow")
    pod = dict(apiVersion="v1", kind="Pod", metadata=dict(name="workbook-0"))
    pod["spec"] = notebook["spec"]["template"]["spec"]
    for one in (
        pod,
        get(manifests, "NetworkPolicy", "workbook", "kubeflow"),
        get(manifests, "ServiceAccount", "recsys-notebook", "kubeflow"),
    ):
        kubernetes_validate.validate(one, version, strict=True)


@pytest.mark.needs("kubectl")
def test_nobody_reaches_it_and_it_reaches_names_only(manifests):
    docs = [d for d in manifests if d["metadata"].get("namespace") == "kubeflow"]
    names = "namespace kube-system, pods with k8s-app=kube-dns"
    assert reaches(docs) == [("workbook", names, "53")]
    docs.remove(kinds(docs, "NetworkPolicy")[0])
    assert ("anything", "workbook", "every port") in reaches(docs)


@pytest.mark.needs("kubectl")
def test_it_writes_only_below_its_own_folder(manifests):
    pod = get(manifests, "Notebook", "workbook", "kubeflow")["spec"]["template"]["spec"]
    for one in pod["containers"] + pod["initContainers"]:
        for mount in one["volumeMounts"]:
            if mount["name"] == "outputs":
                assert mount.get("readOnly") or mount.get("subPath") == "workbook", mount


def test_the_page_installs_the_version_whose_facts_are_known():
    page = (ROOT / "k8s/README.md").read_text()
    assert f'kubectl apply -k "{FACTS["install"]}"' in page
    assert f"| Kubeflow's notebook controller | {FACTS['version'].lstrip('v')} |" in page
