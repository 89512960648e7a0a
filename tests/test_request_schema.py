"""The request schema at every door: the same fields, the same bounds, the same words."""

import numpy as np
import pytest
from fastapi.testclient import TestClient

from recsys.core.clock import Clock
from recsys.core.params import PARAMS, Params, RecsysError
from recsys.recommend.request import (
    REQUEST_RULES,
    FieldRule,
    PageRequest,
    field_help,
    read_request,
    request_table,
)
from recsys.serve.backends import Backends
from recsys.serve.page_routes import PageRoutes
from recsys.serve.repository import REQUEST
from recsys.serve.request_tensors import request_tensors
from recsys.serve.tensors import request_of
from recsys.serve.transport import Gateway, guarded_app

SERVING = Params(
    K=10,
    TEMPERATURE=0.0,
    DIVERSITY=0.0,
    MAX_PER_CATEGORY=0,
    GATEWAY_HOST="127.0.0.1",
    GATEWAY_TIMEOUT_MS=1000.0,
    GATEWAY_IN_FLIGHT=32,
)
CLOCK = Clock.stopped(1_700_000_000)


@pytest.fixture(scope="module")
def app():
    gateway = Gateway(Backends(SERVING, "", None, None), log=lambda line: None)
    app = guarded_app(gateway)
    app.include_router(PageRoutes(gateway).router)
    return app


@pytest.fixture(scope="module")
def client(app):
    return TestClient(app, base_url="http://localhost")


def in_process(name, value):
    with pytest.raises(RecsysError) as refused:
        read_request({name: [value]}, SERVING, CLOCK)
    return str(refused.value)


def through_triton(name, value):
    "What a member says about the tensors that the client makes."
    tensors = request_tensors(**dict(k=1) | {name: value})
    encoded = {
        key: np.array([[x.encode() for x in row] for row in array], object)
        if array.dtype == object
        else array
        for key, array in tensors.items()
    }
    with pytest.raises(RecsysError) as refused:
        read_request(request_of(encoded), SERVING, CLOCK)
    return str(refused.value)


def by_the_client(name, value):
    with pytest.raises(RecsysError) as refused:
        request_tensors(**{name: value})
    return str(refused.value)


WRONG = [
    ("user_id", "u" * 257),
    ("user_id", "a\0"),
    ("visitor_id", "v" * 257),
    ("device_type", "d" * 257),
    ("request_id", "r" * 257),
    ("timestamp", -1),
    ("timestamp", 1_700_000_000_000),
    ("k", 0),
    ("k", 1001),
    ("exclude", ["i"] * 1001),
    ("exclude", ["i" * 257]),
    ("temperature", -1),
    ("temperature", 101),
    ("diversity", 2),
    ("seed", 2**53 + 1),
    ("max_per_category", -1),
    ("max_per_category", 1001),
]
IDS = [f"{name}-{str(value)[:12]!r}" for name, value in WRONG]


@pytest.mark.parametrize("name, value", WRONG, ids=IDS)
def test_a_value_out_of_bounds_is_refused_in_the_same_words_at_every_door(client, name, value):
    rule = REQUEST_RULES[name]
    is_entry = name == "exclude" and len(value) == 1
    expected = rule.entry.expected if is_entry else rule.expected
    words = f"{name}{'.0' if is_entry else ''}: expected {expected}, found "
    said = in_process(name, value)
    assert said.startswith(words)
    answer = client.post("/v1/recommendations", json={name: value})
    assert (answer.status_code, answer.json()["error"]) == (422, said[:300])
    if value != "a\0":
        # NumPy drops the NUL at the end of a text
        assert through_triton(name, value).split(", found")[0] == words.split(", found")[0]


