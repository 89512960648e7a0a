"""The gateway in front of a real Triton and a real Valkey: what applications see, in good and in
bad times.
"""

import http.client
import json
import os
import re
import secrets
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from malformed import send_all, send_raw, warm_up
from tiny import ROOT, tiny_run

from recsys.core.runs import read_json, run_dir
from recsys.online.events import FORGOTTEN, POPULAR_PAGE, hash_user, impression_salt
from recsys.online.popularity import day_name
from recsys.online.valkey import OwnedProcess, connect, free_port, running_valkey
from recsys.operate.cli_serve import servers_of_runs
from recsys.recommend.fallbacks import FALLBACKS
from recsys.serve.api import (
    EventsAnswer,
    Explanation,
    Health,
    ItemsAnswer,
    ListAnswer,
    Options,
    PageAnswer,
    UserAnswer,
)
from recsys.serve.server import Client, running_server
from recsys.serve.serving import online_parts, run_params
from recsys.serve.triton_process import session_processes
from recsys.serve.window import shop_window

pytestmark = pytest.mark.xdist_group("gateway")  # one of everything for all


@pytest.fixture(scope="module")
def p(tmp_path_factory):
    folder = tiny_run(tmp_path_factory.mktemp("gateway") / "outputs")
    ports = dict(HTTP_PORT=0, GRPC_PORT=0, METRICS_PORT=0, GATEWAY_PORT=0)
    # other tests run beside these: a pause of theirs must not make a page popular
    return run_params(folder / "tiny", **ports, GATEWAY_SILENCE_MS=60_000)


@pytest.fixture(scope="module")
def stack(p):
    with shop_window(p) as (address, server, gateway):
        yield (
            Http(int(address.split(":")[2].split("/")[0]), address.partition("#key=")[2]),
            server,
            gateway,
        )


@pytest.fixture
def http_(stack):
    return stack[0]


class Http:
    "Ask a gateway; each call gives status, what JSON said, headers and seconds."

    def __init__(self, port, key=""):
        self.port, self.key = port, key

    def __call__(self, method, path, body=None, key=None, headers=()):
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        begin = time.perf_counter()
        try:
            data = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
            connection.request(
                method,
                path,
                data,
                {
                    "Content-Type": "application/json",
                    "X-API-Key": self.key if key is None else key,
                    **dict(headers),
                },
            )
            answer = connection.getresponse()
            text = answer.read()
            return (
                answer.status,
                json.loads(text) if "json" in answer.headers["content-type"] else text,
                answer.headers,
                time.perf_counter() - begin,
            )
        finally:
            connection.close()

    def page(self, **fields):
        status, page, _, _ = self("POST", "/v1/recommendations", fields)
        assert status == 200, page
        return page


def until(check, seconds=15.0):
    end = time.monotonic() + seconds
    while not (found := check()) and time.monotonic() < end:
        time.sleep(0.05)
    return found


NOW = 1_782_700_000  # within a day of the run's clock, which begins at the end of training


def test_a_page_is_tritons_with_what_people_read(p, stack):
    gateway, server, _ = stack
    for fields in (
        dict(user_id="u0001", k=7),
        dict(k=3, device_type="mobile"),
        dict(user_id="a cookie", k=5, temperature=1.0, seed=7, diversity=0.2),
    ):
        with Client(server.grpc, timeout=10) as client:
            direct = client.recommend(timestamp=NOW, **fields)
        page = gateway.page(timestamp=NOW, **fields)
        assert [x["item_id"] for x in page["items"]] == direct["item_ids"].tolist() and page[
            "bundle_version"
        ] == direct["bundle_version"]
        assert [x["propensity"] for x in page["items"]] == pytest.approx(
            direct["propensities"].tolist(), rel=1e-3
        ) and [x["rank"] for x in page["items"]] == direct["reasons"]["ranks"]
        assert [x["sources"] for x in page["items"]] == direct["sources"]
        assert all(x["sources"] for x in page["items"])
        assert (
            all(
                x["title"] and x["price"] > 0 and x["category"] and x["reason"]
                for x in page["items"]
            )
            and page["fallbacks"] == []
        )
        PageAnswer.model_validate(page)
        status, picture, headers, _ = gateway("GET", page["items"][0]["image"])
        assert (
            status == 200
            and headers["content-type"] == "image/png"
            and picture.startswith(b"\x89PNG")
        )


def test_status_names_the_server_of_a_single_run(p, stack):
    (row,) = servers_of_runs(run_dir(p).parent)
    server = running_server(run_dir(p) / "triton/repository")
    assert row == dict(run=p.RUN, address=server.http)
    assert servers_of_runs(run_dir(p)) == []


def test_rules_reach_the_page_through_the_gateway(stack):
    gateway, server, _ = stack
    plain = gateway.page(timestamp=NOW, user_id="u0001", k=5)
    wanted, excluded = (plain["items"][place]["item_id"] for place in (4, 1))
    category = plain["items"][0]["category"]
    rules = [
        dict(item_id=wanted, place=1),
        dict(item_id=excluded, place=2),
        dict(category=category, factor=0.01),
        dict(item_id="no such item", factor=2),
    ]
    fields = dict(user_id="u0001", k=5, rules=rules, exclude=[excluded], max_per_category=2)
    page = gateway.page(timestamp=NOW, **fields)
    with Client(server.grpc, timeout=10) as client:
        direct = client.recommend(timestamp=NOW, **fields)
    shown = [item["item_id"] for item in page["items"]]
    assert shown == direct["item_ids"].tolist()
    assert shown[0] == wanted and excluded not in shown
    assert page["notes"] == direct["reasons"]["notes"]
    assert len(page["notes"]) == 2
    assert any("no item 'no such item'" in note for note in page["notes"])
    assert any("excluded by the request" in note for note in page["notes"])
    PageAnswer.model_validate(page)
    status, refused, _, _ = gateway("GET", f"/v1/explanations?item_id={wanted}&rules=[]")
    assert status == 422 and refused["error"].startswith("rules: no such field"), refused


