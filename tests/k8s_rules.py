"""Rules for manifests beyond their schemas: each takes all resources of an overlay and gives
sentences about what is wrong.
"""

import os
import re
import subprocess
from pathlib import Path

import yaml

ROOT = Path(__file__).parents[1]
OWN = {
    p.parent.name for p in (ROOT / "k8s/images").glob("*/Dockerfile")
}  # images that are built here
# what each container is asked for: paths of probes, which test_pods.py and test_gateway.py prove
# on real servers
PATHS = dict(
    triton={"/v2/models/recommender/ready", "/v2/health/live"},
    gateway={"/healthz", "/readyz"},
    worker={"/healthz"},
    events={"/healthz"},
    workbook={"/notebook/kubeflow/workbook/api"},
    pushgateway={"/-/ready", "/-/healthy"},
)
DRAIN = dict(
    triton=30, gateway=10, worker=0, events=20
)  # seconds that a container takes for what is under way once it is told to end
FLOWS = [
    ("gateway", "triton", "grpc"),
    ("materialise", "pushgateway", "http"),
    ("monitor", "pushgateway", "http"),
]  # who talks to whom, by port name
EGRESS = [
    (who, 6379) for who in ("triton", "gateway", "worker", "materialise")
]  # ... and to what is no pod


def prod_with(component, folder):
    "Write into a folder that it is the prod overlay with a component; return the folder."
    at = {p: os.path.relpath(ROOT / "k8s" / p, folder) for p in ("overlays/prod", "components")}
    (folder / "kustomization.yaml").write_text(
        f"resources: [{at['overlays/prod']}]\ncomponents: [{at['components']}/{component}]\n"
    )
    return folder


def rendered_text(folder):
    "Return the manifests that `kubectl` makes of a folder, as text."
    command = ["kubectl", "kustomize", folder, "--load-restrictor", "LoadRestrictionsNone"]
    made = subprocess.run(command, capture_output=True, text=True)
    assert made.returncode == 0 and not made.stderr, made.stderr
    return made.stdout


def rendered_docs(folder):
    "Return the manifests that `kubectl` makes of a folder."
    return [d for d in yaml.safe_load_all(rendered_text(folder)) if d]


def name(d):
    return f"{d['kind']} {d['metadata'].get('namespace', '')}/{d['metadata']['name']}"


def kinds(docs, *wanted):
    return [d for d in docs if d["kind"] in wanted]


def get(docs, kind, called, namespace="recsys"):
    return next(
        d
        for d in docs
        if d["kind"] == kind
        and d["metadata"]["name"] == called
        and d["metadata"].get("namespace", namespace) == namespace
    )


def same_namespace(a, b):
    return a["metadata"].get("namespace") == b["metadata"].get("namespace")


def pods(docs):
    "List workloads with the template of their pods."
    found = [(d, d["spec"]["template"]) for d in kinds(docs, "Deployment", "StatefulSet")]
    found += [(d, notebook_pod(d)) for d in kinds(docs, "Notebook")]
    return found + [
        (d, d["spec"]["jobTemplate"]["spec"]["template"]) for d in kinds(docs, "CronJob")
    ]


def notebook_pod(d):
    "Return the template of the pod that Kubeflow's notebook controller makes of a Notebook."
    own = dict(d["metadata"].get("labels", {}))
    labels = own | {"statefulset": d["metadata"]["name"], "notebook-name": d["metadata"]["name"]}
    return dict(metadata=dict(labels=labels), spec=d["spec"]["template"]["spec"])


def containers(docs):
    "List the containers of all pods, those that run before the others included."
    return [
        (d, t["spec"], c)
        for d, t in pods(docs)
        for c in [*t["spec"].get("initContainers", ()), *t["spec"]["containers"]]
    ]


def runs_before(spec, container):
    "Whether a container of a pod ends before the pod's own containers start."
    return container in spec.get("initContainers", ())


