"""Bodies that no client should send: broken, deep, cut off, of other types, with wrong bounds.
Used by tests and `make prove`.
"""

import http.client
import json
import random

PATHS = ("/v1/recommendations", "/v1/events")
GOOD = {
    PATHS[0]: dict(user_id="u00001", k=5, temperature=0.5, exclude=["i001"], seed=3),
    PATHS[1]: dict(events=[dict(item_id="i001", user_id="somebody", event_type="view")]),
}
ODD = [
    None,
    True,
    -1,
    0,
    1e400,
    -1e308,
    2**63,
    2**70,
    0.5,
    "",
    "\0",
    "\ud800",
    "x" * 300,
    "💥" * 30,
    [],
    {},
    [[]],
    {"": {}},
    "NaN",
    "1",
    [None] * 50,
]


def body(rng, path):
    "Make one body, as bytes."
    good = json.dumps(GOOD[path])
    kind = rng.randrange(8)
    if kind == 0:
        return rng.randbytes(rng.randrange(200))
    if kind == 1:
        return good[: rng.randrange(len(good))].encode()
    if kind == 2:
        return rng.choice([b"[", b'{"a":', b'{"exclude":[', b"[[1],"]) * rng.randrange(1, 6000)
    if kind == 3:
        text = bytearray(good.encode())
        for _ in range(rng.randrange(1, 6)):
            text[rng.randrange(len(text))] = rng.randrange(256)
        return bytes(text)
    if kind == 4:
        return json.dumps(rng.choice(ODD)).encode("utf-8", "surrogatepass")
    fields = dict(GOOD[path]) if path == PATHS[0] else dict(GOOD[path]["events"][0])
    for _ in range(rng.randrange(1, 4)):
        fields[
            rng.choice(
                [
                    *fields,
                    "timestamp",
                    "request_id",
                    "device_type",
                    "timeout_ms",
                    "diversity",
                    "event_id",
                    "unknown",
                    "__class__",
                ]
            )
        ] = rng.choice(ODD)
    sent = (
        fields
        if path == PATHS[0] or kind == 5
        else dict(events=[fields] * rng.choice([0, 1, 2, 101]))
    )
    return (
        json.dumps(sent, ensure_ascii=kind == 6)
        .encode("utf-8", "surrogatepass")
        .replace(b"1e400", b"NaN")
    )


def send_all(port, key, n, seed=0):
    """Send n bodies to a gateway; returns how often each status came, and raises at the first of
    500 or more.
    """
    rng, counts, connection = (
        random.Random(seed),
        {},
        http.client.HTTPConnection("127.0.0.1", port, timeout=10),
    )
    for i in range(n):
        path = rng.choice(PATHS)
        data = body(rng, path)
        connection.request(
            "POST", path, data, {"Content-Type": "application/json", "X-API-Key": key}
        )
        answer = connection.getresponse()
        said = json.loads(answer.read())
        assert answer.status < 500 and (answer.status == 200 or said["error"]), (
            i,
            path,
            data[:300],
            answer.status,
            said,
        )
        counts[answer.status] = counts.get(answer.status, 0) + 1
    return counts
