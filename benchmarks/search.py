"""A pocket search against the same trials in a bare loop without Ray, and what a search costs beside training.

- ``command``: the whole command, from its start to its report, against ``bare_loop``: a process per core that takes
  the same trials of the same plan one after the other, journals and snapshots included. In pairs, one after the other.
- ``first_step``: from the command to the first heartbeat that tells of a training step; heartbeats are half a
  second apart, so that it is told up to that much late.
- ``readout``: what a trial spends on journalling and reporting a read-out, against the training before it. The report
  is Tune's, timed inside a worker, from the call until Tune has processed it and lets the trial go on.
- ``memory``: resident memory of the process that holds a search's state, fed a thousand finished journals. Ray's
  own processes are not in it.
- ``planning``: a plan of 10,000 trials with its costs, its hash and its config.json, written and read back.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.analysis import row
from benchmarks.measuring import REPOSITORY, machine, memory_bytes, run_python, spread
from benchmarks.trials import trial_run
from search_spaces.space import DataIdentity
from tune_dd import artifacts, journal
from tune_dd.corpus import prepare_corpus
from tune_dd.device import open_device
from tune_dd.regimes import ModelSpec
from tune_dd.sweep import plan as planning
from tune_dd.sweep.options import choose_plan, choose_regime, parse
from tune_dd.sweep.runs import RunFolder, find_runs
from tune_dd.sweep.state import SearchState

SEARCH = ("--quick",)
TOY_SEARCH = ("--quick", "--prefixes", "4k,8k", "--dropouts", "0,0.3", "--readouts", "8192,16384", "--seeds", "0")
MEMORY_STEP = 100  # trials between two looks at the memory


def timed_command(words: tuple[str, ...], folder: Path) -> dict[str, float]:
    """Seconds of ``python -m tune_dd.sweep WORDS`` and until its first training step; the corpus is cached."""
    log = folder / "command.log"
    storage = folder / "runs"
    began = time.perf_counter()
    with open(log, "w") as output:
        child = subprocess.Popen(
            [sys.executable, "-m", "tune_dd.sweep", *words, "--storage", str(storage)],
            cwd=folder,
            env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
            stdout=output,
            stderr=subprocess.STDOUT,
        )
        first: float | None = None
        while child.poll() is None:
            if first is None and has_stepped(storage):
                first = time.perf_counter() - began
            time.sleep(0.02)
    seconds = time.perf_counter() - began
    if child.returncode or first is None:
        raise RuntimeError(f"the search failed:\n{log.read_text()}")
    return {"seconds": seconds, "first_step": first}


def has_stepped(storage: Path) -> bool:
    """Whether a trial under the storage has told of a step, or of a read-out already where steps are few."""
    if any(storage.glob(f"*/*/{artifacts.JOURNALS}/*{journal.SUFFIX}")):
        return True
    for beat in storage.glob(f"*/*/{artifacts.LIVE}/*.json"):
        with contextlib.suppress(OSError, ValueError):
            if json.loads(beat.read_text())["step"] > 0:
                return True
    return False


def searches(words: tuple[str, ...], repeats: int) -> dict[str, Any]:
    """The command and the bare loop in pairs; and the seconds of training between two read-outs."""
    found: dict[str, list[float]] = {"command": [], "bare_loop": [], "first_step": []}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        words = (*words, "--cache-dir", str(folder / "cache"))
        cache_text(words, folder / "cache")
        for repeat in range(repeats):
            place = folder / str(repeat)
            place.mkdir()
            timed = timed_command(words, place)
            run = next(find_runs(place / "runs"))
            began = time.perf_counter()
            run_python("-m", "benchmarks.bare_loop", str(run.path), str(place / "bare"))
            found["bare_loop"].append(time.perf_counter() - began)
            found["command"].append(timed["seconds"])
            found["first_step"].append(timed["first_step"])
        specs = planning.from_config(run.config(), run.path)[1]
        intervals = []
        for spec in specs:
            past = [0.0]
            for line in journal.read_journal(journal.journal_path(run.journals, spec.trial_id)).rows:
                intervals.append(line["train_seconds"] - past[-1])
                past.append(line["train_seconds"])
    ratios = [c / b for c, b in zip(found["command"], found["bare_loop"], strict=True)]
    return {
        "trials": len(specs),
        "command_seconds": found["command"],
        "bare_loop_seconds": found["bare_loop"],
        "command_over_bare_loop": ratios,
        "first_step_seconds": found["first_step"],
        "readout_interval_seconds": median(intervals),
    }


def cache_text(words: tuple[str, ...], cache: Path) -> None:
    """Build the corpus that a search of these words finds cached."""
    args = parse([*words])
    plan = choose_plan(args, choose_regime(args))
    prepare_corpus(
        plan.regime.corpus,
        vocab_size=plan.scale.vocab_size,
        train_tokens=plan.scale.train_tokens,
        validation_tokens=plan.scale.validation_tokens,
        min_train_tokens=1,
        cache_dir=cache,
    )


def readout_costs(repeats: int) -> dict[str, Any]:
    """Seconds that a read-out spends on its journal, and on its report to Tune."""
    run = trial_run(ModelSpec(2, 2, 64), open_device("cpu", 1))
    run.advance(2)
    rows = [row(run.spec, number, step, 4.0) for number, step in enumerate(run.spec.stages[0].readout_steps)]
    seconds = []
    with tempfile.TemporaryDirectory() as name:
        for _ in range(repeats + 1):
            tensors, counters = run.state()
            began = time.perf_counter()
            journal.write_journal(Path(name), run.spec, step=2, rows=rows[:-1], counters=counters, tensors=tensors)
            seconds.append(time.perf_counter() - began)
    reports = json.loads(run_python("-m", "benchmarks.tune_report", str(repeats)).output.splitlines()[-1])
    return {"journal_seconds": seconds[1:], "report_seconds": reports}


def state_memory(n_trials: int) -> dict[str, Any]:
    """Resident memory after every hundred trials whose journals the search's state has read; a process of its own."""
    words = f"from benchmarks.search import feed_state; feed_state({n_trials})"
    return {"trials": n_trials, "resident_bytes": json.loads(run_python("-c", words).output.splitlines()[-1])}