def waits(docs):
    "What needs a live bundle and has probes waits for the bundle in a container before."
    wrong = []
    for d, spec, c in containers(docs):
        command = c.get("command", [])
        if command[:2] != ["recsys", "pod"] or command[2] not in ("triton", "gateway"):
            continue
        before = [one["command"] for one in spec.get("initContainers", ())]
        if ["recsys", "pod", "wait"] not in before:
            wrong.append(f"{name(d)}: nothing waits for a live bundle before {c['name']} starts")
    return wrong


def matches(selector, labels):
    labels = labels or {}
    if any(labels.get(k) != v for k, v in (selector.get("matchLabels") or {}).items()):
        return False
    test = dict(
        In=lambda e: labels.get(e["key"]) in e["values"], Exists=lambda e: e["key"] in labels
    )
    return all(test[e["operator"]](e) for e in selector.get("matchExpressions") or [])


def mebibytes(text):
    "Read a memory quantity; None where it has no binary suffix."
    m = re.fullmatch(r"(\d+)(Mi|Gi)", str(text))
    return m and int(m[1]) * dict(Mi=1, Gi=1024)[m[2]]


def selectors(docs):
    "Whatever selects by label finds something, and what it names is there."
    wrong, templates = [], pods(docs)

    def chosen(d, selector):
        return [
            t
            for w, t in templates
            if same_namespace(w, d) and matches(selector, t["metadata"].get("labels"))
        ]

    def ports(found):
        return {
            p["name"] for t in found for c in t["spec"]["containers"] for p in c.get("ports", ())
        }

    for d, t in templates:
        if d["kind"] not in ("CronJob", "Notebook") and not matches(
            d["spec"]["selector"], t["metadata"]["labels"]
        ):
            wrong.append(f"{name(d)}: its selector does not match its own pods")
        for c in t["spec"].get("topologySpreadConstraints", ()):
            if not matches(c["labelSelector"], t["metadata"]["labels"]):
                wrong.append(f"{name(d)}: a topology spread constraint does not match its own pods")
    for d in kinds(docs, "Service"):
        found = chosen(d, dict(matchLabels=d["spec"]["selector"]))
        if not found:
            wrong.append(f"{name(d)}: no pod has the labels that it selects")
        wrong += [
            f"{name(d)}: its pods have no port {p['targetPort']}"
            for p in d["spec"]["ports"]
            if p["targetPort"] not in ports(found)
        ]
    for d in kinds(docs, "PodDisruptionBudget"):
        if not chosen(d, d["spec"]["selector"]):
            wrong.append(f"{name(d)}: no pod has the labels that it selects")
    for d in kinds(docs, "HorizontalPodAutoscaler"):
        target = d["spec"]["scaleTargetRef"]
        if not any(
            w["kind"] == target["kind"] and w["metadata"]["name"] == target["name"]
            for w, _ in templates
        ):
            wrong.append(f"{name(d)}: there is no {target['kind']} {target['name']}")
    for d in kinds(docs, "ServiceMonitor"):
        found = [
            s
            for s in kinds(docs, "Service")
            if same_namespace(s, d) and matches(d["spec"]["selector"], s["metadata"].get("labels"))
        ]
        if not found:
            wrong.append(f"{name(d)}: no service has the labels that it selects")
        wrong += [
            f"{name(d)}: its service has no port {e['port']}"
            for e in d["spec"]["endpoints"]
            if e["port"] not in {p["name"] for s in found for p in s["spec"]["ports"]}
        ]
    for d in kinds(docs, "NetworkPolicy"):
        mine = chosen(d, d["spec"]["podSelector"])
        if not mine:
            wrong.append(f"{name(d)}: no pod has the labels that it selects")
        for side, key in (("ingress", "from"), ("egress", "to")):
            for rule in d["spec"].get(side, ()):
                peers = [
                    t
                    for x in rule[key]
                    if "podSelector" in x and "namespaceSelector" not in x
                    for t in chosen(d, x["podSelector"])
                ]
                if (
                    any("podSelector" in x and "namespaceSelector" not in x for x in rule[key])
                    and not peers
                ):
                    wrong.append(f"{name(d)}: no pod has the labels of a peer")
                there = ports(mine if side == "ingress" else peers)
                wrong += [
                    f"{name(d)}: no pod has a port {p['port']}"
                    for p in rule["ports"]
                    if isinstance(p["port"], str) and p["port"] not in there
                ]
    return wrong


