"""Requests to Triton's gRPC that no client should send: bytes that are no message, wrong types,
shapes and lengths, texts that aren't UTF-8, missing and doubled inputs, hostile names and
parameters. Used by tests and `make prove`.
"""

import random
import re
import struct
import sys
import time
from collections import Counter

INFER = "/inference.GRPCInferenceService/ModelInfer"
OTHER_TYPES = ["BOOL", "UINT8", "INT8", "INT64", "FP16", "FP32", "FP64", "BYTES", "BF16", "", "x"]
SIZES = [0, -1, 2, 3, 64, 65, 2**31 - 1, 2**31, 2**40, 2**62, -(2**63)]
TEXTS = [
    b"",
    b"u0001",
    b"\xff\xfe",
    b"\xed\xa0\x80",
    b"a\0b",
    b"{",
    b"[[[[",
    b'{"k": 1}',
    b"x" * 300,
    "💥".encode() * 70,
    b"../../../etc/passwd",
    b"\r\n",
]
NAMES = ["", "nothing", "../recommender", "/etc/passwd", "a\nb", "é", "r" * 5000]
VERSIONS = ["", "1", "-1", "999", "x", "../1"]
PARAMETERS = [
    ("sequence_id", 7),
    ("sequence_id", "x"),
    ("sequence_start", True),
    ("priority", 2**40),
    ("timeout", 1),
    ("timeout", -1),
    ("shared_memory_region", "recsys"),
    ("shared_memory_byte_size", 2**40),
    ("shared_memory_offset", -1),
    ("binary_data_size", 2**40),
    ("classification", 3),
    ("triton_enable_empty_final_response", True),
    ("headers", "x" * 300),
    ("", ""),
]


def good_value(rng, dtype):
    "Return the bytes of one value of a type."
    if dtype == "BYTES":
        text = rng.choice(TEXTS)
        return struct.pack("<I", len(text)) + text
    forms = dict(INT32="<i", INT64="<q", FP32="<f")
    low, high = rng.choice([(1, 10), (1, 10), (-5, 2**31 - 1)])
    return struct.pack(forms[dtype], rng.randint(low, high))


def raw_values(rng, dtype, shape):
    "Return the bytes of a tensor: whole ones most of the time, else too few, too many or others."
    count = 1
    for size in shape:
        count *= size
    count = count if 0 <= count <= 200_000 else rng.randrange(3)
    known = dtype if dtype in ("BYTES", "INT32", "INT64", "FP32") else "INT32"
    if count > 100:
        data = good_value(rng, known) * count
    else:
        data = b"".join(good_value(rng, known) for _ in range(count))
    kind = rng.randrange(20)
    if kind == 0:
        return data[: rng.randrange(len(data) + 1)]
    if kind == 1:
        return data + rng.randbytes(rng.randrange(1, 20))
    if kind == 2:
        return rng.randbytes(rng.randrange(40))
    if kind == 3:
        return rng.choice([b"\xff\xff\xff\xff", struct.pack("<I", 2**31)]) + data
    return data


def set_parameter(rng, parameters):
    "Set a parameter of a request, an input or an output."
    name, value = rng.choice(PARAMETERS)
    kind = {bool: "bool_param", int: "int64_param", str: "string_param"}[type(value)]
    setattr(parameters[name], kind, value)


def add_input(rng, request, tensor):
    "Add an input to a request, right or wrong in type, shape, content and parameters."
    dtype = "BYTES" if tensor.dtype == "STRING" else tensor.dtype
    length = rng.choice([1, 1, 2, 5, 1500]) if tensor.dims == (-1,) else 1
    shape = [1, length]
    kind = rng.randrange(25)
    if kind == 0:
        dtype = rng.choice(OTHER_TYPES)
    if kind == 1:
        shape[rng.randrange(2)] = rng.choice(SIZES)
    if kind == 2:
        shape = rng.choice([[], [1], [1, 1, 1], [1] * 300, [2**31, 2**33], [64, length]])
    if kind == 3 and rng.random() < 0.1:
        shape = rng.choice([[1, 100_000], [64, 2_000]])
    given = request.inputs.add(name=tensor.name, datatype=dtype, shape=shape)
    if kind == 4:
        given.name = rng.choice(NAMES)
    if kind == 5:
        given.contents.bytes_contents.append(rng.choice(TEXTS))
        given.contents.int_contents.extend([1] * rng.randrange(3))
    if kind == 6:
        set_parameter(rng, given.parameters)
    if kind != 7:
        request.raw_input_contents.append(raw_values(rng, dtype, shape))


def infer_request(rng, tensors, models):
    "Return an inference request as the bytes of its message, sometimes damaged."
    from tritonclient.grpc import service_pb2

    request = service_pb2.ModelInferRequest(model_name=rng.choice(models))
    if rng.random() < 0.05:
        request.model_name = rng.choice(NAMES)
    if rng.random() < 0.1:
        request.model_version = rng.choice(VERSIONS)
    required = [] if rng.random() < 0.1 else [t for t in tensors if not t.optional]
    optional = rng.sample([t for t in tensors if t.optional], rng.randrange(4))
    for tensor in required + optional + (required if rng.random() < 0.05 else []):
        add_input(rng, request, tensor)
    if rng.random() < 0.1:
        output = request.outputs.add(name=rng.choice(["item_ids", "scores", *NAMES]))
        set_parameter(rng, output.parameters)
    if rng.random() < 0.1:
        set_parameter(rng, request.parameters)
    data = bytearray(request.SerializeToString())
    kind = rng.randrange(12)
    if kind == 0:
        del data[rng.randrange(len(data) + 1) :]
    if kind == 1:
        for _ in range(rng.randrange(1, 6)):
            data[rng.randrange(len(data))] = rng.randrange(256)
    return rng.randbytes(rng.randrange(200)) if kind == 2 else bytes(data)


def internals(*paths):
    "Return a pattern of what no answer may name: folders of the server and Python's traces."
    words = ["Traceback", 'File "', "site-packages", r"\.py\b", r"internal error \("]
    return re.compile("|".join([*words, *(re.escape(str(path)) for path in {sys.prefix, *paths})]))


def fuzz_grpc(server, n, seed=0, seconds=20):
    """Send n requests to a server; return how often each status came.

    Raises at the first answer that names internals, at one that does not come, and where the
    server ends.
    """
    import grpc

    from recsys.serve.repository import REQUEST

    rng, counts = random.Random(seed), Counter()
    pattern = internals(server.repository, server.home)
    models = [server.ensemble] * 4 + server.members()
    with grpc.insecure_channel(server.grpc) as channel:
        infer = channel.unary_unary(INFER)
        for number in range(n):
            data = infer_request(rng, REQUEST, models)
            try:
                infer(data, timeout=seconds)
                status, said = "OK", ""
            except grpc.RpcError as error:
                status, said = error.code().name, error.details() or ""
            is_good = status not in ("UNAVAILABLE", "DEADLINE_EXCEEDED")
            is_good = is_good and not pattern.search(said)
            assert is_good, (number, status, said[:600], data[:300])
            counts[status] += 1
    return dict(counts)


def memory_after(server, most, seconds=60):
    "Return a server's memory (MiB) as soon as it is at most `most`, or the last one."
    end = time.monotonic() + seconds
    while (memory := server.memory()["pss"]) > most and time.monotonic() < end:
        time.sleep(1)
    return memory
