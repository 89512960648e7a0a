"""Fourteen members with Feast and NVTabular in the path of every request, for comparison with the
seven.
"""

import os
from pathlib import Path

import numpy as np

from recsys.core.params import Params, RecsysError
from recsys.core.runs import read_json, sha256_file, stage_dir
from recsys.data.asof import history_length
from recsys.data.features import NULL, columns_of, local_time
from recsys.data.features import pack as side_by_side
from recsys.data.interaction import interaction_features
from recsys.models.sources import Retrieved
from recsys.online.feature_views import KNOWN
from recsys.recommend.bundle import Bundle
from recsys.recommend.candidates import Candidates, CandidateSearch, ServedQuery
from recsys.recommend.fallbacks import REQUEST_STEPS, FallbackLog, finite
from recsys.recommend.recommender import make_pages, query_arrays
from recsys.recommend.request import read_request
from recsys.serve.ensemble import onnx_tensors
from recsys.serve.member import PythonMember
from recsys.serve.repository import (
    REQUEST,
    RESPONSE,
    Ensemble,
    Member,
    Step,
    Tensor,
    pinned_version,
    write_repository,
)
from recsys.serve.step_members import StepMember
from recsys.serve.tensors import json_column, pack_context, request_of, text_column, unpack_context


def checked_workflow(run: Path, side: str):  # nvtabular.Workflow
    """Load a fitted workflow of a run; raise `RecsysError` where a file isn't the one that the
    run wrote.
    """
    folder, known = (
        run / "data_prep" / "workflows" / side,
        read_json(run / "data_prep" / "stage.json")["outputs"],
    )
    there = {str(f.relative_to(run / "data_prep")) for f in folder.rglob("*") if f.is_file()} | {
        n for n in known if n.startswith(f"workflows/{side}/")
    }
    for name, f in ((n, run / "data_prep" / n) for n in sorted(there)):
        if name not in known or not f.is_file() or sha256_file(f) != known[name]["sha256"]:
            raise RecsysError(
                f"{f}: differs from its sha256 in the run's data_prep/stage.json, and it "
                f"may hold a pickle; run data_prep again"
            )
    from recsys.data.workflows import load_workflow

    return load_workflow(folder)


class Nvt(PythonMember):
    "Encode one side's raw features with its workflow."

    side = ""

    def setup(self):
        self.open(Path(os.environ["RECSYS_RUN"]), Bundle(self.bundle))

    def open(self, run: Path, bundle: Bundle):
        """Load the workflow; a known row goes first, because NVTabular refuses a column without
        any value.
        """
        self.flow, self.b, self.features = (
            checked_workflow(run, self.side),
            bundle,
            bundle.contract.side(self.side),
        )
        self.known = {
            f.name: bundle.encoder.vocab[f.vocabulary][0][0].decode()
            if f.kind == "categorical"
            else 1.0
            for f in self.features
            if f.kind != "embedding"
        }
        return self


def transform(
    self: Nvt,
    columns: dict,  # feature -> raw values [n]
) -> dict:  # feature -> encoded [n]
    "Apply the workflow to raw columns."
    import pandas as pd

    values = {n: [k, *columns[n].tolist()] for n, k in self.known.items() if n in columns}
    found = self.flow._transform_df(
        pd.DataFrame(
            {
                n: np.array(
                    [None if x == "" else x for x in v],
                    object if isinstance(self.known[n], str) else float,
                )
                for n, v in values.items()
            }
        )
    )
    return {
        f.name: found[f.name]
        .to_numpy()[1:]
        .astype(np.int64 if f.kind == "categorical" else np.float32)
        for f in self.features
        if f.name in values
    }


Nvt.transform = transform


class ContextPreprocessor(StepMember):
    "1: check the request, derive hour and weekday."

    merge, strict = False, True

    def answer(self, x: dict) -> dict:
        r = read_request(request_of(x), self.recommender.bundle.serving, self.recommender.clock)
        hour, weekday = local_time(r["timestamp"], self.recommender.bundle.encoder.timezone)
        return dict(
            request=pack_context(r, np.zeros(len(r["k"]), bool), r["request_id"]),
            hour=text_column(map(str, hour)),
            weekday=text_column(map(str, weekday)),
            device=text_column(r["device_type"]),
        )


