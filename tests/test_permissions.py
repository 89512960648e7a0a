"""What the roles of k8s/cloud/stack.yaml may do, against what their processes ask of AWS: every
call of ingest, the feature store, a historical join, the worker, the monitor and the hourly job
is recorded on its way to moto, and judged with the template's policies.
"""

import io
import os
import re
import threading
import time
from dataclasses import replace

import pytest
import yaml
from aws_policies import (
    ACCOUNT,
    REGION,
    Call,
    Need,
    Recorder,
    bucket_grants,
    grants_of,
    holds,
    is_allowed,
    missing,
    moto_server,
    necessary,
    needs_of,
    permission_rows,
    role_grants,
)
from k8s_rules import ROOT
from test_k8s import template
from tiny import tiny_run

from recsys.core.markdown import markdown_table

pytestmark = pytest.mark.xdist_group("permissions")
BUCKET = "recsys-tables"
PAGE = ROOT / "k8s/permissions.md"
ATHENA = "Athena does this in the name of who asks: "
# statements without a recorded call, and why they are given all the same
REASONS = dict(
    PipelineRole=dict(
        AthenaReads=ATHENA + "it reads the offline tables and the results of queries",
        AthenaResults=ATHENA + "it writes the results of queries",
        AthenaLocation=ATHENA + "it asks for the region of the place of results",
        AthenaCatalog=ATHENA + "a query names the catalogue",
        AthenaDatabases=ATHENA
        + "a query looks the database up; Athena asks for the database default, too",
        AthenaTables=ATHENA + "a join reads tables, makes temporary ones and drops them",
    )
)
INTRODUCTION = """\
# Permissions
What each role of `cloud/stack.yaml` may do, and which calls need it. This page is written by \
`tests/test_permissions.py`, which runs the processes of each role against moto, records every \
call to AWS (those of pyarrow's C++ library included) and judges it with the template's policies: \
every recorded call is allowed, and without any of the actions that a call needs, one is refused. \
"Of what is missing" means that S3 answers 404 instead of 403 only to a role that may list the \
bucket. No call was judged by the real IAM. No role may abort a multipart upload: what an upload \
that broke off has left is removed by the bucket's lifecycle rule after a week.

The role `recsys-secrets` is that of External Secrets, which is no process of this project; it \
may read the three secrets of the stack. Servers and gateway have no role: they don't call AWS."""
# who runs what: the roles of the template, and the processes that have them
ROLES = dict(
    PipelineRole=("ingest", "feature store", "historical join"),
    WorkerRole=("worker", "monitor"),
    MaterialiseRole=("materialise",),
)


def put_tables(folder, bucket):
    "Put small tables where the params file of the cluster says."
    import boto3
    import pandas as pd

    s3 = boto3.client("s3")
    s3.create_bucket(Bucket=bucket, CreateBucketConfiguration=dict(LocationConstraint=REGION))
    log = pd.DataFrame(
        dict(
            user_id=["u1", "u2"] * 20,
            item_id=[f"i{i % 5}" for i in range(40)],
            timestamp=[1_780_000_000 + 2000 * i for i in range(40)],
        )
    )
    tables = {
        "interactions/dt=2026-05-28/part.parquet": log,
        "items/items.parquet": pd.DataFrame(dict(item_id=[f"i{i}" for i in range(5)])),
        "users/users.parquet": pd.DataFrame(dict(user_id=["u1", "u2"], age=[20, 30])),
    }
    for key, frame in tables.items():
        frame.to_parquet(folder / "table.parquet", index=False)
        s3.upload_file(str(folder / "table.parquet"), bucket, key)


def run_ingest_stage(folder):
    "Ask whether the stage ingest has to run, and run it."
    from recsys.core.keys import stage_key
    from recsys.core.params import load_params
    from recsys.core.stages import STAGES
    from recsys.data.sources import run_ingest

    text = (ROOT / "params/cluster.yaml").read_text()
    (folder / "cluster.yaml").write_text(text.replace("BUCKET", BUCKET))
    params = load_params(folder / "cluster.yaml", (f"OUTPUTS={folder / 'outputs'}",))
    stage_key(STAGES["ingest"], params)
    assert run_ingest(params)["interactions"] == 40