def test_an_event_changes_the_next_page_and_is_forgotten_again(http_):
    before = http_.page(user_id="visitor", k=5)
    item = before["items"][0]["item_id"]
    event = dict(events=[dict(item_id=item, user_id="visitor", event_id="the same")])
    for result in ("new", "duplicate"):
        status, said, _, _ = http_("POST", "/v1/events", event)
        assert (status, [r["result"] for r in said["results"]]) == (200, [result])
        EventsAnswer.model_validate(said)
    assert item not in [x["item_id"] for x in http_.page(user_id="visitor", k=5)["items"]]

    def user():
        return UserAnswer.model_validate(http_("GET", "/v1/users/visitor")[1])

    assert until(lambda: [x.item_id for x in user().history] == [item], 60) and until(
        lambda: user().top_category == before["items"][0]["category"]
    )
    status, said, _, _ = http_("DELETE", "/v1/users/visitor")
    assert status == 200 and said["erased"] >= 3 and user().history == []
    assert [x["item_id"] for x in http_.page(user_id="visitor", k=5)["items"]][0] == item


def test_an_optional_file_that_breaks_stops_nothing(p, http_):
    """Additions, settings, salt and pictures: pages go on without a fallback, `/readyz` names the
    alarm, and it is over once the file is good again; nothing is a 4xx and no path is shown.
    """

    def codes():
        status, said, _, _ = http_("GET", "/readyz")
        assert (status, "/" in json.dumps(said)) == (200, False), said
        return [alarm["code"] for alarm in said["alarms"]]

    new = dict(title="a vase", price=5, category="garden", item_id="vase")
    assert http_("POST", "/v1/items", new)[0] == 200
    run = run_dir(p)
    additions = next(run.glob("bundle.*.added.jsonl"))
    salt, online = run / "impressions.salt", run / "triton/online.json"
    broken = [
        (additions, b"{\n", "additions_skipped"),
        (additions, additions.read_bytes()[:-40], "additions_skipped"),
        (additions, None, "additions_unreadable"),
        (online, b"\xff", "online_settings_unreadable"),
        (salt, b"", "salt_unreadable"),
    ]
    for file, content, code in broken:
        good = file.read_bytes()
        file.unlink()
        if content is not None:
            file.write_bytes(content)
        assert until(lambda code=code: codes() == [code]), (file, codes())
        page = http_.page(user_id="u0001", k=5)
        assert page["source"] == "two-tower" and page["fallbacks"] == [], page
        if file == additions:
            status, said, _, _ = http_("POST", "/v1/items", dict(new, item_id="another"))
            assert status == 503 and str(run) not in said["error"]
            assert http_("GET", "/v1/items/vase/image")[0] == 200
        file.write_bytes(good)
        assert until(lambda: codes() == []), (file, codes())


def send(http_, *events):
    "Send events, and return what became of each."
    status, said, _, _ = http_("POST", "/v1/events", dict(events=list(events)))
    assert status == 200, said
    return [r["result"] for r in said["results"]]


def logged(p, kind="events"):
    "Return the rows of a log."
    files = sorted((run_dir(p) / kind).glob("dt=*/*.parquet"))
    return [row for f in files for row in pq.read_table(f, partitioning=None).to_pylist()]


def test_one_event_id_of_two_users_is_two_events(http_, p):
    item = http_.page(k=1)["items"][0]["item_id"]
    for user in ("alice", "bob"):
        event = dict(item_id=item, user_id=user, event_id="one id")
        assert [send(http_, event), send(http_, event)] == [["new"], ["duplicate"]]
    rows = until(
        lambda: len(found := [r for r in logged(p) if r["event_id"] == "one id"]) > 1 and found
    )
    assert sorted(row["user_id"] for row in rows) == ["alice", "bob"]


def test_forgetting_a_user_leaves_others_alone_whatever_their_ids(http_):
    item = http_.page(user_id="x", k=1)["items"][0]["item_id"]
    users = ["x", "x}:seen:y", "x}", "*", "x%7D"]
    assert send(http_, *(dict(item_id=item, user_id=u) for u in users)) == ["new"] * 5
    assert http_("DELETE", "/v1/users/x")[0] == 200
    assert http_("DELETE", "/v1/users/*")[0] == 200

    def is_shown(user):
        return item in [x["item_id"] for x in http_.page(user_id=user, k=20)["items"]]

    assert [is_shown(user) for user in users] == [True, False, False, True, False]


def test_forgetting_covers_streams_and_logs_and_says_what_remains(http_, p):
    client = connect(running_valkey(p), 2000)
    item = http_.page(user_id="secret", k=1)["items"][0]["item_id"]
    assert send(http_, dict(item_id=item, user_id="secret")) == ["new"]

    def is_named():
        rows = logged(p) + logged(p, "feature_store/features")
        streams = client.xrange("events") + client.xrange("events:dead")
        keys = [key for key in client.scan_iter(count=5000) if b"secret" in key]
        return "secret" in {r["user_id"] for r in rows}, b"secret" in repr(streams).encode(), keys

    assert until(lambda: is_named()[0], 60)
    status, said, _, _ = http_("DELETE", "/v1/users/secret")
    assert status == 200 and said["erased"] >= 3 and len(said["remains"]) == 3
    assert until(lambda: is_named() == (False, False, []), 60), is_named()
    assert until(lambda: not client.exists(FORGOTTEN))


def kind_and_items(http_, **fields):
    "Return of what kind somebody is, and the items of the page."
    page = http_.page(k=8, **fields)
    return page["user"], [x["item_id"] for x in page["items"]]