class FeastUserLookup(StepMember):
    "2: ask Feast for the users."

    merge = False

    def use(self, recommender, store=None):
        self.recommender, self.service = recommender, None
        self.store = store or open_feast()
        self.service = self.store.get_feature_service("recommend")
        return self

    def answer(self, x: dict) -> dict:
        r = unpack_context(x["request"])[0]
        found = self.store.get_online_features(
            features=self.service, entity_rows=[dict(user_id=u) for u in r["user_id"]]
        ).to_dict()
        return dict(
            user=json_column(
                [{n: v[i] for n, v in found.items()} for i in range(len(r["user_id"]))]
            )
        )


def open_feast():  # feast.FeatureStore
    "Open the run's store in a member."
    from recsys.online.feature_views import open_store
    from recsys.serve.serving import run_params

    return open_store(run_params(os.environ["RECSYS_RUN"]), os.environ["RECSYS_VALKEY_URL"])


class NvtUserTransform(Nvt):
    "3: encode the user's columns; the history by the catalogue's rows."

    side = "user"

    def answer(self, x: dict) -> dict:
        import json

        users, (r, _, ids), b = (
            [json.loads(u) for u in x["user"][:, 0]],
            unpack_context(x["request"]),
            self.b,
        )

        def nan(v):
            return np.nan if v is None else v

        raw = {
            f.name: np.array(
                [
                    nan(u.get(f.name)) if f.kind == "continuous" else (u.get(f.name) or "")
                    for u in users
                ],
                object,
            )
            for f in self.features
        }
        out, rows = (
            self.transform(raw) if raw else {},
            np.full((len(users), b.contract["hist_items"].dim), -1),
        )
        for i, u in enumerate(users):
            past = [b.row_of[h] for h in u.get("hist_items") or () if h in b.row_of][
                -rows.shape[1] :
            ]
            if past:
                rows[i, -len(past) :] = past
        if b.contract["top_category"]:
            out["top_category"] = np.array(
                [top_at(b, u, int(t)) for u, t in zip(users, r["timestamp"])]
            )
        known = np.array([u.get(KNOWN) is not None for u in users])
        out |= dict(hist_items=b.encoded_ids[rows], hist_len=history_length(rows))
        return out | dict(request=pack_context(r, known, ids))


def top_at(b: Bundle, user: dict, now: int) -> int:  # encoded
    "Read a user's top category of a moment."
    names = {"": NULL} | {v: k for k, v in b.category_names.items()}
    return next(
        (
            names.get(v, 2)
            for v, until in zip(
                user.get("top_category") or (), user.get("top_category_until") or ()
            )
            if now < until
        ),
        NULL,
    )


class NvtContextTransform(Nvt):
    "4: encode hour, weekday and device; lay out the query side."

    side = "context"

    def answer(self, x: dict) -> dict:
        def text(a):
            return np.array([v.decode() if isinstance(v, bytes) else v for v in a[:, 0]], object)

        raw = dict(hour=text(x["hour"]), weekday=text(x["weekday"]), device_type=text(x["device"]))
        return query_arrays(self.b, x | self.transform({n: raw[n] for n in self.known}))


class FaissRetrieval(StepMember):
    "6: the nearest items."

    merge, parts = False, ("index",)

    def answer(self, x: dict) -> dict:
        r = unpack_context(x["request"])[0]
        search = CandidateSearch(
            self.recommender.bundle, self.recommender.users, r, x["query"], x["q_ints"]
        )
        found = search.retrieve(search.first_width(), FallbackLog(len(x["query"])))
        return dict(rows=found.rows, row_scores=found.scores)


