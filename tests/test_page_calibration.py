"""The ranker's probabilities are right at the places of a page, on cases the fit has not seen."""

from types import SimpleNamespace

import numpy as np
import pytest

from recsys.evaluate.calibration import page_quality
from recsys.models import seen_days
from recsys.models.dlrm import fit_calibration, ranked_logits
from recsys.models.ranker import MASKED, calibrated

CASES, ITEMS, CANDIDATES = 8000, 80, 60


class Requests:
    """Cases whose ranker is far off on pages where its sum over all candidates is right.

    The user has seen a sixth of the items: they get high logits and are never chosen. And the
    level of a request's logits says nothing about its choices.
    """

    def __init__(self, seed: int):
        rng = np.random.default_rng(seed)
        relevance = rng.normal(-4.5, 1.2, (CASES, ITEMS))
        self.is_seen = rng.random((CASES, ITEMS)) < 1 / 6
        self.logits = relevance + rng.normal(0, 0.5, (CASES, 1)) + 1.5 * self.is_seen
        chance = np.where(self.is_seen, 0, 1 / (1 + np.exp(-relevance)))
        passed = (chance.cumsum(1) < rng.random((CASES, 1))).sum(1)
        chosen = np.where(passed < ITEMS, passed, -2)  # nobody chooses item -2
        self.prep = SimpleNamespace(n_items=ITEMS, events=dict(item=chosen))
        self.n_candidates = CANDIDATES
        self.retriever = self

    def query(self, cases):
        return cases

    def retrieve(self, cases, width):
        rows = np.tile(np.arange(width), (len(cases), 1))
        return SimpleNamespace(rows=rows, scores=np.zeros(rows.shape))

    def score(self, cases, rows, scores):
        return np.take_along_axis(self.logits[cases], rows, 1)


@pytest.fixture
def requests(monkeypatch):
    of_seed = {seed: Requests(seed) for seed in (0, 1)}
    by_prep = {id(requests.prep): requests for requests in of_seed.values()}

    def seen_candidates(prep, cases, rows, days):
        is_seen = np.take_along_axis(by_prep[id(prep)].is_seen[cases], rows, 1)
        return is_seen & (days > 0)

    monkeypatch.setattr(seen_days, "seen_candidates", seen_candidates)
    monkeypatch.setattr(seen_days, "_most_hidden", lambda prep, cases, days: ITEMS - CANDIDATES)
    return of_seed


def judge(requests: Requests, calibration: tuple) -> dict:  # of `page_quality`
    logits, is_right = ranked_logits(requests.score, requests, np.arange(CASES), days=3)
    is_candidate = logits > MASKED
    log_odds = calibrated(logits, np.float32(calibration)).numpy()[is_candidate]
    case = np.nonzero(is_candidate)[0]
    users = np.arange(CASES) // 2
    probability = 1 / (1 + np.exp(-log_odds.astype(float)))
    return page_quality(probability, is_right[is_candidate], case, users, draws=200)


def test_a_page_promises_what_is_found_on_cases_that_the_fit_has_not_seen(requests):
    fitted, held_out = requests.values()
    choices = ranked_logits(fitted.score, fitted, np.arange(CASES), days=3)
    page = judge(held_out, fit_calibration(*choices, "bce"))
    assert abs(page["ratio"] - 1) < 0.04


def test_a_fit_over_all_candidates_of_retrieval_promises_too_little_on_pages(requests):
    fitted, held_out = requests.values()
    unfiltered = ranked_logits(fitted.score, fitted, np.arange(CASES), days=0)
    page = judge(held_out, fit_calibration(*unfiltered, "bce", places=ITEMS))
    assert page["high"] < 0.6


def test_calibration_changes_no_order(requests):
    fitted = requests[0]
    logits, is_right = ranked_logits(fitted.score, fitted, np.arange(CASES), days=3)
    log_odds = calibrated(logits, np.float32(fit_calibration(logits, is_right, "bce"))).numpy()
    assert (np.diff(log_odds, axis=1) <= 0).all()
