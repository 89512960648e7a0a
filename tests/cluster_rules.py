"""Rules for a cluster on EKS: each takes all that k8s/ says about it and the facts about what is
installed there (facts/cluster.yaml), and gives sentences about what a real cluster would refuse.
"""

import datetime
import json
import re
from dataclasses import dataclass, field
from functools import cache

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
    stack: dict = field(
        default_factory=lambda: yaml.load((K8S / "cloud/stack.yaml").read_text(), TemplateLoader)
    )
    docs: list = field(  # the overlay dev is for clusters that bring a default class and no AWS
        default_factory=lambda: read_docs(
            "base", "overlays/prod", "cloud/storage", "cloud/karpenter"
        )
    )
    dashboard: str = field(
        default_factory=lambda: (K8S / "base/monitoring/dashboard.json").read_text()
    )
    page: str = field(default_factory=lambda: (K8S / "README.md").read_text())

    @property
    def commands(self):
        return page_commands(self.page)

    @property
    def addons(self):
        return {a["name"] for a in self.cluster["addons"]}

    @property
    def name(self):
        return self.cluster["metadata"]["name"]

    @property
    def node_class(self):
        return kinds(self.docs, "EC2NodeClass")[0]["spec"]

    def named(self, text):
        "Fill the cluster's name into a name of the facts."
        return text.format(cluster=self.name)

    def step(self, pattern):
        "Return the place of the first command of the page that matches; None where there is none."
        return next((i for i, c in enumerate(self.commands) if re.search(pattern, c)), None)


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


# ---- versions


def number(version):
    return tuple(int(x) for x in re.findall(r"\d+", version))


def kubernetes_version(plan):
    "EKS supports the version for half a year yet, and the tools, the images and Karpenter know it."
    version, facts = plan.cluster["metadata"]["version"], plan.facts
    wrong = []
    needed = facts["snapshot"] + datetime.timedelta(days=180)
    end = facts["eks"]["standard_support"].get(version)
    if end is None or end < needed:
        wrong.append(f"Kubernetes {version} leaves standard support on {end}, before {needed}")
    if number(version) > number(facts["eksctl"]["newest_kubernetes"]):
        wrong.append(f"eksctl {facts['eksctl']['version']} does not know Kubernetes {version}")
    known = facts["karpenter"]["kubernetes"]
    if not number(known["oldest"]) <= number(version) <= number(known["newest"]):
        wrong.append(f"Karpenter does not support Kubernetes {version}")
    for term in plan.node_class["amiSelectorTerms"]:
        if version not in facts["eks"]["images"].get(term["alias"], ()):
            wrong.append(f"no image of {term['alias']} for Kubernetes {version} is known")
    return wrong


def chart_versions(plan):
    "The page installs the charts in the versions whose facts are known, and its table says so."
    wrong = []
    for chart, facts in plan.facts["charts"].items():
        installed = [
            re.search(r"--version (\S+)", c)[1]
            for c in plan.commands
            if re.search(rf"^helm .*/{chart} --version", c)
        ]
        if installed != [facts["version"]]:
            wrong.append(
                f"the page installs {chart} {installed}, the facts are of {facts['version']}"
            )
        if not re.search(rf"^\|.*\| {re.escape(facts['version'])} \|", plan.page, re.M):
            wrong.append(f"the page's table of versions has no {chart} {facts['version']}")
    minor = plan.facts["eksctl"]["version"].rpartition(".")[0]
    version = plan.cluster["metadata"]["version"]
    for row in (rf"eksctl, kubectl.*\| .*{minor}, {version},", rf"\| EKS \| {version} \|"):
        if not re.search(row, plan.page):
            wrong.append(f"the page's table of versions has no row like {row}")
    return wrong


def leaves(tree, path=()):
    "List the dotted paths of all values of a file for helm."
    if isinstance(tree, dict) and tree:
        return [leaf for key, x in tree.items() for leaf in leaves(x, (*path, key))]
    return [".".join(path)]