class FilterSeenItems(StepMember):
    "7: the seen filter, exclusions, stock."

    merge, parts = False, ("hashes", "row_of", "in_stock")

    def answer(self, x: dict) -> dict:
        r, why = unpack_context(x["request"])[0], FallbackLog(len(x["query"]))
        search = CandidateSearch(
            self.recommender.bundle, self.recommender.users, r, x["query"], x["q_ints"]
        )
        found = search.candidates(Retrieved(x["row_scores"], x["rows"], {}), why)
        return dict(
            candidates=found.rows,
            retrieved=found.scores,
            ranks=found.ranks,
            why=json_column(list(why)),
        )


class FeastItemLookup(StepMember):
    """8: ask Feast for the candidates' raw features, in one call; with a cache only for those not
    yet in memory.
    """

    merge, parts, cache = False, ("ids",), None

    def use(self, recommender, store=None, cache: bool | None = None):
        self.recommender, self.store, b = recommender, store or open_feast(), recommender.bundle
        self.cache = (
            {}
            if (
                self.config["parameters"]["cache"]["string_value"] == "1"
                if cache is None
                else cache
            )
            else None
        )
        self.fields = [f for f in b.contract.item if f.kind != "embedding" and f.name != "item_id"]
        self.wanted, self.texts = (
            [f"item_features:{f.source}" for f in self.fields],
            np.array([i.decode() for i in b.ids], object),
        )
        return self

    def fetch(self, ids: list) -> dict:
        "Read raw features, a list a feature."
        found = self.store.get_online_features(
            features=self.wanted, entity_rows=[dict(item_id=i) for i in ids]
        ).to_dict()
        return {f.name: found[f.source] for f in self.fields}

    def answer(self, x: dict) -> dict:
        at = np.maximum(x["candidates"], 0)
        ids = self.texts[at]
        if not self.fields:
            return dict(item_id=ids)
        if self.cache is None:
            flat = self.fetch(ids.ravel().tolist())
        else:
            missing = sorted({i for i in ids.ravel().tolist() if i not in self.cache})
            if missing:
                self.cache.update(zip(missing, zip(*self.fetch(missing).values())))
            flat = dict(
                zip(
                    (f.name for f in self.fields),
                    zip(*map(self.cache.__getitem__, ids.ravel().tolist())),
                )
            )

        def shape(f):
            return (
                np.array([np.nan if v is None else v for v in flat[f.name]], np.float32)
                if f.kind == "continuous"
                else np.array([v or "" for v in flat[f.name]], object)
            )

        return dict(item_id=ids) | {f.name: shape(f).reshape(at.shape) for f in self.fields}


class NvtItemTransform(Nvt):
    "9: encode the candidates' features."

    side = "item"

    def answer(self, x: dict) -> dict:
        def text(a):
            return (
                np.array([v.decode() if isinstance(v, bytes) else v for v in a.ravel()], object)
                if a.dtype == object
                else a.ravel()
            )

        return {
            n: v.reshape(x["item_id"].shape)
            for n, v in self.transform({n: text(x[n]) for n in self.known}).items()
        }


class MultimodalEmbeddingLookup(StepMember):
    "10: text and image embeddings of the candidates."

    merge, parts = False, ("columns",)

    def answer(self, x: dict) -> dict:
        b = self.recommender.bundle
        at = columns_of(b.contract.item, "floats")
        found = (
            b.columns.gather(np.maximum(x["candidates"], 0), ["i_floats"])["i_floats"]
            if at
            else None
        )
        return {f.name: found[..., at[f.name]] for f in b.contract.item.kind("embedding")}


class UnrollFeatures(StepMember):
    """11: one row a candidate, the user repeated: the ranker's same file gets B * C users with
    one candidate each.
    """

    merge, parts = False, ("columns",)

    def answer(self, x: dict) -> dict:
        b, rows, (B, C) = self.recommender.bundle, x["candidates"], x["candidates"].shape
        now, launch = (
            unpack_context(x["request"])[0]["timestamp"],
            b.columns.gather(np.maximum(rows, 0), ["first_event"])["first_event"],
        )
        items = side_by_side(
            b.contract.item, {n[2:]: a for n, a in x.items() if n.startswith("i_")}, "i_"
        )
        items |= {
            b.interaction_input: interaction_features(
                b.interactions,
                rows >= 0,
                x["retrieved"],
                now,
                launch,
                x["q_ints"][:, b.history_columns],
                x["i_item_id"],
                ServedQuery(b, None, x["q_ints"], now).neighbour_votes(np.maximum(rows, 0)),
                b.trends(now, np.maximum(rows, 0)),
            )
        }
        return {f"u_{n}": np.repeat(x[n], C, axis=0) for n in ("q_ints", "q_floats")} | {
            f"u_{n}": a.reshape(B * C, 1, -1) for n, a in items.items()
        }


