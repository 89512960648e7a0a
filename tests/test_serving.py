"""A run behind a real tritonserver with a real Valkey: what clients see, in good and in bad
times.
"""

import contextlib
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from grpc_fuzz import fuzz_grpc
from sameness import compare, same_sources
from tiny import ROOT, tiny_run

from recsys.core.clock import START_VARIABLE
from recsys.core.params import RecsysError
from recsys.core.pipeline import run_here
from recsys.core.runs import read_json, run_dir, stage_dir, write_json
from recsys.core.stages import STAGES
from recsys.data.features import load_arrays
from recsys.online.valkey import EmbeddedValkey, check_port, connect, free_port
from recsys.recommend.bundle import Bundle
from recsys.recommend.fallbacks import FALLBACKS, REQUEST_STEPS
from recsys.serve.ensemble import ensemble_from
from recsys.serve.repository import next_version, pinned_version, read_config
from recsys.serve.server import Client, send_http
from recsys.serve.serving import forget_person, online_parts, run_params, served
from recsys.serve.triton_process import (
    RESTRICTED,
    ServerOptions,
    backend_dir,
    find_stubs,
    region_bytes,
    session_processes,
)

pytestmark = pytest.mark.xdist_group("serving")  # one server for all


@pytest.fixture(scope="module")
def p(tmp_path_factory):
    "The seven stages as members; the single member has its own tests below."
    folder = tiny_run(tmp_path_factory.mktemp("serving") / "outputs")
    p = run_params(folder / "tiny", HTTP_PORT=0, GRPC_PORT=0, METRICS_PORT=0, LAYOUT="ensemble")
    run_here(STAGES["triton"], p)
    return p


@pytest.fixture(scope="module")
def stack(p):
    with served(p) as (server, url, canary), Client(server.grpc, timeout=10) as client:
        yield server, url, canary, client


@pytest.fixture
def parts(p, stack):
    return online_parts(p, stack[1])


def until(check, seconds=20.0):
    "Wait for something to become true and give what it gave."
    end = time.monotonic() + seconds
    while not (found := check()) and time.monotonic() < end:
        time.sleep(0.05)
    return found


def test_notebook_batch_and_server_answer_alike(p, stack):
    assert compare(p, stack[1], stack[3], 300) <= 3  # ties


def test_requests_that_meet_are_answered_as_if_alone(p, stack):
    """Twelve clients with pages of other sizes at once: members merge what waits, and nobody gets
    a neighbour's page, times or impression.
    """
    check_meeting(p, stack[0], stack[3], "rerank")