SHAPES = (
    "an object with item_id and factor, or item_id and place, or category and factor, "
    "or category and place"
)
WRONG_RULES = [
    ([dict(item_id="a", factor=2)] * 101, "rules: expected a list of at most 100 entries"),
    ([3], f"rules.0: expected {SHAPES}, found 3"),
    ([{}], f"rules.0: expected {SHAPES}, found an object"),
    ([dict(item_id="a")], f"rules.0: expected {SHAPES}, found an object"),
    ([dict(item_id="a", factor=2, place=1)], f"rules.0: expected {SHAPES}, found an object"),
    ([dict(item_id="a", category="c", place=1)], f"rules.0: expected {SHAPES}, found an object"),
    (
        [dict(item_id="a", place=1), dict(item_id="x" * 257, place=1)],
        "rules.1.item_id: expected a text of 1 to 256 characters without NUL, "
        "found a text of 257 characters",
    ),
    ([dict(category="", factor=2)], "rules.0.category: expected a text of 1 to 256 characters"),
    ([dict(category="c", factor=0)], "rules.0.factor: expected a number from 0.01 to 100, found 0"),
    ([dict(category="c", factor=101)], "rules.0.factor: expected a number from 0.01 to 100"),
    ([dict(category="c", factor="2")], "found a text of 1 character"),
    (
        [dict(item_id="a", place=0)],
        "rules.0.place: expected a whole number from 1 to 1000, found 0",
    ),
    ([dict(item_id="a", place=1001)], "rules.0.place: expected a whole number from 1 to 1000"),
    ([dict(item_id=None, place=1)], "rules.0.item_id: expected a text of 1 to 256 characters"),
    ([dict(item_id="a", weight=1)], "rules.0.weight: no such field; there are item_id, category"),
]


@pytest.mark.parametrize("rules, words", WRONG_RULES, ids=[words[:40] for _, words in WRONG_RULES])
def test_a_wrong_rule_is_refused_in_the_same_words_at_every_door(client, rules, words):
    said = in_process("rules", rules)
    assert words in said
    assert through_triton("rules", rules) == said
    answer = client.post("/v1/recommendations", json=dict(rules=rules))
    assert (answer.status_code, answer.json()["error"]) == (422, said[:300])


def test_a_text_that_is_no_json_is_no_list_of_rules():
    tensors = dict(k=np.array([[1]], np.int32), rules=np.array([[b"[{"]], object))
    with pytest.raises(RecsysError, match="rules: expected a list of at most 100 entries"):
        request_of(tensors)


def test_rules_reach_every_door_as_they_were_given():
    rules = [dict(item_id="ä", factor=0.01), dict(category="c", place=3.0)]
    encoded = np.array([[request_tensors(rules=rules)["rules"][0, 0].encode()]], object)
    tensors = dict(k=np.array([[1]], np.int32), rules=encoded)
    assert request_of(tensors)["rules"] == [rules]
    assert read_request(dict(rules=[rules]), SERVING, CLOCK)["rules"] == [rules]
    body = PageRequest(rules=rules).model_dump(exclude_none=True)
    assert body["rules"] == rules
    several = request_tensors(user_id=["a", "b"], rules=[rules, []])["rules"]
    assert several.shape == (2, 1) and several[1, 0] == ""


@pytest.mark.parametrize("value", ["3", 2.5, True], ids=str)
def test_a_page_length_of_another_type_is_refused_in_the_same_words(client, value):
    said = in_process("k", value)
    assert said.startswith(f"k: expected {REQUEST_RULES['k'].expected}, found ")
    assert client.post("/v1/recommendations", json=dict(k=value)).json()["error"] == said
    assert by_the_client("k", value) == said


def test_an_unknown_field_is_refused_by_name_at_every_door(client):
    words = "K: no such field; there are user_id, visitor_id, device_type"
    with pytest.raises(RecsysError, match=words):
        read_request(dict(K=3), SERVING, CLOCK)
    with pytest.raises(RecsysError, match=words):
        request_tensors(K=3)
    assert client.post("/v1/recommendations", json=dict(K=3)).json()["error"].startswith(words)


def test_a_query_says_the_same_as_a_body(client):
    for name, value in (
        ("k", 1001),
        ("temperature", 101),
        ("diversity", 2),
        ("user_id", "u" * 257),
    ):
        answer = client.get("/v1/explanations", params={"item_id": "i", name: value})
        assert answer.json()["error"] == in_process(name, value)


def test_bounds_are_accepted_at_every_door():
    for rule in REQUEST_RULES.values():
        if rule.kind == "text":
            values = ["", "ä" * int(rule.high)]
        elif rule.is_json:
            continue  # tests of its own below
        elif rule.kind == "list":
            values = [[], ["i" * 256] * int(rule.high)]
        else:
            values = [rule.low, rule.high]
        for value in values:
            read_request({rule.name: [value]}, SERVING, CLOCK)
            PageRequest(**{rule.name: value})
            tensors = request_tensors(**{rule.name: value})
            assert rule.name in tensors or value in ("", [])