def identify(http_, visitor, user):
    "Say that a visitor is a user; return the status and what became of it."
    status, said, _, _ = http_("POST", "/v1/identify", dict(visitor_id=visitor, user_id=user))
    return status, said.get("result") or said["error"]


def test_a_visitor_who_logs_in_brings_history_and_seen_items_along(http_, p):
    kind, shown = kind_and_items(http_, visitor_id="cookie 1")
    looked = [dict(item_id=x, visitor_id="cookie 1", event_id=f"look {x}") for x in shown[:3]]
    assert kind == "visitor" and send(http_, *looked) == ["new"] * 3
    kind, after = kind_and_items(http_, visitor_id="cookie 1")
    assert kind == "visitor" and not set(shown[:3]) & set(after)
    assert kind_and_items(http_, user_id="cookie 1")[0] == "new"  # a user with the same id
    assert set(shown[:3]) & set(kind_and_items(http_, user_id="cookie 1")[1])

    assert identify(http_, "cookie 1", "buyer") == (200, "merged")
    for who in (dict(user_id="buyer"), dict(visitor_id="cookie 1")):
        kind, page = kind_and_items(http_, **who)
        assert kind == "new" and not set(shown[:3]) & set(page)  # not visitor any more
    assert send(http_, *looked) == ["duplicate"] * 3  # sent again after the login
    assert identify(http_, "cookie 1", "buyer") == (200, "before")
    status, said = identify(http_, "cookie 1", "somebody else")
    assert status == 409 and "another user" in said and "buyer" not in said
    assert send(http_, dict(item_id=after[0], visitor_id="cookie 1", event_id="late")) == ["new"]

    def history():
        return [x["item_id"] for x in http_("GET", "/v1/users/buyer")[1]["history"]]

    assert until(lambda: len(history()) == 4), history()  # by the worker
    assert set(history()) == {after[0], *shown[:3]}
    assert until(lambda: len([r for r in logged(p) if r["visitor_id"] == "cookie 1"]) == 4)
    rows = {r["event_id"]: r["user_id"] for r in logged(p) if r["visitor_id"] == "cookie 1"}
    assert rows == {x["event_id"]: "" for x in looked} | dict(late="buyer")


def test_forgetting_a_user_covers_merged_visitors_and_a_visitor_can_be_forgotten(http_, p):
    client = connect(running_valkey(p), 2000)
    item = kind_and_items(http_, visitor_id="cookie 2")[1][0]
    for visitor in ("cookie 2", "cookie 3", "cookie 4"):
        assert send(http_, dict(item_id=item, visitor_id=visitor)) == ["new"]
    assert identify(http_, "cookie 2", "to forget") == (200, "merged")
    assert kind_and_items(http_, visitor_id="cookie 2")[0] == "new"
    salt = impression_salt(p)
    hashes = {name: hash_user(name, salt) for name in ("cookie 2", "cookie 3", "cookie 4")}

    def is_named(name):
        rows = {r["visitor_id"] for r in logged(p)}
        pages = {r["visitor"] for r in logged(p, "impressions")}
        keys = [k for k in client.scan_iter(count=5000) if name.replace(" ", "%20").encode() in k]
        return name in rows, hashes[name] in pages, bool(keys)

    assert until(lambda: is_named("cookie 2")[:2] == (True, True), 60)
    assert http_("DELETE", "/v1/users/to%20forget")[0] == 200
    assert http_("DELETE", "/v1/visitors/cookie%203")[0] == 200
    nothing = (False, False, False)
    assert until(lambda: is_named("cookie 2") == nothing == is_named("cookie 3"), 60)
    assert until(lambda: is_named("cookie 4")[::2] == (True, True), 60)
    assert kind_and_items(http_, visitor_id="cookie 2")[0] == "visitor"  # a stranger again
    assert identify(http_, "cookie 2", "somebody else") == (200, "merged")


def test_broken_keys_of_one_user_cost_nobody_else_anything(http_, stack, p):
    client = connect(running_valkey(p), 2000)
    client.set("{u:poison}:ids", "no set")
    item = http_.page(user_id="healthy", k=1)["items"][0]["item_id"]
    events = [dict(item_id=item, user_id=u, event_id="mixed") for u in ("poison", "healthy")]
    assert send(http_, *events) == ["dead", "new"]
    [(_, letter)] = client.xrevrange("events:dead", count=1)
    assert b"poison" in letter[b"field:event"] and b"WRONGTYPE" in letter[b"reason"]
    client.delete("{u:poison}:ids")
    client.set("{u:poison}:recent", "no list")  # now the worker meets it
    assert send(http_, *events) == ["new", "duplicate"]
    assert send(http_, dict(events[1], event_id="after")) == ["new"]
    assert until(lambda: {"mixed", "after"} <= {r["event_id"] for r in logged(p)})
    assert "poison" not in {row["user_id"] for row in logged(p)}
    assert until(lambda: client.xlen("events:dead") == 2)
    client.delete("{u:poison}:recent", "events:dead")


def test_a_moment_of_the_far_future_is_refused_at_every_door(http_, stack, p):
    far = 2**40 - 1
    status, said, _, _ = http_("POST", "/v1/recommendations", dict(timestamp=far))
    assert (status, "more than a day after the clock" in said["error"]) == (409, True)
    refused = pytest.raises(Exception, match="more than a day after the clock")
    with Client(stack[1].grpc, timeout=10) as client, refused:
        client.recommend(timestamp=far, k=2)
    days = {f.parent.name for f in run_dir(p).glob("impressions/dt=*/*.parquet")}
    assert days <= {f"dt={day_name(NOW + late * 86400)}" for late in (-1, 0, 1)}


