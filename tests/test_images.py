"""The Python environments of the images: each one is installed from its lock alone, and the roles
that the manifests give to it are started there.
"""

import collections
import contextlib
import hashlib
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import urllib.request
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from urllib.parse import urlsplit

import pytest
import yaml
from filelock import FileLock
from k8s_rules import ROOT
from packaging.requirements import Requirement
from tiny import tiny_run

from recsys.core.runs import read_json
from recsys.online.valkey import EmbeddedValkey, free_port
from recsys.operate.bundle_store import keep_bundle, read_live, set_live
from recsys.operate.pods import ROLES

BASE = yaml.safe_load((ROOT / "tests/facts/merlin-23.12.yaml").read_text())
pytestmark = [pytest.mark.xdist_group("images"), pytest.mark.needs("uv")]
IMAGES = ROOT / "k8s/images"
PYTHONS = dict(  # as in the images
    serving="3.10", training="3.10", notebook="3.10", gateway="3.11", worker="3.11"
)
OFFLINE = (
    r"error sending request|dns error|[Nn]etwork is unreachable|[Cc]onnection refused|timed out"
)
LIBRARIES = "/usr/local/nvidia/lib64"  # stands for the LD_LIBRARY_PATH of NVIDIA's image
STUB = """#!/bin/sh
echo "started: $*"
echo "libraries: $LD_LIBRARY_PATH"
"""


# ---- the environments


def find_python(version):
    "Return an interpreter of a version, from PATH, pyenv or uv, as setup.sh looks for its own."
    if sys.version_info[:2] == tuple(map(int, version.split("."))):
        return sys.executable
    home = Path.home()
    pyenv = Path(os.environ.get("PYENV_ROOT", home / ".pyenv"))
    found = [
        f"python{version}",
        *sorted(pyenv.glob(f"versions/{version}*/bin/python")),
        *sorted(home.glob(f".local/share/uv/python/cpython-{version}*/bin/python{version}")),
    ]
    question = "import sys; print('{}.{}'.format(*sys.version_info[:2]))"
    for python in found:
        with contextlib.suppress(OSError):
            answer = subprocess.run([python, "-c", question], capture_output=True, text=True)
            if answer.stdout.strip() == version:
                return str(python)
    return None


