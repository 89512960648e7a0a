"""The containers of k8s/ as they are written there, on this machine: a real tritonserver, a real
Valkey with the stack's user, the pointer moved under them.
"""

import contextlib
import json
import math
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections import Counter

import pytest
import yaml
from k8s_rules import PATHS, ROOT, containers
from metric_rules import not_seen
from test_k8s import template
from tiny import tiny_run

from recsys.core.runs import read_json, write_json
from recsys.online.valkey import EmbeddedValkey, connect, free_port
from recsys.operate.bundle_store import keep_bundle, read_live, set_live
from recsys.operate.pods import POD_PORTS
from recsys.serve.server import Client, send_http
from recsys.serve.triton_process import find_stubs, session_processes

pytestmark = [pytest.mark.xdist_group("pods"), pytest.mark.needs("kubectl")]
PASSWORD = "p4ss"


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    "A store with two bundles of the tiny run, the first one live."
    home = tiny_run(tmp_path_factory.mktemp("pods") / "outputs")
    shutil.copytree(home / "tiny/bundle", home / "second")
    manifest = read_json(home / "second/manifest.json")
    write_json(
        home / "second/manifest.json",
        manifest | dict(version="second", serving=manifest["serving"] | dict(MAX_PER_CATEGORY=2)),
    )
    for bundle in ("tiny/bundle", "second"):
        keep_bundle(
            home,
            home / bundle,
            run="tiny",
            online=read_json(home / "tiny/triton/online.json"),
            metrics={},
        )
    set_live(home, manifest["version"], [])
    return home


@pytest.fixture(scope="module")
def valkey(tmp_path_factory):
    "Valkey with the user that the stack makes, and no other."
    access = template("cloud/stack.yaml")["Resources"]["ValkeyUser"]["Properties"][
        "AccessString"
    ].split()
    with EmbeddedValkey(tmp_path_factory.mktemp("valkey")) as server:
        client = connect(server.url, 5000)
        client.execute_command("ACL", "SETUSER", "recsys", f">{PASSWORD}", *access)
        client.execute_command("ACL", "SETUSER", "default", "off")
        yield f"127.0.0.1:{server.port}"


@pytest.fixture(scope="module")
def pod(home, valkey):
    """Start containers as the prod overlay writes them: same command, same variables; addresses
    and ports of this machine.
    """
    docs = [
        d
        for d in yaml.safe_load_all(
            subprocess.run(
                ["kubectl", "kustomize", ROOT / "k8s/overlays/prod"],
                capture_output=True,
                text=True,
                check=True,
            ).stdout
        )
        if d
    ]
    known, ports, running = (
        {c["name"]: c for _, _, c in containers(docs)},
        {n: free_port() for n in ("HTTP_PORT", "GRPC_PORT", "METRICS_PORT", "WORKER_PORT")},
        [],
    )

    def start(called, *more):
        c, env = known[called], {}
        values = dict(
            VALKEY_PASSWORD=PASSWORD,
            VALKEY_HOST=valkey.split(":")[0],
            VALKEY_USER="recsys",
            VALKEY_SCHEME="valkey",
            RECSYS_ADMIN_KEY="key",
            AWS_REGION="eu-central-1",
            PUSHGATEWAY_URL="",
        )
        values |= downward_values(c, known)
        for e in c["env"]:
            text = e.get("value") if "value" in e else values[e["name"]]
            env[e["name"]] = re.sub(r"\$\((\w+)\)", lambda m: env[m[1]], text)
        env |= dict(RECSYS_OUTPUTS=str(home)) | {
            n: v.replace(":6379", ":" + valkey.split(":")[1])
            for n, v in env.items()
            if n == "RECSYS_VALKEY_URL"
        }
        line = [
            sys.executable,
            "-c",
            "from recsys.operate.cli import main; main()",
            *("127.0.0.1" if x == "0.0.0.0" else x for x in c["command"][1:]),
            *more,
        ]
        log = open(home / f"{called}.log", "ab")
        process = subprocess.Popen(
            line,
            env={k: v for k, v in os.environ.items() if not k.startswith("RECSYS")} | env,
            stdout=log,
            stderr=log,
            cwd=ROOT,
            start_new_session=True,
        )
        running.append(process)
        return process

    start.known, start.ports = known, ports
    yield start
    for process in running:
        for pid in [process.pid, *session_processes(process.pid)]:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        process.wait()


def downward_values(container, known):
    """Return the variables that a manifest takes from its containers' requests and limits.

    Kubernetes divides by `divisor`, 1 where none is given, and rounds up.
    """
    units = {"": 1, "m": 1e-3, "Mi": 2**20, "Gi": 2**30}

    def number(quantity):
        digits, unit = re.fullmatch(r"(\d+)(\w*)", str(quantity)).groups()
        return int(digits) * units[unit]

    values = {}
    for entry in container["env"]:
        if source := entry.get("valueFrom", {}).get("resourceFieldRef"):
            found = known[source["containerName"]]["resources"]
            for key in source["resource"].split("."):
                found = found[key]
            values[entry["name"]] = str(math.ceil(number(found) / number(source.get("divisor", 1))))
    return values