class Athena:
    "Writes what Athena would write: the result of a join, where Feast's query says."

    def __init__(self, store):
        self.store = store
        self.answered = 0

    def __call__(self, call: Call) -> None:
        "Write a result if the call starts a query with a place for it."
        import pandas as pd
        from moto.s3.models import s3_backends

        query = call.body.get("QueryString", "")
        place = re.search(r"external_location = 's3://([^/]+)/(.*?)'", query)
        if not place:
            return
        names = [f.name for view in self.store.list_feature_views() for f in view.features]
        columns = dict(user_id=["u1"], event_timestamp=pd.to_datetime([10**9], unit="s", utc=True))
        stream = io.BytesIO()
        pd.DataFrame(columns | dict.fromkeys(names)).to_parquet(stream)
        s3 = s3_backends[ACCOUNT]["global"]
        s3.put_object(place[1], f"{place[2]}/part-0.parquet", stream.getvalue())
        self.answered += 1


def join_history(params, folder, recorder):
    "Join features to a frame, as a researcher does; Athena's part is played by `Athena`."
    import pandas as pd

    from recsys.online.feature_store import historical_features
    from recsys.online.feature_views import open_store

    store = open_store(params, os.path.expandvars(params.VALKEY_URL), folder)
    second = pd.to_datetime([10**9], unit="s", utc=True)
    athena = recorder.answered = Athena(store)
    found = historical_features(store, pd.DataFrame(dict(user_id=["u1"], event_timestamp=second)))
    assert len(found) == athena.answered == 1


def show_pages(params, url):
    "Log a page of yesterday and one of today with a click on each, as server and gateway do."
    from recsys.core.clock import DAY
    from recsys.online.events import ImpressionLog
    from recsys.serve.serving import online_parts

    recommender, recorder = online_parts(params, url)
    bundle = recommender.bundle
    items = list(bundle.columns.ids[:3])
    now = recommender.clock.now()
    log = ImpressionLog(recorder.client, b"salt")
    for i, second in enumerate((now - DAY, now)):
        log.log_impression(
            "u1",
            request_id=f"r{i}",
            device_type="",
            timestamp=second,
            bundle_version=bundle.manifest["version"],
            policy=dict(temperature=0.0),
            candidates=items,
            item_ids=items,
            scores=[0.3, 0.2, 0.1],
            propensities=[1.0, 1.0, 1.0],
            candidate_scores=[],
            reasons={},
            stage_ms={},
        )
        event = dict(event_id=f"e{i}", user_id="u1", item_id=items[0], request_id=f"r{i}")
        assert recorder.record_event(event | dict(timestamp=second)) == "new"
    log.close()
    assert log.sent == 2


def run_worker_for(home, calls):
    "Run the worker's pod until it has written files of all three logs."
    from recsys.operate.pods import run_worker_pod

    stop, written = threading.Event(), set()
    pod = threading.Thread(target=run_worker_pod, args=(home, stop, 0), daemon=True)
    pod.start()
    end = time.monotonic() + 120
    while len(written) < 3 and time.monotonic() < end:
        time.sleep(0.2)
        paths = [call.path for call in calls if call.step == "worker" and call.method == "PUT"]
        written = {m[1] for m in (re.search(r"/feast/(.*)/dt=", x) for x in paths) if m}
    stop.set()
    pod.join(60)
    assert not pod.is_alive()
    assert written == {"tables/user_history", "events", "impressions"}, written


