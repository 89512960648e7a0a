"""Whatever a table is like, `ingest` ends in a result or in a message naming file and column."""

from any_table import fault_of, shops
from hypothesis import HealthCheck, Phase, given, settings


@settings(
    max_examples=60,
    deadline=None,
    derandomize=True,  # the same tables in each run; tests/prove.py draws others
    database=None,
    phases=[Phase.generate],  # a failing table is shown as it is, not made smaller
    suppress_health_check=list(HealthCheck),
)
@given(shop=shops())
def test_any_table_ends_in_a_result_or_in_a_message(shop):
    assert fault_of(shop) == ""
