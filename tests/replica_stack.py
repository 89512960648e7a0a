"""Several real tritonservers behind one name, as the pods of a headless service are: a resolver
for the HTTP of promotions, a name server for gRPC, and traffic over one channel.
"""

import asyncio
import contextlib
import json
import os
import random
import re
import signal
import socket
import struct
import subprocess
import threading
import time
from collections import Counter
from unittest import mock

import gevent.socket
from rollover import requests_of, right_answers, two_runs

from recsys.core.params import Params, RequestRefused
from recsys.core.runs import read_json
from recsys.online.valkey import Unavailable, free_port, valkey_for
from recsys.operate.bundle_store import after_promotion, keep_bundle, read_live
from recsys.operate.pods import clock_environment, triton_command
from recsys.operate.promote import fill_online, lay_out, live_repository, move, run_promote
from recsys.serve.server import ModelControl, send_http
from recsys.serve.serving import online_env, run_params
from recsys.serve.triton_client import TritonPages
from recsys.serve.triton_process import session_processes, sweep_memory

NAME = "triton.test"
HOSTS = ("127.0.0.2", "127.0.0.3", "127.0.0.4")
LATE_HOST = "127.0.0.5"
KEY = "the key of the test"
CONNECTION_SECONDS = 5  # until a connection of gRPC is ended; 30 in a pod


@contextlib.contextmanager
def shuffled_names(addresses):
    "Resolve `NAME` to a list of addresses that may change, in another order for each question."
    known = socket.getaddrinfo

    def resolve(host, port, *args, **options):
        if host not in (NAME, NAME.encode()):
            return known(host, port, *args, **options)
        if not addresses:
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        order = random.sample(addresses, len(addresses))
        return [row for address in order for row in known(address, port, *args, **options)]

    with (
        mock.patch.object(socket, "getaddrinfo", resolve),
        mock.patch.object(gevent.socket, "getaddrinfo", resolve),
    ):
        yield


class NameServer:
    """A name server on 127.0.0.1 that answers for every name with a list that may change.

    Source: RFC 1035, 4.1; the records lie in another order in each answer, their time to live is 0.
    """

    def __init__(self, addresses):
        self.addresses = addresses
        self.socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.socket.bind(("127.0.0.1", 0))
        self.port = self.socket.getsockname()[1]
        self.thread = threading.Thread(target=self.serve, daemon=True)

    def target(self, port):
        "Return what a channel of gRPC is opened with to ask this name server."
        return f"dns://127.0.0.1:{self.port}/{NAME}:{port}"

    def serve(self):
        "Answer until the socket is closed."
        with contextlib.suppress(OSError):
            while True:
                query, client = self.socket.recvfrom(512)
                self.socket.sendto(self.answer(query), client)

    def answer(self, query):
        "Return the message that answers a query: addresses of IPv4, and nothing of other types."
        end = query.index(b"\0", 12) + 5  # of the question: labels, type, class
        is_ipv4 = query[end - 4 : end - 2] == b"\0\1"
        found = random.sample(self.addresses, len(self.addresses)) if is_ipv4 else []
        head = query[:2] + struct.pack(">5H", 0x8580, 1, len(found), 0, 0)
        record = b"\xc0\x0c" + struct.pack(">2HIH", 1, 1, 0, 4)
        return head + query[12:end] + b"".join(record + socket.inet_aton(ip) for ip in found)

    def __enter__(self):
        self.thread.start()
        return self

    def __exit__(self, *_):
        self.socket.close()


class PageTraffic:
    "Ask over one channel without a pause, as a gateway does, for as long as the block lasts."

    def __init__(self, target, requests, right, at_once=3, silence=20):
        self.pages = TritonPages(target, silence=silence)
        self.requests, self.right, self.at_once = requests, right, at_once
        self.answers, self.failed, self.mixed = Counter(), [], []
        self.done = threading.Event()
        self.thread = threading.Thread(target=lambda: asyncio.run(self.run()))

    async def run(self):
        "Ask from several tasks; begin when the channel is connected."
        while not await self.pages.ready() and not self.done.is_set():
            await asyncio.sleep(0.1)
        await asyncio.gather(*(self.ask(i) for i in range(self.at_once)))
        await self.pages.close()

    async def ask(self, i):
        "Ask one request after the other, and compare each page with the right one."
        while not self.done.is_set():
            n, i = i % len(self.requests), i + self.at_once
            try:
                page = await self.pages.ask(60, True, self.requests[n])
            except (Unavailable, RequestRefused) as error:
                self.failed.append(str(error))
                await asyncio.sleep(0.01)
                continue
            version = page["bundle_version"][0]
            self.answers[version] += 1
            fallbacks = json.loads(page["reasons"][0])["fallbacks"]
            if page["item_ids"] != self.right.get((version, n)) or fallbacks:
                self.mixed.append((n, version, page["item_ids"], fallbacks))

    def wait(self, n, seconds=400):
        "Wait for n more answers."
        wanted, end = self.answers.total() + n, time.monotonic() + seconds
        while self.answers.total() < wanted:
            assert time.monotonic() < end and self.thread.is_alive(), (
                f"{self.answers.total()} of {wanted} answers, {self.failed[:3]}"
            )
            time.sleep(0.02)

    def __enter__(self):
        self.thread.start()
        return self

    def __exit__(self, *_):
        self.done.set()
        self.thread.join()