def volumes(docs):
    "Every mount has its volume, every volume its mount and its claim, every claim its volume."
    wrong = []
    for d, t in pods(docs):
        made = [v["metadata"]["name"] for v in d["spec"].get("volumeClaimTemplates", ())]
        there = {v["name"] for v in t["spec"].get("volumes", ())} | set(made)
        every = [*t["spec"].get("initContainers", ()), *t["spec"]["containers"]]
        used = {m["name"] for c in every for m in c.get("volumeMounts", ())}
        wrong += [f"{name(d)}: mount {v} has no volume" for v in sorted(used - there)] + [
            f"{name(d)}: volume {v} is not mounted" for v in sorted(there - used)
        ]
        for v in t["spec"].get("volumes", ()):
            claim = v.get("persistentVolumeClaim", {}).get("claimName")
            if claim and not any(
                c["metadata"]["name"] == claim and same_namespace(c, d)
                for c in kinds(docs, "PersistentVolumeClaim")
            ):
                wrong.append(f"{name(d)}: there is no claim {claim}")
        for c in t["spec"]["containers"]:
            if (
                c.get("securityContext", {}).get("readOnlyRootFilesystem")
                and c["name"] in PATHS
                and c["name"] != "pushgateway"
                and c["name"] != "valkey"
                and "/tmp" not in {m["mountPath"] for m in c.get("volumeMounts", ())}
            ):
                wrong.append(f"{name(d)}: container {c['name']} can't write and has no /tmp")
    for claim in kinds(docs, "PersistentVolumeClaim"):
        found = [
            v
            for v in kinds(docs, "PersistentVolume")
            if v["metadata"]["name"] == claim["spec"]["volumeName"]
        ]
        bound = found and found[0]["spec"]["claimRef"] == dict(
            namespace=claim["metadata"]["namespace"], name=claim["metadata"]["name"]
        )
        if (
            not bound
            or found[0]["spec"]["storageClassName"] != claim["spec"]["storageClassName"]
            or found[0]["spec"]["accessModes"] != claim["spec"]["accessModes"]
        ):
            wrong.append(f"{name(claim)}: no volume is meant for it")
    if (
        len(
            {
                v["spec"].get("csi", {}).get("volumeHandle", "-")
                for v in kinds(docs, "PersistentVolume")
            }
        )
        > 1
    ):
        wrong.append("the volumes are not the same place")
    return wrong


def secret_keys(d):
    "List the keys of the secret that an ExternalSecret makes."
    keys = [x["secretKey"] for x in d["spec"].get("data", ())]
    return set(
        keys
        + [
            r["regexp"]["target"]
            for x in d["spec"].get("dataFrom", ())
            for r in x.get("rewrite", [dict(regexp=dict(target="password"))])
        ]
    )


