"""What AWS is asked and what a role may do: a recorder of the calls that reach moto's server, the
permissions that each call needs, and an evaluator of the policies of a CloudFormation template.
"""

import contextlib
import io
import json
import logging
import os
import re
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from urllib.parse import parse_qsl, unquote

REGION, ACCOUNT = "eu-central-1", "123456789012"
# the part of an S3 address behind the question mark that says which action is meant
S3_SUBRESOURCES = {"delete", "location", "uploads", "uploadId", "partNumber"}
S3_LISTING = {"prefix", "delimiter", "max-keys", "encoding-type", "continuation-token"}
S3_IGNORED = {"x-id", "list-type", "fetch-owner", "start-after"}


@dataclass(frozen=True)
class Call:
    "One request that reached AWS, or what stands in for it."

    step: str  # what was under way, such as ingest
    service: str  # as the signature names it
    method: str
    path: str
    query: dict
    action: str  # of services that name it in a header
    body: dict  # JSON of those services
    status: int
    copied: bool = False  # an object is to be read from another place, too


@dataclass(frozen=True)
class Need:
    "A permission that a call needs."

    action: str
    resource: str  # ARN
    call: str  # of the API
    context: tuple = ()  # (condition key, value)


@dataclass
class Recorder:
    "A WSGI application in front of another one, which keeps what it is asked."

    application: Callable | None = None
    step: str = ""
    calls: list = field(default_factory=list)
    answered: Callable[[Call], None] | None = None  # called with each call that is kept

    @contextlib.contextmanager
    def named(self, step: str) -> Iterator[None]:
        "Keep the calls of a block under a name; calls outside of blocks are not kept."
        assert not self.step, f"{self.step} is under way"
        self.step = step
        try:
            yield
        finally:
            self.step = ""

    def __call__(self, environ, start_response):
        step, target = self.step, environ.get("HTTP_X_AMZ_TARGET", "")
        scope = re.search(r"Credential=([^,]+)", environ.get("HTTP_AUTHORIZATION", ""))
        query = dict(parse_qsl(environ.get("QUERY_STRING", ""), keep_blank_values=True))
        body = {}
        if target or "delete" in query:
            raw = environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
            environ["wsgi.input"] = io.BytesIO(raw)
            keys = re.findall(r"<Key>(.*?)</Key>", raw.decode())
            body = json.loads(raw) if target else dict(keys=keys)

        def started(status, headers, *error):
            if step:
                call = Call(
                    step=step,
                    service=scope[1].split("/")[3] if scope else "",
                    method=environ["REQUEST_METHOD"],
                    path=unquote(environ["PATH_INFO"]),
                    query=query,
                    action=target.rpartition(".")[2],
                    body=body,
                    status=int(status.split()[0]),
                    copied="HTTP_X_AMZ_COPY_SOURCE" in environ,
                )
                self.calls.append(call)
                if self.answered:
                    self.answered(call)
            return start_response(status, headers, *error)

        return self.application(environ, started)


def _forget(url: str) -> None:
    "Let moto forget what servers of this process made before: all of them share one state."
    request = urllib.request.Request(f"{url}/moto-api/reset", method="POST")
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(request, timeout=30) as answer:
        assert answer.status == 200, answer.status


@contextlib.contextmanager
def moto_server(recorder: Recorder | None = None) -> Iterator[str]:  # URL
    "Run moto's server, behind a recorder if one is given, with the environment of its clients."
    from moto.server import ThreadedMotoServer

    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server, saved = ThreadedMotoServer("127.0.0.1", 0, verbose=False), dict(os.environ)
    server.start()
    _forget(f"http://127.0.0.1:{server.get_host_and_port()[1]}")
    if recorder:
        recorder.application, server._server.app = server._server.app, recorder
    url = f"http://127.0.0.1:{server.get_host_and_port()[1]}"
    os.environ |= dict(
        AWS_ENDPOINT_URL=url,
        FEAST_S3_ENDPOINT_URL=url,
        AWS_ACCESS_KEY_ID="test",
        AWS_SECRET_ACCESS_KEY="test",
        AWS_DEFAULT_REGION=REGION,
        AWS_EC2_METADATA_DISABLED="true",
    )
    try:
        yield url
    finally:
        server.stop()
        os.environ.clear()
        os.environ.update(saved)


# ---- what a call needs


def needs_of(call: Call) -> list[Need]:
    "Return the permissions that a call needs; raise `ValueError` for a call that isn't known."
    if call.service == "s3":
        return s3_needs(call)
    if call.service == "glue":
        return glue_needs(call)
    if call.service == "athena":
        return athena_needs(call)
    raise ValueError(f"{call}: a service that no rule here knows")