@pytest.fixture(scope="module")
def calls(tmp_path_factory):
    "Run what has a role, one after the other, and return all calls to AWS."
    import boto3

    from recsys.core.runs import read_json, stage_dir
    from recsys.online.feature_store import run_feature_store
    from recsys.online.valkey import EmbeddedValkey
    from recsys.operate.bundle_store import keep_bundle, set_live
    from recsys.operate.pods import run_materialise_pod, run_monitor_pod
    from recsys.serve.serving import run_params

    folder, recorder = tmp_path_factory.mktemp("permissions"), Recorder()
    home = tiny_run(folder / "outputs")
    with EmbeddedValkey(folder / "valkey") as server, moto_server(recorder):
        put_tables(folder, BUCKET)
        boto3.client("athena").create_work_group(Name="recsys")
        glue = boto3.client("glue")  # a table that is there is updated, others are created
        glue.create_database(DatabaseInput=dict(Name="recsys"))
        glue.create_table(DatabaseName="recsys", TableInput=dict(Name="user_history"))
        with recorder.named("ingest"):
            run_ingest_stage(folder)
        url = f"valkey://:{server.password}@127.0.0.1:{server.port}"
        os.environ |= dict(VALKEY_PASSWORD=server.password, RECSYS_VALKEY_URL=url)  # of a pod
        params = run_params(
            home / "tiny",
            STORE="aws",
            S3_LOCATION=f"s3://{BUCKET}/feast",
            ATHENA_WORKGROUP="recsys",
            VALKEY_URL=f"valkey://:${{VALKEY_PASSWORD}}@127.0.0.1:{server.port}",
        )
        with recorder.named("feature store"):
            run_feature_store(params)
        with recorder.named("historical join"):
            join_history(params, stage_dir(params, "feature_store"), recorder)
        bundle = home / "tiny/bundle"
        version = keep_bundle(
            home,
            bundle,
            run="tiny",
            online=read_json(home / "tiny/triton/online.json"),
            metrics={},
        )
        set_live(home, version, [])
        show_pages(params, server.url)
        with recorder.named("worker"):
            run_worker_for(home, recorder.calls)
        with recorder.named("monitor"):
            run_monitor_pod(home)
        with recorder.named("materialise"):
            run_materialise_pod(home)
    return recorder.calls


TEMPLATE = "cloud/stack.yaml"


def needs_by_step(calls, role):
    "Return what each process of a role needs."
    return {
        step: {need for call in calls if call.step == step for need in needs_of(call)}
        for step in ROLES[role]
    }


def needs_of_role(calls, role):
    return set().union(*needs_by_step(calls, role).values())


def everything(stack, role):
    "Return what the role's own policy and that of the bucket say."
    return role_grants(stack, role, BUCKET) + bucket_grants(stack, BUCKET)


def changed(role, change):
    "Return the template after a change to the statements of a role, which it gets by name."
    stack = template(TEMPLATE)
    policy = stack["Resources"][role]["Properties"]["Policies"][0]["PolicyDocument"]
    statements = {statement["Sid"]: statement for statement in policy["Statement"]}
    change(statements)
    policy["Statement"] = [s for s in statements.values() if s["Action"] and s["Resource"]]
    return stack


@pytest.mark.parametrize("role", ROLES)
def test_a_role_may_do_what_its_processes_ask_for(calls, role):
    needs = needs_by_step(calls, role)
    assert all(needs.values()), {step: len(found) for step, found in needs.items()}
    assert missing(everything(template(TEMPLATE), role), needs_of_role(calls, role)) == []


@pytest.mark.parametrize("role", ROLES)
def test_a_role_may_do_no_more_but_what_has_a_reason(calls, role):
    grants = everything(template(TEMPLATE), role)
    needed = necessary(grants, needs_of_role(calls, role))
    unneeded = [grant for grant in grants if grant.allows and grant not in needed]
    assert {grant.sid for grant in unneeded} == set(REASONS.get(role, {})), unneeded
    assert not {grant.sid for grant in needed} & set(REASONS.get(role, {}))


