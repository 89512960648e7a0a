"""k8s/cloud against facts about what it installs: the rules of cluster_rules.py hold, and each of
them is broken once on purpose.
"""

import copy
import re
import subprocess

import pytest
import yaml
from cluster_rules import RULES, Plan, alertmanager_config, all_alerts, at, number, receivers
from k8s_rules import kinds


def drop(tree, key):
    tree.pop(key)


def put(tree, key, value):
    tree[key] = value


def named(plan, kind):
    return kinds(plan.docs, kind)[0]


def edit(plan, old, new):
    assert old in plan.page
    plan.page = plan.page.replace(old, new)


def without_addon(plan, called):
    plan.cluster["addons"] = [a for a in plan.cluster["addons"] if a["name"] != called]


def alert_route(plan):
    return plan.values["kube-prometheus-stack"]["alertmanager"]["config"]["route"]


BREAKS = {  # words of the rule that must say so -> how to break the plan
    "0 StorageClasses are the default": lambda p: drop(
        named(p, "StorageClass")["metadata"], "annotations"
    ),
    "2 StorageClasses are the default": lambda p: p.docs.append(
        copy.deepcopy(named(p, "StorageClass"))
    ),
    "no addon runs ebs.csi.aws.com": lambda p: without_addon(p, "aws-ebs-csi-driver"),
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
    "Kubernetes 1.33 leaves standard support on 2026-07-29": lambda p: put(
        p.cluster["metadata"], "version", "1.33"
    ),
    "Kubernetes 1.34 leaves standard support on 2026-12-02": lambda p: put(
        p.cluster["metadata"], "version", "1.34"
    ),
    "does not know Kubernetes 1.36": lambda p: put(p.cluster["metadata"], "version", "1.36"),
    "Karpenter does not support Kubernetes 1.37": lambda p: put(
        p.cluster["metadata"], "version", "1.37"
    ),
    "no image of al2023@v20250920 for Kubernetes 1.35": lambda p: put(
        p.node_class, "amiSelectorTerms", [{"alias": "al2023@v20250920"}]
    ),
    "the page installs karpenter ['1.6.3']": lambda p: edit(
        p, "karpenter --version 1.14.1", "karpenter --version 1.6.3"
    ),
    "the page's table of versions has no gpu-operator": lambda p: edit(
        p, "| v26.7.0 |", "| v25.3.2 |"
    ),
    r"no row like \| EKS \| 1.35": lambda p: edit(p, "| EKS | 1.35 |", "| EKS | 1.33 |"),
    "karpenter has no value settings.interruptionQueueName": lambda p: put(
        p.values["karpenter"]["settings"], "interruptionQueueName", "recsys"
    ),
    "gpu-operator has no value daemonset.tolerations": lambda p: put(
        p.values["gpu-operator"], "daemonset", p.values["gpu-operator"]["daemonsets"]
    ),
    "karpenter has no value controler.resources.requests.cpu": lambda p: put(
        p.values["karpenter"], "controler", p.values["karpenter"]["controller"]
    ),
    "kube-prometheus-stack has no value grafana.sidecar.dashboards.searchNamespaces": lambda p: put(
        p.values["kube-prometheus-stack"]["grafana"]["sidecar"]["dashboards"],
        "searchNamespaces",
        "ALL",
    ),
    "aws-load-balancer-controller has no value clustername, which --set gives": lambda p: edit(
        p, "--set clusterName=", "--set clustername="
    ),
    "karpenter: controller.resources is no ResourceRequirements": lambda p: put(
        p.values["karpenter"]["controller"]["resources"], "request", {"cpu": "1"}
    ),
    "volumeClaimTemplate is no PersistentVolumeClaim": lambda p: put(
        at(p.values["kube-prometheus-stack"], "prometheus.prometheusSpec.storageSpec")[
            "volumeClaimTemplate"
        ]["spec"],
        "storageClasName",
        "gp3",
    ),
    "gpu-operator: daemonsets.tolerations is no Tolerations": lambda p: put(
        p.values["gpu-operator"]["daemonsets"]["tolerations"][0], "efect", "NoSchedule"
    ),
    "no command of the page uses the values of gpu-operator": lambda p: edit(
        p, "-f k8s/cloud/platform/gpu-operator.yaml", ""
    ),
    "sets settings.interruptionQueueName, which the chart does not read": lambda p: put(
        p.cluster, "karpenter", dict(version="1.14.1", withSpotInterruptionQueue=True)
    ),
    "role lacks arn:aws:iam::ACCOUNT:policy/KarpenterControllerZonalShift": lambda p: (
        p.cluster["iam"]["podIdentityAssociations"][0]["permissionPolicyARNs"].pop()
    ),
    "template makes no arn:aws:iam::ACCOUNT:policy/KarpenterControllerP": lambda p: (
        p.cluster["iam"]["podIdentityAssociations"][0]["permissionPolicyARNs"].append(
            "arn:aws:iam::ACCOUNT:policy/KarpenterControllerPolicy-recsys"
        )
    ),
    "nodes have the role eksctl-KarpenterNodeRole-recsys": lambda p: put(
        p.node_class, "role", "eksctl-KarpenterNodeRole-recsys"
    ),
    "nodes with the role KarpenterNodeRole-recsys may not join": lambda p: drop(
        p.cluster, "accessConfig"
    ),
    "Karpenter's interruptionQueue is karpenter, expected recsys": lambda p: put(
        p.values["karpenter"]["settings"], "interruptionQueue", "karpenter"
    ),
    "fetches no template of the chart's version": lambda p: edit(
        p, "karpenter-provider-aws/v1.14.1", "karpenter-provider-aws/v1.6.3"
    ),
    "deploys no template for this cluster": lambda p: edit(
        p, "ClusterName=recsys", "ClusterName=demo"
    ),
    "Karpenter: the page installs no chart": lambda p: edit(
        p, "-n kube-system -f k8s/cloud/platform/karpenter.yaml", "-n karpenter"
    ),
    "nodes have the groups ['ClusterSharedNodeSecurityGroup', 'Contr": lambda p: put(
        p.node_class, "securityGroupSelectorTerms", [{"tags": {"project": "recsys"}}]
    ),
    "nodes have the groups [], EFS and Valkey admit": lambda p: edit(
        p, "Key=recsys.io/nodes", "Key=recsys.io/node"
    ),
    "the page gives the stack another group": lambda p: edit(
        p, "NodeSecurityGroup=$sg", "NodeSecurityGroup=$group"
    ),
    "port 2049 is not open to NodeSecurityGroup": lambda p: put(
        p.stack["Resources"]["FileSystemSecurityGroup"]["Properties"]["SecurityGroupIngress"][0],
        "SourceSecurityGroupId",
        {"Ref": "VpcId"},
    ),
    "nodes stand in subnets ['private', 'public']": lambda p: drop(
        p.node_class["subnetSelectorTerms"][0]["tags"], "kubernetes.io/role/internal-elb"
    ),
    "node-feature-discovery-worker does not tolerate recsys.io/pool": lambda p: drop(
        p.values["gpu-operator"], "node-feature-discovery"
    ),
    "nvidia-operator-validator does not tolerate recsys.io/pool": lambda p: drop(
        p.values["gpu-operator"], "daemonsets"
    ),
    "node-feature-discovery-worker does not tolerate nvidia.com/gpu": lambda p: put(
        p.values["gpu-operator"]["node-feature-discovery"]["worker"],
        "tolerations",
        [{"key": "recsys.io/pool", "operator": "Exists"}],
    ),
    "prometheus-node-exporter does not tolerate recsys.io/pool": lambda p: put(
        named(p, "NodePool")["spec"]["template"]["spec"]["taints"][0], "effect", "NoExecute"
    ),
    "no ServiceMonitor asks for the GPU's metrics": lambda p: drop(
        p.values["gpu-operator"], "dcgmExporter"
    ),
    "Prometheus takes the monitors of its own release only": lambda p: drop(
        p.values["kube-prometheus-stack"]["prometheus"]["prometheusSpec"],
        "serviceMonitorSelectorNilUsesHelmValues",
    ),
    "the dashboard does not show DCGM_FI_DEV_GPU_UTIL": lambda p: put(
        vars(p), "dashboard", p.dashboard.replace("DCGM_FI_DEV_GPU_UTIL", "DCGM_FI_GPU")
    ),
    "RecsysErrors reaches the receiver null, which tells no one": lambda p: drop(
        p.values["kube-prometheus-stack"]["alertmanager"], "config"
    ),
    "RecsysSlow reaches the receiver nobody, which tells no one": lambda p: put(
        alert_route(p), "receiver", "nobody"
    ),
    "Watchdog, which always fires, reaches the receiver of other": lambda p: alert_route(p)[
        "routes"
    ].pop(0),
    "no such secret is mounted": lambda p: drop(
        p.values["kube-prometheus-stack"]["alertmanager"]["alertmanagerSpec"], "secrets"
    ),
    "no command of the page writes watchdog of the secret recsys-alerts": lambda p: edit(
        p, "--from-literal=watchdog=", "--from-literal=watch="
    ),
    "the alerts about kubeScheduler would fire for ever": lambda p: drop(
        p.values["kube-prometheus-stack"], "kubeScheduler"
    ),
    "HorizontalPodAutoscaler /gateway: no addon measures cpu": lambda p: without_addon(
        p, "metrics-server"
    ),
    "nothing hands on recsys_queue_milliseconds_per_request": lambda p: drop(
        p.values, "prometheus-adapter"
    ),
    "the page must have `create-tags` before": lambda p: edit(p, "create-tags", "describe-tags"),
    "gpu-operator `: it brings the kind ServiceMonitor": lambda p: edit(
        p, "prometheus/kube-prometheus-stack", "prometheus/prometheus"
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


def test_every_rule_goes_red(committed):
    "No rule is left that none of the breaks makes speak."
    said = set()
    for break_it in BREAKS.values():
        plan = copy.deepcopy(committed)
        break_it(plan)
        said |= {rule for rule in RULES if rule(plan)}
    assert said == set(RULES)


def amtool(folder, config, *arguments):
    """Write a configuration and ask amtool about it. Releases before 0.26, which Debian 12 has,
    know no `url_file`: for them an address stands in its place.
    """
    version = subprocess.run(["amtool", "--version"], capture_output=True, text=True)
    text = yaml.safe_dump(config)
    if number(re.search(r"version (\S+)", version.stdout + version.stderr)[1]) < (0, 26):
        text = re.sub(r"url_file: \S+", "url: http://receiver.invalid/", text)
    (folder / "alertmanager.yml").write_text(text)
    return subprocess.run(["amtool", *arguments], cwd=folder, capture_output=True, text=True)


@pytest.mark.needs("amtool")
def test_alertmanager_takes_the_configuration(committed, tmp_path):
    config = alertmanager_config(committed)
    done = amtool(tmp_path, config, "check-config", "alertmanager.yml")
    assert done.returncode == 0, done.stdout + done.stderr
    for alert in all_alerts(committed):
        labels = [f"{k}={v}" for k, v in alert.items()]
        command = ("config", "routes", "test", "--config.file=alertmanager.yml", *labels)
        done = amtool(tmp_path, config, *command)
        assert done.returncode == 0, done.stdout + done.stderr
        assert done.stdout.split() == receivers(config["route"], alert), alert


@pytest.mark.needs("amtool")
def test_alertmanager_refuses_a_receiver_that_is_not_there(committed, tmp_path):
    config = copy.deepcopy(alertmanager_config(committed))
    config["route"]["receiver"] = "nobody"
    done = amtool(tmp_path, config, "check-config", "alertmanager.yml")
    assert done.returncode != 0 and "nobody" in done.stdout + done.stderr
