"""Saved evidence: what is copied, that no path of the machine survives, and that the copy reads like the run."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import subprocess
from pathlib import Path
from types import ModuleType

import pytest
from tests_support import REPOSITORY

from analysis.__main__ import main
from analysis.report import analyse
from analysis.saved import CHAIN, LAW, SAVED, Paths, save, short_timings
from analysis.tables import newest_run
from tune_dd.artifacts import checksum, read_json, write_json
from tune_dd.errors import UserError

ABSOLUTE = re.compile(r"(?<![\w.:/])/(?:\w[\w.-]*/)+")
HOME = "/home/someone/a study"  # where the runs of synthetic.py were started; a blank in it


@pytest.fixture
def chain(synthetic: ModuleType, tmp_path: Path) -> Path:
    """A finished chain of a calibration and a stream, started in ``HOME``."""
    rows = synthetic.calibration(prefixes=(8_000, 16_000), readouts=(131_072, 262_144), dropouts=(0.0, 0.2, 0.4))
    folder: Path = synthetic.write_chain(tmp_path / "ray_results", {"calibrate": rows, "stream": synthetic.stream()})
    stream = {"predictions": [], "coefficients": [{"source": f"{HOME}/ray_results/x/law/coefficients.json"}]}
    write_json(folder.parents[1] / "pydocs-stream-pocket" / "2" / "predictions.json", stream)
    return folder


def test_no_absolute_path_and_no_weights_survive(chain: Path, tmp_path: Path) -> None:
    to = tmp_path / "saved"
    copies = save([chain], to)
    assert [copy.relative_to(to).as_posix() for copy in copies] == [
        "pydocs-calibrate-pocket/1",
        "pydocs-stream-pocket/2",
        "pydocs-all-pocket/3",
    ]
    files = [path for path in to.rglob("*") if path.is_file()]
    assert {path.name for path in files} == {
        *("config.json", "metrics.jsonl", "results.tsv", "predictions.json", "chain.json", "coefficients.json")
    }
    for path in files:
        text = path.read_text()
        assert not ABSOLUTE.search(text), f"{path}: {ABSOLUTE.search(text)}"
        assert "/home/" not in text
        assert "someone" not in text


def test_paths_keep_what_a_reader_needs(chain: Path, tmp_path: Path) -> None:
    copies = save([chain], tmp_path / "saved")
    config = read_json(copies[0] / "config.json")
    assert config["command"] == ("python -m tune_dd.sweep pydocs --corpus-glob 'data/*.txt' --corpus=.../texts/a.txt")
    assert [source["path"] for source in config["data"]["manifest"]["sources"]] == [".../texts/a.txt", "data/b.txt"]
    assert config["platform"] == "Linux-x86_64-with-glibc2.36"
    assert config["attribution"].startswith(
        "DOI 10.5281/zenodo.20616633, https://example.org/a/b, losses in nats/token"
    )
    assert "cannot read .../texts/a.txt: gone" in (copies[0] / "results.tsv").read_text()
    assert read_json(copies[2] / "chain.json")["options"] == ["pydocs", "--corpus", ".../texts/a.txt"]
    assert (
        read_json(copies[1] / "predictions.json")["coefficients"][0]["source"] == "ray_results/x/law/coefficients.json"
    )


def test_the_copy_is_sealed_and_knows_the_first_seal(chain: Path, tmp_path: Path) -> None:
    run = chain.parents[1] / "pydocs-calibrate-pocket" / "1"
    (copy,) = save([run], tmp_path / "saved")
    config = read_json(copy / "config.json")
    assert config["checksum"] == checksum(config)
    assert config["saved"]["original_checksum"] == read_json(run / "config.json")["checksum"]
    assert (copy / "metrics.jsonl").read_bytes() == (run / "metrics.jsonl").read_bytes()


def test_what_programs_read_is_the_same_without_blanks(chain: Path, tmp_path: Path) -> None:
    run = chain.parents[1] / "pydocs-stream-pocket" / "2"
    (copy,) = save([run], tmp_path / "saved")
    (run / "predictions.json").write_bytes((copy / "predictions.json").read_bytes())
    assert (copy / "predictions.json").read_text().count("\n") == 1
    assert save([run], tmp_path / "again")  # of a copy too
    assert (tmp_path / "again/pydocs-stream-pocket/2/predictions.json").read_bytes() == (
        copy / "predictions.json"
    ).read_bytes()
    assert (save([chain], tmp_path / "saved")[-1] / "chain.json").read_text().count("\n") > 1


def test_of_a_hold_out_the_law_of_its_own_cells_is_not_kept(chain: Path, tmp_path: Path) -> None:
    run = chain.parents[1] / "pydocs-calibrate-pocket" / "1"
    (run / "coefficients.json").write_text("{}\n")
    (copy,) = save([run], tmp_path / "saved")
    assert (copy / "coefficients.json").read_text() == "{}\n"
    config = {name: value for name, value in read_json(run / "config.json").items() if name != "checksum"}
    config["coefficients"] = [{"law": "interaction"}]  # frozen for it
    write_json(run / "config.json", config | {"checksum": checksum(config)})
    assert save([run], tmp_path / "saved") == [copy]
    assert not (copy / "coefficients.json").exists()


def test_a_run_that_chose_fewer_trials_than_it_might_have_is_finished(chain: Path, tmp_path: Path) -> None:
    run = chain.parents[1] / "pydocs-calibrate-pocket" / "1"
    config = {name: value for name, value in read_json(run / "config.json").items() if name != "checksum"}
    chosen, config["n_trials"] = config["n_trials"], config["n_trials"] + 20
    write_json(run / "config.json", config | {"checksum": checksum(config)})
    with pytest.raises(UserError, match="is not finished"):
        save([run], tmp_path / "saved")
    record = {"n_trials": chosen}
    write_json(run / "suggestions.json", record | {"checksum": checksum(record)})
    assert save([run], tmp_path / "saved")


def test_a_run_that_was_extended_by_read_outs_is_finished_by_a_line_a_trial(chain: Path, tmp_path: Path) -> None:
    """A trial that reads another one out at further C has its name."""
    run = chain.parents[1] / "pydocs-calibrate-pocket" / "1"
    ledger = (run / "results.tsv").read_text()
    more = ledger.splitlines(keepends=True)[1:]
    config = {name: value for name, value in read_json(run / "config.json").items() if name != "checksum"}
    config["n_trials"] = 2 * len(more)
    write_json(run / "config.json", config | {"checksum": checksum(config)})
    with pytest.raises(UserError, match=rf"is not finished \({len(more)} of {2 * len(more)} trials\)"):
        save([run], tmp_path / "saved")
    (run / "results.tsv").write_text(ledger + "".join(more))
    assert save([run], tmp_path / "saved")
    (run / "results.tsv").unlink()  # as in a run that was stopped, however far
    with pytest.raises(UserError, match=r"is not finished \(it has not ended\): finish it with --resume"):
        save([run], tmp_path / "again")


def test_no_copy_takes_the_place_of_another_run_s(chain: Path, synthetic: ModuleType, tmp_path: Path) -> None:
    run = chain.parents[1] / "pydocs-calibrate-pocket" / "1"
    (copy,) = save([run], tmp_path / "saved")
    before = (copy / "config.json").read_bytes()
    other = tmp_path / "elsewhere" / "1"
    shutil.copytree(run, other)
    config = {name: value for name, value in read_json(run / "config.json").items() if name != "checksum"}
    config["run_id"] = "another"
    write_json(other / "config.json", config | {"checksum": checksum(config)})
    for sources, to in (([other], "saved"), ([run, other], "fresh")):
        with pytest.raises(UserError, match="would be a copy of another run, too"):
            save(sources, tmp_path / to)
    assert (copy / "config.json").read_bytes() == before
    assert not (tmp_path / "fresh").exists()
    assert save([run], tmp_path / "saved") == [copy], "of the same run it may"


def test_the_copy_of_a_chain_finds_its_runs_and_gives_the_same_numbers(chain: Path, tmp_path: Path) -> None:
    *runs, copy = save([chain], tmp_path / "saved")
    record = read_json(copy / "chain.json")
    assert [(copy / path).resolve() for path in record["runs"].values()] == [run.resolve() for run in runs]
    raw = [chain.parents[1] / "pydocs-calibrate-pocket" / "1", chain.parents[1] / "pydocs-stream-pocket" / "2"]
    first = analyse(raw, out=tmp_path / "a", n_bootstrap=50, report=False)
    again = analyse(runs, out=tmp_path / "b", n_bootstrap=50, report=False)
    for left in ("summary.*", "model_selection.json", "comparison.json"):
        assert not list(copy.parents[1].rglob(left)), "they can be made again from the rest"
    for name in ("summary.json", "model_selection.json", "comparison.json"):
        assert (first.folder / name).read_bytes() == (again.folder / name).read_bytes()


def test_the_law_that_a_saved_stream_was_frozen_with_has_the_hash_that_its_predictions_name() -> None:
    chains = sorted(Path(REPOSITORY, SAVED).glob(f"*-all-*/*/{CHAIN}"))
    assert chains
    for chain in chains:
        stream = (chain.parent / read_json(chain)["runs"]["stream"]).resolve()
        named = {law["sha256"] for law in read_json(stream / "predictions.json")["coefficients"]}
        law = (chain.parent / LAW / "coefficients.json").read_bytes()
        assert hashlib.sha256(law).hexdigest() in named


def test_saving_twice_changes_nothing_and_a_changed_run_replaces_its_copy(chain: Path, tmp_path: Path) -> None:
    to = tmp_path / "saved"
    save([chain], to)
    before = {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in to.rglob("*") if path.is_file()}
    save([chain], to)
    assert before == {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in to.rglob("*") if path.is_file()}
    write_json(chain / "coefficients.json", {"schema": 1})
    save([chain], to)
    assert (to / "pydocs-all-pocket" / "3" / "coefficients.json").is_file()
    assert not list(to.rglob(".*"))  # no temporary folder is left


def test_what_is_not_finished_is_refused_before_anything_is_written(
    chain: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = chain.parents[1] / "pydocs-stream-pocket" / "2"
    ledger = (run / "results.tsv").read_text().splitlines(keepends=True)
    (run / "results.tsv").write_text("".join(ledger[:3]))
    good = chain.parents[1] / "pydocs-calibrate-pocket" / "1"
    assert main(["save", str(good), str(run), "--to", str(tmp_path / "saved")]) == 2
    assert re.fullmatch(r"error: .* is not finished \(2 of \d+ trials\): .*\n", capsys.readouterr().err)
    assert not (tmp_path / "saved").exists()
    write_json(chain / "chain.json", {**read_json(chain / "chain.json"), "finished": False})
    with pytest.raises(UserError, match="is not finished: finish it with --phase all --resume"):
        save([chain], tmp_path / "saved")


def test_an_altered_config_is_refused(chain: Path, tmp_path: Path) -> None:
    run = chain.parents[1] / "pydocs-calibrate-pocket" / "1"
    text = (run / "config.json").read_text()
    (run / "config.json").write_text(text.replace('"Docstrings"', '"Novels"'))
    with pytest.raises(UserError, match="checksum fails"):
        save([run], tmp_path / "saved")


def test_a_saved_run_is_not_the_newest_one(chain: Path) -> None:
    storage = chain.parents[1]
    newest = newest_run(storage)
    save([chain], storage / "saved")
    assert newest_run(storage) == newest


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("/a/b/c.txt", "c.txt"),
        ("/a/b", "."),
        ("/a/bc/d/e.txt", ".../d/e.txt"),
        ("/a/b/../other/x.txt", ".../other/x.txt"),
        ("../other/deep/x.txt", ".../deep/x.txt"),
        ("data/x.txt", "data/x.txt"),
        ("file:///a/b/x.txt", "x.txt"),
    ],
)
def test_a_path_is_shortened(path: str, expected: str) -> None:
    assert Paths(("/a/b",)).short(path) == expected


def test_timings_are_cut_and_nothing_else() -> None:
    row = '{"val_loss":3.123456789,"train_seconds":11.57303125999897,"tokens_per_second":45302.5,"peak_memory_bytes":1}'
    lines = row + "\n" + row.replace("45302.5", "0.00012345e3") + "\n"
    short = short_timings(lines)
    assert short.splitlines()[0] == row.replace("11.57303125999897", "11.57")
    assert [json.loads(line)["val_loss"] for line in short.splitlines()] == [3.123456789] * 2
    assert short_timings(short) == short


def test_json_of_other_shapes_passes(tmp_path: Path) -> None:
    value = {"n": [1, 2.5, None, True, "16/128", "p = 0.1 / 0.2"]}
    assert Paths((str(tmp_path),)).value(value) == json.loads(json.dumps(value))


def test_the_evidence_is_tables_alone_and_stays_small() -> None:
    """Everybody who clones the project fetches it."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", SAVED], cwd=REPOSITORY, capture_output=True, text=True, timeout=60
    )
    kept = [Path(REPOSITORY, name) for name in listed.stdout.split("\0") if name]
    if not kept:
        pytest.skip("not a checkout")
    assert {path.suffix for path in kept} == {".json", ".jsonl", ".csv", ".tsv"}
    assert sum(path.stat().st_size for path in kept) < 30e6
