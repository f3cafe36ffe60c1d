"""Streams that are no longer saved: told of in full, class by class, and counted with those that are."""

from pathlib import Path

import pytest

from analysis.paper import removed
from analysis.paper.blocks import Table, plain
from analysis.paper.contrasts import primary
from analysis.paper.studies import Study
from analysis.words import direction
from tune_dd.errors import UserError

HEADER = ",".join((*removed.TEXTS, *removed.NUMBERS))
ROW = "a,rehearsal,owt,L1_H2_D32,onset,1-5,abc,5,-0.1,-0.2,-0.05,0.01"


def test_removed_streams_are_counted_with_those_that_are_saved(results: Path, studies: list[Study]) -> None:
    section = removed.section(removed.read_removed(results), studies)
    kept = [row for study in studies if (row := primary(study)) is not None]
    assert len(kept) == 1
    lower = sum(direction(row, row["p_holm"]) == -1 for row in kept)
    said = plain(section.blocks[0].parts)
    # Of other texts and other classes than these studies' there is nothing here to tell.
    assert "3 were removed" in said
    assert f"Of all 4 the law is shown to end lower than the best fixed dropout on {lower + 1} and higher on 1." in said
    assert plain(section.sentences["RemovedAbstract"]).endswith(f"the law beats it on {lower + 1} of 4.")
    summary = section.blocks[1]
    assert isinstance(summary, Table)
    assert [[plain(parts) for parts in row] for row in summary.groups[0]] == [
        ["interaction", "L2_H2_D64", "2", "−0.015", "1", "1", "0"],
        ["onset", "L1_H2_D32", "1", "+0.020", "0", "0", "1"],
    ]
    (every,) = section.details
    assert isinstance(every, Table)
    rows = [[plain(parts) for parts in row] for row in every.groups[0]]
    assert [row[1] for row in rows] == [f"pydocs-stream-pocket/{name}" for name in "abc"]
    assert rows[1][4:] == ["30-34", "−0.010 [−0.030, −0.001]", "0.200", "not shown", "abc"]


def test_nothing_is_told_where_nothing_was_removed(studies: list[Study], tmp_path: Path) -> None:
    section = removed.section(removed.read_removed(tmp_path), studies)
    assert (section.blocks, section.details, section.sentences) == ([], [], {})


@pytest.mark.parametrize(
    "text", ["", "run,law\na,b\n", "x", f"{HEADER}\n{ROW[:-8]}\n", f"{HEADER}\n{ROW}\n,{ROW[2:]}\n"]
)
def test_a_damaged_file_is_one_line(tmp_path: Path, text: str) -> None:
    (tmp_path / removed.FILE).write_text(f"{HEADER}\n{ROW}\n")
    assert len(removed.read_removed(tmp_path)) == 1
    (tmp_path / removed.FILE).write_text(text)
    with pytest.raises(UserError, match="is damaged") as caught:
        removed.read_removed(tmp_path)
    assert "\n" not in str(caught.value)


def test_what_was_removed_from_here_is_whole() -> None:
    """Every row of the file in this repository: a stream of one of the regimes, with five pairs of seeds."""
    gone = removed.read_removed(Path(__file__).parents[3] / "ray_results" / "saved")
    assert len(gone) == gone["run"].nunique() == 31
    assert (gone["n_pairs"] == 5).all()
    assert ((gone["low"] < gone["difference"]) & (gone["difference"] < gone["high"])).all()
    assert gone.loc[gone["law"] == "interaction"].shape[0] == 8
    assert gone["removed_by"].str.fullmatch("[0-9a-f]{9}").all()