def chart_values(plan):
    "Values files set keys that their chart has: helm ignores others without a word."
    wrong = []
    for chart, values in plan.values.items():
        keys = plan.facts["charts"][chart]["keys"]
        free = tuple(k.removesuffix("*") for k in keys if k.endswith(".*"))
        wrong += [
            f"{chart} has no value {leaf}"
            for leaf in leaves(values)
            if leaf not in keys and not leaf.startswith(free or ("-",))
        ]
        if not any(f"k8s/cloud/platform/{chart}.yaml" in c for c in plan.commands):
            wrong.append(f"no command of the page uses the values of {chart}")
    return wrong


def set_values(plan):
    "What a command of the page gives by --set is a value of its chart, too."
    wrong = []
    for command in plan.commands:
        chart = re.search(r"^.*\bhelm (?:upgrade --install|install) .*/([\w-]+) --version", command)
        for key in re.findall(r"--set (\S+?)=", command):
            keys = plan.facts["charts"].get(chart and chart[1], {}).get("keys", ())
            if key not in keys:
                wrong.append(f"{chart and chart[1]} has no value {key}, which --set gives")
    return wrong


CORE = {  # kind of Kubernetes -> how a value of a chart becomes a resource of it
    "ResourceRequirements": lambda value: dict(
        apiVersion="v1",
        kind="Pod",
        metadata=dict(name="a"),
        spec=dict(containers=[dict(name="a", image="a:1", resources=value)]),
    ),
    "PersistentVolumeClaim": lambda value: dict(
        apiVersion="v1", kind="PersistentVolumeClaim", metadata=dict(name="a"), **value
    ),
    "Tolerations": lambda value: dict(
        apiVersion="v1",
        kind="Pod",
        metadata=dict(name="a"),
        spec=dict(containers=[dict(name="a", image="a:1")], tolerations=value),
    ),
}


@cache
def schema_fault(kind, value, version):
    "Return what Kubernetes' schema says against a value, which is given as JSON; else None."
    import kubernetes_validate

    try:
        kubernetes_validate.validate(CORE[kind](json.loads(value)), version, strict=True)
    except kubernetes_validate.ValidationError as error:
        return error.message
    except kubernetes_validate.SchemaNotFoundError:
        pass  # another rule speaks about a version that is not known
    return None


def handed_on(plan):
    "What a chart hands on as it is obeys the schema of the kind that it becomes."
    wrong = []
    for chart, places in plan.facts["handed_on"].items():
        for place, kind in places.items():
            value = at(plan.values.get(chart, {}), place)
            if value is None:
                continue
            version = plan.cluster["metadata"]["version"]
            fault = schema_fault(kind, json.dumps(value), version)
            if fault:
                wrong.append(f"{chart}: {place} is no {kind}: {fault}")
    return wrong


# ---- Karpenter


def karpenter_names(plan):
    "Role, queue and policies are those that Karpenter's template makes, by the cluster's name."
    facts, wrong = plan.facts["karpenter"], []
    template = facts["template"]
    queue_key = plan.facts["eksctl"]["karpenter_queue_key"]
    if "karpenter" in plan.cluster and queue_key not in plan.facts["charts"]["karpenter"]["keys"]:
        wrong.append(f"eksctl's block karpenter sets {queue_key}, which the chart does not read")
    found = [
        a
        for a in plan.cluster["iam"].get("podIdentityAssociations", ())
        if (a["namespace"], a["serviceAccountName"])
        == (facts["namespace"], facts["service_account"])
    ]
    policies = {p for a in found for p in a["permissionPolicyARNs"]}
    wanted = {f"arn:aws:iam::ACCOUNT:policy/{plan.named(p)}" for p in template["policies"]}
    wrong += [f"Karpenter's role lacks {p}" for p in sorted(wanted - policies)]
    wrong += [f"Karpenter's template makes no {p}" for p in sorted(policies - wanted)]
    role = plan.named(template["node_role"])
    if plan.node_class["role"] != role:
        wrong.append(f"nodes have the role {plan.node_class['role']}, the template makes {role}")
    entries = at(plan.cluster, "accessConfig.accessEntries", ())
    if dict(principalARN=f"arn:aws:iam::ACCOUNT:role/{role}", type="EC2_LINUX") not in entries:
        wrong.append(f"nodes with the role {role} may not join the cluster")
    values = plan.values.get("karpenter", {})
    for key, name_ in (
        ("clusterName", plan.name),
        ("interruptionQueue", plan.named(template["queue"])),
    ):
        if at(values, f"settings.{key}") != name_:
            wrong.append(f"Karpenter's {key} is {at(values, f'settings.{key}')}, expected {name_}")
    return wrong