def references(docs):
    """Config maps, secrets, accounts, stores, generators and roles that are named are there, with
    the keys that are asked for.
    """
    wrong = []

    def has(kind, d, called):
        return any(
            x["kind"] == kind and x["metadata"]["name"] == called and same_namespace(x, d)
            for x in docs
        )

    maps = {
        (m["metadata"]["namespace"], m["metadata"]["name"]): set(m["data"])
        for m in kinds(docs, "ConfigMap")
    }
    secrets = {
        (m["metadata"]["namespace"], m["spec"]["target"]["name"]): secret_keys(m)
        for m in kinds(docs, "ExternalSecret")
    }
    for d, spec, c in containers(docs):
        where = d["metadata"]["namespace"]
        if not has("ServiceAccount", d, spec.get("serviceAccountName", "default")):
            wrong.append(
                f"{name(d)}: there is no service account "
                f"{spec.get('serviceAccountName', 'default')}"
            )
        known = set()
        for e in c.get("env", ()):
            for kind, place in (("configMapKeyRef", maps), ("secretKeyRef", secrets)):
                ref = e.get("valueFrom", {}).get(kind)
                if ref and ref["key"] not in place.get((where, ref["name"]), ()):
                    wrong.append(
                        f"{name(d)}: {e['name']} asks for {ref['key']} of {ref['name']}, "
                        f"which is not there"
                    )
            wrong += [
                f"{name(d)}: {e['name']} uses $({v}) before it is set"
                for v in re.findall(r"\$\((\w+)\)", e.get("value", ""))
                if v not in known
            ]
            known.add(e["name"])
        wrong += [
            f"{name(d)}: an argument uses $({v}), which is not set"
            for v in re.findall(r"\$\((\w+)\)", " ".join(c.get("command", []) + c.get("args", [])))
            if v not in known
        ]
    for d in kinds(docs, "ExternalSecret"):
        store = d["spec"].get("secretStoreRef")
        if store and not has(store["kind"], d, store["name"]):
            wrong.append(f"{name(d)}: there is no {store['kind']} {store['name']}")
        for x in d["spec"].get("dataFrom", ()):
            if not has(
                x["sourceRef"]["generatorRef"]["kind"], d, x["sourceRef"]["generatorRef"]["name"]
            ):
                wrong.append(
                    f"{name(d)}: there is no generator {x['sourceRef']['generatorRef']['name']}"
                )
        if not store and not d["spec"].get("dataFrom"):
            wrong.append(f"{name(d)}: it takes its values from nowhere")
    for d in kinds(docs, "SecretStore"):
        auth = next(iter(d["spec"]["provider"].values()))["auth"]
        account = auth.get("serviceAccount") or auth["jwt"]["serviceAccountRef"]
        if not has("ServiceAccount", d, account["name"]):
            wrong.append(f"{name(d)}: there is no service account {account['name']}")
    for d in kinds(docs, "RoleBinding"):
        if not has(d["roleRef"]["kind"], d, d["roleRef"]["name"]):
            wrong.append(f"{name(d)}: there is no {d['roleRef']['kind']} {d['roleRef']['name']}")
        wrong += [
            f"{name(d)}: there is no service account {s['name']}"
            for s in d["subjects"]
            if s["kind"] == "ServiceAccount"
            and not any(name(x) == f"ServiceAccount {s['namespace']}/{s['name']}" for x in docs)
        ]
    return wrong


def probes(docs):
    """What stays up has probes, on ports that it has and paths that it answers; readiness asks
    for the ensemble.
    """
    wrong = []
    for d, spec, c in containers(docs):
        if (
            d["kind"] == "CronJob" or c["name"] == "follow" or runs_before(spec, c)
        ):  # a job has none; the follower's work is not to be waited for
            continue
        for kind in ("readinessProbe", "livenessProbe"):
            if kind not in c:
                wrong.append(f"{name(d)}: container {c['name']} has no {kind}")
        for kind in ("startupProbe", "readinessProbe", "livenessProbe"):
            http = c.get(kind, {}).get("httpGet")
            if http and http["port"] not in {p["name"] for p in c["ports"]}:
                wrong.append(
                    f"{name(d)}: {kind} asks port {http['port']}, which container "
                    f"{c['name']} does not have"
                )
            if http and http["path"] not in PATHS.get(c["name"], ()):
                wrong.append(
                    f"{name(d)}: {kind} asks {http['path']}, which {c['name']} does not answer"
                )
        if c["name"] == "triton":
            wrong += [
                f"{name(d)}: {kind} must ask for the ensemble"
                for kind in ("startupProbe", "readinessProbe")
                if c[kind]["httpGet"]["path"] != "/v2/models/recommender/ready"
            ]
            if c["livenessProbe"]["httpGet"]["path"] == "/v2/models/recommender/ready":
                wrong.append(
                    f"{name(d)}: a bundle that can't be loaded must not restart the server "
                    f"again and again"
                )
    return wrong