@pytest.mark.parametrize("role", ROLES)
def test_without_an_action_that_is_needed_a_call_is_refused(calls, role):
    needs, refused = needs_of_role(calls, role), {}
    policy = template(TEMPLATE)["Resources"][role]["Properties"]["Policies"][0]["PolicyDocument"]
    for statement in policy["Statement"]:
        for action in statement["Action"]:

            def drop(statements):
                statements[statement["Sid"]]["Action"].remove(action)

            lost = missing(everything(changed(role, drop), role), needs)
            refused[statement["Sid"], action] = sorted({need.action for need in lost})
    for (sid, action), lost in refused.items():
        assert lost == ([] if sid in REASONS.get(role, {}) else [action]), sid


@pytest.mark.parametrize("role", ROLES)
def test_listing_under_a_condition_refuses_what_has_no_prefix(calls, role):
    def restrict(statements):
        prefixes = ["interactions/*", "items/*", "users/*", "feast/*", "athena/*"]
        statements["List"]["Condition"] = dict(StringLike={"s3:prefix": prefixes})

    lost = missing(everything(changed(role, restrict), role), needs_of_role(calls, role))
    assert {need.action for need in lost} == {"s3:ListBucket"}
    wanted = {
        "PipelineRole": {"HeadBucket", "HeadObject of what is missing"},
        "WorkerRole": {"HeadObject of what is missing"},
        "MaterialiseRole": {"HeadBucket"},
    }
    assert {need.call for need in lost} >= wanted[role], lost


def test_a_prefix_is_asked_for_as_an_object_first(calls):
    def drop(statements):
        statements["TablesIn"]["Resource"] = [
            one for one in statements["TablesIn"]["Resource"] if one["Fn::Sub"].endswith("/*")
        ]

    stack = changed("PipelineRole", drop)
    lost = missing(everything(stack, "PipelineRole"), needs_of_role(calls, "PipelineRole"))
    arns = [f"arn:aws:s3:::{BUCKET}/{table}" for table in ("interactions", "items", "users")]
    assert [(n.action, n.resource) for n in lost] == [("s3:GetObject", arn) for arn in arns]


def test_without_tls_the_bucket_refuses_everyone(calls):
    for role in ROLES:
        grants = everything(template(TEMPLATE), role)
        asked = [n for n in needs_of_role(calls, role) if n.action.startswith("s3:")]
        assert asked and not any(is_allowed(grants, need, secure=False) for need in asked)


def test_every_process_that_has_a_role_is_recorded():
    "The accounts of the roles are those of the recorded processes, and of no other workload."
    roles = {n: r for n, r in template(TEMPLATE)["Resources"].items() if "Role" in r["Type"]}
    # External Secrets reads what it names; none of our processes has this role
    assert set(roles) == {*ROLES, "SecretsRole"}
    found: dict = {}
    for file in (ROOT / "k8s/base").rglob("*.yaml"):
        for document in yaml.safe_load_all(file.read_text()):
            account = re.search(r"'serviceAccountName': '([\w-]+)'", str(document))
            if account:
                found.setdefault(account[1], set()).add(document["metadata"]["name"])
    for role in ("WorkerRole", "MaterialiseRole"):
        trust = roles[role]["Properties"]["AssumeRolePolicyDocument"]["Fn::Sub"]
        account = re.search(r"serviceaccount:recsys:([\w-]+)", trust)[1]
        assert found[account] == set(ROLES[role])


def test_the_page_is_what_was_recorded(calls, tmp_path_factory):
    stack, parts = template(TEMPLATE), [INTRODUCTION]
    for role, steps in ROLES.items():
        rows = permission_rows(
            role_grants(stack, role, BUCKET),
            needs_by_step(calls, role),
            REASONS.get(role, {}),
            BUCKET,
        )
        name = stack["Resources"][role]["Properties"]["RoleName"]
        parts.append(f"## {name}\nHeld by: {', '.join(steps)}.\n\n{markdown_table(rows).strip()}")
    made = ROOT / "outputs/permissions.md"
    made.parent.mkdir(exist_ok=True)
    made.write_text("\n\n".join(parts) + "\n")
    assert PAGE.is_file() and PAGE.read_text() == made.read_text(), (
        "run `cp outputs/permissions.md k8s/permissions.md`"
    )


# ---- the evaluator itself