def test_catalogue_options_and_users(http_):
    found = ItemsAnswer.model_validate(
        http_("GET", "/v1/items?category=garden&limit=5&offset=1")[1]
    )
    assert (
        len(found.items) == 5
        and {x.category for x in found.items} == {"garden"}
        and sum(c.count for c in found.categories) >= 600  # a test before adds items
    )
    text = found.items[0].title.split()[0]
    assert all(
        text in x["title"] for x in http_("GET", f"/v1/items?text={text.lower()}")[1]["items"]
    )
    options = Options.model_validate(http_("GET", "/v1/options")[1])
    assert options.writes and "mobile" in options.devices
    users = http_("GET", "/v1/users")[1]["users"]
    assert (
        len(users) == 40
        and len(UserAnswer.model_validate(http_("GET", f"/v1/users/{users[0]}")[1]).history) >= 5
    )


@pytest.mark.parametrize(
    "fields", [dict(user_id="u0001"), dict(user_id="u0002", temperature=0.5), dict()]
)
def test_explanations_add_up(http_, fields):
    page = http_.page(k=5, timestamp=NOW, seed=0, **fields)
    for item in (page["items"][1]["item_id"], "i300"):
        query = "&".join(
            f"{n}={v}"
            for n, v in (dict(item_id=item, k=5, timestamp=NOW, seed=0, draws=50) | fields).items()
        )
        status, said, _, _ = http_("GET", f"/v1/explanations?{query}")
        assert status == 200, said
        Explanation.model_validate(said)
        assert (
            abs(sum(said["ranked"]["groups"].values()) - said["ranked"]["difference"]) < 1e-4
            and item in said["words"]
        )
    assert http_("GET", "/v1/explanations?item_id=nothing")[0] == 404


@pytest.mark.parametrize(
    "method, path, body, status",
    [
        ("POST", "/v1/recommendations", dict(k=0), 422),
        ("POST", "/v1/recommendations", dict(k=1001), 422),
        ("POST", "/v1/recommendations", dict(k=3, who="x"), 422),
        ("POST", "/v1/recommendations", dict(user_id=7), 422),
        ("POST", "/v1/recommendations", dict(temperature=-1), 422),
        ("POST", "/v1/recommendations", dict(diversity=1.1), 422),
        ("POST", "/v1/recommendations", dict(exclude=["x"] * 1001), 422),
        ("POST", "/v1/recommendations", dict(timestamp=-1), 422),
        ("POST", "/v1/recommendations", dict(user_id="u" * 257), 422),
        ("POST", "/v1/recommendations", b"{", 400),
        ("POST", "/v1/recommendations", b"", 400),
        ("POST", "/v1/recommendations", b"[" * 60_000, 400),
        ("POST", "/v1/events", dict(events=[]), 422),
        ("POST", "/v1/events", dict(events=[dict(item_id="no such")]), 404),
        ("POST", "/v1/events", dict(events=[dict(item_id="i001", timestamp=2**40)]), 409),
        ("POST", "/v1/recommendations", dict(timestamp=2**40), 409),
        ("GET", f"/v1/explanations?item_id=i001&timestamp={2**40}", None, 409),
        ("POST", "/v1/events", dict(events=[dict(item_id="i001", event_type="a|b")]), 422),
        ("GET", "/v1/items?limit=1000", None, 422),
        ("GET", "/v1/items?limit=1&limit=2", None, 422),
        ("GET", "/v1/items?colour=red", None, 422),
        ("GET", "/v1/items/none/image", None, 404),
        ("GET", "/v1/items/none/similar", None, 404),
        ("GET", "/v1/items/%ff/similar", None, 400),
        ("GET", "/v1/items/i001/similar?k=0", None, 422),
        ("GET", "/v1/items/i001/similar?user_id=u0001", None, 422),
        ("GET", "/v1/trending?k=1001", None, 422),
        ("GET", "/v1/trending?category=none", None, 404),
        ("GET", "/v1/users/" + "u" * 257, None, 422),
        ("GET", "/v1/users/%ff", None, 400),
        ("GET", "/v1/nothing", None, 404),
        ("PUT", "/v1/events", None, 405),
        ("POST", "/healthz", None, 405),
    ],
)
def test_what_is_out_of_bounds_is_refused(http_, method, path, body, status):
    found, said, _, _ = http_(method, path, body)
    assert found == status and set(said) == {"error"} and len(said["error"]) < 300, said


def test_an_id_may_hold_anything(http_):
    for user in ("a/b", "ä ö", "?#%", "{x}", "💥"):
        path = "/v1/users/" + "".join(f"%{b:02X}" for b in user.encode())
        assert (
            http_("POST", "/v1/events", dict(events=[dict(item_id="i001", user_id=user)]))[0] == 200
        )
        assert until(
            lambda: [x["item_id"] for x in http_("GET", path)[1]["history"]] == ["i001"]
        ), user
        assert http_("DELETE", path)[0] == 200


def memory(process):
    "Return the resident memory of a process, KiB."
    status = Path(f"/proc/{process.pid}/status").read_text()
    return int(re.search(r"VmRSS:\s+(\d+)", status)[1])


def test_a_huge_body_is_refused_unread(stack):
    gateway, _, process = stack

    before = memory(process)
    for _ in range(3):
        status, said, _, _ = gateway("POST", "/v1/recommendations", b"[" * 15_000_000)
        assert status == 413 and "1048576 bytes" in said["error"]
    assert memory(process) - before < 30_000  # KiB
    assert (
        gateway("POST", "/v1/recommendations", b"{}", headers={"Content-Type": "text/plain"})[0]
        == 415
    )


def test_a_head_without_an_end_is_refused_and_not_kept(stack):
    gateway, _, process = stack
    start = b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n"
    before = memory(process)
    for rest in (b"X: ", b"", b"X: 1\r\n"):
        with socket.create_connection(("127.0.0.1", gateway.port), timeout=20) as client:
            client.sendall(start)
            with pytest.raises(OSError):  # cut while it is still sending
                for _ in range(100):
                    client.sendall((rest if rest.endswith(b"\n") else rest + b"a" * 6) * 2**17)
    assert memory(process) - before < 30_000  # KiB
    with socket.create_connection(("127.0.0.1", gateway.port), timeout=20) as client:
        client.sendall(start + b"X: " + b"a" * 20_000)
        assert client.recv(65536).startswith(b"HTTP/1.1 431 ")
    assert gateway("GET", "/healthz")[0] == 200


