"""Pictures drawn by several processes are those that one draws."""

from __future__ import annotations

import pandas as pd
import pytest

from analysis.drawing import render
from analysis.figures import Picture
from analysis.painters import Painters


@pytest.fixture(scope="module")
def pictures() -> list[Picture]:
    def picture(number: int) -> Picture:
        data = pd.DataFrame(
            {"series": "mean", "seed": 0, "dropout": [0.0, 0.1, 0.2], "val_loss": [3.0, 2.5 + number / 10, 3.0]}
        )
        data = pd.concat([data, data.assign(series="seed")])
        labels = {"plateau": (0.1, 0.1), "status": "no_signal"}
        return Picture(f"cell {number}", f"title {number}", "caption", data, "draw_cell", labels)

    return [picture(number) for number in range(6)]


def test_who_draws_makes_no_difference(pictures: list[Picture], monkeypatch: pytest.MonkeyPatch) -> None:
    alone = [render(picture) for picture in pictures]
    assert len(set(alone)) == len(alone)
    assert Painters().draw(pictures) == alone
    monkeypatch.setattr("os.sched_getaffinity", lambda pid: range(3), raising=False)
    with Painters() as painters:
        painters.start()
        helpers = list(painters._processes)
        assert len(helpers) == 2
        assert painters.draw(pictures) == alone
        helpers[0].kill()  # what it was given is drawn all the same
        assert painters.draw(pictures) == alone
    assert all(helper.poll() is not None for helper in helpers)
