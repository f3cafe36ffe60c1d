"""Whole searches, as a user runs them: real trainings, a real Ray, in a process of their own."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from tests_support import TINY_REGIME, synthetic_text, wait_until

from tune_dd import artifacts, journal, kernels
from tune_dd.artifacts import TIMING_COLUMNS
from tune_dd.sweep.__main__ import main
from tune_dd.sweep.following import has_full_scale, regime_word
from tune_dd.sweep.manage import is_finished, refuse_lost_journals
from tune_dd.sweep.runs import LOCK, RunFolder, hold

# Longer trials than the tiny regime's, so that a signal finds them at work.
LONG = ["--readouts", "6400,12800,19200", "--dropouts", "0,0.3", "--prefixes", "400,800"]


def command(*options: str) -> list[str]:
    return [sys.executable, "-m", "tune_dd.sweep", *options]


def run(folder: Path, *options: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command(*options), cwd=folder, capture_output=True, text=True, timeout=240)


def start(folder: Path, *options: str) -> subprocess.Popen[str]:
    return subprocess.Popen(command(*options), cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def run_folders(folder: Path) -> list[Path]:
    return sorted(path.parent for path in folder.glob(f"ray_results/*/*/{artifacts.CONFIG}"))


def rows_without_timings(folder: Path) -> list[str]:
    rows = [row for _, row in artifacts.read_rows(folder / artifacts.METRICS)]
    return [json.dumps({k: v for k, v in row.items() if k not in TIMING_COLUMNS}) for row in rows]


def processes_of(folder: Path) -> list[int]:
    """Pids of the processes that name the folder in their command line or work in it, this one left out."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            text = (entry / "cmdline").read_bytes() + (entry / "environ").read_bytes()
        except OSError:
            continue
        if str(folder).encode() in text and int(entry.name) != os.getpid():
            found.append(int(entry.name))
    return found


@pytest.fixture(scope="module")
def searched(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, subprocess.CompletedProcess[str]]:
    """A tiny search that was left alone."""
    folder = tmp_path_factory.mktemp("searched")
    (folder / "text.txt").write_text(synthetic_text(120), encoding="utf-8")
    (folder / "tiny.toml").write_text(TINY_REGIME, encoding="utf-8")
    return folder, run(folder, "tiny.toml", "--device", "cpu", *LONG)


def test_a_search_prints_its_plan_its_table_and_the_next_step(searched) -> None:
    _, done = searched
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    for word in ("trials       4 trials, 12 result rows", "12,672 parameters", "FLOPs", "time", "files: ", "next: "):
        assert word in done.stdout
    assert not re.search(r"\bray\b(?!_results)|raylet|tune\.", done.stdout, re.IGNORECASE), done.stdout