def test_half_requests_make_room_for_others(http_):
    held = []
    try:
        for _ in range(1000):
            held.append(socket.create_connection(("127.0.0.1", http_.port), timeout=20))
            held[-1].sendall(b"GET /healthz HTTP/1.1\r\n")
        assert http_("GET", "/healthz")[0] == 200
        assert len(http_.page(k=3)["items"]) == 3
        assert held[0].recv(65536).startswith(b"HTTP/1.1 408 ")
        metrics = http_("GET", "/metrics")[1].decode()
    finally:
        for client in held:
            client.close()
    unfinished = re.search(r'recsys_gateway_connections{state="unfinished"} (\d+)', metrics)
    assert 0 < int(unfinished[1]) <= 256


def test_malformed_bodies_never_break_it(http_):
    counts = send_all(http_.port, http_.key, 100)
    assert counts[400] > 10 and counts[422] > 10, counts


def test_what_is_hardly_http_never_breaks_it(stack):
    gateway, _, process = stack
    warm_up(gateway.port)
    before = memory(process)
    counts = send_raw(gateway.port, 600)
    assert {200, 400, 403, 404, 431} <= set(counts), counts
    assert memory(process) - before < 30_000  # KiB
    assert gateway("GET", "/healthz")[0] == 200


def says_nothing_of_the_server(answer):
    "Return whether the fallbacks of an answer are the table's sentences, without an error's text."
    text = json.dumps(answer)
    sentences = all(f["reason"] == FALLBACKS[f["code"]].fails for f in answer["fallbacks"])
    return sentences and "127.0.0.1" not in text and "Error" not in text


def test_an_explanation_for_a_user_or_visitor_needs_the_key(http_):
    queries = ("item_id=i001&user_id=u0001", "user_id=u0001&item_id=none")
    for query in (*queries, "item_id=i001&visitor_id=v"):
        for key in ("", "wrong"):
            assert http_("GET", f"/v1/explanations?{query}", key=key)[0] == 401
    assert http_("GET", "/v1/explanations?item_id=i001&draws=10", key="")[0] == 200


def test_explanations_have_a_process_that_is_started_again_and_keeps_no_page_waiting(stack):
    http_, _, gateway = stack

    def explained():
        return http_("GET", "/v1/explanations?item_id=i001&draws=10")[0] == 200

    def processes():
        command = ["pgrep", "-P", str(gateway.pid), "-f", "explainer import answer_questions"]
        found = subprocess.run(command, capture_output=True, text=True)
        return [int(pid) for pid in found.stdout.split()]

    assert explained()
    (first,) = processes()
    assert os.getpriority(os.PRIO_PROCESS, first) > os.getpriority(os.PRIO_PROCESS, gateway.pid)
    os.kill(first, signal.SIGKILL)
    assert http_.page(k=3)["source"] == "two-tower"
    assert until(explained)
    (second,) = processes()
    assert second != first


def test_writes_need_the_key(http_):
    keyed = [
        (method.upper(), path.replace("{user_id}", "u0001").replace("{visitor_id}", "v1"))
        for path, operations in http_("GET", "/openapi.json")[1]["paths"].items()
        for method, operation in operations.items()
        if "security" in operation
    ]
    assert len(keyed) == 8
    for method, path in keyed:
        for key in ("", "wrong", http_.key + "x", http_.key[:-1]):
            assert http_(method, path, b"{}", key=key)[0] == 401
    assert http_("GET", "/v1/items", headers={"Host": "evil.example"})[0] == 403


def test_schemathesis_finds_nothing(http_, tmp_path):
    """Every operation by its own description: examples, coverage of each bound, generated
    requests; all checks.
    """
    command = [
        Path(sys.executable).with_name("schemathesis"),
        "run",
        f"http://127.0.0.1:{http_.port}/openapi.json",
        "-H",
        f"X-API-Key: {http_.key}",
        "--checks",
        "all",
        "--phases",
        "examples,coverage,fuzzing",
        "--max-examples",
        "8",
        "--seed",
        "1",
        "--no-color",
        "--request-timeout",
        "10",
    ]
    done = subprocess.run(
        command,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        env={**os.environ, "HYPOTHESIS_STORAGE_DIRECTORY": str(tmp_path)},
    )
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-1000:]


def test_an_item_joins_between_two_trainings(http_):
    new = dict(
        item_id="a/new one",
        title="Quokka Oak Desk",
        description="An elegant desk in walnut.",
        category="furniture",
        subcategory="desk",
        price=120,
    )
    status, said, _, _ = http_("POST", "/v1/items", new)
    assert status == 200 and said["item"]["title"] == new["title"] and said["added"] >= 1, said
    assert (
        http_("POST", "/v1/items", new)[0] == 409
        and http_("POST", "/v1/items", new, key="no")[0] == 401
        and http_("POST", "/v1/items", dict(title="x"))[0] == 422
    )
    assert [x["item_id"] for x in http_("GET", "/v1/items?text=quokka+oak")[1]["items"]] == [
        "a/new one"
    ]
    status, picture, headers, _ = http_("GET", said["item"]["image"])
    assert status == 200 and headers["content-type"] == "image/svg+xml" and b"<svg" in picture
    version = f"+{said['added']}"
    assert http_.page(k=3)["bundle_version"].endswith(version)  # Triton knows it, too
    assert http_("GET", "/v1/explanations?item_id=a%2Fnew+one")[1]["retrieved"]["rank"] > 0
    assert (
        http_("POST", "/v1/events", dict(events=[dict(item_id="a/new one", user_id="curious")]))[0]
        == 200
    )
    assert until(
        lambda: [x["title"] for x in http_("GET", "/v1/users/curious")[1]["history"]]
        == [new["title"]]
    )


