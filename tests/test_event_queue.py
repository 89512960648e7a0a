"""Events through a queue: the stack's own template against a server that speaks SQS, a real
Valkey, and the manifests of the component.
"""

import copy
import json
import os
import subprocess
import sys
import time

import kubernetes_validate
import pytest
import yaml
from k8s_rules import ROOT, RULES, get, prod_with, rendered_docs
from test_k8s import aws, promtool, template_text  # noqa: F401  (aws is a fixture)

from recsys.core.params import default_params
from recsys.online.event_queue import EventQueue
from recsys.online.events import Recorder
from recsys.online.seen import SeenStore
from recsys.online.valkey import EmbeddedValkey, connect

pytestmark = pytest.mark.xdist_group("event_queue")
VIEW = dict(user_id="u1", item_id="i1", timestamp=1_700_000_000, event_type="view")
COMPONENT = ROOT / "k8s/components/events"


@pytest.fixture(scope="module")
def outputs(aws):  # noqa: F811
    "The outputs of the stack of k8s/cloud/events.yaml."
    import boto3

    cloud = boto3.client("cloudformation")
    cloud.create_stack(
        StackName="recsys-events",
        TemplateBody=template_text("cloud/events.yaml"),
        Parameters=[dict(ParameterKey="OidcProvider", ParameterValue="oidc.example/id/1")],
        Capabilities=["CAPABILITY_NAMED_IAM"],
    )
    found = cloud.describe_stacks(StackName="recsys-events")["Stacks"][0]["Outputs"]
    return {one["OutputKey"]: one["OutputValue"] for one in found}


@pytest.fixture
def door(outputs, tmp_path):
    "The queue's client, its reader on an empty Valkey, and the server's handle."
    import boto3

    sqs = boto3.client("sqs")
    for url in (outputs["EVENTQUEUE"], outputs["DEADLETTERS"]):
        empty(sqs, url)
    seconds = dict(VisibilityTimeout="0")  # what is not deleted comes again at once
    sqs.set_queue_attributes(QueueUrl=outputs["EVENTQUEUE"], Attributes=seconds)
    with EmbeddedValkey(tmp_path) as server:
        client = connect(server.url, 1000)
        recorder = Recorder(client, SeenStore(client, 3, 1000, 0.01), {"i1"}, default_params())
        yield sqs, EventQueue(sqs, outputs["EVENTQUEUE"], recorder, wait=0), server


def empty(sqs, url):
    "Delete what other tests have left in a queue."
    while messages := sqs.receive_message(QueueUrl=url, MaxNumberOfMessages=10).get("Messages"):
        for message in messages:
            sqs.delete_message(QueueUrl=url, ReceiptHandle=message["ReceiptHandle"])


def send(sqs, url, body):
    "Put a message into a queue."
    sqs.send_message(QueueUrl=url, MessageBody=body if isinstance(body, str) else json.dumps(body))


def left(sqs, url):
    "The number of messages in a queue."
    name = "ApproximateNumberOfMessages"
    answer = sqs.get_queue_attributes(QueueUrl=url, AttributeNames=[name])
    return int(answer["Attributes"][name])


def test_events_of_the_queue_reach_the_stream_once(door):
    sqs, queue, _ = door
    for _ in range(2):  # a shop that sends an event twice
        send(sqs, queue.url, VIEW | dict(event_id="e1"))
    send(sqs, queue.url, dict(events=[VIEW, VIEW | dict(user_id="u2")]))
    while queue.step():
        pass
    assert queue.counts["new"] == 3 and queue.counts["duplicate"] == 1
    assert queue.recorder.client.xlen("events") == 3
    assert left(sqs, queue.url) == 0


def test_what_can_not_be_recorded_becomes_a_dead_letter(door, outputs, capsys):
    sqs, queue, _ = door
    send(sqs, queue.url, VIEW | dict(item_id="unknown"))
    send(sqs, queue.url, "no JSON")
    send(sqs, queue.url, VIEW)
    for _ in range(8):
        queue.step()
    assert queue.counts["new"] == 1 and queue.counts["refused"] == 10  # five deliveries each
    assert left(sqs, queue.url) == 0 and left(sqs, outputs["DEADLETTERS"]) == 2
    said = capsys.readouterr().out
    assert "item_id: 'unknown' is not one of the 1 items" in said and "is not JSON" in said


