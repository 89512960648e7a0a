"""What fails on a cluster, in the series that Prometheus would see, and which alerts say so.

The table of the same cases stands on the deployment page.
"""

import re

import pytest
import yaml
from test_k8s import K8S, promtool, rule_groups

HOUR = 60  # samples, one a minute
PAGES = {
    'nv_inference_request_success{namespace="recsys",model="recommender"}': "0+600x120",
    'nv_inference_request_failure{namespace="recsys",model="recommender"}': "0x120",
}
WELL = {
    'up{namespace="recsys",job="triton",pod="a"}': "1x120",
    'up{namespace="recsys",job="triton",pod="b"}': "1x120",
    'up{namespace="recsys",job="worker",pod="w"}': "1x120",
    'kube_deployment_spec_replicas{namespace="recsys",deployment="triton"}': "2x120",
    'kube_deployment_status_replicas_available{namespace="recsys",deployment="triton"}': "2x120",
    'recsys_fallbacks_total{namespace="recsys",stage="user"}': "0x120",
    'recsys_impressions_lost_total{namespace="recsys",pod="a"}': "0x120",
    'recsys_worker_lag_seconds{namespace="recsys"}': "0.2x120",
    'recsys_stage_duration_seconds{stage="two_tower"}': "3600x120",
    'recsys_stage_failed{stage="ingest"}': "0x120",
    'recsys_stage_failed{stage="materialise"}': "0x120",
    'recsys_pipeline_failed{pipeline="daily"}': "0x120",
    'recsys_stage_last_success_timestamp_seconds{stage="materialise"}': "0+60x120",
    'recsys_pipeline_last_success_timestamp_seconds{pipeline="daily"}': "0+60x120",
} | PAGES

# case of the page -> what differs from a cluster that is well, the alerts an hour later
FAILURES = {
    "A node is drained": (
        {
            'kube_deployment_status_replicas_available{namespace="recsys",deployment="triton"}': (
                "2x30 1x4 2x90"
            ),
            'up{namespace="recsys",job="triton",pod="a"}': "1x30 0x4 1x90",
        },
        set(),
    ),
    "A zone is lost, and its pods find no node": (
        {
            'kube_deployment_status_replicas_available{namespace="recsys",deployment="triton"}': (
                "2x30 1x90"
            ),
            'up{namespace="recsys",job="triton",pod="a"}': "1x30 0x90",
        },
        {"RecsysReplicasMissing"},
    ),
    "Valkey fails over within a minute": (
        {
            'recsys_fallbacks_total{namespace="recsys",stage="user"}': "0x30 600x90",
            'recsys_impressions_lost_total{namespace="recsys",pod="a"}': "0x30 8x90",
        },
        set(),
    ),
    "Valkey stays away": (
        {
            'recsys_fallbacks_total{namespace="recsys",stage="user"}': "0x30 0+600x90",
            'recsys_impressions_lost_total{namespace="recsys",pod="a"}': "0x30 0+600x90",
            'recsys_worker_lag_seconds{namespace="recsys"}': "0.2x30 0+60x90",
        },
        {"RecsysFallbacks", "RecsysImpressionsLost", "RecsysWorkerBehind"},
    ),
    "EFS is slow": (
        {'recsys_stage_duration_seconds{stage="two_tower"}': "3600x80 18000x40"},
        {"RecsysStageSlow"},
    ),
    "S3 refuses": (
        {
            'recsys_worker_lag_seconds{namespace="recsys"}': "0.2x30 0+60x90",
            'recsys_stage_failed{stage="ingest"}': "0x30 1x90",
            'recsys_stage_failed{stage="materialise"}': "0x30 1x90",
            'recsys_pipeline_failed{pipeline="daily"}': "0x30 1x90",
        },
        {"RecsysWorkerBehind", "RecsysStageFailed", "RecsysPipelineFailed"},
    ),
}


def firing(folder, series):
    "The alerts that fire at the 90th minute, as promtool lists them where none was expected."
    query = dict(expr='ALERTS{alertstate="firing"}', eval_time="90m", exp_samples=[])
    tests = [
        dict(
            interval="1m",
            input_series=[dict(series=k, values=v) for k, v in series.items()],
            promql_expr_test=[query],
        )
    ]
    done = promtool(folder, rule_groups(), tests)
    found = set(re.findall(r'alertname=\\?"(\w+)', done.stdout + done.stderr))
    assert bool(found) == (done.returncode != 0), done.stdout + done.stderr
    return found


@pytest.mark.needs("promtool")
def test_a_cluster_that_is_well_is_quiet(tmp_path):
    assert firing(tmp_path, WELL) == set()


@pytest.mark.needs("promtool")
@pytest.mark.parametrize("failure", FAILURES)
def test_the_alerts_of_a_failure_are_those_of_the_page(failure, tmp_path):
    changes, alerts = FAILURES[failure]
    assert firing(tmp_path, WELL | changes) == alerts


def test_the_page_tells_of_each_failure_and_its_alerts():
    page = (K8S / "README.md").read_text()
    rows = {row[0]: row for row in re.findall(r"(?m)^\| ([^|]+) \| ([^|]+) \| ([^|]+) \|$", page)}
    for failure, (_, alerts) in FAILURES.items():
        assert failure in rows, failure
        assert set(re.findall(r"`(Recsys\w+)`", rows[failure][2])) == alerts, failure


def test_severities_are_two():
    rules = yaml.safe_load((K8S / "base/monitoring/rules.yaml").read_text())["spec"]["groups"]
    labels = {r["labels"]["severity"] for g in rules for r in g["rules"] if "alert" in r}
    assert labels == {"critical", "warning"}
