"""The AWS region: a parameter, else the environment's, and no literal beside the defaults."""

import re

import pytest
from k8s_rules import ROOT

from recsys.core.params import default_params
from recsys.online.feature_views import DEFAULT_REGION, aws_region, store_config

REGION = re.compile(
    r"\b(?:af|ap|ca|cn|eu|il|me|mx|sa|us)-(?:gov-)?(?:north|south|east|west|central){1,2}-\d[a-z]?\b"
)
# files that may name a region, and why
DEFAULTS = {
    "nbs/5_online/00_params.ipynb": "says the default in words",
    "nbs/5_online/04_feature_views.ipynb": "DEFAULT_REGION",
    "recsys/online/params.py": "says the default in words",
    "recsys/online/feature_views.py": "DEFAULT_REGION",
    "k8s/base/common/recsys.env": "the containers' default, which an overlay replaces",
    "k8s/base/pipeline/recsys.env": "the tasks' default, which an overlay replaces",
    "k8s/overlays/prod/values.env": "placeholders, which the page's second step replaces",
    "k8s/components/entry/entry.env": "placeholders, which the page's steps replace",
    "k8s/components/events/events.env": "placeholders, which the page's steps replace",
    "k8s/cloud/cluster.yaml": "eksctl reads no variables",
    "k8s/README.md": "the prices' region",
    "k8s/cloud/costs.yaml": "the prices' region",
}


@pytest.fixture
def region(monkeypatch):
    "Set the variables of the environment that name a region; none unless given."

    def set_region(**variables):
        for name in ("AWS_REGION", "AWS_DEFAULT_REGION"):
            monkeypatch.delenv(name, raising=False)
        for name, value in variables.items():
            monkeypatch.setenv(name, value)

    return set_region


def test_the_region_is_the_parameter_then_the_environment(region):
    region(AWS_REGION="eu-west-1", AWS_DEFAULT_REGION="us-east-2")
    assert aws_region(default_params(AWS_REGION="ap-south-1")) == "ap-south-1"
    assert aws_region(default_params()) == "eu-west-1"
    region(AWS_DEFAULT_REGION="us-east-2")
    assert aws_region(default_params()) == "us-east-2"
    region()
    assert aws_region(default_params()) == DEFAULT_REGION


def test_feast_asks_athena_in_the_environments_region(region):
    region(AWS_REGION="us-west-2")
    params = default_params(STORE="aws", S3_LOCATION="s3://b/p", VALKEY_URL="valkey://h:1")
    assert store_config(params, "")["offline_store"]["region"] == "us-west-2"


def named_regions(folder):
    "Return the files below a folder that name a region."
    files = [
        path
        for name in ("recsys", "nbs", "k8s", "params")
        for path in (folder / name).rglob("*")
        if path.is_file()
        and "__pycache__" not in path.parts
        and ".ipynb_checkpoints" not in path.parts
    ]
    return {
        str(path.relative_to(folder))
        for path in files
        if REGION.search(path.read_text(errors="ignore"))
    }


def test_no_region_is_written_beside_the_defaults(tmp_path):
    assert named_regions(ROOT) - set(DEFAULTS) == set()
    (tmp_path / "k8s").mkdir()
    (tmp_path / "k8s/stack.yaml").write_text("AvailabilityZone: ap-northeast-1a\n")
    assert named_regions(tmp_path) == {"k8s/stack.yaml"}