def check_meeting(p, server, client, member):
    import pyarrow.parquet as pq

    asked = [
        dict(
            user_id=f"u{i:05d}",
            k=1 + i % 7,
            timestamp=1_782_640_000 + i,
            seed=i,
            temperature=float(i % 3),
            request_id=f"met {i}",
        )
        for i in range(120)
    ]
    alone = [client.recommend(**dict(q, request_id="canary")) for q in asked]
    met = [None] * len(asked)

    def ask(mine):
        with Client(server.grpc, timeout=20) as own:
            for i in mine:
                met[i] = own.recommend(**asked[i])

    before = executions(server, member)
    threads = [threading.Thread(target=ask, args=(range(t, len(asked), 12),)) for t in range(12)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert executions(server, member) - before < len(
        asked
    )  # some did meet, else this proves nothing
    for q, a, b in zip(asked, alone, met):
        assert (
            len(b["item_ids"]) == len(b["sources"]) == q["k"]
            and a["item_ids"].tolist() == b["item_ids"].tolist()
            and np.allclose(a["propensities"], b["propensities"], rtol=1e-3)
        ), q
        same_sources(a, b, q, q)
        assert (b["stage_ms"] >= 0).all()

    def read():
        return {
            r["request_id"]: r
            for f in (run_dir(p) / "impressions").glob("dt=*/*.parquet")
            for r in pq.read_table(f).to_pylist()
            if r["request_id"].startswith("met ")
        }

    assert until(lambda: len(read()) == len(asked)), len(read())
    rows = read()
    for q, b in zip(asked, met):
        r = rows[q["request_id"]]
        assert (
            r["item_ids"] == b["item_ids"].tolist()
            and json.loads(r["policy"])["k"] == q["k"]
            and json.loads(r["policy"])["seed"] == q["seed"]
        ), r
        assert np.allclose(
            [json.loads(r["stage_ms"])[n] for n in REQUEST_STEPS], b["stage_ms"], atol=0.01
        )


def executions(server, member):
    return sum(
        float(x)
        for x in re.findall(
            r'nv_inference_exec_count{model="' + member + r'",version="\d+"} (\S+)',
            server.metrics_page(),
        )
    )


def fallback_counters(server):
    "Return how many requests each step has answered by a fallback, as the metrics page has it."
    return dict(re.findall(r'recsys_fallbacks_total{stage="(\w+)"} (\d+)', server.metrics_page()))


def infer(server, **inputs):
    "POST raw tensors, name -> (datatype, shape, data); return the status and the answer."
    body = dict(
        inputs=[dict(name=n, datatype=d, shape=s, data=x) for n, (d, s, x) in inputs.items()]
    )
    path = "/v2/models/recommender/infer"
    status, text = send_http(server.http, path, json.dumps(body).encode(), seconds=20)
    return status, json.loads(text)


ONE = ("INT32", [1, 1], [3])


@pytest.mark.parametrize(
    "inputs, words",
    [
        (dict(k=("INT32", [1, 1], [0])), "k: expected a whole number from 1 to 1000"),
        (dict(k=("INT32", [1, 1], [10**6])), "k: expected a whole number from 1 to 1000"),
        (dict(k=("INT32", [2, 1], [3, 4])), "k: expected one value for all users"),
        (dict(k=("INT32", [1, 2], [3, 4])), "unexpected shape"),
        (dict(k=("FP32", [1, 1], [3.0])), "data-type"),
        (dict(), "expected"),
        (dict(k=ONE, nonsense=ONE), "nonsense"),
        (
            dict(k=ONE, temperature=("FP32", [1, 1], [-1])),
            "temperature: expected a number from 0 to 100",
        ),
        (dict(k=ONE, diversity=("FP32", [1, 1], [7])), "diversity: expected a number from 0 to 1"),
        (dict(k=ONE, timestamp=("INT64", [1, 1], [-5])), "timestamp: expected"),
        (dict(k=ONE, seed=("INT64", [1, 1], [-1])), "seed: expected"),
        (
            dict(k=ONE, user_id=("BYTES", [1, 1], ["u" * 2000])),
            "user_id: expected a text of at most 256 characters",
        ),
        (
            dict(k=ONE, exclude=("BYTES", [1, 20_000], ["i"] * 20_000)),
            "exclude: expected a list of at most 1000 entries",
        ),
    ],
)
def test_bad_input_is_refused_and_the_server_goes_on(stack, inputs, words):
    status, answer = infer(stack[0], **inputs)
    assert 400 <= status < 500, (status, answer)
    assert words in answer["error"] and "Traceback" not in answer["error"], answer
    assert len(infer(stack[0], k=ONE)[1]["outputs"]) == 7


@pytest.mark.parametrize(
    "field, array, words",
    [
        ("user_id", np.array([[b"\xff\xfe"]], object), "not valid UTF-8"),
        ("temperature", np.array([[np.nan]], np.float32), "NaN"),
        ("diversity", np.array([[np.inf]], np.float32), "infinity"),
    ],
)
def test_bytes_and_numbers_that_json_cannot_hold(stack, field, array, words):
    with pytest.raises(RecsysError, match="INVALID_ARGUMENT") as error:
        stack[3].infer({"k": np.array([[3]], np.int32), field: array})
    assert (
        field in str(error.value)
        and words in str(error.value)
        and "Traceback" not in str(error.value)
    )
    assert len(stack[3].recommend(k=3)["item_ids"]) == 3


def test_no_other_user_can_steer_the_server(stack, tmp_path):
    """The server's only port is that of gRPC, where model control is closed: also for who knows
    what the process list shows. The socket that steers it lies in a folder of this user's own.
    """
    server = stack[0]
    assert listening_ports(server.pid) == {int(server.grpc.split(":")[1])}
    for pid in session_processes(server.pid):
        assert server.key not in Path(f"/proc/{pid}/cmdline").read_text()
    assert oct((server.home / "server.json").stat().st_mode & 0o777) == "0o600"
    assert oct(server.sockets.stat().st_mode & 0o777) == "0o700"
    script = (ROOT / "tests" / "raw_grpc.py").read_text()
    proof = tmp_path / "proof"
    arguments = [str(server.pid), server.grpc, str(proof)]
    users = [[sys.executable, "-", *arguments]]
    if os.geteuid() == 0 and (python := shutil.which("python3", path="/usr/bin:/bin")):
        opens_socket = f"import socket; socket.socket(1).connect('{server.sockets}/http.sock')"
        as_nobody = ["su", "-s", "/bin/sh", "nobody", "-c"]
        refused = subprocess.run([*as_nobody, f'{python} -c "{opens_socket}"'], capture_output=True)
        assert b"PermissionError" in refused.stderr
        users.append([*as_nobody, shlex.join([python, "-", *arguments])])
    for user in users:
        tried = subprocess.run(user, input=script, capture_output=True, text=True)
        assert tried.stdout.splitlines() == [
            "live: answered",  # this client can speak
            "load without a key: refused",
            "load with the header of ps: refused",
            "load with it in small letters: refused",
        ], tried
    assert not proof.exists() and "proof" not in {name for name, _ in server.loaded()}


def listening_ports(pid):
    "Return the TCP ports on which a process listens."
    inodes = set()
    for file in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(OSError):
            inodes |= set(re.findall(r"socket:\[(\d+)\]", os.readlink(file)))
    ports = set()
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/{pid}/net/{table}").read_text().splitlines()[1:]:
            words = line.split()
            if words[3] == "0A" and words[9] in inodes:  # LISTEN
                ports.add(int(words[1].split(":")[1], 16))
    return ports


def test_a_port_of_http_wants_the_key(p, tmp_path):
    "In a container HTTP has a port: health is open, inference and model control want the key."
    backends = backend_dir(tmp_path / "backends")
    options = ServerOptions(tmp_path, "recommender", 8000, 8001, 8002, "the key", "recsys_1_")
    (restricted,) = (x for x in options.command(backends) if x.startswith("--http-restricted-api"))
    apis, _, header = restricted.partition("=")[2].partition(":")
    assert set(apis.split(",")) == {"inference", *RESTRICTED.split(",")}
    assert header == "admin-key=the key"


def test_an_event_changes_the_next_page(p, stack, parts):
    """Filter and exact list at once, history and top category through the worker; erased again on
    request.
    """
    client, recorder = stack[3], parts[1]

    def ask(**more):
        return client.recommend(user_id="a cookie", k=5, **more)

    before = ask()
    assert before["reasons"]["user"] == "new"
    shown = [str(i) for i in before["item_ids"][:2]]
    for n, item in enumerate(shown):
        event = dict(
            event_id=f"event {n}",
            user_id="a cookie",
            item_id=item,
            timestamp=recorder.clock.now(),
            event_type="view",
        )
        assert [recorder.record_event(event) for _ in range(2)] == ["new", "duplicate"]
    assert not set(shown) & set(ask()["item_ids"])  # hidden by the time the call has returned

    def state():
        return parts[0].users.state(["a cookie"], np.array([recorder.clock.now() + 1]))

    rows = [parts[0].bundle.row_of[i] for i in shown]
    assert until(lambda: sorted(state()["rows"][0, -2:].tolist()) == sorted(rows)), state()["rows"]
    assert state()["inputs"]["top_category"][0] >= 3
    assert forget_person(recorder.client, recorder.seen, "a cookie") >= 3
    assert (
        ask()["item_ids"].tolist() == before["item_ids"].tolist() and (state()["rows"] == -1).all()
    )


def test_impressions_become_parquet(p, stack):
    import pyarrow.parquet as pq

    answer = stack[3].recommend(
        user_id=["u00001", ""], k=4, temperature=1.0, seed=[1, 2], request_id=["first", "second"]
    )

    def read():
        return [
            r
            for f in (run_dir(p) / "impressions").glob("dt=*/*.parquet")
            for r in pq.read_table(f).to_pylist()
            if r["request_id"] in ("first", "second")
        ]

    assert until(lambda: len(read()) == 2), read()
    rows = {r["request_id"]: r for r in read()}
    for i, name in enumerate(("first", "second")):
        r = rows[name]
        assert r["item_ids"] == answer["item_ids"][i].tolist() and np.allclose(
            r["propensities"], answer["propensities"][i]
        )
        assert (
            len(r["candidates"]) == 300
            and set(r["item_ids"]) <= set(r["candidates"])
            and r["bundle_version"] == answer["bundle_version"][i]
        )
    assert (
        rows["second"]["user"] == ""
        and len(rows["first"]["user"]) == 24
        and "u00001" not in json.dumps(rows["first"])
    )


@pytest.mark.filterwarnings("ignore:offpolicy")  # few pages
def test_logged_pages_judge_another_policy(p, stack, parts):
    """Pages at a temperature, clicks that name their page, the worker's files, the command:
    propensities are found again from what was logged.
    """
    from recsys.evaluate.logged_pages import read_log
    from recsys.evaluate.offpolicy import check_log, off_policy
    from recsys.evaluate.page_chances import policy_on

    client, recorder, rng, clicked = stack[3], parts[1], np.random.default_rng(0), 0
    client.recommend(
        user_id="u00001", k=3, temperature=0.0, request_id="greedy"
    )  # which no other policy can be judged by
    for i in range(60):
        page = client.recommend(
            user_id=f"u{i % 20:05d}",
            k=3 + i % 2,
            temperature=1.0,
            diversity=0.3 * (i % 3 == 0),
            seed=i,
            request_id=f"judged {i}",
        )
        for j, item in enumerate(page["item_ids"]):
            if rng.random() < 0.4:
                event = dict(
                    event_id=f"judged {i} {j}",
                    user_id=f"u{i % 20:05d}",
                    item_id=str(item),
                    timestamp=recorder.clock.now(),
                    event_type="view",
                    request_id=f"judged {i}",
                )
                clicked += recorder.record_event(event) == "new"

    def names(b):
        return dict(zip((i.decode() for i in b.ids), b.categories.tolist()))

    def written():
        try:
            log = read_log(
                run_dir(p) / "impressions",
                run_dir(p) / "events",
                names(parts[0].bundle),
                sampled_only=True,
                bundle=parts[0].bundle,
            )
        except RecsysError:
            return None
        mine = np.array([str(i).startswith("judged ") for i in log["request_id"]])
        return log if mine.sum() == 60 and log["clicks"][mine].sum() == clicked else None

    log = until(written)
    assert log, "not all pages and clicks became parquet"
    check_log(log)
    rows = {r["estimator"]: r for r in off_policy(log, policy_on(log, temperature=0.9))}
    assert (
        all(r["low"] <= r["value"] <= r["high"] for r in rows.values())
        and abs(rows["dr"]["value"] / rows["logged"]["value"] - 1) < 0.3
    )
    done = subprocess.run(
        [
            Path(sys.executable).with_name("recsys"),
            "offpolicy",
            "--run",
            str(run_dir(p)),
            "--temperature",
            "0.9",
            "--temperature",
            "1.1",
            "--sampled-only",
        ],
        capture_output=True,
        text=True,
        cwd=ROOT,
    )
    assert (
        done.returncode == 0
        and f"{len(log['page']):,} pages of" in done.stdout
        and done.stdout.count("SNIPS") == 2
        and f"{rows['dr']['value']:.4f}" in done.stdout
    ), done.stdout + done.stderr
    done = subprocess.run(
        [
            Path(sys.executable).with_name("recsys"),
            "offpolicy",
            "--run",
            str(run_dir(p)),
            "--temperature",
            "0.9",
        ],
        capture_output=True,
        text=True,
        cwd=ROOT,
    )
    assert (
        done.returncode == 2
        and "temperature 0, where only one page could be shown" in done.stderr
        and "Traceback" not in done.stderr
    )


def test_an_added_item_is_found_and_clicked_at_once(p, stack, parts, tmp_path):
    "Placed beside the bundle by the command; no reload, no training."
    import pandas as pd

    client, recorder = stack[3], parts[1]

    def ask(k=1000):
        return client.recommend(user_id="who adds", k=k, timestamp=recorder.clock.now())

    before = ask()
    table = (
        pd.read_parquet(stage_dir(p, "data_prep") / "items.parquet")
        .iloc[[3]]
        .assign(item_id="brand new", title="A brand new thing")
    )
    table.to_csv(tmp_path / "new.csv", index=False)
    command = cli("add-items", tmp_path / "new.csv", "--run", run_dir(p))
    out, err = command.communicate()
    assert command.returncode == 0 and "1 item(s) added" in out, out + err
    after = ask()
    assert "brand new" in after["item_ids"] and "brand new" not in before["item_ids"]
    assert after["bundle_version"] == before["bundle_version"] + "+1"
    assert (
        recorder.record_event(
            dict(
                event_id="on the new",
                user_id="who adds",
                item_id="brand new",
                timestamp=recorder.clock.now(),
                event_type="view",
            )
        )
        == "new"
    )
    assert "brand new" not in ask(300)["item_ids"]

    def state():
        return parts[0].users.state(["who adds"], np.array([recorder.clock.now() + 1]))["rows"][
            0, -1
        ]

    assert until(
        lambda: parts[0].bundle.grow() and state() == parts[0].bundle.row_of["brand new"]
    ), state()  # the worker knows it, too
    again = cli("add-items", tmp_path / "new.csv", "--run", run_dir(p))
    assert "brand new" in again.communicate()[1] and again.returncode == 2


def test_a_new_version_under_traffic(p, stack, tmp_path):
    "No request fails, every answer is of one bundle, the old version can be pinned again."
    server, _, _, client = stack
    other = tmp_path / "bundle"
    shutil.copytree(stage_dir(p, "bundle"), other)
    manifest = read_json(other / "manifest.json")
    write_json(
        other / "manifest.json",
        manifest | dict(version="another", serving=manifest["serving"] | dict(MAX_PER_CATEGORY=1)),
    )
    answers, failures, done = [], [], threading.Event()

    def traffic():
        with Client(server.grpc, timeout=10) as mine:
            while not done.is_set():
                try:
                    answers.append(
                        mine.recommend(k=5, request_id="canary")["bundle_version"].partition("+")[0]
                    )  # without the count of added items
                except RecsysError as e:
                    failures.append(e)

    threads = [threading.Thread(target=traffic) for _ in range(4)]
    for t in threads:
        t.start()
    try:
        old, new = pinned_version(server.repository), next_version(server.repository)
        for version, folder in ((new, other), (old, stage_dir(p, "bundle")), (new, other)):
            members, ensemble = ensemble_from(Bundle(folder), "ensemble")
            members = [
                m
                if m.kind == "python"
                else type(m)(**{**vars(m), "source": str(folder / m.source)})
                for m in members
            ]
            server.deploy(
                members,
                ensemble,
                version,
                None if (server.repository.parent / "bundles" / str(version)).is_dir() else folder,
            )
            assert (
                client.recommend(k=1)["bundle_version"].partition("+")[0]
                == read_json(folder / "manifest.json")["version"]
            )
    finally:
        done.set()
        for t in threads:
            t.join()
    assert failures == [] and len(answers) > 50 and set(answers) == {manifest["version"], "another"}


@pytest.fixture(scope="module")
def fused(tmp_path_factory):
    "The run as it is served by default: one member for whole requests."
    p = run_params(
        tiny_run(tmp_path_factory.mktemp("fused") / "outputs") / "tiny",
        HTTP_PORT=0,
        GRPC_PORT=0,
        METRICS_PORT=0,
    )
    with served(p) as (server, url, canary), Client(server.grpc, timeout=10) as client:
        yield p, server, url, canary, client


def test_fused_pages_are_the_same(fused):
    p, server, url, _, client = fused
    assert [
        s["model_name"]
        for s in read_config(server.repository / "recommender")["ensemble_scheduling"]["step"]
    ] == ["page"]
    assert compare(p, url, client, 100) <= 1  # ties
    check_meeting(p, server, client, "page")
    assert "" not in logged_request_ids(p)  # nobody saw the page of the server's own warm-up


def logged_request_ids(p):
    "Return the ids of all pages that were logged."
    import pyarrow.parquet as pq

    files = (run_dir(p) / "impressions").glob("dt=*/*.parquet")
    return {row for file in files for row in pq.read_table(file)["request_id"].to_pylist()}


def test_fused_refuses_and_goes_on(fused):
    _, server, _, canary, client = fused
    for inputs, words in (
        (dict(k=("INT32", [1, 1], [0])), "k: expected a whole number from 1 to 1000"),
        (dict(k=("INT32", [2, 1], [3, 4])), "k: expected one value for all users"),
        (dict(k=ONE, seed=("INT64", [1, 1], [-1])), "seed: expected"),
    ):
        status, answer = infer(server, **inputs)
        assert 400 <= status < 500 and words in answer["error"], (status, answer)
        assert "Traceback" not in answer["error"]
    pid = read_json(run_dir(fused[0]) / "valkey/valkey.json")["pid"]
    os.kill(pid, signal.SIGSTOP)
    try:
        assert all(set(fallbacks(client)) == {"user_features", "seen_filter"} for _ in range(20))
    finally:
        os.kill(pid, signal.SIGCONT)
    counted = fallback_counters(server)
    assert (
        int(counted["user_features"]) >= 20 and int(counted["seen_filter"]) >= 20
    )  # of both processes together
    assert until(lambda: fallbacks(client) == {}, 60) is True
    stubs = stubs_of(server, "page")
    assert len(stubs) == 2  # one a core
    for pid in stubs:
        os.kill(pid, signal.SIGKILL)
    assert until(lambda: canary.revived["page"], 60), canary_log(canary)
    assert len(client.recommend(k=3)["item_ids"]) == 3


@pytest.mark.parametrize("fault", [signal.SIGKILL, signal.SIGSTOP])
def test_one_of_two_stubs_fails(fused, fault):
    """While one of two processes is dead or stopped, no request fails; in the end there are two
    again, and neither is an old one.
    """
    _, server, _, canary, client = fused
    assert until(lambda: len(find_stubs(server.pid)) == 2), find_stubs(server.pid)
    old = {stub.pid for stub in find_stubs(server.pid)}
    before = canary.revived["page"]
    os.kill(min(old), fault)
    asked = 0
    while canary.revived["page"] == before and asked < 10_000:
        assert len(client.recommend(k=3, request_id="canary")["item_ids"]) == 3
        asked += 1
    assert canary.revived["page"] > before, canary_log(canary)

    def are_replaced():
        present = {stub.pid for stub in find_stubs(server.pid)}
        return len(present) == 2 and not present & old

    assert until(are_replaced), canary_log(canary)
    assert all(len(client.recommend(k=3)["item_ids"]) == 3 for _ in range(20))


def test_no_grpc_request_gets_more_than_a_refusal(fused):
    """Generated requests, most of them broken: no answer names internals, each one comes, and the
    server and its processes live.
    """
    _, server, _, _, client = fused
    assert until(lambda: len(find_stubs(server.pid)) == 2), find_stubs(server.pid)
    old = {stub.pid for stub in find_stubs(server.pid)}
    counts = fuzz_grpc(server, 300)
    assert counts["OK"] > 10 and counts["INVALID_ARGUMENT"] > 50, counts
    assert {stub.pid for stub in find_stubs(server.pid)} == old
    assert len(client.recommend(k=3)["item_ids"]) == 3


def test_memory_returns_after_a_large_request(fused):
    "A refused text of 100 MB leaves no memory behind, neither shared nor the server's own."
    _, server, _, canary, client = fused

    def kept_mib():
        status = Path(f"/proc/{server.pid}/status").read_text()
        own = int(re.search(r"RssAnon:\s+(\d+)", status)[1]) / 1024
        return own + sum(region_bytes(stub) for stub in find_stubs(server.pid)) / 2**20

    before = kept_mib()
    with Client(server.grpc, timeout=60) as own, pytest.raises(RecsysError, match="user_id"):
        own.recommend(user_id="u" * 100_000_000, k=3)
    assert until(lambda: len(find_stubs(server.pid)) == 2 and kept_mib() < before + 20, 60), (
        before,
        kept_mib(),
        canary_log(canary),
    )
    assert len(client.recommend(k=3)["item_ids"]) == 3


def stubs_of(server, member):
    """Return the process ids of a member's stubs.

    Versions that a promotion replaced may still be ending, so there can be more than one.
    """
    found = []
    for pid in session_processes(server.pid):
        with contextlib.suppress(OSError):  # it ended meanwhile
            if f"/{member}/" in Path(f"/proc/{pid}/cmdline").read_text():
                found.append(pid)
    return found


def canary_log(canary):
    "Return what the canary noted, for the message of a failed assertion."
    return canary.log.read_text() if canary.log.is_file() else "every probe was answered"


def test_a_dead_member_is_brought_back(stack):
    server, _, canary, client = stack
    before = canary.revived["retrieve"]
    stubs = stubs_of(server, "retrieve")
    assert stubs
    for pid in stubs:
        os.kill(pid, signal.SIGKILL)
    assert until(lambda: canary.revived["retrieve"] > before, 60), canary_log(canary)
    assert len(client.recommend(k=3)["item_ids"]) == 3


def fallbacks(client):
    return {
        f["stage"]: f["reason"]
        for f in client.recommend(user_id="u00001", k=3)["reasons"]["fallbacks"]
    }


def test_valkey_hangs_and_dies(p, stack):
    "Every answer comes, with its reason; all is normal again once Valkey is back."
    url, client = stack[1], stack[3]
    user = load_arrays(stage_dir(p, "data_prep") / "users.npz")["user_id"][7].decode()
    pid = read_json(run_dir(p) / "valkey/valkey.json")["pid"]
    assert fallbacks(client) == {}
    os.kill(pid, signal.SIGSTOP)
    try:
        for _ in range(20):
            found = fallbacks(client)
            assert found == {
                "user_features": FALLBACKS["user_features_failed"].fails,
                "seen_filter": FALLBACKS["seen_filter_failed"].fails,
            }
    finally:
        os.kill(pid, signal.SIGCONT)
    assert until(lambda: fallbacks(client) == {}, 60) is True
    counted = fallback_counters(stack[0])
    assert int(counted["user_features"]) >= 20 and int(counted["seen_filter"]) >= 20
    with EmbeddedValkey(run_dir(p) / "another valkey") as second:
        assert second.url != url
    os.kill(pid, signal.SIGKILL)
    assert until(lambda: process_state(p, "valkey")["restarts"] == 1)
    assert process_state(p, "valkey")["last_exit"] == -signal.SIGKILL
    told = read_json(run_dir(p) / "valkey/valkey.json")
    assert (told["url"], told["pid"] != pid) == (url, True)  # the same address and password
    assert until(lambda: fallbacks(client) == {}, 60) is True
    assert client.recommend(user_id=user, k=3)["reasons"]["user"] == "known"
    connect(url, 5000).flushall()  # an emptied store is filled again, and known users are known
    assert until(lambda: client.recommend(user_id=user, k=3)["reasons"]["user"] == "known", 240)
    assert until(lambda: connect(url, 5000).exists("{pop}:all"), 60)


def process_state(p, name):
    "Return what processes.json says of a child."
    return read_json(stage_dir(p, "triton") / "processes.json")[name]


def test_a_killed_worker_comes_back_and_loses_nothing(p, stack, parts):
    recorder = parts[1]
    before = process_state(p, "worker")
    os.kill(before["pid"], signal.SIGKILL)
    event = dict(
        event_id="while it is away",
        user_id="patient",
        item_id=str(parts[0].bundle.columns.ids[0]),
        timestamp=recorder.clock.now(),
        event_type="view",
    )
    assert recorder.record_event(event) == "new"

    def state():
        moment = np.array([recorder.clock.now() + 1])
        return parts[0].users.state(["patient"], moment)["rows"][0, -1]

    assert until(lambda: state() == 0, 60)
    after = process_state(p, "worker")
    assert (after["restarts"], after["state"]) == (before["restarts"] + 1, "running")
    client = connect(stack[1], 5000)

    def told():
        return client.hgetall("{recsys}:worker_state")

    assert until(lambda: int(told().get(b"pid", 0)) == after["pid"])
    assert float(told()[b"last_success"]) > after["since"] - 1 and told()[b"lag"] == b"0"


def test_a_worker_starts_without_feast_and_by_the_clock_that_it_is_told(p):
    """What a killed worker imports is how long events wait for it. Its clock began when its server
    says, whatever a Valkey says that was emptied meanwhile: none answers here.
    """
    code = (
        "import sys\n"
        "from recsys.online.worker import open_worker\n"
        "from recsys.serve.serving import run_params\n"
        f"worker = open_worker(run_params({str(run_dir(p))!r}), 'valkey://127.0.0.1:1')\n"
        "expected = worker.work.bundle.clock(1000).at_wall(2000)\n"
        "print(worker.clock.at_wall(2000) - expected)\n"
        "print(*sorted({'feast', 'pandas', 'pyarrow'} & set(sys.modules)))"
    )
    run = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": str(ROOT), START_VARIABLE: "1000"},
        capture_output=True,
        text=True,
    )
    assert (run.stdout, run.stderr) == ("0\n\n", ""), run.stderr