def test_nothing_is_taken_while_valkey_is_away(door, outputs):
    sqs, queue, server = door
    send(sqs, queue.url, VIEW)
    server.stop()
    for _ in range(8):
        with pytest.raises(Exception, match="(?i)connect|closed|refused"):
            queue.step()
    assert left(sqs, queue.url) == 1 and left(sqs, outputs["DEADLETTERS"]) == 0


def test_the_pod_reads_the_queue(outputs, tmp_path):
    from tiny import tiny_run

    from recsys.operate.bundle_store import keep_bundle, set_live
    from recsys.recommend.bundle import Bundle

    home = tiny_run(tmp_path / "outputs")
    bundle = home / "tiny/bundle"
    set_live(home, keep_bundle(home, bundle, run="tiny", online={}, metrics={}), [])
    item = Bundle(bundle).ids[0].decode()
    import boto3

    sqs = boto3.client("sqs")
    empty(sqs, outputs["EVENTQUEUE"])
    send(sqs, outputs["EVENTQUEUE"], VIEW | dict(item_id=item, timestamp=int(time.time()) - 60))
    with EmbeddedValkey(tmp_path / "valkey") as server:
        env = dict(
            RECSYS_OUTPUTS=str(home),
            RECSYS_VALKEY_URL=server.url,
            RECSYS_EVENT_QUEUE=outputs["EVENTQUEUE"],
        )
        program = "from recsys.operate.cli import main; main()"
        command = [sys.executable, "-c", program, "pod", "events", "--port", "0"]
        log = open(tmp_path / "log", "wb")
        process = subprocess.Popen(command, env=os.environ | env, stdout=log, stderr=log)
        try:
            client, until = connect(server.url, 1000), time.monotonic() + 60
            while client.xlen("events") == 0 and time.monotonic() < until:
                time.sleep(0.2)
            assert client.xlen("events") == 1, (tmp_path / "log").read_text()
            assert process.poll() is None
        finally:
            process.terminate()
            process.wait(40)
    assert process.returncode == 0, (tmp_path / "log").read_text()


def test_the_reader_may_do_what_it_does_and_nothing_else():
    role = json.loads(template_text("cloud/events.yaml"))["Resources"]["EventsRole"]["Properties"]
    (statement,) = role["Policies"][0]["PolicyDocument"]["Statement"]
    # DeleteMessageBatch is allowed by sqs:DeleteMessage
    assert sorted(statement["Action"]) == ["sqs:DeleteMessage", "sqs:ReceiveMessage"]
    assert statement["Resource"] == [{"Fn::GetAtt": ["Events", "Arn"]}]
    assert "serviceaccount:recsys:recsys-events" in json.dumps(role["AssumeRolePolicyDocument"])


@pytest.fixture(scope="module")
def manifests(tmp_path_factory):
    "The prod overlay with the component."
    return rendered_docs(prod_with("events", tmp_path_factory.mktemp("events")))


@pytest.mark.needs("kubectl")
def test_the_component_keeps_the_rules_of_all_overlays(manifests):
    assert [x for rule in RULES for x in rule(manifests)] == []
    broken = copy.deepcopy(manifests)
    get(broken, "Deployment", "events")["spec"]["template"]["spec"]["containers"][0]["command"] = [
        "recsys",
        "pod",
        "event",
    ]
    assert any("there is no pod event" in x for rule in RULES for x in rule(broken))


@pytest.mark.needs("kubectl")
def test_the_component_is_what_its_schemas_say(manifests):
    cluster = yaml.safe_load((ROOT / "k8s/cloud/cluster.yaml").read_text())
    for kind in ("Deployment", "Service", "ServiceAccount", "NetworkPolicy"):
        one = get(manifests, kind, "recsys-events" if kind == "ServiceAccount" else "events")
        kubernetes_validate.validate(one, cluster["metadata"]["version"], strict=True)


@pytest.mark.needs("promtool")
def test_refused_messages_alert(tmp_path):
    rules = list(yaml.safe_load_all((COMPONENT / "deployment.yaml").read_text()))
    groups = next(d for d in rules if d["kind"] == "PrometheusRule")["spec"]["groups"]
    series = 'recsys_event_queue_total{namespace="recsys",what="refused"}'

    def fires(values):
        query = dict(expr='ALERTS{alertstate="firing"}', eval_time="60m", exp_samples=[])
        tests = [
            dict(
                interval="1m",
                input_series=[dict(series=series, values=values)],
                promql_expr_test=[query],
            )
        ]
        return promtool(tmp_path, groups, tests).returncode != 0

    assert fires("0+1x90") and not fires("7x90")