def listed(http_, path):
    "Ask for a list of items; return their ids and the codes of its fallbacks."
    status, said, _, _ = http_("GET", path)
    assert status == 200, said
    found = ListAnswer.model_validate(said)
    assert all(item.in_stock for item in found.items)
    return [item.item_id for item in found.items], [note.code for note in found.fallbacks]


@pytest.fixture
def engine(p):
    "The recommender of the run in this process, on the same store."
    told = read_json(run_dir(p) / "valkey/valkey.json")
    return online_parts(p, told["url"])[0]


def test_similar_and_trending_items_are_those_of_the_process(http_, engine):
    bundle = engine.bundle
    for row in (0, 7, 300, int(np.flatnonzero(~bundle.in_stock)[0])):  # of one that is sold out
        item = bundle.names[row].decode()
        found = engine.similar(item, 9)
        assert listed(http_, f"/v1/items/{item}/similar?k=9") == (found.item_ids, [])
        assert item not in found.item_ids and len(found.item_ids) == 9
        everything = engine.similar(item, 1000)
        assert len(everything.rows) == bundle.in_stock.sum() - bundle.in_stock[row]
        capped = listed(http_, f"/v1/items/{item}/similar?k=9&max_per_category=1")[0]
        categories = [bundle.categories[bundle.row_of[name]] for name in capped]
        assert len(set(categories)) == len(categories)
    for category in ("", "garden"):
        found = engine.trending(category, 12)
        assert listed(http_, f"/v1/trending?category={category}&k=12") == (found.item_ids, [])
        every_one = engine.trending(category, 1000)
        assert bundle.in_stock[every_one.rows].all() and found.fallbacks == []
    status, said, _, _ = http_("GET", "/v1/trending?category=spaceships")
    assert status == 404 and "category: no such category; there are" in said["error"]
    assert "garden" in said["error"]


def test_what_many_choose_is_trending_a_moment_later(http_, engine):
    before = listed(http_, "/v1/trending?category=garden&k=1000")[0]
    last = before[-1]
    buyers = [dict(item_id=last, user_id=f"fan {i}", event_type="purchase") for i in range(100)]
    for _ in range(8):  # 800 events: more than any item of the tiny run has
        for event in buyers:
            event["event_id"] = secrets.token_hex(8)
        assert http_("POST", "/v1/events", dict(events=buyers))[0] == 200
    first = "/v1/trending?category=garden&k=1"
    assert until(lambda: listed(http_, first)[0] == [last], 60)
    assert engine.trending("garden", 1).item_ids == [last]


def test_a_new_item_is_found_by_its_content(http_):
    like = http_("GET", "/v1/items?category=garden&limit=1")[1]["items"][0]
    new = dict(
        item_id="its twin",
        title=like["title"],
        category=like["category"],
        subcategory=like["subcategory"],
        price=like["price"],
    )
    status, said, _, _ = http_("POST", "/v1/items", new)
    assert status == 200, said
    own, _ = listed(http_, "/v1/items/its%20twin/similar?k=20")
    assert like["item_id"] in own and "its twin" not in own
    answer = http_("GET", "/v1/items/its%20twin/similar?k=10")[1]
    same = [item["category"] == "garden" for item in answer["items"]]
    assert sum(same) >= 6  # of 10; a tenth of the catalogue is of this category
    assert "its twin" in listed(http_, f"/v1/items/{like['item_id']}/similar?k=20")[0]
    assert "its twin" in listed(http_, "/v1/trending?category=garden&k=1000")[0]


def test_readyz_tells_of_the_processes_and_of_the_worker(http_):
    def ready():
        return Health.model_validate(http_("GET", "/readyz")[1])

    assert until(lambda: ready().worker and "worker" in ready().processes, 60), ready()
    found = ready()
    assert {child.state for child in found.processes.values()} <= {"running", "starting", "waiting"}
    assert len(found.processes) >= 3, found.processes
    assert until(lambda: ready().worker.last_success > found.worker.last_success)
    page = http_("GET", "/metrics")[1].decode()
    assert 'recsys_process_restarts{process="worker"}' in page and "recsys_worker_lag " in page


def test_metrics_and_log(stack):
    gateway, _, process = stack
    gateway.page(user_id="a very private name", k=2, request_id="private too")
    assert gateway("POST", "/v1/recommendations", b" " * (2**20 + 1))[0] == 413
    page = gateway("GET", "/metrics")[1].decode()
    assert "nv_inference_request_success" in page  # Triton's own, which has no port
    assert (
        'recsys_gateway_seconds_count{operation="recommend",status="200"}' in page
        and 'recsys_gateway_refused_total{status="413"}' in page
        and "recsys_gateway_seen_dropped 0.0" in page
    )
    assert until(lambda: '"status": 413' in Path(process.log).read_text())  # written in a thread
    log = Path(process.log).read_text()
    lines = [json.loads(x) for x in log.splitlines() if x.startswith("{")]
    assert {"time", "id", "operation", "status", "ms"} <= set(lines[-1]) and all(
        x["status"] != 500 for x in lines
    )
    for secret in ("private", gateway.key, "u0001"):
        assert secret not in log
    # operations may be named after visitors; nothing else is
    assert "visitor" not in json.dumps([line | dict(operation="") for line in lines])