def quantities(docs):
    """Quantities mean what is intended: memory in binary units, limits not below requests,
    targets in the unit of their metric.
    """
    wrong = []
    for d, spec, c in containers(docs):
        asked, most = (
            c.get("resources", {}).get("requests", {}),
            c.get("resources", {}).get("limits", {}),
        )
        if not {"cpu", "memory"} <= set(asked) or "memory" not in most:
            wrong.append(
                f"{name(d)}: container {c['name']} must request cpu and memory, and limit memory"
            )
            continue
        for where, q in (("request", asked["memory"]), ("limit", most["memory"])):
            if not mebibytes(q):
                wrong.append(
                    f"{name(d)}: the memory {where} of {c['name']} is {q}, expected Mi or "
                    f"Gi (512m is half a byte)"
                )
        if not re.fullmatch(r"[1-9]\d?|[1-9]\d{1,3}m", str(asked["cpu"])):
            wrong.append(
                f"{name(d)}: {c['name']} requests {asked['cpu']} cpu, expected 1 to 99 "
                f"cores or 10m to 9999m"
            )
        if (
            mebibytes(asked["memory"])
            and mebibytes(most["memory"])
            and mebibytes(asked["memory"]) > mebibytes(most["memory"])
        ):
            wrong.append(f"{name(d)}: {c['name']} requests more memory than its limit")
        for v in spec.get("volumes", ()):
            if v.get("emptyDir", {}).get("medium") == "Memory" and any(
                m["name"] == v["name"] for m in c.get("volumeMounts", ())
            ):
                size = mebibytes(v["emptyDir"].get("sizeLimit"))
                if not size or not 256 <= size <= (mebibytes(most["memory"]) or 0) / 2:
                    wrong.append(
                        f"{name(d)}: {v['name']} is memory: expected a size of 256Mi to "
                        f"half of the limit, found {v['emptyDir'].get('sizeLimit')}"
                    )
    for d in kinds(docs, "HorizontalPodAutoscaler"):
        if d["spec"]["minReplicas"] > d["spec"]["maxReplicas"]:
            wrong.append(f"{name(d)}: fewest replicas above most")
        for m in d["spec"]["metrics"]:
            value, metric = (
                m.get("pods", {}).get("target", {}).get("averageValue"),
                m.get("pods", {}).get("metric", {}).get("name", ""),
            )
            if (
                value is not None
                and "milliseconds" in metric
                and not re.fullmatch(r"[1-9]\d{0,2}", str(value))
            ):
                wrong.append(
                    f"{name(d)}: a target of {value} for {metric}, expected 1 to 999 "
                    f"without a suffix: m is a thousandth, not a millisecond"
                )
    return wrong


def images(docs):
    "Images have a version, and those of ours have a Dockerfile and the project's version."
    wrong, version = (
        [],
        re.search(r'^version = "(.+)"', (ROOT / "pyproject.toml").read_text(), re.M)[1],
    )
    for d, _spec, c in containers(docs):
        image = c["image"]
        tag = image.rsplit("/", 1)[-1].partition(":")[2]
        if "@sha256:" not in image and tag in ("", "latest"):
            wrong.append(f"{name(d)}: image {image} has no version")
        if "REGISTRY" in image:
            wrong.append(f"{name(d)}: image {image} has no registry")
        short = image.rsplit("/", 1)[-1].partition(":")[0]
        if short.startswith("recsys-") and (
            short.removeprefix("recsys-") not in OWN or tag != version
        ):
            wrong.append(
                f"{name(d)}: image {image} is not one that k8s/images builds in version {version}"
            )
    return wrong