def test_the_gateways_document_states_the_rules(app):
    schemas = app.openapi()["components"]["schemas"]
    body = schemas["PageBody"]["properties"]
    rules = {name: FieldRule.of(name, body[name], schemas) for name in REQUEST_RULES}
    assert rules == REQUEST_RULES
    query = app.openapi()["paths"]["/v1/explanations"]["get"]["parameters"]
    shared = [field for field in query if field["name"] in REQUEST_RULES]
    plain = [name for name, rule in REQUEST_RULES.items() if rule.kind != "list"]
    assert {field["name"] for field in shared} == set(plain) - {"request_id"}
    for field in shared:
        rule = FieldRule.of(field["name"], field["schema"])
        assert rule.expected == REQUEST_RULES[field["name"]].expected


def test_tritons_inputs_are_the_fields_of_a_request():
    assert [tensor.name for tensor in REQUEST] == list(PageRequest.model_fields)


def test_a_default_of_the_run_has_the_bounds_of_its_field():
    with_default = [rule for rule in REQUEST_RULES.values() if rule.parameter]
    assert [rule.parameter for rule in with_default] == [
        "K",
        "TEMPERATURE",
        "DIVERSITY",
        "MAX_PER_CATEGORY",
    ]
    for rule in with_default:
        param = PARAMS[rule.parameter]
        assert (param.low, param.high) == (rule.low, rule.high)


def test_help_and_table_state_the_bounds():
    table = request_table()
    for name, rule in REQUEST_RULES.items():
        assert f"| `{name}` | {rule.expected} |" in table
        if rule.kind in ("integer", "number"):
            assert f"({rule.allowed})" in field_help(name)


@pytest.mark.parametrize("command", ["recommend", "explain"])
def test_the_command_lines_help_is_that_of_the_schema(command):
    from typer.main import get_command

    from recsys.operate.cli import app

    options = {option.name: option for option in get_command(app).commands[command].params}
    names = dict(user="user_id", device="device_type", k="k", exclude="exclude")
    names |= dict(temperature="temperature", diversity="diversity")
    names |= dict(seed="seed") if command == "recommend" else {}
    for option, name in names.items():
        several = "" if name != "exclude" else ", separated by commas; may stand several times"
        assert options[option].help == field_help(name) + several
        assert options[option].default in (None, "", [], ())


def test_the_command_line_refuses_in_the_same_words(monkeypatch):
    from typer.testing import CliRunner

    import recsys.operate.cli_ask as cli_ask
    import recsys.recommend.recommender as engine
    from recsys.operate.cli import app

    class Refusing:
        bundle = ()  # a catalogue without items

        def recommend(self, request):
            return read_request(request, SERVING, CLOCK)

    monkeypatch.setattr(engine, "load_run", lambda run: Refusing())
    monkeypatch.setattr(cli_ask, "warn_of_old_bundle", lambda run: None)
    for options, name, value in (
        (["-k", "1001"], "k", 1001),
        (["--temperature", "101"], "temperature", 101.0),
        (["--user", "u" * 257], "user_id", "u" * 257),
    ):
        result = CliRunner().invoke(app, ["recommend", *options])
        said = str(result.exception) if result.exception else result.output
        assert in_process(name, value) in " ".join((said + result.output).split())


def test_an_event_has_the_bounds_and_words_of_a_request():
    from recsys.online.events import check_event
    from recsys.recommend.request import request_rules
    from recsys.serve.api import Event

    good = dict(event_id="e", item_id="i", user_id="u", timestamp=1, event_type="view")
    assert check_event(good, {"i"}) == good
    rules = request_rules(Event)
    for name, value in (
        ("user_id", "u" * 257),
        ("device_type", "a\0"),
        ("event_id", ""),
        ("event_type", "a|b"),
        ("timestamp", -1),
    ):
        with pytest.raises(RecsysError) as refused:
            check_event(good | {name: value}, {"i"})
        assert str(refused.value) == str(rules[name].refusal(value))
    for name in ("user_id", "device_type", "timestamp", "request_id"):
        assert rules[name].expected == REQUEST_RULES[name].expected