def test_it_follows_a_new_version(p, stack, tmp_path):
    "Titles, explanations and events are those of the bundle that answers."
    import shutil

    from recsys.core.runs import stage_dir, write_json
    from recsys.recommend.bundle import Bundle
    from recsys.serve.ensemble import ensemble_from
    from recsys.serve.repository import next_version, pinned_version

    gateway, server, _ = stack

    def options():
        return gateway("GET", "/v1/options")[1]["bundle_version"].partition("+")[0]

    first, old, other = options(), pinned_version(server.repository), tmp_path / "bundle"
    shutil.copytree(stage_dir(p, "bundle"), other)
    write_json(
        other / "manifest.json", read_json(other / "manifest.json") | dict(version="another")
    )
    for version, folder, name in (
        (next_version(server.repository), other, "another"),
        (old, stage_dir(p, "bundle"), first),
    ):
        members, ensemble = ensemble_from(Bundle(folder))
        server.deploy(members, ensemble, version, folder if name == "another" else None)
        assert until(
            lambda: gateway.page(k=2)["bundle_version"].partition("+")[0] == name
            and options() == name
        )
        assert gateway("GET", "/v1/explanations?item_id=i001")[0] == 200


def test_triton_hangs(p, stack):
    """What waits is answered in time with popular items; what would wait behind too much is
    turned away; the breaker spares the rest the wait. The log has what was shown.
    """
    gateway, server, process = stack
    # the gateway's channel to Triton is open, whatever was tested before
    assert until(lambda: gateway.page(k=3)["source"] == "two-tower")
    pids = session_processes(server.pid)
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    try:
        answers = []
        threads = [
            threading.Thread(
                target=lambda: answers.append(
                    gateway("POST", "/v1/recommendations", dict(k=3, timeout_ms=600))
                )
            )
            for _ in range(60)
        ]
        for t in threads:
            t.start()
        for t in threads:
            t.join()
        statuses = [a[0] for a in answers]
        assert set(statuses) == {200, 503} and statuses.count(503) >= 10
        for status, said, headers, _ in answers:
            assert (
                (headers["retry-after"] == "1")
                if status == 503
                else (
                    said["source"] == "popularity"
                    and said["fallbacks"][0]["code"] == "triton_failed"
                )
            ), said.get("fallbacks", said)
        gateway.page(k=3)  # waits for the gateway's own timeout, and opens the breaker
        for _ in range(5):
            status, said, _, _ = gateway(
                "POST",
                "/v1/recommendations",
                dict(k=3, exclude=[said["items"][0]["item_id"]] if "items" in said else []),
            )
            assert (
                status == 200
                and len(said["items"]) == 3
                and said["fallbacks"][0]["stage"] == "triton"
            )
        # the breaker is open: the gateway no longer waits for Triton, and its log says why
        log = Path(process.log)
        assert until(lambda: '"why": "triton: Unavailable' in log.read_text())
        assert "did not answer in" in log.read_text()
    finally:
        for pid in pids:
            os.kill(pid, signal.SIGCONT)
    assert until(lambda: gateway.page(k=3)["source"] == "two-tower")
    popular = [said for status, said, _, _ in answers if status == 200]
    shown = {said["request_id"]: [item["item_id"] for item in said["items"]] for said in popular}

    def logged_pages():
        rows = [row for row in logged(p, "impressions") if POPULAR_PAGE in row["policy"]]
        return {row["request_id"]: row["item_ids"] for row in rows}

    assert until(lambda: shown.items() <= logged_pages().items(), 30)


def test_it_finishes_what_it_began(p, stack):
    """A request that waits for Triton when SIGTERM comes is still answered; new connections are
    refused; the exit code is 0.
    """
    _, server, _ = stack
    port = free_port()
    command = [
        sys.executable,
        "-c",
        "from recsys.operate.cli import main; main()",
        "gateway",
        "--run",
        run_dir(p),
        "--set",
        f"GATEWAY_PORT={port}",
        "--set",
        f"TRITON_URL={server.grpc}",
        "--set",
        "GATEWAY_TIMEOUT_MS=1500",
    ]
    with OwnedProcess(
        command,
        run_dir(p) / "second.log",
        "gateway",
        {n: v for n, v in os.environ.items() if n != "RECSYS_API_KEY"},
    ) as second:
        ask = Http(port)
        second.wait_ready(lambda: _connects(port))
        assert ask("DELETE", "/v1/users/u", key="")[0] == 403  # no key, no writes
        ask.page(k=3)
        pids, found = session_processes(server.pid), []
        for pid in pids:
            os.kill(pid, signal.SIGSTOP)
        try:
            waiting = threading.Thread(
                target=lambda: found.append(ask("POST", "/v1/recommendations", dict(k=3)))
            )
            waiting.start()
            time.sleep(0.4)
            second.process.terminate()
            assert until(lambda: not _connects(port), 3)
            waiting.join()
        finally:
            for pid in pids:
                os.kill(pid, signal.SIGCONT)
        assert found[0][0] == 200 and found[0][1]["source"] == "popularity"
        assert second.process.wait(60) == 0


def _connects(port):
    with socket.socket() as s:
        return s.connect_ex(("127.0.0.1", port)) == 0


def test_valkey_is_killed_and_returns(p, stack):
    gateway = stack[0]
    told = read_json(run_dir(p) / "valkey/valkey.json")
    os.kill(told["pid"], signal.SIGSTOP)
    event = dict(events=[dict(item_id="i001", user_id="late", event_id="late")])
    assert until(lambda: gateway("POST", "/v1/events", event)[0] == 503, 5)
    assert gateway("POST", "/v1/events", event)[1]["code"] == "store_gone"
    page = gateway.page(user_id="u0001", k=4)
    assert (
        len(page["items"]) == 4
        and {f["stage"] for f in page["fallbacks"]} == {"user_features", "seen_filter"}
        and page["source"] == "two-tower"
    )
    assert says_nothing_of_the_server(page)
    status, why, _, _ = gateway("GET", "/v1/explanations?item_id=i001&user_id=u0001&k=4")
    assert status == 200 and why["fallbacks"] and says_nothing_of_the_server(why)
    ids, codes = listed(gateway, "/v1/trending?category=garden&k=5")
    assert len(ids) == 5 and codes == ["trending_failed"]
    assert says_nothing_of_the_server(gateway("GET", "/v1/trending")[1])
    assert listed(gateway, "/v1/items/i001/similar?k=5")[1] == []  # it asks no store
    status, said, _, _ = gateway("GET", "/readyz")
    assert (status, said["triton"], said["valkey"]) == (200, True, False)
    assert (
        gateway("GET", "/v1/users/u0001")[0] == 503
        and gateway("DELETE", "/v1/users/u0001")[0] == 503
    )
    os.kill(told["pid"], signal.SIGKILL)  # it is started again at the same address
    assert until(lambda: gateway("POST", "/v1/events", event)[0] == 200) and until(
        lambda: gateway.page(user_id="u0001")["fallbacks"] == []
    )


