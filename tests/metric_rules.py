"""Which metrics and labels the dashboard and the alerts use, and which were seen on the pages of
real servers (facts/metrics.yaml).
"""

import json
import re

import yaml
from k8s_rules import ROOT

FACTS = ROOT / "tests/facts/metrics.yaml"
MONITORING = ROOT / "k8s/base/monitoring"
WORDS = re.compile(  # of PromQL: no metrics
    r"(sum|max|min|avg|count|rate|increase|time|vector|avg_over_time|and|or|unless|by|on|without"
    r"|group_left|group_right|bool)"
)
CLAUSE = r"\b(by|on|without|group_left)\s*\(([^)]*)\)"


def exposition(page):
    "Return metric -> labels of a page that Prometheus reads."
    found = {}
    for name, labels in re.findall(r"^([a-zA-Z_:][\w:]*)(?:\{(.*)\})? ", page, re.M):
        found.setdefault(name, set()).update(re.findall(r'(\w+)="', labels))
    return found


def not_seen(source, page, write=True):
    """Return what the facts say of a source and its page does not show. What the page shows is
    written below outputs/, to be copied into the facts where it changed.
    """
    seen = exposition(page)
    if write:
        file = ROOT / f"outputs/metrics/{source}.yaml"
        file.parent.mkdir(parents=True, exist_ok=True)
        text = {name: sorted(labels) for name, labels in sorted(seen.items())}
        file.write_text(yaml.safe_dump(text, default_flow_style=None, sort_keys=False))
    known = yaml.safe_load(FACTS.read_text())["recorded"][source]
    return [
        f"{source} shows no {name} with {', '.join(labels) or 'no label'}"
        for name, labels in known.items()
        if name not in seen or not set(labels) <= seen[name]
    ]


def queries():
    """Return (place, expression, labels that its texts name, whether it is recorded) of every panel
    of the dashboard and of every rule.
    """
    board = json.loads((MONITORING / "dashboard.json").read_text())
    found = [
        (f"panel {panel['title']}", target["expr"], set(), False)
        for panel in board["panels"]
        for target in panel["targets"]
    ]
    files = [MONITORING / "rules.yaml", *(ROOT / "k8s/components").rglob("*.yaml")]
    docs = [d for file in files for d in yaml.safe_load_all(file.read_text())]
    for document in (d for d in docs if d and d["kind"] == "PrometheusRule"):
        for group in document["spec"]["groups"]:
            for rule in group["rules"]:
                texts = json.dumps(rule.get("annotations", {}))
                named = set(re.findall(r"\$labels\.(\w+)", texts))
                is_record = "record" in rule
                place = rule["record" if is_record else "alert"]
                found.append((place, rule["expr"], named, is_record))
    return found


def selectors_in(expression):
    "Return (metric, labels in its braces) of every selector of an expression."
    text = re.sub(CLAUSE, " ", expression)
    found = []
    for name, braces in re.findall(
        r"([a-zA-Z_:][\w:]*)(?![\w:]|\s*\()(\{[^}]*\})?", text_only(text)
    ):
        if not WORDS.fullmatch(name):
            found.append((name, set(re.findall(r"(\w+)\s*(?:=~|!~|!=|=)", braces))))
    return found


def text_only(expression):
    "Return an expression without strings, durations and numbers."
    expression = re.sub(r'"[^"]*"', '""', expression)
    return re.sub(r"\[[^\]]*\]|\b\d[\w.]*\b", " ", expression)


def argument(expression, start):
    "Return what stands in the parentheses that open at or after a place."
    opened = expression.find("(", start)
    depth = 0
    for i in range(opened, len(expression)):
        depth += {"(": 1, ")": -1}.get(expression[i], 0)
        if depth == 0:
            return expression[opened + 1 : i]
    return expression[opened + 1 :]


def record_labels(expression):
    "Return the labels that a recorded expression keeps: those of its aggregations."
    clauses = re.findall(CLAUSE, expression)
    return {one.strip() for word, names in clauses if word == "by" for one in names.split(",")}


def metric_faults(found, facts):
    "Return sentences about metrics and labels of queries that no page of a server has."
    known = {
        name: set(labels) for one in facts["recorded"].values() for name, labels in one.items()
    }
    known |= {n: set(ls) for one in facts["declared"].values() for n, ls in one.items()}
    known |= {n: set(ls) for one in facts["others"].values() for n, ls in one["metrics"].items()}
    target = set(facts["target_labels"])
    known |= {where: record_labels(text) for where, text, _, is_record in found if is_record}
    wrong = []
    for where, expression, named, _ in found:
        everything = selectors_in(expression)
        for name, labels in everything:
            if name not in known:
                wrong.append(f"{where}: no server shows {name}")
                continue
            wrong += [
                f"{where}: {name} has no label {one}"
                for one in sorted(labels - known[name] - target)
            ]
        for match in re.finditer(CLAUSE, expression):
            word, names = match[1], {one.strip() for one in match[2].split(",")} - {""}
            about = everything
            if word == "by":
                about = selectors_in(argument(expression, match.end()))
            wrong += [
                f"{where}: {name} has no label {one}"
                for name, _ in about
                for one in sorted(names - known.get(name, names) - target)
            ]
        kept = set().union(*(known.get(name, set()) for name, _ in everything)) | target
        wrong += [f"{where}: its text names the label {one}" for one in sorted(named - kept)]
    return wrong
