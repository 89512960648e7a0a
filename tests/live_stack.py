"""What is live with a gateway in front, under traffic: shared by the failure matrix and the soak.

Everything is started as an operator starts it, by commands, and asked as an application asks it,
through the gateway.
"""

import http.client
import json
import os
import re
import secrets
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from pathlib import Path

import pyarrow.parquet as pq
from tiny import ROOT, tiny_run

from recsys.core.runs import read_json
from recsys.online.valkey import connect, free_port
from recsys.operate.bundle_store import keep_bundle
from recsys.operate.promote import move
from recsys.serve.triton_process import session_processes

COMMAND = "import sys; sys.argv[0] = 'recsys'; from recsys.operate.cli import main; main()"
ANY_PORTS = [f"{name}=0" for name in ("HTTP_PORT", "GRPC_PORT", "METRICS_PORT")]
NORMAL = "200 two-tower"  # a page as it is when nothing fails


def command(*arguments):
    "Return the command line of a command of the project."
    return [sys.executable, "-u", "-c", COMMAND, *map(str, arguments)]


def until(check, seconds=60.0):
    "Return what a check finds as soon as it finds something, or its last answer."
    end = time.monotonic() + seconds
    while not (found := check()) and time.monotonic() < end:
        time.sleep(0.1)
    return found


def parent_of(pid):
    "Return the parent of a process, 0 where it is gone."
    try:
        return int(Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[1])
    except OSError:
        return 0


def command_line(pid):
    "Return the command line of a process, '' where it is gone."
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode()
    except OSError:
        return ""


def descendants(pid):
    "Return the processes that a process has started, and those that they have started."
    parents = {int(p.name): parent_of(p.name) for p in Path("/proc").glob("[0-9]*")}
    found, waiting = [], [pid]
    while waiting:
        parent = waiting.pop()
        children = [child for child, its_parent in parents.items() if its_parent == parent]
        found += children
        waiting += children
    return found


class LiveStack:
    "A promoted run that `recsys serve --live` serves, and a gateway in front of it."

    def __init__(self, folder):
        self.home = tiny_run(Path(folder) / "outputs")
        self.run = self.home / "first"
        (self.home / "tiny").rename(self.run)
        self.key = secrets.token_hex(8)
        self.port = free_port()
        self.processes = []
        self.environment = {**os.environ, "PYTHONPATH": str(ROOT), "RECSYS_API_KEY": self.key}

    def start(self, name, *arguments):
        "Start a command in the background; its output goes to a file."
        with open(self.home / f"{name}.out", "wb") as output:
            process = subprocess.Popen(
                command(*arguments),
                cwd=ROOT,
                env=self.environment,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self.processes.append(process)
        return process

    def __enter__(self):
        online = read_json(self.run / "triton/online.json")
        version = keep_bundle(
            self.home, self.run / "bundle", run="first", online=online, metrics={}
        )
        move(self.home, version, [])
        sets = [part for name in ANY_PORTS for part in ("--set", name)]
        self.server = self.start("serve", "serve", "--live", "--set", f"OUTPUTS={self.home}", *sets)
        said = self.home / "serve.out"

        def has_started():
            return "ready:" in said.read_text() or self.server.poll() is not None

        until(has_started, 600)
        assert "ready:" in said.read_text(), said.read_text()[-3000:]
        told = read_json(self.replica / "server.json")
        self.gateway = self.start(
            "gateway",
            "gateway",
            "--run",
            self.run,
            "--set",
            f"GATEWAY_PORT={self.port}",
            "--set",
            f"TRITON_URL={told['grpc']}",
        )
        ready = until(lambda: self.ask("GET", "/readyz")[1].get("status") == "ready", 120)
        assert ready, (self.home / "gateway.out").read_text()[-3000:]
        return self

    def __exit__(self, *_):
        for process in reversed(self.processes):
            children = descendants(process.pid)
            for pid in (process.pid, *children):
                self.signal(pid, signal.SIGCONT)
            process.send_signal(signal.SIGINT)
            try:
                process.wait(60)
            except subprocess.TimeoutExpired:
                for pid in (process.pid, *children):
                    self.signal(pid, signal.SIGKILL)

    @property
    def replica(self):
        "The folder of the server's state."
        return self.home / "live/replicas/1"

    @staticmethod
    def signal(pid, number):
        "Send a signal to a process; one that is gone is no error."
        assert pid > 0, "no such process runs"
        try:
            os.kill(pid, number)
        except ProcessLookupError:
            return

    def triton(self):
        "Return the process id of tritonserver."
        return read_json(self.replica / "server.json")["pid"]

    def valkey(self):
        "Return the process id of Valkey."
        return read_json(self.run / "valkey/valkey.json")["pid"]

    def client(self):
        "Return a client of Valkey."
        return connect(read_json(self.run / "valkey/valkey.json")["url"], 5000)

    def worker(self):
        "Return the process id of the worker, 0 where none runs."
        found = descendants(self.server.pid)
        workers = [pid for pid in found if re.search(r"\bworker --run\b", command_line(pid))]
        return workers[0] if workers else 0

    def stubs(self):
        "Return the process ids of Triton's stubs."
        session = session_processes(self.triton())
        return sorted(pid for pid in session if "python_backend_stub" in command_line(pid))

    def children(self):
        "Return the process ids of everything that runs."
        found = [self.server.pid, self.gateway.pid, self.triton(), self.valkey()]
        found += [pid for process in self.processes for pid in descendants(process.pid)]
        return sorted({*found, *session_processes(self.triton())})

    def ask(self, method, path, body=None, seconds=10.0):
        "Return status and content of an answer of the gateway; 0 where there is none."
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=seconds)
        try:
            headers = {"Content-Type": "application/json", "X-API-Key": self.key}
            data = None if body is None else json.dumps(body)
            connection.request(method, path, data, headers)
            answer = connection.getresponse()
            return answer.status, json.loads(answer.read())
        except (OSError, http.client.HTTPException, ValueError) as error:
            return 0, dict(error=type(error).__name__)
        finally:
            connection.close()

    def alarms(self):
        "Return the codes of the alarms that hold."
        return [alarm["code"] for alarm in self.ask("GET", "/readyz")[1].get("alarms") or []]

    def is_ready(self):
        "Return whether no alarm holds but that of dead letters, which stays for an hour."
        return set(self.alarms()) <= {"dead_letters"}