def endings(docs):
    "A pod has time to end: its preStop, then what is under way, with seconds to spare."
    wrong = []
    for d, spec, c in containers(docs):
        if c["name"] not in DRAIN:
            continue
        pause = int(
            c.get("lifecycle", {}).get("preStop", {}).get("exec", {}).get("command", ["", "0"])[1]
        )
        if c["name"] in ("triton", "gateway") and pause < 5:
            wrong.append(
                f"{name(d)}: requests still come while {c['name']} ends: it needs a preStop "
                f"pause of 5 s or more"
            )
        if spec.get("terminationGracePeriodSeconds", 30) < pause + DRAIN[c["name"]] + 5:
            wrong.append(
                f"{name(d)}: {spec.get('terminationGracePeriodSeconds', 30)} s are too few "
                f"for a pause of {pause} s and {DRAIN[c['name']]} s for requests"
            )
    return wrong


def security(docs):
    """No root, no new privileges, no capabilities, nothing to write outside volumes, no token of
    the API, no host.
    """
    wrong = []
    for d, spec, c in containers(docs):
        own, pod = c.get("securityContext", {}), spec.get("securityContext", {})
        for ok, what in (
            (pod.get("runAsNonRoot") and pod.get("runAsUser"), "may run as root"),
            (
                pod.get("seccompProfile", {}).get("type") == "RuntimeDefault",
                "has no seccomp profile",
            ),
            (own.get("allowPrivilegeEscalation") is False, "may gain privileges"),
            (own.get("capabilities", {}).get("drop") == ["ALL"], "keeps capabilities"),
            (own.get("readOnlyRootFilesystem"), "may write into its image"),
            (spec.get("automountServiceAccountToken") is False, "has a token of the API"),
            (
                not any(spec.get(k) for k in ("hostNetwork", "hostPID", "hostIPC"))
                and not own.get("privileged"),
                "reaches the host",
            ),
        ):
            if not ok:
                wrong.append(f"{name(d)}: container {c['name']} {what}")
    for d in kinds(docs, "Role", "ClusterRole"):
        wrong += [
            f"{name(d)}: grants {x} on {', '.join(r['resources'])}"
            for r in d["rules"]
            for x in ("*", "escalate", "bind", "impersonate")
            if x in r["verbs"] + r["resources"]
        ]
    for d in kinds(docs, "Secret"):
        wrong.append(f"{name(d)}: a secret in a file")
    return wrong


def network(docs):
    """Under the policy that denies everything, those who must talk may: out of the one and into
    the other.
    """
    wrong = []
    policies = kinds(docs, "NetworkPolicy")
    if not any(
        p["spec"]["podSelector"] == {}
        and set(p["spec"]["policyTypes"]) == {"Ingress", "Egress"}
        and not p["spec"].get("egress")
        and not p["spec"].get("ingress")
        for p in policies
    ):
        wrong.append("no policy denies everything")
    labels = {
        t["metadata"]["labels"]["app.kubernetes.io/name"]: t["metadata"]["labels"]
        for _, t in pods(docs)
    }

    def rules(who, side):
        return [
            r
            for p in policies
            if side.title() in p["spec"]["policyTypes"]
            and matches(p["spec"]["podSelector"], labels.get(who))
            for r in p["spec"].get(side, ())
        ]

    def named(r, port):
        return port in [p["port"] for p in r["ports"]]

    def peer(peers, who):
        return any(
            matches(x["podSelector"], labels.get(who))
            for x in peers
            if "podSelector" in x and "namespaceSelector" not in x
        )

    for a, b, port in FLOWS:
        if not any(named(r, port) and peer(r["to"], b) for r in rules(a, "egress")):
            wrong.append(f"{a} may not send to {b} ({port})")
        if not any(named(r, port) and peer(r["from"], a) for r in rules(b, "ingress")):
            wrong.append(f"{b} may not be asked by {a} ({port})")
    for who, port in EGRESS:
        if not any(named(r, port) for r in rules(who, "egress")):
            wrong.append(f"{who} may not send to port {port}")
    return wrong