def test_what_is_served_belongs_to_this_user(p, stack):
    "Files, shared memory and Valkey are closed to other users; no password is in a command line."
    server, url = stack[:2]
    assert oct(run_dir(p).stat().st_mode & 0o777) == "0o700"
    private = "valkey valkey/password.conf valkey/valkey.json valkey/valkey.log triton/triton.log"
    for name in (*private.split(), "triton/worker.log", "triton/processes.json"):
        path = run_dir(p) / name
        assert path.stat().st_mode & 0o077 == 0, path
    for path in (run_dir(p) / "events").rglob("*.parquet"):
        assert path.stat().st_mode & 0o077 == 0, path
    regions = list(Path("/dev/shm").glob(f"{server.shared_memory}*"))
    assert regions and all(path.stat().st_mode & 0o077 == 0 for path in regions)
    password = url.split("@")[0].rpartition(":")[2]
    for file in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            assert password.encode() not in file.read_bytes(), file


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can act as another user")
def test_another_user_gets_nothing(p, stack):
    server, url = stack[:2]
    region = next(Path("/dev/shm").glob(f"{server.shared_memory}*"))
    asks = f"""
import socket
for path in ({str(region)!r}, {str(run_dir(p) / "valkey/valkey.json")!r}):
    try:
        open(path).close()
        print("opened", path)
    except PermissionError:
        pass
with socket.create_connection(("127.0.0.1", {int(url.rsplit(":", 1)[1])})) as connection:
    connection.sendall(b"FLUSHALL\\r\\n")
    print(connection.recv(100).decode().split()[0])
"""
    done = subprocess.run(
        [shutil.which("python3", path="/usr/bin:/usr/local/bin") or sys.executable, "-c", asks],
        capture_output=True,
        text=True,
        user=65534,
        cwd="/",
        env={},
    )
    assert done.stdout == "-NOAUTH\n", done.stdout + done.stderr