def test_a_store_that_cannot_write(p, stack):
    """As with a full disk: events are refused with a code, pages go on; with room again the events
    that were sent again count once.
    """
    gateway = stack[0]
    client = connect(read_json(run_dir(p) / "valkey/valkey.json")["url"], 5000)
    event = dict(events=[dict(item_id="i001", user_id="full", event_id="full")])
    client.config_set("maxmemory", "1mb")
    try:
        status, said, _, _ = gateway("POST", "/v1/events", event)
        assert (status, said["code"]) == (503, "store_full") and "disk or memory" in said["error"]
        page = gateway.page(user_id="u0001", k=4)
        assert (page["source"], page["fallbacks"]) == ("two-tower", [])
    finally:
        client.config_set("maxmemory", 0)
    assert [gateway("POST", "/v1/events", event)[1]["results"][0]["result"] for _ in "ab"] == [
        "new",
        "duplicate",
    ]
    assert until(lambda: not client.exists("{u:full}:outbox"), 60)


def test_triton_is_killed_and_returns(stack):
    "Last: popular items with the reason, at once; the gateway goes on, and Triton comes back."
    gateway, server, _ = stack
    os.kill(server.pid, signal.SIGKILL)
    assert until(lambda: gateway.page(k=1)["source"] == "popularity", 5)
    page = gateway.page(user_id="u0001", k=4)
    assert (
        page["source"] == "popularity"
        and len(page["items"]) == 4
        and page["fallbacks"][0]["reason"] == FALLBACKS["triton_failed"].fails
    )
    first = page["items"][0]["item_id"]
    status, page, _, _ = gateway(
        "POST", "/v1/recommendations", dict(user_id="u0001", k=4, exclude=[first])
    )
    assert status == 200 and first not in [x["item_id"] for x in page["items"]]
    assert gateway("GET", "/readyz")[1]["triton"] is False and gateway("GET", "/healthz")[0] == 200
    assert until(lambda: gateway.page(k=1)["source"] == "two-tower", 60)


def test_popular_items_obey_the_rules_of_a_request(stack):
    "Without Triton, cap, factors, pins and exclusions hold, and what has no effect is named."
    gateway, server, _ = stack
    os.kill(server.pid, signal.SIGSTOP)  # a server that ends would be started again
    try:
        assert until(lambda: gateway.page(k=1)["source"] == "popularity")
        check_popular_items(gateway)
    finally:
        os.kill(server.pid, signal.SIGCONT)
    assert until(lambda: gateway.page(k=1)["source"] == "two-tower", 60)


def check_popular_items(gateway):
    "Ask for popular items with rules."
    plain = gateway.page(k=6)["items"]
    assert all(item["in_stock"] for item in plain)
    capped = gateway.page(k=6, max_per_category=1)["items"]
    assert len({item["category"] for item in capped}) == len(capped) > 1
    third = plain[2]["item_id"]
    ruled = gateway.page(
        k=3,
        exclude=[plain[0]["item_id"]],
        rules=[
            dict(item_id=third, place=1),
            dict(item_id=plain[1]["item_id"], factor=0.01),
            dict(item_id=plain[0]["item_id"], place=2),
        ],
    )
    shown = [item["item_id"] for item in ruled["items"]]
    assert shown[0] == third and plain[1]["item_id"] not in shown
    assert plain[0]["item_id"] not in shown and len(shown) == 3
    assert [note.partition(":")[0] for note in ruled["notes"]] == ["rules.2"]
    sampled = gateway.page(k=3, temperature=1.0, diversity=0.3, seed=1)
    assert [x["item_id"] for x in sampled["items"]] == [x["item_id"] for x in plain[:3]]
    assert [note.partition(":")[0] for note in sampled["notes"]] == ["temperature", "diversity"]


def test_the_demo_leaves_nothing(tmp_path):
    "`recsys demo` as a person starts and ends it."
    run = tiny_run(tmp_path / "outputs") / "tiny"
    log = open(tmp_path / "out", "wb")
    demo = subprocess.Popen(
        [
            Path(sys.executable).with_name("recsys"),
            "demo",
            "--run",
            run,
            "--set",
            "GATEWAY_PORT=0",
            "--no-browser",
        ],
        cwd=ROOT,
        stdout=log,
        stderr=subprocess.STDOUT,
    )

    def said():
        return (tmp_path / "out").read_text()

    try:
        assert (
            until(lambda: "ready: http" in said() or demo.poll() is not None, 90)
            and demo.poll() is None
        ), said()
        port = int(said().split("ready: http://127.0.0.1:")[1].split("/")[0])
        page = Http(port)("GET", "/")[1].decode()
        assert "<title>Shop window</title>" in page
    finally:
        demo.send_signal(signal.SIGINT)
        code = demo.wait(60)
    assert code == 0 and "stopping" in said() and "Traceback" not in said(), said()
    left = [d for d in os.listdir("/proc") if d.isdigit() and str(run) in _command(d)]
    assert left == [], [_command(d) for d in left]


def _command(pid):
    try:
        return Path(f"/proc/{pid}/cmdline").read_text()
    except OSError:
        return ""