def karpenter_steps(plan):
    "The page deploys the template of the chart's version for this cluster, and installs the chart."
    facts, wrong = plan.facts["karpenter"], []
    path = facts["template"]["path"].format(version=plan.facts["charts"]["karpenter"]["version"])
    text = "\n".join(plan.commands)
    for words, what in (
        (path, "fetches no template of the chart's version"),
        (f"ClusterName={plan.name}", "deploys no template for this cluster"),
        (f"-n {facts['namespace']} -f k8s/cloud/platform/karpenter.yaml", "installs no chart"),
    ):
        if words not in text:
            wrong.append(f"Karpenter: the page {what}")
    return wrong


def tags_by_step(plan):
    "Return the tags that a command of the page gives to the cluster's group."
    group = plan.facts["eksctl"]["cluster_group"]
    text = "\n".join(plan.commands)
    names = re.findall(rf"^(\w+)=\$\(.*{group}.*\)$", text, re.M)
    found = re.findall(r"create-tags --resources \$(\w+) --tags Key=(\S+),Value=(\S+)", text)
    return {key: value for variable, key, value in found if variable in names}


def selected(terms, tags_of):
    "List the names whose tags satisfy one of a node class's selector terms."
    return {
        who
        for who, tags in tags_of.items()
        for term in terms
        if term.get("tags", {}).items() <= tags.items() and term.get("tags")
    }


def stack_tags(plan):
    own = {k: plan.named(v) for k, v in plan.facts["eksctl"]["stack_tags"].items()}
    return own | plan.cluster["metadata"].get("tags", {})


def node_security_groups(plan):
    "Nodes have exactly the group that the stack's EFS and Valkey admit."
    facts, wrong = plan.facts["eksctl"], []
    tags_of = {group: stack_tags(plan) for group in facts["stack_groups"]}
    tags_of[facts["cluster_group"]] = tags_by_step(plan)
    nodes = selected(plan.node_class["securityGroupSelectorTerms"], tags_of)
    text = "\n".join(plan.commands)
    given = re.search(r"NodeSecurityGroup=(\$\([^)]*\)|\$\w+)", text)
    variable = re.search(rf"^(\w+)=\$\(.*{facts['cluster_group']}.*\)$", text, re.M)
    is_cluster_group = given and (
        facts["cluster_group"] in given[1] or (variable and given[1] == f"${variable[1]}")
    )
    if not is_cluster_group:
        wrong.append("the page gives the stack another group than the cluster's")
    if nodes != {facts["cluster_group"]}:
        wrong.append(
            f"nodes have the groups {sorted(nodes)}, EFS and Valkey admit {facts['cluster_group']}"
        )
    for port in (2049, 6379):
        rules = [
            rule
            for resource in plan.stack["Resources"].values()
            for rule in resource.get("Properties", {}).get("SecurityGroupIngress", ())
            if rule["FromPort"] <= port <= rule["ToPort"]
        ]
        if [r["SourceSecurityGroupId"] for r in rules] != [{"Ref": "NodeSecurityGroup"}]:
            wrong.append(f"port {port} is not open to NodeSecurityGroup, and to it alone")
    return wrong


def node_subnets(plan):
    "Nodes stand in the private subnets, and in no public one."
    tags_of = {who: own | stack_tags(plan) for who, own in plan.facts["eksctl"]["subnets"].items()}
    found = selected(plan.node_class["subnetSelectorTerms"], tags_of)
    return [] if found == {"private"} else [f"nodes stand in subnets {sorted(found)}"]


