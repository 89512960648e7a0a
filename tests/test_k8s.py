"""What k8s/ has: manifests against schemas and rules, alerts that fire and don't, the cloud's
templates against moto, images, the page.
"""

import copy
import gzip
import json
import re
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest
import yaml
from aws_policies import moto_server
from k8s_rules import ROOT, RULES, containers, get, kinds, name, prod_with, rendered_docs
from node_packages import node_packages

K8S = ROOT / "k8s"
OVERLAYS = ("overlays/dev", "overlays/prod", "cloud/karpenter", "cloud/storage", "with a GPU")
EXCEPTIONS = {}  # kind -> why no schema is known for it: none at present
VERSION = str(yaml.safe_load((K8S / "cloud/cluster.yaml").read_text())["metadata"]["version"])
pytestmark = pytest.mark.xdist_group("k8s")  # what is rendered and installed once is used by all


@pytest.fixture(scope="module")
def rendered(tmp_path_factory):
    "Render every overlay, and prod with the GPU component."
    gpu = prod_with("serving-gpu", tmp_path_factory.mktemp("gpu"))
    return {x: rendered_docs(gpu if x == "with a GPU" else K8S / x) for x in OVERLAYS}


@pytest.fixture(scope="module")
def node():
    "Give a function that asks the published models."
    home = node_packages()

    def ask(resources=(), dockerfiles=None):
        if dockerfiles is None:
            dockerfiles = {}
        done = subprocess.run(
            ["node", ROOT / "tests/node/check.mjs", home],
            input=json.dumps(dict(resources=list(resources), dockerfiles=dockerfiles)),
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr[-2000:]
        return json.loads(done.stdout)

    return ask


def core_errors(d):
    "Ask Kubernetes' own schema in strict mode; None where it knows no such kind."
    import kubernetes_validate

    try:
        kubernetes_validate.validate(d, VERSION, strict=True)
        return []
    except kubernetes_validate.SchemaNotFoundError:
        return None
    except kubernetes_validate.ValidationError as e:
        return [f"{e.path}: {e.message}"]


@pytest.mark.needs("kubectl", "node", "npm")
def test_every_resource_is_what_its_schema_says(rendered, node):
    docs = list({json.dumps(d, sort_keys=True): d for x in OVERLAYS for d in rendered[x]}.values())
    wrong, unknown = [], set()
    for d, published in zip(docs, node(docs)["resources"]):
        found = published if published is not None else core_errors(d)
        if found is None:
            unknown.add(d["kind"])
        wrong += [f"{name(d)}: {x}" for x in found or ()]
    assert wrong == []
    assert unknown == set(EXCEPTIONS), (
        "kinds without a schema must be named in EXCEPTIONS, with the reason"
    )
    assert {
        "Deployment",
        "NodePool",
        "EC2NodeClass",
        "ServiceMonitor",
        "PrometheusRule",
        "ExternalSecret",
        "HorizontalPodAutoscaler",
        "NetworkPolicy",
    } <= {d["kind"] for d in docs}


@pytest.mark.needs("kubectl", "node", "npm")
def test_schemas_go_red(rendered, node):
    docs = copy.deepcopy(rendered["overlays/prod"] + rendered["cloud/karpenter"])
    deployment, pool, monitor, rule = (
        get(docs, "Deployment", "triton"),
        get(docs, "NodePool", "recsys-serving"),
        get(docs, "ServiceMonitor", "triton"),
        get(docs, "PrometheusRule", "recsys"),
    )
    deployment["spec"]["replica"] = 3
    assert "replica" in str(core_errors(deployment))
    budget = get(docs, "PodDisruptionBudget", "triton")
    budget["spec"]["minAvailable"] = [1]
    assert core_errors(budget)
    pool["spec"]["disruption"]["consolidationPolicy"] = "Sometimes"
    monitor["spec"]["endpoints"][0]["prot"] = "metrics"
    rule["spec"]["groups"][0]["rules"][0]["expr"] = None
    for words, found in zip(
        ("Sometimes|consolidationPolicy", "prot", "expr"), node([pool, monitor, rule])["resources"]
    ):
        assert re.search(words, str(found)), found


@pytest.mark.needs("kubectl")
@pytest.mark.parametrize("overlay", ["overlays/dev", "overlays/prod", "with a GPU"])
def test_rules_hold(rendered, overlay):
    assert [x for rule in RULES for x in rule(rendered[overlay])] == []


def container(docs, called):
    return next(c for _, _, c in containers(docs) if c["name"] == called)


def spec_of(docs, called):
    return next(s for _, s, c in containers(docs) if c["name"] == called)


def change(place, key, value):
    place[key] = value


BREAKS = {  # words of the rule that must say so -> how to break prod
    "triton: its selector does not match its own pods": lambda x: change(
        get(x, "Deployment", "triton")["spec"]["template"]["metadata"]["labels"],
        "app.kubernetes.io/name",
        "tritn",
    ),
    "Service recsys/gateway: no pod has the labels": lambda x: change(
        get(x, "Service", "gateway")["spec"]["selector"], "app.kubernetes.io/name", "gatewy"
    ),
    "Service recsys/triton: its pods have no port grcp": lambda x: change(
        get(x, "Service", "triton")["spec"]["ports"][1], "targetPort", "grcp"
    ),
    "PodDisruptionBudget recsys/triton: no pod": lambda x: change(
        get(x, "PodDisruptionBudget", "triton")["spec"]["selector"]["matchLabels"],
        "app.kubernetes.io/name",
        "x",
    ),
    "there is no Deployment tritons": lambda x: change(
        get(x, "HorizontalPodAutoscaler", "triton")["spec"]["scaleTargetRef"], "name", "tritons"
    ),
    "ServiceMonitor recsys/worker: no service": lambda x: change(
        get(x, "ServiceMonitor", "worker")["spec"]["selector"]["matchLabels"],
        "app.kubernetes.io/name",
        "x",
    ),
    "ServiceMonitor recsys/worker: its service has no port http": lambda x: change(
        get(x, "ServiceMonitor", "worker")["spec"]["endpoints"][0], "port", "http"
    ),
    "a topology spread constraint does not match": lambda x: change(
        spec_of(x, "triton")["topologySpreadConstraints"][0]["labelSelector"]["matchLabels"],
        "app.kubernetes.io/name",
        "x",
    ),
    "NetworkPolicy recsys/worker: no pod has a port metric": lambda x: change(
        get(x, "NetworkPolicy", "worker")["spec"]["ingress"][0]["ports"][0], "port", "metric"
    ),
    "mount shm has no volume": lambda x: spec_of(x, "triton")["volumes"].pop(1),
    "volume extra is not mounted": lambda x: spec_of(x, "gateway")["volumes"].append(
        dict(name="extra", emptyDir={})
    ),
    "there is no claim recsys-output": lambda x: change(
        spec_of(x, "worker")["volumes"][0]["persistentVolumeClaim"], "claimName", "recsys-output"
    ),
    "container gateway can't write and has no /tmp": lambda x: change(
        container(x, "gateway")["volumeMounts"][1], "mountPath", "/var/tmp"
    ),
    "PersistentVolumeClaim kubeflow/recsys-outputs: no volume": lambda x: change(
        get(x, "PersistentVolume", "recsys-outputs-tasks")["spec"]["claimRef"],
        "namespace",
        "recsys",
    ),
    "the volumes are not the same place": lambda x: change(
        get(x, "PersistentVolume", "recsys-outputs-tasks")["spec"]["csi"], "volumeHandle", "fs-1"
    ),
    "there is no service account recsys-tritons": lambda x: change(
        spec_of(x, "triton"), "serviceAccountName", "recsys-tritons"
    ),
    "VALKEY_HOST asks for VALKEY_HOST of recsys-env": lambda x: get(x, "ConfigMap", "recsys-env")[
        "data"
    ].pop("VALKEY_HOST"),
    "VALKEY_PASSWORD asks for password of recsys-valkey": lambda x: change(
        get(x, "ExternalSecret", "recsys-valkey")["spec"]["data"][0], "secretKey", "pasword"
    ),
    "RECSYS_VALKEY_URL uses $(VALKEY_PASSWORD) before it is set": lambda x: container(x, "triton")[
        "env"
    ].sort(key=lambda e: e["name"] != "RECSYS_VALKEY_URL"),
    "there is no SecretStore recsys": lambda x: change(
        get(x, "SecretStore", "recsys", "kubeflow")["metadata"], "name", "other"
    ),
    "SecretStore recsys/recsys: there is no service account": lambda x: change(
        get(x, "SecretStore", "recsys")["spec"]["provider"]["aws"]["auth"]["jwt"][
            "serviceAccountRef"
        ],
        "name",
        "x",
    ),
    "RoleBinding recsys/recsys-operator: there is no Role": lambda x: change(
        get(x, "RoleBinding", "recsys-operator")["roleRef"], "name", "x"
    ),
    "container gateway has no readinessProbe": lambda x: container(x, "gateway").pop(
        "readinessProbe"
    ),
    "readinessProbe must ask for the ensemble": lambda x: change(
        container(x, "triton")["readinessProbe"]["httpGet"], "path", "/v2/health/live"
    ),
    "livenessProbe asks /healthy, which gateway does not answer": lambda x: change(
        container(x, "gateway")["livenessProbe"]["httpGet"], "path", "/healthy"
    ),
    "startupProbe asks port https": lambda x: change(
        container(x, "triton")["startupProbe"]["httpGet"], "port", "https"
    ),
    "must not restart the server again and again": lambda x: change(
        container(x, "triton")["livenessProbe"]["httpGet"], "path", "/v2/models/recommender/ready"
    ),
    "the memory limit of gateway is 512m": lambda x: change(
        container(x, "gateway")["resources"]["limits"], "memory", "512m"
    ),
    "gateway requests more memory than its limit": lambda x: change(
        container(x, "gateway")["resources"]["requests"], "memory", "4Gi"
    ),
    "follow must request cpu and memory": lambda x: container(x, "follow").pop("resources"),
    "worker requests 0.0001 cpu": lambda x: change(
        container(x, "worker")["resources"]["requests"], "cpu", "0.0001"
    ),
    "shm is memory": lambda x: change(
        spec_of(x, "triton")["volumes"][1]["emptyDir"], "sizeLimit", "4Gi"
    ),
    "a target of 200m for recsys_queue_milliseconds_per_request": lambda x: change(
        get(x, "HorizontalPodAutoscaler", "triton")["spec"]["metrics"][0]["pods"]["target"],
        "averageValue",
        "200m",
    ),
    "fewest replicas above most": lambda x: change(
        get(x, "HorizontalPodAutoscaler", "gateway")["spec"], "minReplicas", 20
    ),
    "recsys-serving:latest has no version": lambda x: change(
        container(x, "triton"), "image", "r/recsys-serving:latest"
    ),
    "recsys-servin:0.1.0 is not one that k8s/images builds": lambda x: change(
        container(x, "triton"), "image", "r/recsys-servin:0.1.0"
    ),
    "image REGISTRY/recsys-worker:0.1.0 has no registry": lambda x: change(
        container(x, "worker"), "image", "REGISTRY/recsys-worker:0.1.0"
    ),
    "30 s are too few for a pause of 10 s and 30 s": lambda x: change(
        spec_of(x, "triton"), "terminationGracePeriodSeconds", 30
    ),
    "nothing waits for a live bundle before triton starts": lambda x: spec_of(x, "triton").pop(
        "initContainers"
    ),
    "container wait may write into its image": lambda x: spec_of(x, "gateway")["initContainers"][0][
        "securityContext"
    ].pop("readOnlyRootFilesystem"),
    "it needs a preStop pause": lambda x: container(x, "gateway").pop("lifecycle"),
    "container worker may run as root": lambda x: spec_of(x, "worker")["securityContext"].pop(
        "runAsNonRoot"
    ),
    "container triton may gain privileges": lambda x: container(x, "triton")["securityContext"].pop(
        "allowPrivilegeEscalation"
    ),
    "container materialise may write into its image": lambda x: container(x, "materialise")[
        "securityContext"
    ].pop("readOnlyRootFilesystem"),
    "container gateway has a token of the API": lambda x: spec_of(x, "gateway").pop(
        "automountServiceAccountToken"
    ),
    "container worker reaches the host": lambda x: change(
        spec_of(x, "worker"), "hostNetwork", True
    ),
    "recsys-operator: grants * on": lambda x: change(
        get(x, "Role", "recsys-operator")["rules"][0], "verbs", ["*"]
    ),
    "a secret in a file": lambda x: x.append(
        dict(apiVersion="v1", kind="Secret", metadata=dict(name="s", namespace="recsys"))
    ),
    "no policy denies everything": lambda x: x.remove(get(x, "NetworkPolicy", "deny-all")),
    "gateway may not send to triton (grpc)": lambda x: change(
        get(x, "NetworkPolicy", "gateway")["spec"], "egress", []
    ),
    "triton may not be asked by gateway (grpc)": lambda x: change(
        get(x, "NetworkPolicy", "triton")["spec"]["ingress"][0]["ports"][0], "port", "http"
    ),
    "worker may not send to port 6379": lambda x: get(x, "NetworkPolicy", "valkey-clients")["spec"][
        "podSelector"
    ]["matchExpressions"][0]["values"].remove("worker"),
    "there is no pod tritn": lambda x: change(container(x, "triton")["command"], 2, "tritn"),
    "No such option: --hots": lambda x: change(container(x, "triton")["command"], 3, "--hots"),
    "worker listens on the loopback address only": lambda x: change(
        container(x, "worker")["command"], slice(3, 5), []
    ),
    "there is no node pool serving-cpu": lambda x: change(
        spec_of(x, "triton")["nodeSelector"], "recsys.io/pool", "serving-cpu"
    ),
    "does not bear the taint recsys.io/pool=serving": lambda x: spec_of(x, "gateway").pop(
        "tolerations"
    ),
    "serves from nodes that may be taken away": lambda x: (
        change(spec_of(x, "worker")["nodeSelector"], "recsys.io/pool", "training"),
        change(spec_of(x, "worker")["tolerations"][0], "value", "training"),
    ),
    "no rule records recsys_queue_seconds": lambda x: change(
        get(x, "HorizontalPodAutoscaler", "triton")["spec"]["metrics"][0]["pods"]["metric"],
        "name",
        "recsys_queue_seconds",
    ),
}


@pytest.mark.needs("kubectl")
@pytest.mark.parametrize("words", BREAKS)
def test_rules_go_red(rendered, words):
    docs = copy.deepcopy(rendered["overlays/prod"])
    BREAKS[words](docs)
    found = [x for rule in RULES for x in rule(docs)]
    assert any(words in x for x in found), found


@pytest.mark.needs("kubectl")
@pytest.mark.parametrize("overlay", ["overlays/dev", "overlays/prod"])
def test_tasks_find_what_they_name(rendered, overlay):
    from recsys.core.stages import DAILY, FULL
    from recsys.operate.kubeflow import Cluster

    there, c = (
        [d for d in rendered[overlay] if d["metadata"].get("namespace") == "kubeflow"],
        Cluster(),
    )
    assert (
        get(there, "PersistentVolumeClaim", c.claim, "kubeflow")
        and get(there, "ExternalSecret", c.secret, "kubeflow")["spec"]["data"][0]["secretKey"]
        == "password"
    )
    admin = yaml.safe_load((K8S / "pipelines/full.yaml").read_text().split("\n---\n")[1])[
        "platforms"
    ]["kubernetes"]["deploymentSpec"]["executors"]
    told = {
        e
        for e, x in admin.items()
        if any(s["secretName"] == c.keys for s in x.get("secretAsEnv", ()))
    }
    assert (
        told
        == {f"exec-{stage.name}" for stage in FULL if stage.resources.admin}
        == {"exec-promote"}
        and get(there, "ExternalSecret", c.keys, "kubeflow")["spec"]["data"][0]["secretKey"]
        == "admin"
    )
    assert set(c.env) <= set(get(there, "ConfigMap", c.config, "kubeflow")["data"])
    assert (
        get(there, "ConfigMap", "recsys-env", "kubeflow")["data"]
        == get(rendered[overlay], "ConfigMap", "recsys-env")["data"]
    )
    pools = yaml.safe_load_all((K8S / "cloud/karpenter/pools.yaml").read_text())
    assert {c.pool, f"{c.pool}-gpu"} <= {
        p["spec"]["template"]["metadata"]["labels"]["recsys.io/pool"] for p in pools
    } and any(stage.resources.gpu for stage in (*FULL, *DAILY))


# ---- alerts

DAY = 86400
CASES = {  # alert -> (series that make it fire, series that don't, labels, summary)
    "RecsysDown": (
        {'up{namespace="recsys",job="triton",pod="a"}': "0x60"},
        {
            'up{namespace="recsys",job="triton",pod="a"}': "0x60",
            'up{namespace="recsys",job="triton",pod="b"}': "1x60",
        },
        {},
        "No server of the ensemble answers Prometheus",
    ),
    "RecsysSlow": (
        {
            'nv_inference_request_duration_us{namespace="recsys",model="recommender"}': "0+3600000x60",
            'nv_inference_request_success{namespace="recsys",model="recommender"}': "0+60x60",
        },
        {
            'nv_inference_request_duration_us{namespace="recsys",model="recommender"}': "0+540000x60",
            'nv_inference_request_success{namespace="recsys",model="recommender"}': "0+60x60",
        },
        dict(namespace="recsys"),
        "A request takes 60 ms on average, more than 50",
    ),
    "RecsysQueue": (
        {
            'nv_inference_queue_duration_us{namespace="recsys",pod="a",model="dlrm"}': "0+1800000x60",
            'nv_inference_request_success{namespace="recsys",pod="a",model="dlrm"}': "0+60x60",
        },
        {
            'nv_inference_queue_duration_us{namespace="recsys",pod="a",model="dlrm"}': "0+180000x60",
            'nv_inference_request_success{namespace="recsys",pod="a",model="dlrm"}': "0+60x60",
        },
        dict(namespace="recsys", pod="a"),
        "Requests wait 30 ms in a: the autoscaler is at its limit, or its metric is missing",
    ),
    "RecsysErrors": (
        {
            'nv_inference_request_failure{namespace="recsys",model="recommender",reason="BACKEND"}': "0+6x60",
            'nv_inference_request_success{namespace="recsys",model="recommender"}': "0+54x60",
        },
        {
            'nv_inference_request_failure{namespace="recsys",model="recommender",reason="BACKEND"}': "0+0x60",
            'nv_inference_request_success{namespace="recsys",model="recommender"}': "0+54x60",
        },
        dict(namespace="recsys"),
        "10% of the requests fail",
    ),
    "RecsysFallbacks": (
        {
            'recsys_fallbacks_total{namespace="recsys",stage="user"}': "0+30x60",
            'nv_inference_request_success{namespace="recsys",model="recommender"}': "0+60x60",
            'nv_inference_request_failure{namespace="recsys",model="recommender",reason="BACKEND"}': "0x60",
        },
        {
            'recsys_fallbacks_total{namespace="recsys",stage="user"}': "0+1x60",
            'nv_inference_request_success{namespace="recsys",model="recommender"}': "0+60x60",
            'nv_inference_request_failure{namespace="recsys",model="recommender",reason="BACKEND"}': "0x60",
        },
        dict(namespace="recsys", stage="user"),
        "50% of the pages do without stage user",
    ),
    "RecsysImpressionsLost": (
        {'recsys_impressions_lost_total{namespace="recsys",pod="a"}': "0+6x60"},
        {'recsys_impressions_lost_total{namespace="recsys",pod="a"}': "0 1 1+0x60"},
        dict(namespace="recsys"),
        "60 pages in 10 minutes were shown and not logged",
    ),
    "RecsysWorkerBehind": (
        {'recsys_worker_unread{namespace="recsys",stream="events"}': "50000x60"},
        {
            'recsys_worker_unread{namespace="recsys",stream="events"}': "50x60",
            'recsys_worker_lag_seconds{namespace="recsys"}': "0.2x60",
        },
        dict(namespace="recsys"),
        "Events reach features late; history and top category are stale",
    ),
    "RecsysWorkerDown": (
        {},
        {'up{namespace="recsys",job="worker",pod="w"}': "1x60"},
        {},
        "No worker: events wait in Valkey's stream, which is bounded",
    ),
    "RecsysFeaturesStale": (
        {'recsys_stage_last_success_timestamp_seconds{stage="materialise"}': "-9000x60"},
        {'recsys_stage_last_success_timestamp_seconds{stage="materialise"}': "0+60x60"},
        {},
        "The hourly materialise job has not succeeded for two hours",
    ),
    "RecsysDrift": (
        {'recsys_monitor_alarm{check="input price"}': "1x60"},
        {'recsys_monitor_alarm{check="input price"}': "0x60"},
        dict(check="input price"),
        "The monitor found a shift on the last whole day: input price; its page lies in "
        "the run's folder monitor/",
    ),
    "RecsysPipelineFailed": (
        {'recsys_pipeline_failed{pipeline="full"}': "1x60"},
        {'recsys_pipeline_failed{pipeline="full"}': "0x60"},
        dict(pipeline="full"),
        "The last run of pipeline full failed",
    ),
    "RecsysStageFailed": (
        {'recsys_stage_failed{stage="dlrm"}': "1x60"},
        {'recsys_stage_failed{stage="dlrm"}': "0x60"},
        dict(stage="dlrm"),
        "Stage dlrm failed, and no later attempt has succeeded",
    ),
    "RecsysReplicasMissing": (
        {
            'kube_deployment_status_replicas_available{namespace="recsys",deployment="triton"}': "1x60",
            'kube_deployment_spec_replicas{namespace="recsys",deployment="triton"}': "2x60",
        },
        {
            'kube_deployment_status_replicas_available{namespace="recsys",deployment="triton"}': "2x60",
            'kube_deployment_spec_replicas{namespace="recsys",deployment="triton"}': "2x60",
        },
        dict(namespace="recsys", deployment="triton"),
        "triton has 1 pods that serve, fewer than it should",
    ),
    "RecsysStageSlow": (
        {'recsys_stage_duration_seconds{stage="ingest"}': "100x50 1000x10"},
        {'recsys_stage_duration_seconds{stage="ingest"}': "400x60"},
        dict(stage="ingest"),
        "Stage ingest took 16m 40s, three times as long as in the last two weeks",
    ),
    "RecsysPipelineLate": (
        {'recsys_pipeline_last_success_timestamp_seconds{pipeline="daily"}': f"-{2 * DAY}x60"},
        {'recsys_pipeline_last_success_timestamp_seconds{pipeline="daily"}': "0+60x60"},
        {},
        "The daily pipeline has not succeeded for 26 hours",
    ),
}


def rule_groups():
    return yaml.safe_load((K8S / "base/monitoring/rules.yaml").read_text())["spec"]["groups"]


def promtool(folder, groups, tests):
    (folder / "rules.yml").write_text(yaml.safe_dump(dict(groups=groups)))
    (folder / "tests.yml").write_text(
        yaml.safe_dump(dict(rule_files=["rules.yml"], evaluation_interval="1m", tests=tests))
    )
    check = subprocess.run(
        ["promtool", "check", "rules", "rules.yml"], cwd=folder, capture_output=True, text=True
    )
    assert check.returncode == 0, check.stdout + check.stderr
    return subprocess.run(
        ["promtool", "test", "rules", "tests.yml"], cwd=folder, capture_output=True, text=True
    )


def alert_tests(at="60m"):
    tests = []
    severity = {
        r["alert"]: r["labels"]["severity"]
        for g in rule_groups()
        for r in g["rules"]
        if "alert" in r
    }
    for alert, (fires, quiet, labels, summary) in CASES.items():
        for series, expected in (
            (
                fires,
                [
                    dict(
                        exp_labels=labels | dict(severity=severity[alert]),
                        exp_annotations=dict(summary=summary),
                    )
                ],
            ),
            (quiet, []),
        ):
            tests.append(
                dict(
                    interval="1m",
                    input_series=[dict(series=s, values=v) for s, v in series.items()],
                    alert_rule_test=[dict(eval_time=at, alertname=alert, exp_alerts=expected)],
                )
            )
    return tests


@pytest.mark.needs("promtool")
def test_alerts_fire_and_keep_quiet(tmp_path):
    assert set(CASES) == {r["alert"] for g in rule_groups() for r in g["rules"] if "alert" in r}, (
        "an alert without a case, or a case without its alert"
    )
    done = promtool(tmp_path, rule_groups(), alert_tests())
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.needs("promtool")
def test_records(tmp_path):
    """Queue time a request by member and pod: 2,000 us a request are 2 ms, the slowest member
    counts, nobody asking gives 0 and not nothing.
    """
    q, s = "nv_inference_queue_duration_us", "nv_inference_request_success"

    def label(pod, model):
        return f'{{namespace="recsys",pod="{pod}",model="{model}"}}'

    series = {
        q + label("a", "dlrm"): "0+120000x20",
        s + label("a", "dlrm"): "0+60x20",
        q + label("a", "retrieve"): "0+30000x20",
        s + label("a", "retrieve"): "0+60x20",
        q + label("b", "dlrm"): "500x20",
        s + label("b", "dlrm"): "7x20",
        q + label("a", "recommender"): "0+9000000x20",
        s + label("a", "recommender"): "0+60x20",
    }

    def sample(n, v, **labels):
        return dict(
            labels=n + "{" + ",".join(f'{k}="{x}"' for k, x in labels.items()) + "}", value=v
        )

    m, member = (
        "recsys_queue_milliseconds_per_request",
        "recsys:member_queue_milliseconds_per_request",
    )
    tests = [
        dict(
            interval="1m",
            input_series=[dict(series=k, values=v) for k, v in series.items()],
            promql_expr_test=[
                dict(
                    expr=m,
                    eval_time="10m",
                    exp_samples=[
                        sample(m, 2, namespace="recsys", pod="a"),
                        sample(m, 0, namespace="recsys", pod="b"),
                    ],
                ),
                dict(
                    expr=member,
                    eval_time="10m",
                    exp_samples=[
                        sample(member, 2, namespace="recsys", pod="a", model="dlrm"),
                        sample(member, 0.5, namespace="recsys", pod="a", model="retrieve"),
                    ],
                ),
            ],
        )
    ]
    done = promtool(tmp_path, rule_groups(), tests)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.needs("promtool")
def test_a_wrong_rule_is_found(tmp_path):
    groups = rule_groups()
    rule = next(r for g in groups for r in g["rules"] if r.get("alert") == "RecsysErrors")
    rule["expr"] = rule["expr"].replace("0.01", "1")
    done = promtool(
        tmp_path,
        groups,
        [
            t
            for t in alert_tests()
            if t["alert_rule_test"][0]["alertname"] in ("RecsysErrors", "RecsysSlow")
        ],
    )
    assert (
        done.returncode != 0
        and "RecsysErrors" in done.stdout + done.stderr
        and "RecsysSlow" not in done.stdout + done.stderr
    )


def test_dashboard():
    board = json.loads((K8S / "base/monitoring/dashboard.json").read_text())
    recorded = {r["record"] for g in rule_groups() for r in g["rules"] if "record" in r}
    used = set(re.findall(r"recsys:[\w:]+", json.dumps(board)))
    assert used and used <= recorded, used - recorded
    assert len({p["id"] for p in board["panels"]}) == len(board["panels"]) and all(
        t["expr"] for p in board["panels"] for t in p["targets"]
    )


def known_metrics():
    "List the metrics that recsys itself makes."
    source = "\n".join(p.read_text() for p in (ROOT / "recsys").rglob("*.py"))
    named = set(re.findall(r"\brecsys_\w+\b", source))
    jobs = {
        f"recsys_{j}_{m}"
        for j in ("stage", "pipeline")
        for m in ("failed", "last_success_timestamp_seconds", "duration_seconds")
    }
    from recsys.operate.tasks import outcome_metrics

    assert (
        jobs
        >= {k for j in ("stage", "pipeline") for k in outcome_metrics(j, True, 1.0)}
        >= {f"recsys_{j}_failed" for j in ("stage", "pipeline")}
    )
    streams = {f"recsys_worker_{m}" for m in ("unread", "unacknowledged")}
    return named | jobs | streams | monitored_metrics()


def monitored_metrics():
    "Make the monitor's gauges of a day, and list their names."
    from recsys.operate.monitor import gauges

    today = dict(
        day="2026-01-01",
        pages=1,
        events=1,
        coverage=0.1,
        short=0,
        shown=[],
        clicks=[],
        latency={},
        fallbacks={},
    )
    return {
        m.name
        for m in gauges(
            today,
            dict(
                checks=[dict(check="input price", value=0.1, alarm=False, adjusted=0.5)], alarms=[]
            ),
        ).collect()
    }


def test_metrics_of_rules_and_dashboard_exist():
    text = json.dumps(rule_groups()) + (K8S / "base/monitoring/dashboard.json").read_text()
    recorded = {r["record"] for g in rule_groups() for r in g["rules"] if "record" in r}
    used = set(re.findall(r"\brecsys_\w+\b(?!:)", text)) - recorded
    assert used <= known_metrics(), used - known_metrics()


# ---- the cloud


@cache
def template_text(path):
    "Read a template with its short forms (!Ref) written out."
    from cfnlint.decode import cfn_yaml

    return json.dumps(cfn_yaml.load(str(K8S / path)))


def template(path):
    return json.loads(template_text(path))


def test_templates_are_sound(tmp_path):
    lint = str(Path(sys.executable).with_name("cfn-lint"))
    files = [str(K8S / "cloud" / f) for f in ("stack.yaml", "events.yaml", "tables.json")]
    bad = tmp_path / "bad.yaml"
    bad.write_text(
        (K8S / "cloud/stack.yaml")
        .read_text()
        .replace("TransitEncryptionEnabled: true", "TransitEncryptionEnabled: perhaps")
        .replace("!Ref ValkeySubnets", "!Ref ValkeySubnet")
    )
    done = subprocess.run(
        [lint, "--format", "parseable", *files, str(bad)], capture_output=True, text=True
    )
    assert [x for x in done.stdout.splitlines() if not x.startswith(str(bad))] == [], (
        done.stdout + done.stderr
    )
    assert done.returncode and "ValkeySubnet" in done.stdout and "perhaps" in done.stdout, (
        done.stdout + done.stderr
    )


NEEDS_STAR = set()  # (role, action) that has to be granted on all resources: none at present


def policy_faults(t):
    "Look for stars in what roles may do, and for roles that anyone but their account may take."
    wrong = []

    def as_list(x):
        return x if isinstance(x, list) else [x]

    def text(r):
        return (
            r if isinstance(r, str) else next(iter(r.values())) if "Fn::Sub" in r else json.dumps(r)
        )

    for key, r in t["Resources"].items():
        if r["Type"] != "AWS::IAM::Role":
            continue
        p = r["Properties"]
        for s in [s for x in p["Policies"] for s in x["PolicyDocument"]["Statement"]]:
            wrong += [f"{key}: action {a}" for a in as_list(s["Action"]) if "*" in a]
            for a in as_list(s["Resource"]):
                a = text(a)
                if (a == "*" or a.endswith(":*")) and (key, s["Sid"]) not in NEEDS_STAR:
                    wrong.append(f"{key}: {s['Sid']} on {a}")
        wrong += [f"{key}: managed policy {m}" for m in p.get("ManagedPolicyArns", ())]
        trust = json.loads(p["AssumeRolePolicyDocument"]["Fn::Sub"])
        for s in trust["Statement"]:
            who = s.get("Condition", {}).get("StringEquals", {})
            if (
                s["Action"] != "sts:AssumeRoleWithWebIdentity"
                or not any(k.endswith(":sub") for k in who)
                or not any(k.endswith(":aud") for k in who)
            ):
                wrong.append(f"{key}: its trust is not bound to a service account")
    return wrong


def test_roles_have_no_stars_and_belong_to_an_account():
    t = template("cloud/stack.yaml")
    assert policy_faults(t) == []
    for role, spoil, words in (
        ("WorkerRole", lambda s: s.update(Action=["s3:*"]), "action s3:*"),
        ("WorkerRole", lambda s: s.update(Resource="*"), "on *"),
    ):
        worse = copy.deepcopy(t)
        spoil(
            worse["Resources"][role]["Properties"]["Policies"][0]["PolicyDocument"]["Statement"][0]
        )
        assert any(words in x for x in policy_faults(worse)), words
    worse = copy.deepcopy(t)
    trust = worse["Resources"]["WorkerRole"]["Properties"]["AssumeRolePolicyDocument"]
    trust["Fn::Sub"] = trust["Fn::Sub"].replace(":sub", ":amr")
    assert "WorkerRole: its trust is not bound to a service account" in policy_faults(worse)


@pytest.mark.needs("kubectl")
def test_roles_belong_to_accounts(rendered):
    t, accounts = (
        template("cloud/stack.yaml"),
        {
            f"system:serviceaccount:{d['metadata']['namespace']}:{d['metadata']['name']}": d
            for d in kinds(rendered["overlays/prod"], "ServiceAccount")
        },
    )
    for r in (r["Properties"] for r in t["Resources"].values() if r["Type"] == "AWS::IAM::Role"):
        subject = next(
            v
            for k, v in json.loads(r["AssumeRolePolicyDocument"]["Fn::Sub"])["Statement"][0][
                "Condition"
            ]["StringEquals"].items()
            if k.endswith(":sub")
        )
        for one in [subject] if isinstance(subject, str) else subject:
            if (
                one == "system:serviceaccount:kubeflow:pipeline-runner"
            ):  # Kubeflow's own; the page says how it gets its annotation
                continue
            assert accounts[one]["metadata"]["annotations"]["eks.amazonaws.com/role-arn"].endswith(
                f":role/{r['RoleName']}"
            )
    values = dict(x.split("=", 1) for x in (K8S / "overlays/prod/values.env").read_text().split())
    assert {v.replace("_", "") for v in values} <= set(t["Outputs"]), (
        "values.env asks for what the stack does not say"
    )


@pytest.fixture(scope="module")
def aws():
    "Run moto's server, with the environment of its clients."
    with moto_server() as url:
        yield url


# what moto's CloudFormation does not make; the first are made below through their own APIs, the
# others are only linted
BY_API = {
    "AWS::Glue::Database",
    "AWS::Glue::Table",
    "AWS::Athena::WorkGroup",
    "AWS::SecretsManager::Secret",
}
ONLY_LINTED = {
    "AWS::S3::BucketPolicy",
    "AWS::ElastiCache::SubnetGroup",
    "AWS::ElastiCache::ParameterGroup",
    "AWS::ElastiCache::User",
    "AWS::ElastiCache::UserGroup",
    "AWS::ElastiCache::ReplicationGroup",
}


@pytest.fixture(scope="module")
def stack(aws):
    "Create the stack; give its outputs."
    import boto3
    from moto.cloudformation.parsing import resource_class_from_type

    t, ec2, cf = template("cloud/stack.yaml"), boto3.client("ec2"), boto3.client("cloudformation")
    gone = {n: r for n, r in t["Resources"].items() if not resource_class_from_type(r["Type"])}
    assert {r["Type"] for r in gone.values()} <= BY_API | ONLY_LINTED, (
        {r["Type"] for r in gone.values()} - BY_API - ONLY_LINTED
    )
    vpc = ec2.create_vpc(CidrBlock="10.0.0.0/16")["Vpc"]["VpcId"]
    subnets = [
        ec2.create_subnet(
            VpcId=vpc, CidrBlock=f"10.0.{i}.0/24", AvailabilityZone=f"eu-central-1{z}"
        )["Subnet"]["SubnetId"]
        for i, z in enumerate("ab")
    ]
    group = ec2.create_security_group(GroupName="nodes", Description="nodes", VpcId=vpc)["GroupId"]
    given = dict(
        VpcId=vpc,
        PrivateSubnets=",".join(subnets),
        NodeSecurityGroup=group,
        OidcProvider="oidc.eks.eu-central-1.amazonaws.com/id/ABC123",
        Database="recsys",
    )
    kept = {n: r for n, r in t["Resources"].items() if n not in gone}

    def stands(x):
        return any(
            json.dumps(x).find(f'"{n}"') >= 0
            or f"${{{n}" in json.dumps(x)
            or f'"{n}.' in json.dumps(x)
            for n in gone
        )

    def without(x):  # references to what is made otherwise become its name
        if isinstance(x, dict):
            if x.get("Ref") in gone:
                return f"arn:aws:test:::{x['Ref']}"
            return {k: without(v) for k, v in x.items()}
        if isinstance(x, list):
            return [without(v) for v in x]
        return re.sub(r"\$\{{({})\}}".format("|".join(gone)), r"\1", x) if isinstance(x, str) else x

    body = dict(
        t, Resources=without(kept), Outputs={n: o for n, o in t["Outputs"].items() if not stands(o)}
    )
    cf.create_stack(
        StackName="recsys",
        TemplateBody=json.dumps(body),
        Parameters=[dict(ParameterKey=k, ParameterValue=v) for k, v in given.items()],
        Capabilities=["CAPABILITY_NAMED_IAM"],
    )
    made = cf.describe_stacks(StackName="recsys")["Stacks"][0]
    assert made["StackStatus"] == "CREATE_COMPLETE"
    outputs = {o["OutputKey"]: o["OutputValue"] for o in made["Outputs"]}

    def plain(x):  # the properties as an API takes them
        if isinstance(x, dict):
            if "Ref" in x:
                return {
                    **given,
                    "AWS::AccountId": "123456789012",
                    "Bucket": outputs["Bucket"],
                    "Prefix": "feast",
                }[x["Ref"]]
            if "Fn::Sub" in x:
                return (
                    x["Fn::Sub"]
                    .replace("${Bucket}", outputs["Bucket"])
                    .replace("${Prefix}", "feast")
                    .replace("${FirstDay}", "2026-05-20")
                )
            return {k: plain(v) for k, v in x.items()}
        return [plain(v) for v in x] if isinstance(x, list) else x

    glue, athena, secrets = (
        boto3.client("glue"),
        boto3.client("athena"),
        boto3.client("secretsmanager"),
    )
    for r in [*gone.values(), *template("cloud/tables.json")["Resources"].values()]:
        p = plain(r["Properties"]) if r["Type"] in BY_API else {}
        if r["Type"] == "AWS::Glue::Database":
            glue.create_database(**p)
        elif r["Type"] == "AWS::Glue::Table":
            glue.create_table(**p)
        elif r["Type"] == "AWS::Athena::WorkGroup":
            athena.create_work_group(Name=p["Name"], Configuration=p["WorkGroupConfiguration"])
        elif r["Type"] == "AWS::SecretsManager::Secret":
            g = p["GenerateSecretString"]
            word = secrets.get_random_password(
                PasswordLength=g["PasswordLength"], ExcludePunctuation=g["ExcludePunctuation"]
            )["RandomPassword"]
            secrets.create_secret(
                Name=p["Name"],
                SecretString=json.dumps(
                    json.loads(g["SecretStringTemplate"]) | {g["GenerateStringKey"]: word}
                ),
            )
    return outputs


def test_the_stack_is_what_the_project_asks_for(stack):
    import boto3

    bucket, iam, secrets = stack["Bucket"], boto3.client("iam"), boto3.client("secretsmanager")
    assert (
        boto3.client("s3").get_bucket_encryption(Bucket=bucket)[
            "ServerSideEncryptionConfiguration"
        ]["Rules"][0]["ApplyServerSideEncryptionByDefault"]["SSEAlgorithm"]
        == "AES256"
    )
    assert template("cloud/stack.yaml")["Resources"]["Bucket"]["Properties"][
        "PublicAccessBlockConfiguration"
    ] == dict.fromkeys(
        ("BlockPublicAcls", "BlockPublicPolicy", "IgnorePublicAcls", "RestrictPublicBuckets"), True
    )  # moto leaves it out
    assert {
        r["repositoryName"] for r in boto3.client("ecr").describe_repositories()["repositories"]
    } == {f"recsys-{p.parent.name}" for p in (K8S / "images").glob("*/Dockerfile")}
    trust = iam.get_role(RoleName="recsys-worker")["Role"]["AssumeRolePolicyDocument"]
    assert "system:serviceaccount:recsys:recsys-worker" in json.dumps(
        trust
    ) and "${" not in json.dumps(trust)
    wanted = {
        (x["remoteRef"]["key"], x["remoteRef"]["property"])
        for d in yaml.safe_load_all((K8S / "base/common/secrets.yaml").read_text())
        for x in d["spec"]["data"]
    }
    for key, part in wanted:
        assert len(json.loads(secrets.get_secret_value(SecretId=key)["SecretString"])[part]) == 48
    assert (
        boto3.client("athena").get_work_group(
            WorkGroup=yaml.safe_load((ROOT / "params/cluster.yaml").read_text())["ATHENA_WORKGROUP"]
        )["WorkGroup"]["Configuration"]["ResultConfiguration"]["OutputLocation"]
        == f"s3://{bucket}/athena/"
    )


def test_ingest_from_s3(stack, tmp_path):
    """The tables of the params file, put where it says: read in place, cut into the run's own
    files, and a new object is noticed.
    """
    import boto3
    import pandas as pd
    import pyarrow.parquet as pq

    from recsys.core.keys import stage_key
    from recsys.core.params import load_params
    from recsys.core.pipeline import is_done
    from recsys.core.runs import run_dir
    from recsys.core.stages import STAGES
    from recsys.data.sources import run_ingest

    s3, bucket = boto3.client("s3"), stack["Bucket"]

    def put(frame, key):
        return (
            frame.to_parquet(tmp_path / "x.parquet", index=False),
            s3.upload_file(str(tmp_path / "x.parquet"), bucket, key),
        )

    def day(d):
        return pd.DataFrame(
            dict(
                user_id=["u1", "u2"] * 20,
                item_id=[f"i{i % 5}" for i in range(40)],
                timestamp=[1_780_000_000 + d * 86400 + 2000 * i for i in range(40)],
            )
        )

    for d in range(2):
        put(day(d), f"interactions/dt=2026-05-2{d}/part.parquet")
    put(
        pd.DataFrame(dict(item_id=[f"i{i}" for i in range(5)], title=list("abcde"))),
        "items/items.parquet",
    )
    put(pd.DataFrame(dict(user_id=["u1", "u2"], age=[20, 30])), "users/users.parquet")
    text = (ROOT / "params/cluster.yaml").read_text()
    (tmp_path / "cluster.yaml").write_text(text.replace("BUCKET", bucket))
    p = load_params(tmp_path / "cluster.yaml", (f"OUTPUTS={tmp_path / 'outputs'}",))
    key = stage_key(STAGES["ingest"], p)
    assert run_ingest(p)["interactions"] == 80
    assert pq.read_table(run_dir(p) / "ingest/interactions.parquet").num_rows == 80
    assert stage_key(STAGES["ingest"], p) == key
    put(day(2), "interactions/dt=2026-05-22/part.parquet")
    assert stage_key(STAGES["ingest"], p) != key and not is_done(STAGES["ingest"], p)
    assert run_ingest(p)["interactions"] == 120


def test_tables_of_every_kind_are_read_from_a_prefix(aws, tmp_path):
    "What a store holds is read as a folder is: packed, hidden, in other kinds and encodings."
    import boto3
    import pandas as pd
    import pyarrow as pa
    import pyarrow.parquet as pq

    from recsys.core.params import RecsysError, default_params
    from recsys.core.runs import run_dir
    from recsys.data.sources import run_ingest

    s3, location = boto3.client("s3"), dict(LocationConstraint="eu-central-1")
    s3.create_bucket(Bucket="own-tables", CreateBucketConfiguration=location)
    log = pd.DataFrame(
        dict(
            user_id=["u1", "u2"] * 20,
            item_id=[f"00{i % 5}" for i in range(40)],
            timestamp=[1_780_000_000 + 3600 * i for i in range(40)],
        )
    )
    packed = pa.BufferOutputStream()
    pq.write_table(pa.Table.from_pandas(log[20:], preserve_index=False), packed)
    objects = {
        "log/a.csv.gz": gzip.compress(log[:10].to_csv(index=False, sep=";").encode()),
        "log/b.jsonl": log[10:20].to_json(orient="records", lines=True).encode(),
        "log/dt=2026-06-01/c.parquet": packed.getvalue().to_pybytes(),
        "log/_SUCCESS": b"",
        "log/._a.csv": b"\0",
        "items.csv": "item_id,title\n000,Räder\n001,b\n002,c\n003,d\n004,e\n".encode("latin-1"),
    }
    for key, body in objects.items():
        s3.put_object(Bucket="own-tables", Key=key, Body=body)

    def ingest(log, **given):
        params = default_params(
            SOURCE="tables",
            INTERACTIONS=f"s3://own-tables/{log}",
            ITEMS="s3://own-tables/items.csv",
            ENCODING="latin-1",
            OUTPUTS=str(tmp_path),
            **given,
        )
        return run_ingest(params)["interactions"], run_dir(params) / "ingest"

    for prefix in ("log", "log/", "log/**/*"):
        n_rows, folder = ingest(prefix)
        assert n_rows == 40, prefix
    assert pd.read_parquet(folder / "items.parquet").title[0] == "Räder"
    assert ingest("log/dt=*/*.parquet")[0] == 20
    assert ingest("log/b.jsonl", VALID=0)[0] == 10
    with pytest.raises(RecsysError, match="INTERACTIONS is 's3://own-tables/none'"):
        ingest("none")
    with pytest.raises(RecsysError, match="s3://no-such-bucket.*"):
        run_ingest(default_params(SOURCE="tables", INTERACTIONS="s3://no-such-bucket/x"))


def test_feast_on_the_stack(stack):
    """Feast registers its definitions on the stack's bucket, and the Glue tables have the columns
    that Feast asks for.
    """
    import boto3
    from feast import FeatureStore, RepoConfig

    from recsys.core.params import load_params
    from recsys.online.feature_views import ENTITY, register_definitions, store_config
    from recsys.online.glue import shop_contract

    p = load_params(
        ROOT / "params/cluster.yaml",
        (f"S3_LOCATION=s3://{stack['Bucket']}/feast", "VALKEY_URL=valkey://127.0.0.1:6379"),
    )
    config = RepoConfig(**store_config(p, ""), repo_path=Path("/tmp"))
    register_definitions(p, FeatureStore(config=config), contract := shop_contract())
    assert (
        contract
        and boto3.client("s3").head_object(Bucket=stack["Bucket"], Key="feast/registry.db")[
            "ContentLength"
        ]
        > 500
    )
    views = {v.name: v for v in FeatureStore(config=config).list_feature_views()}
    assert set(views) == set(ENTITY)
    for view, v in views.items():
        t = boto3.client("glue").get_table(DatabaseName=p.GLUE_DATABASE, Name=view)["Table"]
        columns = {c["Name"] for c in t["StorageDescriptor"]["Columns"]}
        assert {f.name for f in v.schema} | {"event_timestamp"} <= columns, view
        assert t["StorageDescriptor"]["Location"] == f"s3://{stack['Bucket']}/feast/tables/{view}/"


def test_committed_files_are_what_is_generated(tmp_path):
    from recsys.core.params import load_params
    from recsys.core.stages import LISTS
    from recsys.online.glue import shop_contract, write_tables
    from recsys.operate.kubeflow import compile_pipeline, params_file

    assert (K8S / "cloud/tables.json").read_text() == write_tables(
        shop_contract(), tmp_path / "tables.json"
    ).read_text(), "run `make export`"
    assert {p.stem for p in (K8S / "pipelines").glob("*.yaml")} == set(LISTS)
    for pipeline in LISTS:
        made = compile_pipeline(
            pipeline, load_params(params_file(pipeline)), tmp_path / f"{pipeline}.yaml"
        )
        assert made.read_text() == (K8S / f"pipelines/{pipeline}.yaml").read_text(), (
            "run `make export`"
        )


# ---- images

DOCKERFILES = sorted((K8S / "images").glob("*/Dockerfile"))


def docker_faults(path, text):
    "Rules for Dockerfiles beyond a linter's."
    lines = [
        x.strip()
        for x in re.sub(r"\\\n", " ", text).splitlines()
        if x.strip() and not x.startswith("#")
    ]

    def word(w):
        return [x for x in lines if x.split()[0] == w]

    wrong = [
        f"{x} has no version"
        for x in word("FROM")
        if not re.search(r":[\w.-]*\d[\w.-]*(@sha256:[0-9a-f]{64})?( AS \w+)?$", x)
    ]
    wrong += (
        ["no health check"] * (not word("HEALTHCHECK"))
        + ["no command"] * (not word("CMD"))
        + ["ADD instead of COPY"] * bool(word("ADD"))
    )
    wrong += ["runs as root"] * (
        not word("USER") or not re.fullmatch(r"USER [1-9]\d*(:[1-9]\d*)?", word("USER")[-1])
    )
    after = lines[lines.index(word("USER")[-1]) + 1 :] if word("USER") else []
    wrong += ["installs after it has given up root"] * any(x.split()[0] == "RUN" for x in after)
    wrong += [
        f"{x.split('install')[1].strip()} is not pinned by hash"
        for x in word("RUN")
        if "pip install" in x
        and "--require-hashes" not in x
        and not re.search(r"install --no-deps \.( |$)", x)
    ]
    wrong += [
        f"a secret: {x}"
        for x in lines
        if re.search(r"(password|secret|token|api_?key)\w*\s*=\s*\S", x, re.I)
    ]
    wrong += [f"{x} copies everything" for x in word("COPY") if re.search(r"COPY \.( |/)", x)]
    stages = re.split(r"^FROM ", text, flags=re.M)[1:]
    if len(stages) > 1 and "requirements.lock" in stages[-1]:
        wrong.append("the last stage installs packages")
    return wrong


@pytest.mark.parametrize("path", DOCKERFILES, ids=lambda p: p.parent.name)
def test_dockerfile(path):
    text = path.read_text()
    assert docker_faults(path, text) == []
    for source in re.findall(r"^COPY (?!--from)(.+) \S+$", text, re.M):
        for one in source.split():
            assert (ROOT / one).exists(), f"{one} is not there to be copied"
    for old, new, words in (
        (":0.1.0", ":0.1.0", None),
        ("USER 1000:1000", "", "runs as root"),
        ("USER 1000:1000", "USER root", "runs as root"),
        ("HEALTHCHECK", "LABEL x=1 #", "no health check"),
        ("--require-hashes ", "", "is not pinned by hash"),
        ("ENV ", "ENV API_KEY=abc ", "a secret"),
        (
            re.search(r"^COPY (?!--from)", text, re.M)[0],
            "COPY . /x\nCOPY ",
            "copies everything",
        ),
    ):
        if words:
            assert any(words in x for x in docker_faults(path, text.replace(old, new))), words
    assert any(
        "has no version" in x
        for x in docker_faults(path, re.sub(r"^(FROM \S+?):\S+", r"\1:latest", text, flags=re.M))
    )


@pytest.mark.needs("node", "npm")
def test_dockerfiles_pass_the_linter(node):
    texts = {p.parent.name: p.read_text() for p in DOCKERFILES}
    assert node(dockerfiles=texts)["dockerfiles"] == {k: [] for k in texts}
    bad = node(dockerfiles=dict(a="FROM x:1\nEXPOSE abc\nRUNN x\n"))["dockerfiles"]["a"]
    assert len(bad) == 2, bad


# ---- the page


def test_the_page_knows_everything():
    page = (K8S / "README.md").read_text()
    for alert in CASES:
        assert f"`{alert}`" in page, f"the troubleshooting table has no {alert}"
    for word in ("not run", "GPU", "Athena", "tear", "per hour", "values.env", "kubectl annotate"):
        assert word.lower() in page.lower(), word
    for link in re.findall(r"\]\((?!http|#)([^)]+)\)", page):
        assert (K8S / link.partition("#")[0]).resolve().exists(), link
    for command in re.findall(r"^(?:\s*)(recsys [a-z]+)", page, re.M):
        from typer.main import get_command

        from recsys.operate.cli import app

        assert command.split()[1] in get_command(app).commands, command