class SoftmaxSampling(StepMember):
    "13: order or sample the page."

    merge, parts = False, ("categories", "ids")

    def answer(self, x: dict) -> dict:
        import json

        (r, known, _), why = unpack_context(x["request"]), FallbackLog(len(x["candidates"]))
        why[:] = [json.loads(w) for w in x["why"][:, 0]]
        a = make_pages(
            self.recommender.bundle,
            r,
            known,
            Candidates(
                x["candidates"],
                x["retrieved"],
                x["ranks"],
                Retrieved(x["retrieved"], x["candidates"], {}),
            ),
            finite(x["logits"].reshape(x["candidates"].shape)),
            why,
        )
        return dict(
            page=a["rows"],
            scores=a["scores"],
            propensities=a["propensities"],
            reasons=json_column(a["reasons"]),
            sources=json_column([{}] * len(a["reasons"])),  # this layout doesn't hand the lists on
        )


class ItemIdDecoder(StepMember):
    "14: rows become ids."

    merge, parts = False, ("ids",)

    def answer(self, x: dict) -> dict:
        b, B = self.recommender.bundle, len(x["page"])
        return dict(
            item_ids=np.where(x["page"] < 0, b"", b.ids[x["page"]]).astype(object),
            bundle_version=text_column([b.version] * B),
            stage_ms=np.zeros((B, len(REQUEST_STEPS)), np.float32),
        )


NAMES = dict(
    context_preprocessor="ContextPreprocessor",
    feast_user_lookup="FeastUserLookup",
    nvt_user_transform="NvtUserTransform",
    nvt_context_transform="NvtContextTransform",
    query_tower="",
    faiss_retrieval="FaissRetrieval",
    filter_seen_items="FilterSeenItems",
    feast_item_lookup="FeastItemLookup",
    nvt_item_transform="NvtItemTransform",
    multimodal_embedding_lookup="MultimodalEmbeddingLookup",
    unroll_features="UnrollFeatures",
    dlrm_ranking="",
    softmax_sampling="SoftmaxSampling",
    item_id_decoder="ItemIdDecoder",
)


def batched(tensors) -> tuple:
    "Put the batch into the shape."
    return tuple(
        Tensor(t.name, t.dtype, (-1,) if t.scalar else (-1, *t.dims), t.optional) for t in tensors
    )