def cli(*args, **env):
    code = "import sys; sys.argv[0] = 'recsys'; from recsys.operate.cli import main; main()"
    return subprocess.Popen(
        [sys.executable, "-u", "-c", code, *map(str, args)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT), **env},
        start_new_session=True,
    )


def test_recsys_serve(tmp_path):
    "From start to Ctrl-C as a user does it: the curl line works, nothing is left behind."
    run = tiny_run(tmp_path / "outputs") / "tiny"
    grpc = free_port()
    sets = ["--set", f"GRPC_PORT={grpc}"]
    process = cli("serve", "--run", run, *sets)
    lines = []
    for line in process.stdout:
        lines.append(line)
        if line.startswith("and:"):
            break
    assert lines and lines[-1].startswith("and:"), process.stderr.read()
    curl = next(shlex.split(x.split("try:", 1)[1]) for x in lines if x.startswith("try:"))
    assert curl[:3] == ["curl", "-s", "--unix-socket"] and curl[5] == "-d"
    answer = send_http(f"unix://{curl[3]}", curl[4].partition("localhost")[2], curl[6].encode())
    found = {o["name"]: o["data"] for o in json.loads(answer[1])["outputs"]}
    assert len(set(found["item_ids"])) == 5 and json.loads(found["reasons"][0])["fallbacks"] == []
    asked = {field["name"]: field["data"] for field in json.loads(curl[6])["inputs"]}
    (user,) = load_arrays(run / "data_prep/users.npz")["user_id"][:1].tolist()
    assert asked["request_id"] and asked["user_id"] == [user.decode()]
    assert json.loads(found["reasons"][0])["user"] == "known"
    second = cli("serve", "--run", run, *sets)
    out, err = second.communicate(timeout=120)
    assert (
        second.returncode == 2
        and f"process {process.pid} serves this run already" in err
        and "--as NAME" in err
        and "Traceback" not in err
    ), err
    assert read_json(run / "triton/server.json")["http"] == f"unix://{curl[3]}"  # untouched
    event = cli("event", "--run", run, "--user", "u00007", "--item", found["item_ids"][0])
    assert "new: user u00007" in event.communicate(timeout=60)[0]
    erased = cli("forget", "--run", run, "--user", "u00007")
    assert "keys of user u00007 erased" in erased.communicate(timeout=60)[0]
    pids = [
        read_json(run / "valkey/valkey.json")["pid"],
        read_json(run / "triton/server.json")["pid"],
    ]
    process.send_signal(signal.SIGINT)
    assert process.wait(60) == 0, process.stderr.read()
    assert not any(session_processes(pid) for pid in pids)
    assert check_port(grpc, "GRPC_PORT") == grpc  # free again
    assert not Path(curl[3]).parent.exists()


def test_a_changed_file_is_named_before_the_start(p, tmp_path):
    run = tiny_run(tmp_path / "outputs") / "tiny"
    file = (
        run / "triton/bundles" / str(pinned_version(run / "triton/repository")) / "popularity.npz"
    )
    content = file.read_bytes()
    file.unlink()
    file.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with (
        pytest.raises(RecsysError, match="popularity.npz differs from its sha256"),
        served(run_params(run, HTTP_PORT=0, GRPC_PORT=0, METRICS_PORT=0)),
    ):
        pass