def feed_state(n_trials: int) -> None:
    """Write finished journals and let a SearchState read them and write its tables; prints the memory as JSON."""
    base = trial_run(ModelSpec(2, 2, 64), open_device("cpu", 1)).spec
    specs = [replace(base, seed=seed) for seed in range(n_trials)]
    resident = []
    with tempfile.TemporaryDirectory() as name:
        run = RunFolder(Path(name))
        run.journals.mkdir()
        run.live.mkdir()
        state = SearchState(run, specs, print, n_trials)
        for number, spec in enumerate(specs, start=1):
            rows = [row(spec, k, step, 4.0) for k, step in enumerate(spec.stages[0].readout_steps)]
            journal.write_journal(run.journals, spec, step=spec.total_steps, rows=rows, counters={}, tensors={})
            if number % min(MEMORY_STEP, n_trials) == 0:
                state.refresh()
                state.write_tables()
                resident.append(memory_bytes("VmRSS"))
        assert len(state.finished) == n_trials
    print(json.dumps(resident))


def planning_costs(n_trials: int, repeats: int) -> dict[str, Any]:
    """Seconds of planning so many trials, all that ``--dry-run`` does but timing a step."""
    per_seed = 40  # five prefixes and eight dropouts
    seeds = ",".join(map(str, range(max(1, n_trials // per_seed))))
    prefixes, dropouts = "4k,8k,16k,32k,64k", "0,0.05,0.1,0.2,0.3,0.4,0.5,0.6"
    words = ["--quick", "--prefixes", prefixes, "--dropouts", dropouts, "--seeds", seeds]
    data = DataIdentity("corpus", "tokenizer", "validation")
    seconds = []
    for _ in range(repeats):
        began = time.process_time()
        args = parse(words)
        plan = choose_plan(args, choose_regime(args))
        specs = plan.trials(data)
        cost = planning.cost(plan, specs)
        config = planning.to_config(
            plan,
            specs,
            command="benchmark",
            data=data,
            cache_folder=Path("cache"),
            manifest={},
            device_name="cpu",
            options={},
            more={},
        )
        planning.from_config(json.loads(json.dumps(config)), Path("run"))
        seconds.append(time.process_time() - began)
    return {"trials": cost.n_trials, "cpu_seconds": seconds}


def measure(words: tuple[str, ...], *, repeats: int, memory_trials: int, planned: int) -> dict[str, Any]:
    return {
        "search": searches(words, repeats),
        "readout": readout_costs(5 * repeats),
        "memory": state_memory(memory_trials),
        "planning": planning_costs(planned, repeats),
    }


def run(*, quick: bool = False) -> dict[str, Any]:
    where = machine()
    if quick:
        figures = measure(TOY_SEARCH, repeats=1, memory_trials=200, planned=1_000)
    else:
        figures = measure(SEARCH, repeats=5, memory_trials=1_000, planned=10_000)
    search, readout, memory, plan = (figures[name] for name in ("search", "readout", "memory", "planning"))
    print(f"{search['trials']} trials, in pairs: medians and ranges")
    print(f"  command                       {spread(search['command_seconds'])} s")
    print(f"  bare loop                     {spread(search['bare_loop_seconds'])} s")
    print(f"  command / bare loop           {spread(search['command_over_bare_loop'])}")
    print(f"  first training step           {spread(search['first_step_seconds'])} s after the command")
    interval = search["readout_interval_seconds"]
    share = (median(readout["journal_seconds"]) + median(readout["report_seconds"])) / interval
    print(f"  journal of a read-out         {spread(readout['journal_seconds'])} s")
    print(f"  report of a read-out          {spread(readout['report_seconds'])} s")
    print(f"  both, of a read-out interval  {share:.2%} of {interval:.2f} s")
    first, last = memory["resident_bytes"][0], memory["resident_bytes"][-1]
    print(
        f"  state of {memory['trials']:,} trials        {first / 1e6:.0f} MB at the first, {last / 1e6:.0f} at the last"
    )
    print(f"  planning {plan['trials']:,} trials       {spread(plan['cpu_seconds'])} s of cpu", flush=True)
    return {**where, **figures}
