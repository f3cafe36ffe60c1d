import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tune_dd import schedule
from tune_dd.errors import UserError
from tune_dd.laws import get_law

COEFFICIENTS = {"A": 0.2, "B": 0.15, "D": 0.06, "C0": -0.25}
U = (4_000, 8_000, 16_000, 32_000)
C = (131_072, 262_144, 393_216, 524_288)


def test_static_holds_one_rate() -> None:
    path = schedule.static(0.3, 4)
    assert path == schedule.Schedule("static_0.30", "static", (0.3,) * 4)


def test_law_path_reads_the_law_at_the_end_of_each_stage() -> None:
    path = schedule.law_path(COEFFICIENTS, 163_840, U, C)
    law = get_law("interaction")
    assert path.dropouts == tuple(float(law.dropout(COEFFICIENTS, 163_840, u, c)) for u, c in zip(U, C, strict=True))
    assert path.kind == "law"
    assert list(path.dropouts) == sorted(path.dropouts, reverse=True)


def test_law_path_stays_within_its_clamp() -> None:
    path = schedule.law_path(COEFFICIENTS, 10**9, U, C, p_max=0.4)
    assert path.dropouts == (0.4,) * 4
    tiny = schedule.law_path(COEFFICIENTS, 1_000, U, C)
    assert tiny.dropouts == (0.02,) * 4


def test_first_order_law_by_name() -> None:
    path = schedule.law_path({"A": 0.1, "B": 0.0, "C0": 0.1}, 40_000, U[:1], C[:1], law="first_order")
    assert path.dropouts == pytest.approx((0.2,))


@given(st.lists(st.floats(0, 0.99), min_size=1, max_size=6))
def test_reversing_twice_gives_the_path_back_and_keeps_the_mean(rates: list[float]) -> None:
    path = schedule.anchors("hand", rates, len(rates))
    back = schedule.reversed_path(path)
    assert back.mean == pytest.approx(path.mean)
    assert back.dropouts == path.dropouts[::-1]
    assert schedule.reversed_path(back).dropouts == path.dropouts
    assert back.condition == "reversed_hand"


def test_linear_decay_has_equal_steps() -> None:
    path = schedule.linear_decay(0.4, 0.1, 4)
    assert path.dropouts == pytest.approx((0.4, 0.3, 0.2, 0.1))
    assert schedule.linear_decay(0.4, 0.1, 1).dropouts == (0.4,)


def test_anchors_of_the_wrong_count_are_refused_with_the_remedy() -> None:
    with pytest.raises(UserError, match="2 values for 4 stages: give one per prefix"):
        schedule.anchors("hand", (0.3, 0.1), 4)


@pytest.mark.parametrize("rate", [-0.1, 1.0, float("nan")])
def test_rates_outside_the_unit_interval_are_refused(rate: float) -> None:
    with pytest.raises(UserError, match="outside"):
        schedule.anchors("hand", (0.3, rate), 2)


def test_stages_that_do_not_match_are_refused() -> None:
    with pytest.raises(UserError, match="one per stage"):
        schedule.law_path(COEFFICIENTS, 163_840, U, C[:3])
    with pytest.raises(UserError, match="cumulative"):
        schedule.law_path(COEFFICIENTS, 163_840, U, (131_072,) * 4)


def test_imports_without_torch_and_ray() -> None:
    code = "import sys; sys.modules['torch'] = sys.modules['ray'] = None; import tune_dd.schedule, tune_dd.laws"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_diluted_law_asks_for_less_where_the_prefix_has_grown() -> None:
    whole = schedule.law_path(COEFFICIENTS, 163_840, U, C)
    half = schedule.law_path(COEFFICIENTS, 163_840, U, C, law="interaction_half_diluted")
    full = schedule.law_path(COEFFICIENTS, 163_840, U, C, law="interaction_diluted")
    assert whole.dropouts[0] == half.dropouts[0] == full.dropouts[0]
    assert all(a > b > c for a, b, c in zip(whole.dropouts[1:], half.dropouts[1:], full.dropouts[1:], strict=True))
    expected = get_law("interaction").dropout(COEFFICIENTS, 163_840, U[1], C[0] * U[0] / U[1] + C[1] - C[0])
    assert full.dropouts[1] == pytest.approx(float(expected))


def test_a_capped_law_gives_at_most_half_on_a_stream() -> None:
    steep = {"A": 0.4, "B": 0.9, "C0": -4.8}
    free = schedule.law_path(steep, 163_840, U, C, law="onset").dropouts
    capped = schedule.law_path(steep, 163_840, U, C, law="onset_capped").dropouts
    assert max(free) > 0.5
    assert capped == tuple(min(p, 0.5) for p in free)
