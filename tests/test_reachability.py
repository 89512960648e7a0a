"""The table of who reaches whom, which stands on the deployment page."""

import copy
import re
import subprocess

import pytest
import yaml
from k8s_rules import ROOT, get
from reachability import reachability_table, reaches

PAGE = ROOT / "k8s/README.md"


@pytest.fixture(scope="module")
def prod():
    "The manifests of the prod overlay."
    command = ["kubectl", "kustomize", ROOT / "k8s/overlays/prod"]
    made = subprocess.run(command, capture_output=True, text=True, check=True)
    docs = [d for d in yaml.safe_load_all(made.stdout) if d]
    return [d for d in docs if d["metadata"].get("namespace") == "recsys"]


@pytest.mark.needs("kubectl")
def test_the_page_has_the_table_that_the_policies_give(prod):
    found = re.search(r"<!-- who reaches whom -->\n(.*?)\n<!-- end -->", PAGE.read_text(), re.S)
    assert found and found[1] == reachability_table(prod), reachability_table(prod)


@pytest.mark.needs("kubectl")
def test_only_the_gateway_is_reached_by_applications(prod):
    from_clients = {b for a, b, _ in reaches(prod) if "recsys.io/clients" in a}
    assert from_clients == {"gateway"}
    assert not [row for row in reaches(prod) if "anything" in row]


@pytest.mark.needs("kubectl")
def test_a_pair_needs_both_sides(prod):
    assert ("gateway", "triton", "grpc") in reaches(prod)
    docs = copy.deepcopy(prod)
    get(docs, "NetworkPolicy", "gateway")["spec"]["egress"] = []
    assert ("gateway", "triton", "grpc") not in reaches(docs)


@pytest.mark.needs("kubectl")
def test_a_pod_that_no_policy_selects_is_seen(prod):
    docs = copy.deepcopy(prod)
    docs.remove(get(docs, "NetworkPolicy", "deny-all"))
    assert ("anything", "materialise", "every port") in reaches(docs)
