"""Each baseline that knows more than a set of items is better where that knowledge decides."""

import numpy as np

from recsys.evaluate.baselines import FACTORIES
from recsys.evaluate.cases import Cases, list_items
from recsys.evaluate.learned_baselines import FitData

N_ITEMS, LENGTH = 60, 6


def choices(next_item, n_users=150, n=12, seed=5):
    "Return users, items, times and local hours of choices that a function makes one by one."
    rng = np.random.default_rng(seed)
    users, items, times = [], [], []
    for user in range(n_users):
        item = int(rng.integers(N_ITEMS))
        for second in np.sort(rng.integers(0, 30 * 86400, n)):
            item = next_item(rng, item, int(second) // 3600 % 24)
            users.append(user)
            items.append(item)
            times.append(int(second))
    return np.array(users), np.array(items), np.array(times)


def data_and_cases(users, items, times):
    "Return each user's choices but the last as data of a fit, and the last as cases."
    rows = np.arange(len(users)).reshape(users.max() + 1, -1)
    training, last = rows[:, :-1].ravel(), rows[:, -1]
    before = np.full((len(users), 3), -1)
    for lag in (1, 2, 3):
        own = np.flatnonzero(users[lag:] == users[:-lag]) + lag
        before[own, lag - 1] = items[own - lag]
    past = rows[:, -1 - LENGTH : -1]
    data = FitData(
        users[training],
        items[training],
        times[training],
        N_ITEMS,
        items[training],
        times[training],
        categories=np.arange(N_ITEMS) // 10 + 3,
        before=before[training],
        hours=times[training] // 3600 % 24,
        devices=np.full(len(training), 1),
    )
    cases = Cases.of_histories(
        items[past],
        ages=times[last][:, None] - times[past],
        ts=times[last],
        hour=times[last] // 3600 % 24,
    )
    return data, cases, items[last]


def recall(name, data, cases, relevant):
    "Return recall@10 of a baseline with its first settings."
    lists = list_items(FACTORIES[name](data)(), cases, 10)
    return (lists == relevant[:, None]).any(1).mean()


def test_context_decides_where_the_hour_names_the_category():
    def by_hour(rng, item, hour):
        return hour // 4 * 10 + int(rng.integers(10))

    made = data_and_cases(*choices(by_hour))
    assert recall("context_ease", *made) > 0.8
    assert recall("ease", *made) < 0.5


def test_followers_and_sessions_decide_where_a_choice_follows_the_one_before():
    def one_after(rng, item, hour):
        return (item * 7 + 3) % N_ITEMS if rng.random() < 0.9 else int(rng.integers(N_ITEMS))

    made = data_and_cases(*choices(one_after))
    assert recall("followers", *made) > 0.8
    assert recall("vsknn", *made) > recall("popularity", *made)


def test_an_item_bought_in_every_basket_comes_before_one_bought_once_and_last():
    users, times = np.repeat([0, 1], 6), np.tile(np.arange(6) * 86400, 2)
    items = np.array([5, 8, 5, 9, 5, 7] * 2)
    made = data_and_cases(users, items, times)
    lists = list_items(FACTORIES["tifu_knn"](made[0])(across=1.0, within=1.0), made[1], 1)
    assert (lists == 5).all()
