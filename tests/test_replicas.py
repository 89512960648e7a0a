"""Three real tritonservers behind one name: promotions reach all of them, requests are spread over
them, and servers come and go without a failed page.
"""

import time

import pytest
from replica_stack import (
    CONNECTION_SECONDS,
    HOSTS,
    LATE_HOST,
    NameServer,
    PageTraffic,
    replica_stack,
)
from tiny import tiny_run

from recsys.core.runs import read_json
from recsys.operate.bundle_store import read_live
from recsys.operate.promote import answered_by

pytestmark = pytest.mark.xdist_group("replicas")  # one set of servers for all, in this order

MOVES = 6  # `make prove ARGS=replicas_move_together` makes 50


@pytest.fixture(scope="module")
def stack(tmp_path_factory):
    with replica_stack(tiny_run(tmp_path_factory.mktemp("replicas") / "outputs")) as stack:
        yield stack


@pytest.fixture(scope="module")
def traffic(stack):
    "Three servers, one channel to their name, and requests on it without a pause."
    stack.start(*HOSTS)
    stack.addresses[:] = HOSTS
    with (
        NameServer(stack.addresses) as names,
        PageTraffic(names.target(stack.ports.GRPC_PORT), stack.requests, stack.right) as traffic,
    ):
        traffic.wait(30)
        yield traffic


def in_order(traffic):
    "Assert that no request has failed, and that each page is that of the bundle that it names."
    assert (traffic.failed[:3], traffic.mixed[:2]) == ([], [])


def within_a_tenth(shares):
    "Return whether no share is further than 10 % from an equal one."
    equal = 1 / len(shares)
    return all(abs(share - equal) <= 0.1 * equal for share in shares.values())


def test_the_first_promotion_finds_no_address_and_says_so(stack):
    notes = read_json(stack.home / "first/promote/stage.json")["notes"]
    assert stack.first_report["replicas"] == []
    assert any(f"REPLICAS: {stack.replicas} has no address" in note for note in notes), notes
    assert not any("recsys serve --live" in note for note in notes)


def test_every_promotion_moves_every_server_and_no_request_fails(stack, traffic):
    for _ in range(MOVES):
        report, version = stack.move_on()
        states = [(row["ready"], row["bundle"], row["error"]) for row in report["replicas"]]
        assert states == [(True, version, "")] * len(HOSTS), report["replicas"]
        assert report["notes"] == []
        assert {answered_by(stack.control(host)) for host in HOSTS} == {version}
        traffic.wait(30)
    in_order(traffic)
    assert set(traffic.answers) == set(stack.versions)


def test_requests_are_spread_over_the_servers(stack, traffic):
    shares = stack.shares(traffic, HOSTS, 600)
    assert within_a_tenth(shares), shares
    in_order(traffic)


def test_a_server_that_appears_gets_its_share(stack, traffic):
    hosts = [*HOSTS, LATE_HOST]
    stack.start(LATE_HOST)
    before = stack.requests_at(LATE_HOST)
    stack.addresses.append(LATE_HOST)
    end = time.monotonic() + 60  # a name is asked for again after 5 s at the earliest
    while stack.requests_at(LATE_HOST) == before and time.monotonic() < end:
        traffic.wait(20)
    shares = stack.shares(traffic, hosts, 600)
    assert within_a_tenth(shares), shares
    in_order(traffic)
    print(shares, f"connections end after {CONNECTION_SECONDS} s")


def test_a_server_that_ends_costs_no_page(stack, traffic):
    "Its address stays in the answers of the name server, as for a pod that has just been deleted."
    assert stack.stop(LATE_HOST) == 0
    traffic.wait(100)
    report, version = stack.move_on()
    assert [row["ready"] for row in report["replicas"]] == [True] * len(HOSTS)
    assert len(report["notes"]) == 1 and "127.0.0.5 does not answer" in report["notes"][0]
    assert read_live(stack.home)["version"] == version
    traffic.wait(100)
    in_order(traffic)