def test_a_regime_file_is_named_as_it_was_in_commands_to_come(
    searched, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    folder, _ = searched
    (path,) = run_folders(folder)
    monkeypatch.chdir(folder)
    assert regime_word(RunFolder(path)) == "tiny.toml"
    assert has_full_scale(RunFolder(path))
    monkeypatch.chdir(path)  # where there is no such file
    assert not has_full_scale(RunFolder(path))
    older = RunFolder(tmp_path)
    older.write_config(RunFolder(path).config() | {"command": "python -m tune_dd.sweep tiny.toml --no-longer-there"})
    assert regime_word(older) == "tiny"


def test_a_search_leaves_the_files_of_the_contract(searched) -> None:
    folder, _ = searched
    (path,) = run_folders(folder)
    for name in ("config.json", "metrics.jsonl", "summary.csv", "summary.json", "model_selection.csv", "results.tsv"):
        assert (path / name).stat().st_size > 0, name
    rows = [row for _, row in artifacts.read_rows(path / artifacts.METRICS)]
    assert len(rows) == 12
    assert {(r["unique_tokens"], r["dropout"], r["readout"]) for r in rows} == {
        (u, p, r) for u in (400, 800) for p in (0.0, 0.3) for r in range(3)
    }
    for row in rows:
        assert row["steps"] * row["batch_size"] * row["context"] == row["sampled_tokens"]
        assert row["gap"] == row["val_loss"] - row["train_loss"]
        assert row["device"] == "cpu"
        assert row["evidence"] == "run"
    ledger = (path / "results.tsv").read_text().splitlines()
    assert ledger[0].split("\t") == ["trial", "val_bpb", "memory_gb", "status", "description"]
    assert len(ledger) == 5
    assert not (path / artifacts.LIVE).exists()
    assert (path / "ray.log").exists()


def test_tune_s_own_folder_gives_the_same_table(searched) -> None:
    import pandas as pd

    from analysis.tables import load_experiment

    folder, _ = searched
    (path,) = run_folders(folder)
    ours = load_experiment([path]).table
    tunes = load_experiment([path / "ray" / "tune"]).table
    pd.testing.assert_frame_equal(ours, tunes)


def test_finished_journals_hold_rows_and_no_weights(searched) -> None:
    folder, _ = searched
    (path,) = run_folders(folder)
    found = [journal.read_journal(p) for p in (path / artifacts.JOURNALS).glob(f"*{journal.SUFFIX}")]
    assert len(found) == 4
    assert all(j.finished and not j.has_weights and len(j.rows) == 3 for j in found)


def test_nothing_of_it_runs_on(searched) -> None:
    folder, _ = searched
    wait_until(lambda: not processes_of(folder), seconds=20)


def test_paired_trials_share_their_start_and_dropout_changes_the_end(searched) -> None:
    folder, _ = searched
    (path,) = run_folders(folder)
    losses = {
        (r["unique_tokens"], r["dropout"], r["readout"]): r["val_loss"]
        for _, r in artifacts.read_rows(path / artifacts.METRICS)
    }
    assert losses[400, 0.0, 2] != losses[400, 0.3, 2]
    assert len(set(losses.values())) == len(losses)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_search_resumes_to_the_same_rows(
    searched, number: int, tmp_path: Path, tiny_regime: Path
) -> None:
    process = start(tmp_path, "tiny.toml", "--device", "cpu", "--devices", "2", *LONG)
    wait_until(lambda: list(tmp_path.glob(f"ray_results/*/*/{artifacts.JOURNALS}/*{journal.SUFFIX}")))
    process.send_signal(number)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 128 + number, err
    (path,) = run_folders(tmp_path)
    (resume,) = re.findall(r"python -m (tune_dd\.sweep --resume \S+)", out)
    before = rows_without_timings(path)
    assert len(before) < 12
    done = subprocess.run([sys.executable, "-m", *resume.split()], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (unbroken,) = run_folders(searched[0])
    assert rows_without_timings(path) == rows_without_timings(unbroken)


def test_ctrl_c_while_it_plans_and_ray_starts_leaves_nothing(tmp_path: Path, tiny_regime: Path) -> None:
    process = start(tmp_path, "tiny.toml", "--device", "cpu", *LONG)
    started = wait_until(lambda: tree(process.pid) - {process.pid})
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert len(err.splitlines()) <= 1
    wait_until(lambda: not any(Path(f"/proc/{pid}/exe").exists() for pid in started), seconds=20)
    assert len(run_folders(tmp_path)) == out.count("run: ")


def test_going_on_with_other_arithmetic_is_told(
    searched, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, _ = searched
    (path,) = run_folders(folder)
    step = json.loads((path / artifacts.CONFIG).read_text())["step"]
    assert step == kernels.identity()
    monkeypatch.chdir(folder)
    assert main(["--resume", str(path), "--dry-run"]) == 0
    assert "other arithmetic" not in capsys.readouterr().out
    monkeypatch.setattr(kernels, "identity", lambda: "another")
    assert main(["--resume", str(path), "--dry-run"]) == 0
    told = capsys.readouterr().out
    assert f"begun with other arithmetic (step {step} -> another)" in told


def test_resuming_a_finished_run_trains_nothing(searched) -> None:
    folder, _ = searched
    (path,) = run_folders(folder)
    before = (path / artifacts.METRICS).read_bytes()
    done = run(folder, "--resume", str(path))
    assert done.returncode == 0, done.stderr
    assert (path / artifacts.METRICS).read_bytes() == before
    newest = run(folder, "tiny.toml", "--resume")
    assert newest.returncode == 2
    assert "no unfinished run" in newest.stderr


def test_an_option_that_would_change_the_plan_is_refused(searched) -> None:
    folder, _ = searched
    (path,) = run_folders(folder)
    done = run(folder, "tiny.toml", "--resume", str(path), "--dropouts", "0,0.5")
    assert done.returncode == 2
    assert "dropouts: [0.0, 0.3] -> [0.0, 0.5]" in done.stderr


def test_a_run_of_another_schema_or_plan_is_refused(searched, tmp_path: Path) -> None:
    folder, _ = searched
    (path,) = run_folders(folder)
    config = json.loads((path / artifacts.CONFIG).read_text())
    for change, message in (
        ({"schema": 99}, "schema 99"),
        ({"plan_hash": "x"}, "another plan"),
        ({"scale": {}}, "damaged"),
    ):
        RunFolder(tmp_path).write_config(config | change)
        done = run(folder, "--resume", str(tmp_path))
        assert done.returncode == 2
        assert message in done.stderr
        assert len(done.stderr.splitlines()) == 1


def test_the_second_command_on_a_run_says_who_holds_it(searched) -> None:
    folder, _ = searched
    (path,) = run_folders(folder)
    with hold(RunFolder(path)):
        done = run(folder, "--resume", str(path))
    assert done.returncode == 2
    assert f"pid {os.getpid()}" in done.stderr


def test_a_torn_config_is_restored_from_its_copy_and_told_once(searched) -> None:
    folder, _ = searched
    (path,) = run_folders(folder)
    whole = (path / artifacts.CONFIG).read_bytes()
    (path / artifacts.CONFIG).write_bytes(whole[: len(whole) // 2])
    done = run(folder, "--resume", str(path))
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("config.json.damaged-1") == 1
    assert (path / artifacts.CONFIG).read_bytes() == whole
    assert "damaged" not in run(folder, "--resume", str(path)).stdout


@pytest.mark.parametrize("option", ["--resume", "--extend"])
def test_a_run_without_its_journals_is_refused_and_left_as_it_is(
    searched, option: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from analysis.saved import save

    folder, _ = searched
    (path,) = run_folders(folder)
    monkeypatch.chdir(folder)
    (copy,) = save([path], tmp_path / "saved")
    before = {p: p.read_bytes() for p in copy.rglob("*")}
    more = ["--seeds", "1"] if option == "--extend" else []
    assert main([option, str(copy), *more]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "is a saved copy or has lost its journals: name the run that it was copied from" in line
    assert {p: p.read_bytes() for p in copy.rglob("*")} == before


def test_a_torn_table_and_a_damaged_or_lost_journal_do_not_stop_a_search(searched, tmp_path: Path) -> None:
    folder, _ = searched
    (path,) = run_folders(folder)
    copy = RunFolder(tmp_path / "copy")
    shutil.copytree(path, copy.path)
    journal.set_aside(next(copy.journals.glob(f"*{journal.SUFFIX}")))
    with open(copy.path / artifacts.METRICS, "a") as table:
        table.write('{"trial_id": "to')
    next(copy.journals.glob(f"*{journal.SUFFIX}")).unlink()
    refuse_lost_journals(copy)


def test_planning_to_go_on_leaves_the_folder_as_it_is(
    searched, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, _ = searched
    (path,) = run_folders(folder)
    copy = tmp_path / "copy"
    shutil.copytree(path, copy)
    (copy / LOCK).unlink()
    before = sorted(copy.rglob("*"))
    monkeypatch.chdir(folder)
    assert main(["--resume", str(copy), "--dry-run"]) == 0
    assert "4 trials" in capsys.readouterr().out
    (folder / ".cache").rename(folder / "elsewhere")
    try:
        assert main(["--resume", str(copy), "--dry-run"]) == 0
        assert not (folder / ".cache").exists()
    finally:
        (folder / "elsewhere").rename(folder / ".cache")
    assert "not read in a dry run" in capsys.readouterr().out
    assert sorted(copy.rglob("*")) == before


def test_runs_are_listed_and_cleaned(searched) -> None:
    folder, _ = searched
    (path,) = run_folders(folder)
    rows = (path / artifacts.METRICS).read_bytes()
    listed = run(folder, "--list").stdout
    assert f"ray_results/tiny-calibrate-full/{path.name}" in listed
    assert "4 / 4" in listed
    assert "finished" in listed
    cleaned = run(folder, "--clean", str(path))
    assert cleaned.returncode == 0, cleaned.stderr
    assert (path / artifacts.METRICS).read_bytes() == rows
    assert run(folder, "--clean", "nowhere").returncode == 2


def test_a_finished_run_is_extended_without_touching_what_is_done(searched, tmp_path: Path) -> None:
    from analysis.saved import save

    folder, _ = searched
    (path,) = run_folders(folder)
    before = rows_without_timings(path)
    journals = {p.name: p.read_bytes() for p in (path / artifacts.JOURNALS).iterdir()}
    done = run(folder, "--extend", str(path), "--seeds", "1", "--dropouts", "0.5", "--readouts", "25600")
    assert done.returncode == 0, done.stderr
    after = rows_without_timings(path)
    assert set(before) < set(after)
    assert all((path / artifacts.JOURNALS / name).read_bytes() == data for name, data in journals.items())
    cells = {
        (r["unique_tokens"], r["dropout"], r["seed"], r["sampled_tokens"])
        for _, r in artifacts.read_rows(path / artifacts.METRICS)
    }
    assert len(cells) == len(after) == 2 * 3 * 2 * 4
    assert is_finished(RunFolder(path))
    assert save([path], tmp_path)
    for options in (
        ("--seeds", "1"),
        ("--prefixes", "5"),
        ("--prefixes", "3999999"),
        ("--seeds", "7", "--device", "cpu"),
    ):
        assert run(folder, "--extend", str(path), *options).returncode == 2, options
    assert run(folder, "--resume", str(path)).returncode == 0


def test_a_dry_run_prints_the_plan_and_leaves_nothing(tiny_regime: Path, tmp_path: Path) -> None:
    done = run(tmp_path, "tiny.toml", "--device", "cpu", "--dry-run")
    assert done.returncode == 0, done.stderr
    assert "4 trials" in done.stdout
    assert sorted(p.name for p in tmp_path.iterdir()) == ["text.txt", "tiny.toml"]


def test_what_a_worker_cannot_mend_is_one_line_and_no_crash(tmp_path: Path, tiny_regime: Path) -> None:
    """Its cache is gone when it begins: the plan was made on it, and nothing of it has been read by a worker."""
    search = start(tmp_path, "tiny.toml", "--device", "cpu", *LONG)
    (folder,) = wait_until(lambda: run_folders(tmp_path))
    shutil.move(tmp_path / ".cache", tmp_path / "away")
    out, err = search.communicate(timeout=200)
    assert search.returncode == 2, (out, err)
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert "its worker died" not in out + err
    assert not list(folder.glob("journals/*.crash.json"))
    again = run(tmp_path, "--resume", str(folder))
    assert again.returncode == 0, again.stderr


def test_every_listener_is_on_loopback(tiny_regime: Path, tmp_path: Path) -> None:
    process = start(tmp_path, "tiny.toml", "--device", "cpu", *LONG)
    try:
        wait_until(lambda: list(tmp_path.glob(f"ray_results/*/*/{artifacts.LIVE}/*.json")))
        sockets = listening_sockets(process.pid)
    finally:
        process.send_signal(signal.SIGKILL)
        process.communicate(timeout=60)
    assert len(sockets) >= 3, "Ray's listeners were not found: the check sees nothing"
    assert all(address in ("127.0.0.1", "::1", "::ffff:127.0.0.1") for address in sockets), sockets
    wait_until(lambda: not processes_of(tmp_path), seconds=30)


def tree(root: int) -> set[int]:
    """Pids of a process and all that descend from it."""
    parents = {}
    for entry in Path("/proc").glob("[0-9]*/stat"):
        try:
            parents[int(entry.parent.name)] = int(entry.read_text().rsplit(")", 1)[1].split()[1])
        except (OSError, ValueError):
            continue
    found = {root}
    while more := {pid for pid, parent in parents.items() if parent in found} - found:
        found |= more
    return found


def listening_sockets(root: int) -> list[str]:
    """Local addresses on which the process tree under ``root`` listens, from /proc."""
    import ipaddress
    import struct

    inodes = set()
    for pid in tree(root):
        for fd in Path(f"/proc/{pid}/fd").glob("*"):
            try:
                target = str(fd.readlink())
            except OSError:
                continue
            if target.startswith("socket:["):
                inodes.add(target[8:-1])
    addresses = []
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]:
            fields = line.split()
            if fields[3] != "0A" or fields[9] not in inodes:
                continue
            raw = bytes.fromhex(fields[1].split(":")[0])
            words = struct.unpack(f"<{len(raw) // 4}I", raw)
            address = ipaddress.ip_address(b"".join(struct.pack(">I", w) for w in words))
            mapped = getattr(address, "ipv4_mapped", None)
            addresses.append(str(mapped or address))
    return addresses