def s3_needs(call: Call) -> list[Need]:
    """Return what a call of S3 needs.

    `HeadBucket` and the answer 404 for an object that is missing need s3:ListBucket without a
    prefix in their context; without that permission the answer is 403.
    """
    bucket, _, key = call.path.lstrip("/").partition("/")
    arn = f"arn:aws:s3:::{bucket}"
    named = set(call.query) & S3_SUBRESOURCES
    unknown = set(call.query) - S3_SUBRESOURCES - S3_LISTING - S3_IGNORED
    if unknown or call.copied:
        raise ValueError(f"{call}: no rule here knows {unknown or 'a copy'}")
    if not key:
        return _bucket_needs(call, arn, named)
    actions = {
        ("HEAD", ""): ("s3:GetObject", "HeadObject"),
        ("GET", ""): ("s3:GetObject", "GetObject"),
        ("PUT", ""): ("s3:PutObject", "PutObject"),
        ("DELETE", ""): ("s3:DeleteObject", "DeleteObject"),
        ("POST", "uploads"): ("s3:PutObject", "CreateMultipartUpload"),
        ("PUT", "partNumber,uploadId"): ("s3:PutObject", "UploadPart"),
        ("POST", "uploadId"): ("s3:PutObject", "CompleteMultipartUpload"),
        ("DELETE", "uploadId"): ("s3:AbortMultipartUpload", "AbortMultipartUpload"),
    }
    action, name = actions[call.method, ",".join(sorted(named))]
    needs = [Need(action, f"{arn}/{key}", name)]
    if call.status == 404:
        needs.append(Need("s3:ListBucket", arn, f"{name} of what is missing"))
    return needs


def _bucket_needs(call: Call, arn: str, named: set) -> list[Need]:
    "Return what a call of S3 to a bucket needs."
    if call.method == "HEAD":
        return [Need("s3:ListBucket", arn, "HeadBucket")]
    if call.method == "GET" and named == {"location"}:
        return [Need("s3:GetBucketLocation", arn, "GetBucketLocation")]
    if call.method == "POST" and named == {"delete"}:
        keys = call.body["keys"]
        return [Need("s3:DeleteObject", f"{arn}/{key}", "DeleteObjects") for key in keys]
    if call.method == "GET" and not named:
        conditions = ("prefix", "delimiter", "max-keys")
        context = tuple((f"s3:{k}", call.query[k]) for k in conditions if k in call.query)
        return [Need("s3:ListBucket", arn, "ListObjects", context)]
    raise ValueError(f"{call}: no rule here knows this call to a bucket")


# which resources an action of Glue is judged on
GLUE_RESOURCES = dict(
    CreateDatabase=("catalog", "database"),
    CreateTable=("catalog", "database", "table"),
    UpdateTable=("catalog", "database", "table"),
)


def glue_needs(call: Call) -> list[Need]:
    "Return what a call of Glue needs: the action on each of its kinds of resource."
    database = call.body.get("DatabaseName") or call.body["DatabaseInput"]["Name"]
    table = call.body.get("TableInput", {}).get("Name", "")
    names = dict(
        catalog="catalog", database=f"database/{database}", table=f"table/{database}/{table}"
    )
    below = f"arn:aws:glue:{REGION}:{ACCOUNT}"
    return [
        Need(f"glue:{call.action}", f"{below}:{names[kind]}", call.action)
        for kind in GLUE_RESOURCES[call.action]
    ]


def athena_needs(call: Call) -> list[Need]:
    "Return what a call of Athena needs; all are judged on the query's workgroup."
    known = ("StartQueryExecution", "GetQueryExecution", "GetQueryResults")
    if call.action not in known:
        raise ValueError(f"{call}: no rule here knows this action of Athena")
    workgroup = f"arn:aws:athena:{REGION}:{ACCOUNT}:workgroup/recsys"
    assert call.body.get("WorkGroup", "recsys") == "recsys", call
    return [Need(f"athena:{call.action}", workgroup, call.action)]


# ---- what a role may do


@dataclass(frozen=True)
class Grant:
    "One action on one resource that a statement allows or denies."

    sid: str
    action: str
    resource: str
    allows: bool = True
    conditions: str = "{}"  # JSON


def _as_list(value) -> list:
    return value if isinstance(value, list) else [value]


def resolved(value, bucket: str):
    "Write out the references of a template's policy; raise `KeyError` for an unknown one."
    if isinstance(value, list):
        return [resolved(one, bucket) for one in value]
    if not isinstance(value, dict):
        return value
    names = {
        "Bucket.Arn": f"arn:aws:s3:::{bucket}",
        "AWS::Partition": "aws",
        "AWS::Region": REGION,
        "AWS::AccountId": ACCOUNT,
        "Database": "recsys",
        "Workgroup": "recsys",
    }
    if "Fn::GetAtt" in value:
        given = value["Fn::GetAtt"]
        return names[given if isinstance(given, str) else ".".join(given)]
    if "Fn::Sub" in value:
        return re.sub(r"\$\{(.+?)\}", lambda m: names[m[1]], value["Fn::Sub"])
    return {key: resolved(one, bucket) for key, one in value.items()}