def commands(docs):
    "Commands of ours are ones that the command line has, with options that it knows."
    from typer.main import get_command

    from recsys.operate.cli import app
    from recsys.operate.pods import ROLES

    wrong, root = [], get_command(app)
    for d, _spec, c in containers(docs):
        line = c.get("command", []) + c.get("args", [])
        if d["kind"] == "Notebook" and line[:2] in (["jupyter", "lab"], ["cp", "--recursive"]):
            continue
        if not line or line[0] != "recsys":
            if c["image"].rsplit("/", 1)[-1].startswith("recsys-"):
                wrong.append(f"{name(d)}: container {c['name']} runs no command of recsys")
            continue
        try:
            context = root.commands[line[1]].make_context(line[1], line[2:])
            if line[1] == "pod" and context.params["role"] not in ROLES:
                wrong.append(f"{name(d)}: there is no pod {context.params['role']}")
        except Exception as e:  # click's own, wherever typer keeps it
            wrong.append(f"{name(d)}: {' '.join(line)}: {getattr(e, 'message', e)}")
        if (
            "127.0.0.1" not in line
            and "0.0.0.0" not in line
            and any("httpGet" in c.get(k, {}) for k in ("readinessProbe", "livenessProbe"))
        ):
            wrong.append(f"{name(d)}: {c['name']} listens on the loopback address only")
    return wrong


def nodes(docs):
    "Where nodes are chosen by pool there is such a pool, and its taints are borne."
    pools = [
        yaml.safe_load(x)
        for x in (ROOT / "k8s/cloud/karpenter/pools.yaml").read_text().split("\n---\n")
    ]
    by_label = {
        p["spec"]["template"]["metadata"]["labels"]["recsys.io/pool"]: p["spec"]["template"]["spec"]
        for p in pools
    }
    wrong = []
    for d, t in pods(docs):
        pool = t["spec"].get("nodeSelector", {}).get("recsys.io/pool")
        if pool is None:
            continue
        if pool not in by_label:
            wrong.append(f"{name(d)}: there is no node pool {pool}")
            continue

        def bears(taint):
            return any(
                x["key"] == taint["key"]
                and (x["operator"] == "Exists" or x.get("value") == taint["value"])
                for x in t["spec"].get("tolerations", ())
            )

        wrong += [
            f"{name(d)}: does not bear the taint {x['key']}={x['value']} of its nodes"
            for x in by_label[pool]["taints"]
            if not bears(x)
        ]
        capacity = next(
            r["values"]
            for r in by_label[pool]["requirements"]
            if r["key"] == "karpenter.sh/capacity-type"
        )
        if "spot" in t["spec"]["nodeSelector"].get("karpenter.sh/capacity-type", capacity):
            wrong.append(f"{name(d)}: serves from nodes that may be taken away")
    return wrong


def metrics(docs):
    """The autoscaler's metric is recorded by a rule and handed on by the adapter; monitors ask
    where metrics are.
    """
    wrong = []
    recorded = {
        r["record"]
        for d in kinds(docs, "PrometheusRule")
        for g in d["spec"]["groups"]
        for r in g["rules"]
        if "record" in r
    }
    handed = {
        r["name"]["matches"]
        for r in yaml.safe_load((ROOT / "k8s/cloud/platform/prometheus-adapter.yaml").read_text())[
            "rules"
        ]["custom"]
    }
    for d in kinds(docs, "HorizontalPodAutoscaler"):
        for m in (m["pods"]["metric"]["name"] for m in d["spec"]["metrics"] if m["type"] == "Pods"):
            wrong += [f"{name(d)}: no rule records {m}"] * (m not in recorded) + [
                f"{name(d)}: the adapter does not hand on {m}"
            ] * (m not in handed)
    return wrong


RULES = [
    selectors,
    volumes,
    references,
    probes,
    quantities,
    images,
    endings,
    security,
    network,
    commands,
    nodes,
    metrics,
    waits,
]
