"""The component k8s/components/entry: what an application load balancer opens, and what not."""

import copy
import json
import re

import kubernetes_validate
import pytest
import yaml
from k8s_rules import PATHS, ROOT, RULES, containers, get, prod_with, rendered_docs
from reachability import reaches

ALB = "alb.ingress.kubernetes.io/"
pytestmark = pytest.mark.needs("kubectl")


@pytest.fixture(scope="module")
def entry(tmp_path_factory):
    "The prod overlay with the component."
    return rendered_docs(prod_with("entry", tmp_path_factory.mktemp("entry")))


def entry_faults(docs):
    "What is wrong with the door to the outside, as sentences."
    ingress = get(docs, "Ingress", "gateway")
    annotations, spec = ingress["metadata"]["annotations"], ingress["spec"]
    wrong = []
    if json.loads(annotations.get(ALB + "listen-ports", "[]")) != [{"HTTPS": 443}]:
        wrong.append("the balancer listens without TLS")
    if not annotations.get(ALB + "certificate-arn", "").startswith("arn:aws:acm:"):
        wrong.append("the balancer has no certificate")
    if not annotations.get(ALB + "wafv2-acl-arn", "").startswith("arn:aws:wafv2:"):
        wrong.append("no web ACL stands before the balancer")
    if annotations.get(ALB + "healthcheck-path") not in PATHS["gateway"]:
        wrong.append("the balancer asks for a path that the gateway does not answer")
    paths = {one["path"] for rule in spec["rules"] for one in rule["http"]["paths"]}
    if paths != {"/v1"}:
        wrong.append(f"the balancer opens {sorted(paths)}")
    hosts = {rule["host"] for rule in spec["rules"]} | {h for t in spec["tls"] for h in t["hosts"]}
    if len(hosts) != 1 or "." not in min(hosts):
        wrong.append(f"the hosts differ: {sorted(hosts)}")
    gateway = next(c for _, _, c in containers(docs) if c["name"] == "gateway")
    if "GATEWAY_KEYED_PAGES=true" not in gateway["command"]:
        wrong.append("a page for a user needs no key")
    if not any(e["name"] == "RECSYS_API_KEY" for e in gateway["env"]):
        wrong.append("the gateway has no key")
    cidr = yaml.safe_load((ROOT / "k8s/cloud/cluster.yaml").read_text())["vpc"]["cidr"]
    if (f"addresses {cidr}", "gateway", "http") not in reaches(docs):
        wrong.append("the balancer can't reach the gateway")
    attributes = annotations.get(ALB + "target-group-attributes", "")
    delay = re.search(r"deregistration_delay.timeout_seconds=(\d+)", attributes)
    pods = get(docs, "Deployment", "gateway")["spec"]["template"]["spec"]
    if not delay or int(delay[1]) >= pods["terminationGracePeriodSeconds"]:
        wrong.append("a pod may end before the balancer has stopped sending to it")
    return wrong


def test_the_door_has_tls_a_key_a_firewall_and_opens_the_api_only(entry):
    assert entry_faults(entry) == []


def test_the_rules_of_all_overlays_hold_with_the_component(entry):
    assert [x for rule in RULES for x in rule(entry)] == []


def test_the_ingress_is_what_its_schema_says(entry):
    version = yaml.safe_load((ROOT / "k8s/cloud/cluster.yaml").read_text())["metadata"]["version"]
    kubernetes_validate.validate(get(entry, "Ingress", "gateway"), version, strict=True)


def annotate(docs, key, value):
    "Change an annotation of the ingress."
    get(docs, "Ingress", "gateway")["metadata"]["annotations"][ALB + key] = value


BREAKS = {  # what must be said -> how to break the manifests
    "the balancer listens without TLS": lambda d: annotate(d, "listen-ports", '[{"HTTP": 80}]'),
    "the balancer has no certificate": lambda d: annotate(d, "certificate-arn", "CERTIFICATE"),
    "no web ACL stands before the balancer": lambda d: annotate(d, "wafv2-acl-arn", ""),
    "the balancer asks for a path": lambda d: annotate(d, "healthcheck-path", "/health"),
    "the balancer opens ['/']": lambda d: get(d, "Ingress", "gateway")["spec"]["rules"][0]["http"][
        "paths"
    ][0].update(path="/"),
    "the hosts differ": lambda d: get(d, "Ingress", "gateway")["spec"]["rules"][0].update(host="x"),
    "the balancer can't reach the gateway": lambda d: d.remove(get(d, "NetworkPolicy", "entry")),
    "a pod may end before": lambda d: annotate(
        d, "target-group-attributes", "deregistration_delay.timeout_seconds=300"
    ),
}


@pytest.mark.parametrize("words", BREAKS)
def test_a_broken_door_is_noticed(entry, words):
    docs = copy.deepcopy(entry)
    BREAKS[words](docs)
    assert any(words in fault for fault in entry_faults(docs)), entry_faults(docs)
