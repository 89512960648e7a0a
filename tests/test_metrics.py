"""The queries of the dashboard and of the alerts against metrics of real servers: those that
test_pods.py asks, and what tasks push.
"""

import collections
import copy
import re
import subprocess
from http.server import BaseHTTPRequestHandler, HTTPServer
from threading import Thread
from types import SimpleNamespace
from urllib.parse import unquote

import pytest
import yaml
from k8s_rules import ROOT
from metric_rules import FACTS, argument, metric_faults, not_seen, queries, selectors_in
from prometheus_client import CollectorRegistry, generate_latest

from recsys.operate.monitor import gauges
from recsys.operate.pods import queue_metrics
from recsys.operate.tasks import outcome_metrics, push_metrics, push_registry

KNOWN = yaml.safe_load(FACTS.read_text())


def test_queries_use_what_servers_show():
    found = queries()
    assert len(found) > 30
    assert metric_faults(found, KNOWN) == []


def edited(old, new):
    "Return the queries with one word of an expression or a text replaced."
    changed = [
        (where, text.replace(old, new), {n.replace(old, new) for n in named}, is_record)
        for where, text, named, is_record in queries()
    ]
    assert changed != queries()
    return changed


@pytest.mark.parametrize(
    "old, new, words",
    [
        (
            "recsys_worker_unread",
            "recsys_worker_not_read",
            "no server shows recsys_worker_not_read",
        ),
        ("by (stream)", "by (queue)", "recsys_worker_unread has no label queue"),
        ("reason", "cause", None),
        ('{stage="materialise"}', '{task="materialise"}', "seconds has no label task"),
        ("(namespace, deployment)", "(namespace, name)", "replicas has no label name"),
        ("recsys:failed:ratio5m", "recsys:failed:ratio", "no server shows recsys:failed:ratio"),
        ("pipeline", "line", "no server shows recsys_line_failed"),
        ("DCGM_FI_DEV_FB_USED", "DCGM_FI_DEV_FB_TAKEN", "no server shows DCGM_FI_DEV_FB_TAKEN"),
    ],
)
def test_a_query_of_what_is_not_there_is_found(old, new, words):
    if words is None:
        facts = copy.deepcopy(KNOWN)
        facts["recorded"]["triton"].pop("nv_inference_request_failure")
        assert any("nv_inference_request_failure" in x for x in metric_faults(queries(), facts))
        return
    found = metric_faults(edited(old, new), KNOWN)
    assert any(words in one for one in found), found


def test_what_is_shown_late_is_declared():
    for file, names in KNOWN["declared"].items():
        source = (ROOT / file).read_text()
        assert [name for name in names if f"{name}=" not in source] == []


def test_labels_of_texts_are_labels_of_the_result():
    found = [("A", "max by (stage) (recsys_stage_failed) == 1", {"stage", "model"}, False)]
    assert metric_faults(found, KNOWN) == ["A: its text names the label model"]


def test_queries_are_taken_apart():
    text = 'sum by (a, b) (rate(x_total{c="d e", f!="g"}[5m])) / on (a) group_left () (y:z > 2)'
    assert selectors_in(text) == [("x_total", {"c", "f"}), ("y:z", set())]
    assert argument(text, text.index(")")) == 'rate(x_total{c="d e", f!="g"}[5m])'


def test_a_renamed_metric_is_missed_on_the_page():
    page = "recsys_worker_lag_seconds 1.0\nrecsys_worker_unread_entries{stream='e'} 2\n"
    page = page.replace("'", '"')
    assert not_seen("worker", page, write=False) == [
        "worker shows no recsys_worker_unread with stream"
    ]


def as_page(path, body):
    "Return what the Pushgateway shows of a push: its labels are those of the body and of the path."
    parts = unquote(path).split("/metrics/")[1].split("/")
    group = ",".join(f'{k}="{v}"' for k, v in zip(parts[::2], parts[1::2]))
    lines = []
    for line in body.splitlines():
        name, labels, value = re.fullmatch(r"([\w:]+)(?:\{(.*)\})? (\S+)|#.*", line).groups()
        if name:
            lines.append(f"{name}{{{','.join(filter(None, [labels, group]))}}} {value}")
    return "\n".join(lines) + "\n"


@pytest.fixture
def pushed():
    "A server in the Pushgateway's place: its address, and the pages of what was pushed."
    pages = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            body = self.rfile.read(int(self.headers["Content-Length"])).decode()
            pages.append(as_page(self.path, body))
            self.send_response(200)
            self.end_headers()

        do_PUT = do_POST

        def log_message(self, *_):
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}", pages
    server.shutdown()
    server.server_close()


def test_what_jobs_push(pushed):
    url, pages = pushed
    push_metrics(outcome_metrics("stage", True, 1.0), "stage", "dlrm", url)
    push_metrics(outcome_metrics("pipeline", True), "pipeline", "full", url)
    today = dict(day="2026-01-01", pages=1, events=1, coverage=0.1, short=0)
    today |= dict(shown=[], clicks=[], latency={}, fallbacks={})
    check = dict(check="input price", value=0.1, alarm=False, adjusted=0.5)
    push_registry(gauges(today, dict(checks=[check], alarms=[])), "monitor", "day", url)
    assert len(pages) == 3
    assert not_seen("pushed", "".join(pages)) == []


def test_what_the_reader_of_a_queue_shows():
    registry = CollectorRegistry()
    queue = SimpleNamespace(counts=collections.Counter(new=1, refused=1))

    class Reader:
        def collect(self):
            return queue_metrics(queue)

    registry.register(Reader())
    assert not_seen("events", generate_latest(registry).decode()) == []


@pytest.mark.needs("promtool")
def test_promtool_reads_every_query_of_the_dashboard(tmp_path):
    def check(expressions):
        rules = [dict(record=f"a:b{i}", expr=text) for i, text in enumerate(expressions)]
        file = tmp_path / "rules.yml"
        file.write_text(yaml.safe_dump(dict(groups=[dict(name="a", rules=rules)])))
        return subprocess.run(["promtool", "check", "rules", file], capture_output=True, text=True)

    panels = [text for where, text, *_ in queries() if where.startswith("panel ")]
    done = check(panels)
    assert len(panels) > 10 and done.returncode == 0, done.stderr
    assert check([*panels, "sum by (a (b)"]).returncode != 0