def page_outcome(status, page):
    "Return status, source and fallbacks of a page as a text."
    if status != 200:
        return f"{status or page['error']}"
    codes = sorted({fallback["code"] for fallback in page["fallbacks"]})
    return f"200 {page['source']}" + (f" ({', '.join(codes)})" if codes else "")


class Traffic:
    "Steady traffic: pages that are asked once, events that are sent until they are acknowledged."

    def __init__(self, stack, pages=10.0, events=2.0, name="traffic"):
        self.stack, self.rates, self.name = stack, dict(page=pages, event=events), name
        self.rows = []  # (moment, seconds, kind, outcome)
        self.acknowledged = {}  # event id -> item id
        self.lock, self.done = threading.Lock(), threading.Event()
        items = stack.ask("GET", "/v1/items?limit=100")[1]["items"]
        self.items = [item["item_id"] for item in items]
        self.waiting = 0  # events that are not acknowledged yet
        self.runners = [threading.Thread(target=self.run, args=(kind,)) for kind in self.rates]

    def __enter__(self):
        for runner in self.runners:
            runner.start()
        return self

    def __exit__(self, *_):
        self.done.set()
        for runner in self.runners:
            runner.join()
        until(lambda: not self.waiting, 60)

    def run(self, kind):
        "Ask at a steady rate, however long an answer takes."
        began, number = time.monotonic(), 0
        while not self.done.is_set():
            ask = self.page if kind == "page" else self.event
            if kind == "event":
                self.waiting += 1
            threading.Thread(target=ask, args=(number,), daemon=True).start()
            number += 1
            self.done.wait(max(0.0, began + number / self.rates[kind] - time.monotonic()))

    def note(self, began, kind, outcome):
        "Keep an outcome."
        with self.lock:
            self.rows.append((began, time.monotonic() - began, kind, outcome))

    def page(self, number):
        "Ask for a page."
        began = time.monotonic()
        body = dict(user_id=f"u{number % 20:04d}", k=5)
        status, page = self.stack.ask("POST", "/v1/recommendations", body)
        self.note(began, "page", page_outcome(status, page))

    def event(self, number):
        "Send an event until it is acknowledged."
        event = dict(
            event_id=f"{self.name}-{number}",
            user_id=f"{self.name} visitor {number % 7}",
            item_id=self.items[number % len(self.items)],
        )
        for _ in range(120):
            began = time.monotonic()
            status, said = self.stack.ask("POST", "/v1/events", dict(events=[event]))
            result = said["results"][0]["result"] if status == 200 else said["error"][:60]
            self.note(began, "event", f"{status} {result}")
            if status == 200:
                with self.lock:
                    self.acknowledged[event["event_id"]] = event["item_id"]
                    self.waiting -= 1
                return
            time.sleep(0.5)
        with self.lock:
            self.waiting -= 1

    def since(self, moment):
        "Return the outcomes since a moment."
        with self.lock:
            return sorted(row for row in self.rows if row[0] >= moment)

    def is_normal(self, seconds=2.0):
        "Return whether all answers of the last seconds are as they are when nothing fails."
        rows = self.since(time.monotonic() - seconds)
        pages = [outcome for _, _, kind, outcome in rows if kind == "page"]
        events = [outcome for _, _, kind, outcome in rows if kind == "event"]
        return (
            len(pages) >= seconds * self.rates["page"] / 2
            and set(pages) == {NORMAL}
            and set(events) <= {"200 new", "200 duplicate"}
        )


def logged_events(run):
    "Return how often each event id stands in the event log of a run."
    counts = Counter()
    for file in (run / "events").glob("dt=*/*.parquet"):
        counts.update(pq.read_table(file, columns=["event_id"])["event_id"].to_pylist())
    return counts


def put_aside(stack):
    "Return the ids of events that lie in the dead letters."
    letters = stack.client().xrange("events:dead")
    texts = [fields.get(b"field:event", b"{}") for _, fields in letters]
    return {json.loads(text).get("event_id") for text in texts}


def count_events(stack, acknowledged, seconds=60.0):
    """Return how many acknowledged events are lost and doubled once the worker has caught up.

    An event that the worker can't use is not lost: it is put aside, into the dead letters.
    """

    def missing():
        counts = logged_events(stack.run)
        return [event for event in acknowledged if not counts[event]]

    until(lambda: set(missing()) <= put_aside(stack), seconds)
    counts, aside = logged_events(stack.run), put_aside(stack)
    return dict(
        acknowledged=len(acknowledged),
        lost=len([event for event in missing() if event not in aside]),
        put_aside=len(aside & set(acknowledged)),
        doubled=sum(counts[event] > 1 for event in acknowledged),
    )