# ---- what runs on every node


def tolerates(toleration, taint):
    "Kubernetes' rule: no key stands for all keys, no effect for all effects."
    same_key = toleration.get("key") in (None, taint["key"])
    exists = toleration.get("operator", "Equal") == "Exists"
    same_value = exists or toleration.get("value", "") == taint.get("value", "")
    same_effect = toleration.get("effect") in (None, "", taint["effect"])
    return same_key and same_value and same_effect and (exists or "key" in toleration)


def daemonsets(plan):
    "Every DaemonSet that must run on a pool tolerates all of the pool's taints."
    wrong = []
    for daemonset in plan.facts["daemonsets"]:
        own = daemonset["tolerations"]
        if "values" in daemonset:
            own = at(plan.values[daemonset["chart"]], daemonset["values"], own)
        for pool in kinds(plan.docs, "NodePool"):
            taints = pool["spec"]["template"]["spec"].get("taints", ())
            has_gpu = any(t["key"] == "nvidia.com/gpu" for t in taints)
            if daemonset["pools"] == "gpu" and not has_gpu:
                continue
            wrong += [
                f"{daemonset['name']} does not tolerate {taint['key']} of {name(pool)}"
                for taint in taints
                if not any(tolerates(t, taint) for t in own)
            ]
    return wrong


def gpu_metrics(plan):
    "The GPU's metrics are scraped by a Prometheus that takes all monitors, and they are shown."
    wrong = []
    if at(plan.values["gpu-operator"], "dcgmExporter.serviceMonitor.enabled") is not True:
        wrong.append("no ServiceMonitor asks for the GPU's metrics")
    only_own = "prometheus.prometheusSpec.serviceMonitorSelectorNilUsesHelmValues"
    if at(plan.values["kube-prometheus-stack"], only_own) is not False:
        wrong.append("Prometheus takes the monitors of its own release only")
    shown = set(re.findall(r"DCGM_\w+", plan.dashboard))
    known = set(plan.facts["gpu_metrics"])
    wrong += [f"the dashboard does not show {m}" for m in sorted(known - shown)]
    return wrong + [f"no exporter has {m}" for m in sorted(shown - known)]


# ---- alerts and autoscalers


def merged(default, own):
    "Merge values as helm does: dictionaries key by key, everything else is replaced."
    if not isinstance(default, dict) or not isinstance(own, dict):
        return own
    return default | {k: merged(default.get(k), v) for k, v in own.items()}


def alertmanager_config(plan):
    own = at(plan.values["kube-prometheus-stack"], "alertmanager.config", {})
    return merged(plan.facts["alertmanager"]["config"], own)


def holds(matcher, labels):
    'Evaluate a matcher of Alertmanager such as `severity = "critical"`.'
    label, operator, value = re.fullmatch(
        r'\s*(\w+)\s*(=~|!~|!=|=)\s*"?([^"]*)"?\s*', matcher
    ).groups()
    has = labels.get(label, "")
    matches = bool(re.fullmatch(value, has)) if "~" in operator else value == has
    return matches != operator.startswith("!")


def receivers(route, labels):
    "List the names of the receivers that an alert with these labels reaches."
    found = []
    for child in route.get("routes", ()):
        if all(holds(m, labels) for m in child.get("matchers", ())):
            found += receivers(dict(receiver=route["receiver"]) | child, labels)
            if not child.get("continue"):
                break
    return found or [route["receiver"]]


def all_alerts(plan):
    own = [
        dict(alertname=rule["alert"], **rule["labels"])
        for d in kinds(plan.docs, "PrometheusRule")
        for group in d["spec"]["groups"]
        for rule in group["rules"]
        if "alert" in rule
    ]
    return own + plan.facts["alertmanager"]["alerts"]


