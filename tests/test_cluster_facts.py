"""k8s/cloud against facts about what it installs (facts/cluster.yaml): the rules give sentences
about what a real cluster would refuse, and each of them is broken once on purpose.
"""

import copy
import re
from dataclasses import dataclass, field

import pytest
import yaml
from k8s_rules import ROOT, kinds, name

K8S = ROOT / "k8s"


class TemplateLoader(yaml.SafeLoader):
    "Read a CloudFormation template: `!Ref X` becomes {'Ref': 'X'}."


def short_form(loader, tag, node):
    read = {
        yaml.ScalarNode: loader.construct_scalar,
        yaml.SequenceNode: lambda x: loader.construct_sequence(x, deep=True),
        yaml.MappingNode: lambda x: loader.construct_mapping(x, deep=True),
    }[type(node)]
    return {tag: read(node)}


TemplateLoader.add_multi_constructor("!", short_form)


def read_docs(*folders):
    "Read every resource below folders of k8s/."
    files = [f for folder in folders for f in sorted((K8S / folder).rglob("*.yaml"))]
    docs = [d for f in files for d in yaml.safe_load_all(f.read_text())]
    return [d for d in docs if isinstance(d, dict) and "metadata" in d]


def read_one(path):
    return yaml.safe_load((K8S / path).read_text())


def page_commands(text):
    "List the shell commands of the deployment page, one a line, in their order."
    blocks = re.findall(r"^```\n(.*?)^```", text, re.M | re.S)
    return "".join(blocks).replace("\\\n", " ").splitlines()


@dataclass
class Plan:
    "All that k8s/ says about a cluster on EKS, and the facts."

    facts: dict = field(
        default_factory=lambda: yaml.safe_load((ROOT / "tests/facts/cluster.yaml").read_text())
    )
    cluster: dict = field(default_factory=lambda: read_one("cloud/cluster.yaml"))
    kubeflow: dict = field(default_factory=lambda: read_one("cloud/kubeflow/kustomization.yaml"))
    values: dict = field(
        default_factory=lambda: {
            f.stem: yaml.safe_load(f.read_text()) for f in (K8S / "cloud/platform").glob("*.yaml")
        }
    )
    docs: list = field(  # the overlay dev is for clusters that bring a default class and no AWS
        default_factory=lambda: read_docs("base", "overlays/prod", "cloud/storage")
    )
    page: str = field(default_factory=lambda: (K8S / "README.md").read_text())

    @property
    def commands(self):
        return page_commands(self.page)

    @property
    def addons(self):
        return {a["name"] for a in self.cluster["addons"]}


def at(tree, path, default=None):
    "Return what stands at a dotted path of nested dictionaries."
    for key in path.split("."):
        if not isinstance(tree, dict) or key not in tree:
            return default
        tree = tree[key]
    return tree


# ---- volumes

DEFAULT_CLASS = "storageclass.kubernetes.io/is-default-class"


def default_storage_class(plan):
    "Exactly one class is the default, and the addon that makes its volumes is installed."
    classes = kinds(plan.docs, "StorageClass")
    defaults = [
        c for c in classes if c["metadata"].get("annotations", {}).get(DEFAULT_CLASS) == "true"
    ]
    wrong = []
    if len(defaults) != 1:
        wrong.append(f"{len(defaults)} StorageClasses are the default, expected 1")
    for c in classes:
        addon = plan.facts["provisioners"].get(c["provisioner"])
        if addon not in plan.addons:
            wrong.append(f"{name(c)}: no addon runs {c['provisioner']}")
    return wrong


def kubeflow_claims(plan):
    "Pair each claim of the pinned Kubeflow with the class that our patches give it."
    resource = next(r for r in plan.kubeflow["resources"] if "/platform-agnostic?ref=" in r)
    version = resource.split("?ref=")[1]
    known = plan.facts["kubeflow"]["versions"].get(version)
    if known is None:
        return [(f"Kubeflow Pipelines {version}, of which no facts are known", None)]
    claims = []
    for claim in known["claims"]:
        classes = [
            step["value"]
            for patch in plan.kubeflow.get("patches", ())
            if patch.get("target", {}).get("kind") == "PersistentVolumeClaim"
            and re.fullmatch(patch["target"].get("name", ".*"), claim)
            for step in yaml.safe_load(patch["patch"])
            if step["path"] == "/spec/storageClassName" and step["op"] in ("add", "replace")
        ]
        claims.append((f"claim {claim} of Kubeflow", classes[-1] if classes else None))
    return claims