class ReplicaStack:
    "Two stored bundles, the first one live, and servers on addresses of this machine."

    def __init__(self, home, url):
        self.home, self.url = home, url
        names = ("HTTP_PORT", "GRPC_PORT", "METRICS_PORT")
        self.ports = Params({name: free_port() for name in names})
        self.addresses = []  # what the name stands for
        self.running = {}  # host -> process

    @property
    def replicas(self):
        "What `REPLICAS` is on the cluster."
        return f"http://{NAME}:{self.ports.HTTP_PORT}"

    def start(self, *hosts):
        "Start servers as `recsys pod triton` does, and wait until they are ready."
        for host in hosts:
            command, environment = triton_command(
                live_repository(self.home),
                KEY,
                host,
                self.ports,
                connection_seconds=CONNECTION_SECONDS,
            )
            run = run_params(self.home / read_live(self.home)["online_run"])
            environment |= online_env(run, self.url) | clock_environment(self.url)
            with open(self.home / f"triton {host}.log", "ab") as log:
                self.running[host] = subprocess.Popen(
                    command, env=environment, stdout=log, stderr=log, start_new_session=True
                )
        end = time.monotonic() + 300
        for host in hosts:
            while not self.control(host).ready():
                log = (self.home / f"triton {host}.log").read_text(errors="replace")
                assert time.monotonic() < end and self.running[host].poll() is None, log[-3000:]
                time.sleep(0.2)

    def control(self, host):
        "Return the control of one server."
        url = f"http://{host}:{self.ports.HTTP_PORT}"
        return ModelControl(url, KEY, live_repository(self.home))

    def requests_at(self, host):
        "Return how many requests a server has answered."
        page = send_http(f"http://{host}:{self.ports.METRICS_PORT}", "/metrics")[1]
        rows = re.findall(
            r'nv_inference_request_success\{model="recommender",version="\d+"\} (\d+)', page
        )
        return sum(map(int, rows))

    def shares(self, traffic, hosts, n):
        "Return the share of each server in about n requests."
        before = {host: self.requests_at(host) for host in hosts}
        traffic.wait(n)
        counts = {host: self.requests_at(host) - before[host] for host in hosts}
        return {host: count / sum(counts.values()) for host, count in counts.items()}

    def move_on(self):
        "Promote the bundle that is not live; return what `move` reports, and the version."
        live = read_live(self.home)
        version = next(name for name in self.versions if name != live["version"])
        return move(self.home, version, after_promotion(live, version), self.replicas), version

    def stop(self, host, how=signal.SIGTERM):
        "End a server; return its exit code."
        process = self.running.pop(host)
        if process.poll() is None:
            process.send_signal(how)
        code = process.wait(60)
        for pid in session_processes(process.pid):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        sweep_memory(f"recsys_pod_{host}_")
        return code


@contextlib.contextmanager
def replica_stack(home):  # yields ReplicaStack
    """Make two runs of the tiny one, promote the first while the name has no address, fill Valkey,
    and resolve `NAME` for as long as the block lasts.
    """
    two_runs(home)
    first = run_params(home / "first", GATE_CASES=600, BOOTSTRAP=100)
    with contextlib.ExitStack() as stack:
        stack.enter_context(mock.patch.dict(os.environ, RECSYS_ADMIN_KEY=KEY))
        replicas = ReplicaStack(home, stack.enter_context(valkey_for(first)))
        stack.enter_context(shuffled_names(replicas.addresses))
        replicas.first_report = run_promote(Params(first, REPLICAS=replicas.replicas))
        second = keep_bundle(
            home,
            home / "second/bundle",
            run="second",
            online=read_json(home / "second/triton/online.json"),
            data="the same",
            metrics={},
        )
        replicas.versions = [read_live(home)["version"], second]
        fill_online(home, replicas.versions[0], replicas.url)
        lay_out(home)
        replicas.requests = requests_of(home / "first")
        replicas.right = right_answers(home, replicas.url, replicas.versions, replicas.requests)
        try:
            yield replicas
        finally:
            for host in list(replicas.running):
                replicas.stop(host, signal.SIGKILL)
