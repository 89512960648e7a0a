"""Requests that no client should send: bodies that are broken, deep, cut off, of other types, with
wrong bounds; and bytes that are hardly HTTP. Used by tests and `make prove`.
"""

import asyncio
import contextlib
import http.client
import json
import random
import re

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


METHODS = (b"GET", b"POST", b"DELETE", b"PUT", b"HEAD", b"OPTIONS", b"get", b"CONNECT", b"G T", b"")
TARGETS = (
    b"/healthz",
    b"/v1/recommendations",
    b"/v1/items?limit=3",
    b"/v1/items/%ff/image",
    b"/v1/items/..%2f..%2fetc%2fpasswd/image",
    b"/v1/users/u0001",
    b"/v1/explanations?item_id=i001&draws=10",
    b"/../../etc/passwd",
    b"http://evil.example/healthz",
    b"*",
    b"//",
    b"/\x00",
    b"/\xc3\xa4?\xff",
    b"/?" + b"a=1&" * 60,
    b"/" + b"a" * 20_000,
)
VERSIONS = (b"HTTP/1.1", b"HTTP/1.0", b"HTTP/0.9", b"HTTP/2.0", b"HTTP/9", b"http/1.1", b"")
HEADERS = (
    b"Host: localhost",
    b"Host: evil.example",
    b"Host:",
    b"Content-Type: application/json",
    b"Content-Length: 7",
    b"Content-Length: +7",
    b"Content-Length: -1",
    b"Content-Length: 99999999999999999999999",
    b"Transfer-Encoding: chunked",
    b"Transfer-Encoding: xchunked",
    b"Transfer-Encoding: chunked, identity",
    b"Connection: close",
    b"Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Key: x",
    b"Connection: Upgrade\r\nUpgrade: h2c",
    b"Expect: 100-continue",
    b"X-API-Key: \xff\x00",
    b"X : a",
    b"X: a\r\n folded",
    b"X: a\rb",
    b": no name",
    b"no colon",
    b"X: " + b"a" * 20_000,
    b"\r\n".join(b"X: %d" % i for i in range(120)),
)
BODIES = (
    b"",
    b'{"k":1}',
    b"[" * 5_000,
    b'7\r\n{"k":1}\r\n0\r\n\r\n',
    b"7;" + b"x" * 20_000 + b"\r\n",
    b"fffffffffffffffff\r\n{}\r\n0\r\n\r\n",
    b"-1\r\n",
    b"0\r\nT: " + b"a" * 40_000,
    b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n" * 40,
)


def raw_request(rng):
    "Make the bytes of one request, or of something like it."
    if rng.random() < 0.1:
        return rng.randbytes(rng.randrange(1, 400))
    end = rng.choice([b"\r\n"] * 8 + [b"\n", b"\r"])
    method = rng.choice([b"GET", b"POST", rng.choice(METHODS)])
    version = rng.choice([b"HTTP/1.1"] * 4 + [rng.choice(VERSIONS)])
    first = b" ".join([method, rng.choice(TARGETS), version])
    headers = rng.sample(HEADERS, rng.randrange(0, 3))
    if rng.random() < 0.8:
        headers.insert(0, HEADERS[0])
    data = bytearray(end.join([first, *headers, b"", rng.choice(BODIES)]))
    kind = rng.randrange(6)
    if kind == 0:
        del data[rng.randrange(len(data)) :]
    if kind == 1:
        for _ in range(rng.randrange(1, 6)):
            data[rng.randrange(len(data))] = rng.randrange(256)
    return bytes(data)


async def raw_answer(port, data, patience):
    "Send bytes on a connection of their own; return what is answered within some seconds."
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    answer = b""
    with contextlib.suppress(TimeoutError, asyncio.TimeoutError, OSError):
        writer.write(data)
        while part := await asyncio.wait_for(reader.read(65536), patience):
            answer += part
    writer.close()
    return answer


def warm_up(port, seed=1):
    "Let a gateway load what it loads with the first request of a kind, so that memory is flat."
    for path in ("/v1/explanations?item_id=i001&draws=10", "/v1/items", "/v1/options"):
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
        connection.request("GET", path)
        assert connection.getresponse().status == 200, path
        connection.close()
    send_raw(port, 100, seed)


INTERNALS = re.compile(rb"Traceback|File \"|recsys/|site-packages|[A-Z]\w+Error|127\.0\.0\.1|/tmp/")


def send_raw(port, n, seed=0, at_once=20, patience=0.1):
    """Send n requests that are hardly HTTP; return how often each status came first.

    Raises at the first answer of 500 or more, or that names internals of the server.
    """
    rng, counts = random.Random(seed), {}

    async def send_some(requests):
        answers = (raw_answer(port, data, patience) for data in requests)
        return await asyncio.gather(*answers)

    for first in range(0, n, at_once):
        requests = [raw_request(rng) for _ in range(min(at_once, n - first))]
        for data, answer in zip(requests, asyncio.run(send_some(requests))):
            statuses = [int(code) for code in re.findall(rb"HTTP/1\.1 (\d{3}) ", answer)]
            is_good = not INTERNALS.search(answer) and all(code < 500 for code in statuses)
            assert is_good, (data[:300], answer[:600])
            status = statuses[0] if statuses else "closed"
            counts[status] = counts.get(status, 0) + 1
    return counts