def storage_claims(plan):
    "Every claim names a class that is there. One that names its volume has the volume's class."
    claims = kubeflow_claims(plan)
    for chart, places in plan.facts["chart_claims"].items():
        for place in places:
            spec = at(plan.values[chart], place)
            if spec is None:
                claims.append((f"{chart}: {place}, which is missing,", None))
            else:
                claims.append((f"{chart}: {place}", spec.get("storageClassName")))
    bound = {
        v["metadata"]["name"]: v["spec"]["storageClassName"]
        for v in kinds(plan.docs, "PersistentVolume")
    }
    for d in kinds(plan.docs, "PersistentVolumeClaim"):
        spec = d["spec"]
        if bound.get(spec.get("volumeName"), "-") != spec.get("storageClassName"):
            claims.append((name(d), spec.get("storageClassName")))
    for d in kinds(plan.docs, "StatefulSet"):
        for template in d["spec"].get("volumeClaimTemplates", ()):
            claims.append((name(d), template["spec"].get("storageClassName")))
    classes = {c["metadata"]["name"] for c in kinds(plan.docs, "StorageClass")}
    return [
        f"{who} names the StorageClass {named}, which is not there"
        if named
        else f"{who} names no StorageClass"
        for who, named in claims
        if named not in classes
    ]


# ---- the tests

RULES = [
    default_storage_class,
    storage_claims,
]


def drop(tree, key):
    tree.pop(key)


def put(tree, key, value):
    tree[key] = value


def named(plan, kind):
    return kinds(plan.docs, kind)[0]


BREAKS = {  # words of the rule that must say so -> how to break the plan
    "0 StorageClasses are the default": lambda p: drop(
        named(p, "StorageClass")["metadata"], "annotations"
    ),
    "2 StorageClasses are the default": lambda p: p.docs.append(
        copy.deepcopy(named(p, "StorageClass"))
    ),
    "no addon runs ebs.csi.aws.com": lambda p: p.cluster["addons"].remove(
        next(a for a in p.cluster["addons"] if a["name"] == "aws-ebs-csi-driver")
    ),
    "storageSpec.volumeClaimTemplate.spec names no StorageClass": lambda p: drop(
        at(p.values["kube-prometheus-stack"], "prometheus.prometheusSpec.storageSpec")[
            "volumeClaimTemplate"
        ]["spec"],
        "storageClassName",
    ),
    "storage.volumeClaimTemplate.spec, which is missing, names no": lambda p: drop(
        p.values["kube-prometheus-stack"], "alertmanager"
    ),
    "names the StorageClass gp2, which is not there": lambda p: put(
        named(p, "PersistentVolumeClaim")["spec"], "storageClassName", "gp2"
    ),
    "claim mysql-pv-claim of Kubeflow names no": lambda p: put(
        p.kubeflow["patches"][0]["target"], "name", "another-claim"
    ),
    "Kubeflow Pipelines 9.9.9, of which no facts are known": lambda p: put(
        p.kubeflow, "resources", ["env/platform-agnostic?ref=9.9.9"]
    ),
}


@pytest.fixture(scope="module")
def committed():
    return Plan()


def test_the_cluster_obeys_the_facts(committed):
    plan = committed
    assert [x for rule in RULES for x in rule(plan)] == []


@pytest.mark.parametrize("words", BREAKS, ids=list(BREAKS))
def test_cluster_rules_go_red(committed, words):
    plan = copy.deepcopy(committed)
    BREAKS[words](plan)
    found = [x for rule in RULES for x in rule(plan)]
    assert any(words in x for x in found), found