def alert_receivers(plan):
    "Every alert reaches a receiver that tells someone; the one that always fires, another."
    config, wrong, reached = alertmanager_config(plan), [], {}
    telling = {
        r["name"] for r in config["receivers"] if any(r[k] for k in r if k.endswith("_configs"))
    }
    for alert in all_alerts(plan):
        reached[alert["alertname"]] = set(receivers(config["route"], alert))
        for receiver in reached[alert["alertname"]] - telling:
            wrong.append(
                f"{alert['alertname']} reaches the receiver {receiver}, which tells no one"
            )
    others = set().union(*(v for k, v in reached.items() if k != "Watchdog"))
    if reached["Watchdog"] & others:
        wrong.append("Watchdog, which always fires, reaches the receiver of other alerts")
    return wrong


def alert_addresses(plan):
    "Files that receivers read are keys of a mounted secret, which a command of the page makes."
    folder = plan.facts["alertmanager"]["secrets_folder"]
    spec = at(plan.values["kube-prometheus-stack"], "alertmanager.alertmanagerSpec", {})
    wrong = []
    for file in re.findall(r'"\w+_file": "([^"]+)"', json.dumps(alertmanager_config(plan))):
        secret, _, key = file.removeprefix(folder + "/").partition("/")
        if secret not in spec.get("secrets", ()):
            wrong.append(f"Alertmanager reads {file}, and no such secret is mounted")
        if plan.step(rf"create secret generic {secret} .*--from-literal={key}=") is None:
            wrong.append(f"no command of the page writes {key} of the secret {secret}")
    return wrong


def alerts_on_eks(plan):
    "Parts whose metrics EKS does not show are not asked for: their alerts would never stop."
    return [
        f"the alerts about {part} would fire for ever on EKS"
        for part in plan.facts["eks"]["without_metrics"]
        if at(plan.values["kube-prometheus-stack"], f"{part}.enabled") is not False
    ]


def autoscaler_sources(plan):
    "CPU and memory come from the metrics server, a pod's own metrics from the adapter."
    wrong = []
    for d in kinds(plan.docs, "HorizontalPodAutoscaler"):
        for metric in d["spec"]["metrics"]:
            if metric["type"] == "Resource" and "metrics-server" not in plan.addons:
                wrong.append(f"{name(d)}: no addon measures {metric['resource']['name']}")
            if metric["type"] == "Pods" and "prometheus-adapter" not in plan.values:
                wrong.append(f"{name(d)}: nothing hands on {metric['pods']['metric']['name']}")
    return wrong


# ---- the order of the steps

ORDER = [  # what must come first, what needs it, why
    ("ClusterName=", "eksctl create cluster", "Karpenter's role names the template's policies"),
    ("eksctl create cluster", "create-tags", "the cluster's group is made with the cluster"),
    ("create-tags", "-k k8s/cloud/karpenter", "Karpenter chooses the group by its tag"),
    ("^helm .*/karpenter ", "-k k8s/cloud/karpenter", "the chart brings the kind NodePool"),
    ("-k k8s/cloud/storage", "^helm .*/kube-prometheus-stack ", "its claims need the class"),
    ("-k k8s/cloud/storage", "-k k8s/cloud/kubeflow", "its claims need the class"),
    ("create secret generic", "^helm .*/kube-prometheus-stack ", "Alertmanager mounts the secret"),
    (
        "^helm .*/kube-prometheus-stack ",
        "^helm .*/gpu-operator ",
        "it brings the kind ServiceMonitor",
    ),
    ("-k k8s/cloud/karpenter", "-k k8s/overlays/prod", "pods wait for the pools"),
]


def step_order(plan):
    "Steps come after those that they need."
    wrong = []
    for first, then, why in ORDER:
        a, b = plan.step(first), plan.step(then)
        if a is None or b is None or a >= b:
            wrong.append(f"the page must have `{first}` before `{then}`: {why}")
    return wrong


RULES = [
    default_storage_class,
    storage_claims,
    kubernetes_version,
    chart_versions,
    chart_values,
    set_values,
    handed_on,
    karpenter_names,
    karpenter_steps,
    node_security_groups,
    node_subnets,
    daemonsets,
    gpu_metrics,
    alert_receivers,
    alert_addresses,
    alerts_on_eks,
    autoscaler_sources,
    step_order,
]
