"""Who reaches whom on the cluster, worked out from the network policies of rendered manifests."""

from k8s_rules import kinds, matches, pods


def pod_labels(docs):
    "The labels of each kind of pod, by name."
    labels = [template["metadata"]["labels"] for _, template in pods(docs)]
    return {one["app.kubernetes.io/name"]: one for one in labels}


def rules_of(policies, labels, side):
    "The rules of one side that hold for a pod; None where no policy selects it: all is allowed."
    selected = [
        p["spec"]
        for p in policies
        if side.title() in p["spec"]["policyTypes"] and matches(p["spec"]["podSelector"], labels)
    ]
    if not selected:
        return None
    return [rule for spec in selected for rule in spec.get(side, ())]


def port_names(rule):
    "The ports of a rule as text; a rule without ports allows all."
    return {str(p["port"]) for p in rule.get("ports", ())} or {"every port"}


def peer_name(peer):
    "How a peer outside of this namespace is called."
    if "ipBlock" in peer:
        left_out = peer["ipBlock"].get("except", ())
        return f"addresses {peer['ipBlock']['cidr']}" + "".join(f" without {x}" for x in left_out)
    where = peer["namespaceSelector"].get("matchLabels", {})
    space = where.get("kubernetes.io/metadata.name")
    space = f"namespace {space}" if space else f"namespaces with {_pairs(where)}"
    which = peer.get("podSelector", {}).get("matchLabels")
    return f"{space}, pods with {_pairs(which)}" if which else space


def _pairs(labels):
    "Labels as text."
    return ", ".join(f"{key}={value}" for key, value in labels.items()) or "any label"


def reaches(docs):
    "Rows (from, to, port): pods of this namespace, and what is outside of it."
    policies, labels = kinds(docs, "NetworkPolicy"), pod_labels(docs)
    sides = {
        name: {side: rules_of(policies, one, side) for side in ("ingress", "egress")}
        for name, one in labels.items()
    }
    rows = set()
    for name, rules in sides.items():
        for side, key in (("ingress", "from"), ("egress", "to")):
            if rules[side] is None:
                rows.add(
                    ("anything", name, "every port")
                    if side == "ingress"
                    else (name, "anything", "every port")
                )
                continue
            for rule in rules[side]:
                for peer in rule.get(key, [dict(ipBlock=dict(cidr="0.0.0.0/0"))]):
                    if "ipBlock" in peer or "namespaceSelector" in peer:
                        ends = (
                            (peer_name(peer), name)
                            if side == "ingress"
                            else (name, peer_name(peer))
                        )
                        rows |= {(*ends, port) for port in port_names(rule)}
    for sender, of_sender in sides.items():
        for receiver, of_receiver in sides.items():
            sent = _inside(of_sender["egress"], "to", labels[receiver])
            taken = _inside(of_receiver["ingress"], "from", labels[sender])
            rows |= {(sender, receiver, port) for port in sent & taken}
    return sorted(rows)


def _inside(rules, key, labels):
    "The ports that rules open towards a pod of this namespace."
    return {
        port
        for rule in rules or ()
        for peer in rule.get(key, ())
        if "podSelector" in peer and "namespaceSelector" not in peer
        if matches(peer["podSelector"], labels)
        for port in port_names(rule)
    }


def reachability_table(docs):
    "The rows as a Markdown table; ports of one pair stand in one row."
    ports = {}
    for sender, receiver, port in reaches(docs):
        ports.setdefault((sender, receiver), []).append(port)
    lines = ["| from | to | ports |", "|---|---|---|"]
    lines += [f"| {a} | {b} | {', '.join(p)} |" for (a, b), p in ports.items()]
    return "\n".join(lines)