def grants_of(statements: list) -> list[Grant]:
    "Return each pair of action and resource of some statements."
    grants = []
    for statement in statements:
        extra = set(statement) - {"Sid", "Effect", "Action", "Resource", "Condition", "Principal"}
        if extra:
            raise ValueError(f"{statement}: no rule here knows {extra}")
        grants += [
            Grant(
                sid=statement["Sid"],
                action=action,
                resource=resource,
                allows=statement["Effect"] == "Allow",
                conditions=json.dumps(statement.get("Condition", {})),
            )
            for action in _as_list(statement["Action"])
            for resource in _as_list(statement["Resource"])
        ]
    return grants


def role_grants(template: dict, role: str, bucket: str) -> list[Grant]:
    "Return what a role of a template may do."
    policies = template["Resources"][role]["Properties"]["Policies"]
    statements = [s for policy in policies for s in policy["PolicyDocument"]["Statement"]]
    return grants_of(resolved(statements, bucket))


def bucket_grants(template: dict, bucket: str) -> list[Grant]:
    "Return what the policy of the bucket says to everyone."
    policy = template["Resources"]["BucketPolicy"]["Properties"]["PolicyDocument"]
    return grants_of(resolved(policy["Statement"], bucket))


def is_like(pattern: str, text: str) -> bool:
    "Tell whether a text matches a pattern with * and ?."
    if "${" in pattern:
        raise ValueError(f"{pattern}: variables of policies are not known here")
    expression = re.escape(pattern).replace(r"\*", ".*").replace(r"\?", ".")
    return re.fullmatch(expression, text, re.DOTALL) is not None


OPERATORS = dict(
    StringEquals=lambda wanted, value: wanted == value,
    StringLike=is_like,
    Bool=lambda wanted, value: wanted.lower() == value.lower(),
)


def holds(conditions: dict, context: dict) -> bool:
    """Tell whether all conditions of a statement hold.

    Several values of a key are alternatives, several keys are all asked for. A key that the
    request doesn't have fails a condition, but passes one with Not or IfExists. Null asks whether
    the key is missing.
    """
    context = {key.lower(): value for key, value in context.items()}
    for operator, wanted_by_key in conditions.items():
        plain = operator.removesuffix("IfExists")
        is_negated = "Not" in plain
        test = OPERATORS.get(plain.replace("Not", ""))
        if test is None and plain != "Null":
            raise ValueError(f"{operator}: no rule here knows this operator")
        for key, wanted in wanted_by_key.items():
            value, wanted = context.get(key.lower()), [str(one) for one in _as_list(wanted)]
            if plain == "Null":
                passes = str(value is None).lower() in [one.lower() for one in wanted]
            elif value is None:
                passes = is_negated or operator != plain
            else:
                passes = any(test(one, value) for one in wanted) != is_negated
            if not passes:
                return False
    return True


def applies(grant: Grant, need: Need, secure: bool = True) -> bool:
    "Tell whether a grant speaks of what is needed; AWS is reached by TLS, moto is not."
    if not is_like(grant.action.lower(), need.action.lower()):
        return False
    context = {"aws:SecureTransport": str(secure).lower(), **dict(need.context)}
    return is_like(grant.resource, need.resource) and holds(json.loads(grant.conditions), context)


def is_allowed(grants: list[Grant], need: Need, secure: bool = True) -> bool:
    "Tell whether some grants allow what is needed: one allows it and none denies it."
    said = [grant.allows for grant in grants if applies(grant, need, secure)]
    return bool(said) and all(said)


def missing(grants: list[Grant], needs) -> list[Need]:
    "Return what is needed and not allowed, sorted."
    return sorted({n for n in needs if not is_allowed(grants, n)}, key=lambda n: str(n))


def necessary(grants: list[Grant], needs) -> list[Grant]:
    "Return the grants without which something that is needed would not be allowed."
    needs = [need for need in set(needs) if is_allowed(grants, need)]
    return [g for g in grants if g.allows and missing([x for x in grants if x != g], needs)]


# ---- the page


def short(resource: str, bucket: str) -> str:
    "Return the part of an ARN that tells resources apart, with BUCKET for the bucket's name."
    return resource.split(":", 5)[5].replace(bucket, "BUCKET", 1)


def permission_rows(
    grants: list[Grant],
    needs_by_step: dict,  # step -> needs
    reasons: dict,  # statement -> why it is given without a call that needs it
    bucket: str,
) -> list[dict]:
    "Return a row for each action of each statement of a role: where, who needs it, for what."
    every = {need for needs in needs_by_step.values() for need in needs}
    rows: dict = {}
    for grant in grants:
        rows.setdefault((grant.sid, grant.action), []).append(grant)
    table = []
    for (sid, action), same in rows.items():

        def served(needs):
            return [need for need in needs if any(applies(grant, need) for grant in same)]

        steps = [step for step, needs in needs_by_step.items() if served(needs)]
        calls = sorted({need.call for need in served(every)})
        row = dict(
            action=f"`{action}`",
            on=", ".join(f"`{short(grant.resource, bucket)}`" for grant in same),
            needed_by=", ".join(steps) or "no recorded call",
            calls_or_reason=", ".join(calls) or reasons.get(sid, ""),
        )
        table.append({name.replace("_", " "): cell for name, cell in row.items()})
    return table