def reference_wires(
    b: Bundle,
) -> dict:  # member -> (inputs, outputs), names -> Tensor of the ensemble
    "Say what each member reads and gives."
    text, floats, ints = (
        lambda n, t=t: Tensor(n, t, (-1, -1)) for t in ("STRING", "FP32", "INT64")
    )

    def kind(f, n):
        return Tensor(
            n,
            "FP32" if f.kind in ("continuous", "embedding") else "INT64",
            {"embedding": (-1, -1, f.dim), "list": (-1, f.dim)}.get(
                f.kind, (-1, -1) if f.side == "item" else (-1,)
            ),
        )

    user, item = (
        {f.name: kind(f, f.name) for f in b.contract.side(*s)}
        for s in (("user", "history"), ("item",))
    )
    raw = {
        f.name: floats(f.name) if f.kind == "continuous" else text(f.name)
        for f in b.contract.item
        if f.kind != "embedding"
    }
    coded, dense = (
        {n: t for n, t in item.items() if (b.contract[n].kind == "embedding") == e}
        for e in (False, True)
    )
    tower, ranker = (
        tuple(batched(onnx_tensors(x)) for x in (s.get_inputs(), s.get_outputs()))
        for s in (b.query_tower, b.ranker)
    )
    request, found = text("request"), [ints("candidates"), floats("retrieved"), ints("ranks")]
    i = [Tensor(f"i_{n}", t.dtype, t.dims) for n, t in item.items()]
    page = [ints("page"), floats("scores"), floats("propensities"), text("reasons")]
    page.append(text("sources"))
    return dict(
        context_preprocessor=(
            batched(REQUEST),
            [request, text("hour"), text("weekday"), text("device")],
        ),
        feast_user_lookup=([request], [text("user")]),
        nvt_user_transform=([request, text("user")], [*user.values(), request]),
        nvt_context_transform=(
            [text("hour"), text("weekday"), text("device"), *user.values()],
            tower[0],
        ),
        query_tower=tower,
        faiss_retrieval=(
            [floats("query"), tower[0][0], request],
            [ints("rows"), floats("row_scores")],
        ),
        filter_seen_items=(
            [floats("query"), tower[0][0], request, ints("rows"), floats("row_scores")],
            [*found, text("why")],
        ),
        feast_item_lookup=([found[0]], [*raw.values()]),
        nvt_item_transform=([*raw.values()], [*coded.values()]),
        multimodal_embedding_lookup=([found[0]], [*dense.values()]),
        unroll_features=(
            [*tower[0], *i, *found[:2], request],
            [Tensor(f"u_{t.name}", t.dtype, t.dims) for t in ranker[0]],
        ),
        dlrm_ranking=ranker,
        softmax_sampling=([*found, floats("logits"), request, text("why")], page),
        item_id_decoder=([page[0]], [text("item_ids"), text("bundle_version"), floats("stage_ms")]),
    )


def reference_steps(b: Bundle, wires: dict) -> tuple:  # of Step
    "Connect the members."
    user, item = set(b.contract.names("user", "history")), set(b.contract.item.names())

    def wire(member, n, out):
        if n == "request":
            return (
                "request_0"
                if member in ("context_preprocessor", "feast_user_lookup")
                or member == "nvt_user_transform"
                and not out
                else "request_1"
            )
        if n in user and member == ("nvt_user_transform" if out else "nvt_context_transform"):
            return f"user_{n}"
        if member == "feast_item_lookup" or member == "nvt_item_transform" and not out:
            return f"raw_{n}" if n in item else n
        if member in ("nvt_item_transform", "multimodal_embedding_lookup") and n in item:
            return f"i_{n}"
        if member == "dlrm_ranking" and not out:
            return f"u_{n}"
        return "query" if member == "query_tower" and out else n

    return tuple(
        Step(
            f"ref_{m}",
            {t.name: wire(m, t.name, False) for t in i},
            {t.name: wire(m, t.name, True) for t in o},
        )
        for m, (i, o) in wires.items()
    )


def export_reference(
    p: Params,
    cache: bool,  # keep item features in memory
    version: int | None = None,  # that of the main ensemble where missing
) -> int:  # version
    "Write the reference's ensemble beside the project's own."
    repository = stage_dir(p, "triton") / "repository"
    version = version or pinned_version(repository)
    b = Bundle(repository.parent / "bundles" / str(version))
    wires = reference_wires(b)
    files = dict(query_tower="query_tower.onnx", dlrm_ranking="dlrm.onnx")
    members = [
        Member(
            f"ref_{m}",
            "onnx" if m in files else "python",
            tuple(i),
            tuple(o),
            str(b.folder / files[m]) if m in files else f"bench.reference_layout:{NAMES[m]}",
            max_batch=0,
            parameters=dict(cache="1" if cache else "0") if m == "feast_item_lookup" else {},
        )
        for m, (i, o) in wires.items()
    ]
    write_repository(
        repository,
        members,
        Ensemble(
            "recommender_reference",
            batched(REQUEST),
            batched(RESPONSE),
            reference_steps(b, wires),
            max_batch=0,
        ),
        version,
    )
    return version