def run_uv(*arguments):
    "Run uv with the registry that setup.sh hands to it."
    settings = re.search(r"^uv_settings\(\) \{.*?^\}", (ROOT / "setup.sh").read_text(), re.M | re.S)
    return subprocess.run(
        ["sh", "-c", f'{settings[0]}\nuv_settings; exec .venv/bin/uv "$@"', "uv", *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )


def skip_offline(done):
    "Skip the test where uv could not reach the registry."
    if done.returncode and re.search(OFFLINE, done.stderr):
        pytest.skip("no package registry can be reached")


def environment_of(image):
    "Return the interpreter of an environment that has an image's lock and nothing else."
    version = PYTHONS[image]
    python = find_python(version)
    if python is None:
        pytest.skip(f"needs python{version}")
    lock = IMAGES / image / "requirements.lock"
    wanted = hashlib.sha256(lock.read_bytes() + python.encode()).hexdigest()
    home = ROOT / "outputs/.images" / image
    home.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{home}.lock"):
        done = home / "done"
        if not done.is_file() or done.read_text() != wanted:
            shutil.rmtree(home, ignore_errors=True)
            made = run_uv("venv", "-q", "--python", python, str(home))
            assert made.returncode == 0, made.stderr
            install = ("pip", "install", "-q", "--python", str(home / "bin/python"))
            made = run_uv(*install, "--require-hashes", "--no-deps", "-r", str(lock))
            skip_offline(made)
            assert made.returncode == 0, made.stderr[-3000:]
            done.write_text(wanted)
    return home / "bin/python"


def images_of_roles():
    "Return role -> images that run it, as the manifests' containers say."
    found = collections.defaultdict(set)
    for path in (*(ROOT / "k8s/base").rglob("*.yaml"), *(ROOT / "k8s/components").rglob("*.yaml")):
        for document in yaml.safe_load_all(path.read_text()):
            for role, image in roles_in(document):
                found[role].add(image)
    return found


def roles_in(node):
    "Yield the role and the image of every container within a manifest."
    if isinstance(node, dict):
        command = node.get("command", [])
        if isinstance(command, list) and command[:2] == ["recsys", "pod"]:
            yield command[2], re.search(r"recsys-(\w+):", node["image"])[1]
    for child in node.values() if isinstance(node, dict) else node:
        if isinstance(child, dict | list):
            yield from roles_in(child)


# ---- the roles


@pytest.fixture(scope="module")
def app(tmp_path_factory):
    "A folder with a copy of recsys/ and nothing else, and a stub of tritonserver beside it."
    app = tmp_path_factory.mktemp("app")
    hidden = shutil.ignore_patterns("__pycache__")
    shutil.copytree(ROOT / "recsys", app / "recsys", ignore=hidden)
    program = app / "triton/bin/tritonserver"
    program.parent.mkdir(parents=True)
    program.write_text(STUB)
    program.chmod(0o755)
    return app


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    "A store in which the bundle of the tiny run is live."
    home = tiny_run(tmp_path_factory.mktemp("images") / "outputs")
    online = read_json(home / "tiny/triton/online.json")
    keep_bundle(home, home / "tiny/bundle", run="tiny", online=online, metrics={})
    set_live(home, read_json(home / "tiny/bundle/manifest.json")["version"], [])
    return home


@pytest.fixture(scope="module")
def valkey(tmp_path_factory):
    "The address of a Valkey."
    with EmbeddedValkey(tmp_path_factory.mktemp("valkey")) as server:
        yield server.url


@pytest.fixture
def start(app, home, valkey):
    "Start roles in the environment of their image; end them with the test."
    running = []

    def start(role, *arguments, image=None, **variables):
        image = image or next(iter(images_of_roles()[role]))
        python = environment_of(image)
        log = open(home / f"{role}.log", "wb")
        process = subprocess.Popen(
            [python, "-c", "from recsys.operate.cli import main; main()", "pod", role, *arguments],
            cwd=app,
            env=dict(
                PATH=f"{app}/triton/bin:{python.parent}:/usr/bin:/bin",
                PYTHONPATH=str(app),
                LD_LIBRARY_PATH=LIBRARIES,
                HOME=str(app),
                RECSYS_OUTPUTS=str(home),
                RECSYS_VALKEY_URL=valkey,
                VALKEY_PASSWORD=urlsplit(valkey).password,
                RECSYS_ADMIN_KEY="key",
                **variables,
            ),
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
        running.append(process)
        return process, Path(log.name)

    yield start
    for process in running:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def until(check, process, seconds=180):
    "Ask until something is so, the process has ended or the time is over; return what was found."
    end = time.monotonic() + seconds
    while not (found := check()) and process.poll() is None and time.monotonic() < end:
        time.sleep(0.2)
    return found


def answers(url):
    "Return whether a path is answered with status 200."
    with contextlib.suppress(OSError), urllib.request.urlopen(url, timeout=5) as answer:
        return answer.status == 200
    return False


@contextlib.contextmanager
def asked_server():
    "Serve HTTP on a free port: every path fails; yield the port and the list of paths asked for."
    asked = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            asked.append(self.path)
            self.send_error(503)

        do_POST = do_GET

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    Thread(target=server.serve_forever, daemon=True).start()
    yield server.server_port, asked
    server.shutdown()
    server.server_close()


def test_every_role_has_an_image_and_a_test():
    tested = re.findall(r'\bstart\("(\w+)"', Path(__file__).read_text())
    assert set(images_of_roles()) == set(ROLES) == set(tested)


@pytest.mark.parametrize("image", sorted(images_of_roles()["wait"]))
def test_wait_ends_where_a_bundle_is_live(start, image):
    process, log = start("wait", image=image)
    assert process.wait(180) == 0, log.read_text()[-3000:]


def test_triton_becomes_the_server_of_its_image(start, home):
    process, log = start("triton")
    assert process.wait(180) == 0, log.read_text()[-3000:]
    text = log.read_text()
    assert f"bundle {read_live(home)['version']}" in text
    assert re.search(r"^started: .*--load-model=recommender", text, re.M), text[-3000:]
    # the server's own libraries come first: none of a Python package's
    assert f"libraries: {LIBRARIES}\n" in text


def test_follow_asks_its_server(start):
    with asked_server() as (port, asked):
        process, log = start("follow", "--set", f"HTTP_PORT={port}")
        assert until(lambda: len(asked) > 1, process), log.read_text()[-3000:]
    assert set(asked) == {"/v2/health/live"}


def test_gateway_answers(start):
    port = free_port()
    process, log = start("gateway", "--set", f"GATEWAY_PORT={port}")
    url = f"http://127.0.0.1:{port}/healthz"
    assert until(lambda: answers(url), process), log.read_text()[-3000:]


def test_worker_makes_a_step(start, home):
    port = free_port()
    process, log = start("worker", "--port", str(port))
    line = f"worker: bundle {read_live(home)['version']}\n"
    assert until(lambda: line in log.read_text(), process), log.read_text()[-3000:]
    assert until(lambda: answers(f"http://127.0.0.1:{port}/healthz"), process)


def test_events_asks_its_queue(start):
    with asked_server() as (port, asked):
        url = f"http://127.0.0.1:{port}"
        variables = dict(
            RECSYS_EVENT_QUEUE=f"{url}/1/events",
            AWS_ENDPOINT_URL=url,
            AWS_DEFAULT_REGION="eu-west-1",
            AWS_ACCESS_KEY_ID="key",
            AWS_SECRET_ACCESS_KEY="key",
        )
        process, log = start("events", "--port", str(free_port()), **variables)
        assert until(lambda: asked, process), log.read_text()[-3000:]


def test_materialise_writes_rows(start):
    process, log = start("materialise")
    assert process.wait(180) == 0, log.read_text()[-3000:]
    assert re.search(r'"users": [1-9]', log.read_text().splitlines()[-1])


def test_monitor_says_what_it_misses(start):
    process, log = start("monitor")
    assert process.wait(180) == 2, log.read_text()[-3000:]
    assert "no whole day of impressions yet" in log.read_text(), log.read_text()[-3000:]


# ---- the researcher's server


def notebook_container():
    "Return the server's container of the Notebook resource."
    text = (ROOT / "k8s/components/notebook/notebook.yaml").read_text()
    notebook = next(d for d in yaml.safe_load_all(text) if d["kind"] == "Notebook")
    return notebook["spec"]["template"]["spec"]["containers"][0]


def test_jupyterlab_answers_the_probes_of_its_resource(tmp_path):
    container, port = notebook_container(), free_port()
    env = {one["name"]: one["value"] for one in container["env"]}
    python, workbook = environment_of("notebook"), tmp_path / "workbook"
    shutil.copytree(ROOT / "nbs", workbook / "nbs")
    text = " ".join(container["command"]).replace("$(NB_PREFIX)", env["NB_PREFIX"])
    text = text.replace("/workbook/nbs", f"{workbook}/nbs").replace("=/workbook", f"={workbook}")
    command = text.replace("=8888", f"={port}").replace("=0.0.0.0", "=127.0.0.1").split()
    allowed = ["--ServerApp.allow_root=True"]  # a test may run as root, the pod may not
    with open(tmp_path / "log", "wb") as log:
        process = subprocess.Popen(
            [python.parent / command[0], *command[1:], *allowed],
            env=dict(PATH=f"{python.parent}:/usr/bin:/bin", HOME=str(tmp_path)),
            cwd=workbook,
            stdout=log,
            stderr=log,
        )
    try:
        for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
            url = f"http://127.0.0.1:{port}{container[probe]['httpGet']['path']}"
            assert until(lambda: answers(url), process), (tmp_path / "log").read_text()[-3000:]
        contents = f"http://127.0.0.1:{port}{env['NB_PREFIX']}/api/contents"
        assert not answers(contents)  # without the token that the log shows
        token = re.search(r"token=(\w+)", (tmp_path / "log").read_text())[1]
        assert answers(f"{contents}/nbs?token={token}")
    finally:
        process.terminate()
        process.wait(30)


def test_the_notebook_image_has_the_training_image_s_versions():
    def versions(image):
        text = (IMAGES / image / "requirements.lock").read_text()
        return dict(re.findall(r"^([\w.-]+)==([^ \n]+)", text, re.M))

    own, training = versions("notebook"), versions("training")
    assert {name for name in own if training.get(name, own[name]) != own[name]} == set()
    new = {normal(name) for name in set(own) - set(training)}
    assert new & set(BASE["copied"]) == set()  # what is built for CUDA stays the base's
    text = (IMAGES / "notebook/Dockerfile").read_text()
    version = re.search(r'^version = "(.+)"', (ROOT / "pyproject.toml").read_text(), re.M)[1]
    assert f"FROM recsys-training:{version}\n" in text


# ---- what an environment consists of


def installed(image):
    "Return the folder of an environment's packages."
    return next(environment_of(image).parent.parent.glob("lib/python*/site-packages"))


def owners(site):
    "Return file among the packages -> names of the distributions that say they own it."
    found = collections.defaultdict(set)
    for record in site.glob("*.dist-info/RECORD"):
        distribution = normal(record.parent.name.split("-")[0])
        for line in record.read_text().splitlines():
            file = line.split(",")[0].strip('"')
            if not file.startswith("../"):  # programs and licences beside the packages
                found[file].add(distribution)
    return found


def double_owners(site):
    "Return sentences about files that two distributions own, one for each group of owners."
    groups = collections.defaultdict(list)
    for file, names in owners(site).items():
        if len(names) > 1:
            groups[tuple(sorted(names))].append(file)
    return [f"{' and '.join(names)} own {files[0]}" for names, files in groups.items()]


@pytest.mark.parametrize("image", PYTHONS)
def test_no_two_distributions_own_a_file(image):
    assert double_owners(installed(image)) == []


def test_double_owners_are_found(tmp_path):
    for distribution in ("faiss_cpu-1.8.0", "faiss_gpu-1.7.2"):
        (tmp_path / f"{distribution}.dist-info").mkdir()
        record = tmp_path / f"{distribution}.dist-info/RECORD"
        record.write_text("faiss/__init__.py,sha256=x,1\n")
    assert double_owners(tmp_path) == ["faiss-cpu and faiss-gpu own faiss/__init__.py"]


def test_the_training_lock_brings_no_module_of_the_base():
    brought = {
        (file.split("/")[0], name)
        for file, names in owners(installed("training")).items()
        for name in names
    }
    modules = BASE["modules"].items()
    wrong = {(module, name) for module, name in brought if (module, name) not in modules}
    assert {(module, name) for module, name in wrong if module in BASE["modules"]} == set()


# ---- the training image: its lock over what the base image has


def normal(name):
    "Return the normal form of a distribution's name."
    return re.sub(r"[-_.]+", "-", name).lower()


def training_world():
    "Return name -> version of what the training image's Python finds: its lock before the base."
    text = (IMAGES / "training/requirements.lock").read_text()
    lock = dict(re.findall(r"^([\w.-]+)==([^ \n]+)", text, re.M))
    return BASE["pins"] | BASE["copied"] | {normal(name): lock[name] for name in lock}


def resolve(world, folder):
    "Ask uv whether distributions fit each other; return what it says and names that are missing."
    here = {name: version for name, version in world.items() if name not in BASE["requires"]}
    pins, overrides = folder / "pins.txt", folder / "overrides.txt"
    pins.write_text("".join(f"{name}=={version}\n" for name, version in here.items()))
    overrides.write_text("".join(f"{name}=={here[name]}\n" for name in BASE["accepted"]))
    options = ("--override", str(overrides), "--python-version", "3.10", "--python", sys.executable)
    done = run_uv("pip", "compile", "-q", "--no-header", "--no-annotate", *options, str(pins))
    skip_offline(done)
    names = {normal(name) for name in re.findall(r"^([\w.-]+)==", done.stdout, re.M)}
    return done, names - set(here) - set(BASE["also"])


def test_the_training_lock_fits_the_base(tmp_path):
    done, missing = resolve(training_world(), tmp_path)
    assert done.returncode == 0, done.stderr
    assert missing == set()
    # with the base's numpy in the place of the lock's
    done, _ = resolve(training_world() | dict(numpy=BASE["pins"]["numpy"]), tmp_path)
    assert done.returncode and "numpy>=1.23" in done.stderr


def unmet(world):
    "Return the requirements of the base's own builds that a world does not meet."
    found = []
    for name, requirements in BASE["requires"].items():
        for requirement in map(Requirement, requirements):
            wanted = normal(requirement.name)
            version = world.get(wanted)
            if version is None and wanted in BASE["also"]:
                continue
            if version is None or not requirement.specifier.contains(version, prereleases=True):
                found.append(f"{name} wants {wanted}")
    return found


def test_the_base_s_own_builds_lose_nothing_to_the_lock():
    assert unmet(BASE["pins"] | BASE["copied"]) == BASE["unmet"]  # as the image is delivered
    assert unmet(training_world()) == BASE["unmet"]
    assert "cudf wants numba" in unmet(training_world() | dict(numba="0.68.1"))


def test_feast_needs_no_dask(app):
    code = """
import sys
sys.modules["dask"] = None  # an import of it fails
import feast.infra.offline_stores.contrib.athena_offline_store.athena
import feast.infra.offline_stores.duckdb
import feast.infra.online_stores.redis
import recsys.online.feature_store
"""
    python = environment_of("worker")
    environment = dict(PYTHONPATH=str(app))
    done = subprocess.run([python, "-c", code], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr[-2000:]
    assert BASE["accepted"]["dask"]["wanted by"] == "feast"


def base_faults(text):
    "Return what a Dockerfile does against what its base image has."
    image = re.findall(r"^FROM (\S+?):\S+", text, re.M)[-1]
    users = BASE["users"].get(image, {})
    uids = re.findall(r"\b(?:useradd|adduser)\b[^\n&;]*?(?:-u|--uid)[ =]?(\d+)", text)
    wrong = [f"makes uid {uid}, which is {users[int(uid)]}" for uid in uids if int(uid) in users]
    if BASE["image"].startswith(f"{image}:"):
        before = text.partition("pip install")[0]
        for name in BASE["environment"]:
            if not re.search(rf"\b{name}=", before):
                wrong.append(f"leaves the base's {name}")
        if not re.search(r"-m venv [^\n]*--system-site-packages", before):
            wrong.append("installs over the base's packages")
    return wrong


@pytest.mark.parametrize("path", sorted(IMAGES.glob("*/Dockerfile")), ids=lambda p: p.parent.name)
def test_a_dockerfile_fits_its_base(path):
    assert base_faults(path.read_text()) == []


def test_faults_against_the_base_are_found():
    text = (IMAGES / "training/Dockerfile").read_text()
    for old, new, fault in (
        ("mkdir -p /outputs", "useradd --uid 1000 recsys && mkdir -p /outputs", "makes uid 1000"),
        ("mkdir -p /outputs", "useradd -m -u 1000 recsys && mkdir -p /outputs", "makes uid 1000"),
        ("PYTHONPATH= ", "", "leaves the base's PYTHONPATH"),
        ("--system-site-packages ", "", "installs over"),
    ):
        assert any(fault in wrong for wrong in base_faults(text.replace(old, new))), fault
