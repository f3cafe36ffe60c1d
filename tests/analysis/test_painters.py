"""Pictures drawn by several processes are those that one draws."""

from __future__ import annotations

from concurrent.futures import wait
from dataclasses import replace

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


def test_what_was_begun_is_not_drawn_again(pictures: list[Picture], monkeypatch: pytest.MonkeyPatch) -> None:
    alone = [render(picture) for picture in pictures]
    monkeypatch.setattr("os.sched_getaffinity", lambda pid: range(2), raising=False)
    drawn_here: list[str] = []

    def noted(picture: Picture) -> tuple[str, bytes]:
        drawn_here.append(picture.name)
        return render(picture)

    monkeypatch.setattr("analysis.drawing.render", noted)
    with Painters() as painters:
        painters.begin(pictures)  # before they are started: nothing
        painters.start()
        painters.begin(pictures[:4])
        wait([*painters._begun.values()], timeout=60)
        # Another object of the same content, as a report makes its pictures anew.
        again = [replace(picture, data=picture.data.copy()) for picture in pictures]
        assert painters.draw(again[:4]) == alone[:4]
        assert not drawn_here
        assert painters.draw(again) == alone
        assert drawn_here  # this process helps
    assert painters.draw(pictures) == alone, "and draws alone where there is no other"