OBJECT = Need("s3:GetObject", "arn:aws:s3:::b/feast/a", "GetObject")
LISTING = Need("s3:ListBucket", "arn:aws:s3:::b", "ListObjects", (("s3:prefix", "feast/"),))


def statement(**changes):
    "Return the grants of one statement."
    usual = dict(Sid="A", Effect="Allow", Action="s3:*", Resource="arn:aws:s3:::b*")
    return grants_of([usual | changes])


def test_a_denial_wins_and_silence_is_a_refusal():
    assert is_allowed(statement(), OBJECT)
    assert not is_allowed([], OBJECT)
    assert not is_allowed(statement() + statement(Effect="Deny", Action="s3:Get*"), OBJECT)
    assert not is_allowed(statement(Resource="arn:aws:s3:::b/feast"), OBJECT)
    assert not is_allowed(statement(Action="s3:GetObjectAcl"), OBJECT)
    assert is_allowed(statement(Action="S3:GETOBJECT", Resource="arn:aws:s3:::?/*"), OBJECT)


@pytest.mark.parametrize(
    "conditions, with_prefix, without",
    [
        ({"StringLike": {"s3:prefix": ["items/*", "feast/*"]}}, True, False),
        ({"StringLike": {"s3:prefix": "items/*"}}, False, False),
        ({"StringEquals": {"S3:Prefix": "feast/"}}, True, False),
        ({"StringLikeIfExists": {"s3:prefix": "feast/*"}}, True, True),
        ({"StringNotLike": {"s3:prefix": ["items/*", "feast/*"]}}, False, True),
        ({"Null": {"s3:prefix": "true"}}, False, True),
        ({"Bool": {"aws:SecureTransport": "true"}}, True, True),
        ({"Bool": {"aws:SecureTransport": "true"}, "Null": {"s3:prefix": True}}, False, True),
    ],
)
def test_conditions_hold_for_the_keys_that_a_request_has(conditions, with_prefix, without):
    bare = replace(LISTING, context=())
    assert is_allowed(statement(Condition=conditions), LISTING) == with_prefix
    assert is_allowed(statement(Condition=conditions), bare) == without


def test_what_the_evaluator_does_not_know_is_an_error():
    with pytest.raises(ValueError, match="operator"):
        holds({"ArnLike": {"aws:SourceArn": "x"}}, {})
    with pytest.raises(ValueError, match="NotAction"):
        statement(NotAction="s3:PutObject")
    with pytest.raises(ValueError, match="variables"):
        is_allowed(statement(Resource="arn:aws:s3:::b/${aws:username}/*"), OBJECT)
    call = Call("x", "s3", "GET", "/b/a", dict(acl=""), "", {}, 200)
    with pytest.raises(ValueError, match="acl"):
        needs_of(call)
    with pytest.raises(ValueError, match="service"):
        needs_of(replace(call, service="sts"))


@pytest.mark.parametrize(
    "method, path, query, status, wanted",
    [
        ("HEAD", "/b", {}, 200, [("s3:ListBucket", "b")]),
        ("GET", "/b", {"location": ""}, 200, [("s3:GetBucketLocation", "b")]),
        ("HEAD", "/b/a", {}, 404, [("s3:GetObject", "b/a"), ("s3:ListBucket", "b")]),
        ("POST", "/b/a", {"uploads": ""}, 200, [("s3:PutObject", "b/a")]),
        ("PUT", "/b/a", {"partNumber": "1", "uploadId": "x"}, 200, [("s3:PutObject", "b/a")]),
        ("DELETE", "/b/a", {"uploadId": "x"}, 204, [("s3:AbortMultipartUpload", "b/a")]),
        ("DELETE", "/b/a", {}, 204, [("s3:DeleteObject", "b/a")]),
    ],
)
def test_calls_of_s3_need(method, path, query, status, wanted):
    needs = needs_of(Call("x", "s3", method, path, query, "", {}, status))
    assert [(n.action, n.resource.removeprefix("arn:aws:s3:::")) for n in needs] == wanted
    assert all(need.context == () for need in needs)