def ask(port, path):
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=5) as a:
            return a.status, a.read().decode()
    except urllib.error.HTTPError as e:
        return e.code, ""
    except OSError:
        return 0, ""


def until(check, seconds=90.0):
    end = time.monotonic() + seconds
    while not (found := check()) and time.monotonic() < end:
        time.sleep(0.1)
    return found


def four_of_each(pid):
    return Counter(stub.version for stub in find_stubs(pid)) == {1: 4, 2: 4}


def test_containers_as_they_are_written(pod, home, valkey):
    c, ports = pod.known["triton"], pod.ports
    assert {p["name"]: p["containerPort"] for p in c["ports"]} == dict(
        http=POD_PORTS["HTTP_PORT"],
        grpc=POD_PORTS["GRPC_PORT"],
        metrics=POD_PORTS["METRICS_PORT"],
    )
    own = [
        x for n in ("HTTP_PORT", "GRPC_PORT", "METRICS_PORT") for x in ("--set", f"{n}={ports[n]}")
    ]
    materialise = pod("materialise")
    assert materialise.wait(180) == 0, (home / "materialise.log").read_text()[-2000:]
    assert json.loads((home / "materialise.log").read_text().splitlines()[-1])["users"] > 0

    # every path that a probe asks for, on the real server
    triton = pod("triton", *own)
    assert until(lambda: ask(ports["HTTP_PORT"], c["startupProbe"]["httpGet"]["path"])[0] == 200), (
        home / "triton.log"
    ).read_text()[-3000:]
    for path in PATHS["triton"]:
        assert ask(ports["HTTP_PORT"], path)[0] == 200, path
    assert ask(ports["HTTP_PORT"], "/v2/models/recommendr/ready")[0] >= 400
    # what may do harm wants the key
    for path in ("/v2/models/recommender/infer", "/v2/repository/index"):
        assert send_http(f"http://127.0.0.1:{ports['HTTP_PORT']}", path, b"{}")[0] == 403, path

    # four processes for the request of four CPUs, whatever this machine has
    assert len(find_stubs(triton.pid)) == int(c["resources"]["requests"]["cpu"]) == 4

    # the same bundle from everyone; the pointer moves, the follower moves the server
    follow = pod("follow", *own)
    with Client(f"127.0.0.1:{ports['GRPC_PORT']}", timeout=20) as client:
        first = client.recommend(user_id="u00001", k=5)
        assert (
            first["bundle_version"] == read_live(home)["version"]
            and not first["reasons"]["fallbacks"]
        ), first
        set_live(home, "second", [first["bundle_version"]])
        assert until(
            lambda: client.recommend(user_id="u00001", k=5)["bundle_version"] == "second"
        ), (home / "follow.log").read_text()[-2000:]
    assert ask(ports["HTTP_PORT"], c["readinessProbe"]["httpGet"]["path"])[0] == 200
    stubs = until(lambda: four_of_each(triton.pid))  # of both versions, after the promotion
    assert stubs, Counter(stub.version for stub in find_stubs(triton.pid))

    # the metrics that rules and dashboard read from Triton are on its page
    page = ask(ports["METRICS_PORT"], "/metrics")[1]
    assert not_seen("triton", page) == []
    assert re.search(
        r'nv_inference_request_success{model="recommender",version="\d+"} [1-9]', page
    ) and re.search(r'nv_inference_queue_duration_us{model="page"', page)

    # told to end, it ends by itself within the grace that it has
    follow.terminate()
    assert follow.wait(90) == 0
    triton.terminate()
    assert triton.wait(90) == 0, (home / "triton.log").read_text()[-2000:]


def test_the_worker_as_it_is_written(pod, home):
    port = free_port()
    worker = pod("worker", "--port", str(port))
    assert until(
        lambda: ask(port, pod.known["worker"]["livenessProbe"]["httpGet"]["path"])[0] == 200
    )
    assert until(lambda: "recsys_worker_unread" in ask(port, "/metrics")[1]), (
        home / "worker.log"
    ).read_text()[-3000:]  # once it has made its first step
    page = ask(port, "/metrics")[1]
    assert not_seen("worker", page) == []
    # another bundle: the worker begins anew with it
    live = read_live(home)
    set_live(home, next(v for v in ("second", *live["earlier"]) if v != live["version"]), [])
    assert until(lambda: (home / "worker.log").read_text().count("worker: bundle") == 2), (
        home / "worker.log"
    ).read_text()[-2000:]
    worker.terminate()
    assert worker.wait(90) == 0
    assert re.search(r'"impressions": [1-9]', (home / "worker.log").read_text()), (
        home / "worker.log"
    ).read_text()[-2000:]
    # at night the day that it has logged is judged
    monitor = pod("monitor")
    assert monitor.wait(240) == 0, (home / "monitor.log").read_text()[-2000:]
    day = json.loads((home / "monitor.log").read_text().splitlines()[-1])["day"]
    pages = list(home.glob(f"*/monitor/{day}.json"))
    assert len(pages) == 1 and read_json(pages[0])["measured"]["pages"] > 0
