"""A pocket search against the same trials in a bare loop without Ray, and what a search costs beside training.

- ``quick`` and ``pocket``: the whole command, from its start to its report, against ``bare_loop``: a process per core
  that takes the same trials of the same plan one after the other, journals and snapshots included. In pairs, one after
  the other. What the command adds is seconds whatever is trained, so it is told of the 24 trials of ``--quick`` and of
  as many, the same cells, of the largest model that the pocket scale has (in its screen), which take longer.
- ``first_step``: from the command to the first heartbeat that tells of a training step; heartbeats are half a
  second apart, so that it is told up to that much late.
- ``cpu_seconds``: of the command's parts, last looked at while each was there: the trials' workers, the command itself
  with those who help it to draw, Tune's driver, and Ray's own processes; and of the bare loop.
- ``readout``: what a trial's training waits for at a read-out, and the cpu time that journal and report take of the
  worker beside it and of Tune's driver, against the training between two read-outs. The report is Tune's, made inside
  a worker.
- ``memory``: resident memory of the process that holds a search's state, fed a thousand finished journals. Ray's
  own processes are not in it.
- ``planning``: a plan of 10,000 trials with its costs, its hash and its config.json, written and read back.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.analysis import row
from benchmarks.measuring import REPOSITORY, machine, memory_bytes, run_python, spread, tree_cpu
from benchmarks.trials import trial_run
from search_spaces.space import DataIdentity
from tune_dd import artifacts, journal
from tune_dd.builtin_regimes import QUICK_DROPOUTS, QUICK_SEEDS
from tune_dd.corpus import prepare_corpus
from tune_dd.device import open_device
from tune_dd.regimes import ModelSpec
from tune_dd.sweep import plan as planning
from tune_dd.sweep.options import choose_plan, choose_regime, parse
from tune_dd.sweep.runs import RunFolder, find_runs
from tune_dd.sweep.state import SearchState

PAIRS = 5
QUICK = ("--quick",)
POCKET = (
    *("pydocs", "--scale", "pocket", "--device", "cpu", "--models", "L3_H4_D96"),
    *("--dropouts", ",".join(map(str, QUICK_DROPOUTS)), "--seeds", ",".join(map(str, QUICK_SEEDS))),
)
TOY = ("--prefixes", "4k,8k", "--dropouts", "0,0.3", "--readouts", "8192,16384", "--seeds", "0")
MEMORY_STEP = 100  # trials between two looks at the memory
LOOK_SECONDS = 2.0  # between two looks at the processes of a command, which take of the cores that are measured
STEP_SECONDS = 0.1  # the same until the first training step
PARTS = {"workers": "ray::ImplicitFunc", "driver": r"tune_dd\.sweep\.(scheduler|fork_server)", "ray": "/ray/|ray::"}


def timed_command(words: tuple[str, ...], folder: Path) -> dict[str, Any]:
    """Seconds of ``python -m tune_dd.sweep WORDS``, until its first training step, and cpu seconds of its parts.

    The corpus is cached.
    """
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
        processes: dict[int, tuple[str, float]] = {}
        stepped: list[float] = []
        ended = threading.Event()

        def look() -> None:
            while not ended.wait(LOOK_SECONDS if stepped else STEP_SECONDS):
                if not stepped and has_stepped(storage):
                    stepped.append(time.perf_counter() - began)
                for pid, (line, spent) in tree_cpu(child.pid).items():
                    # One that has ended and is not yet waited for has no command line any more.
                    processes[pid] = (line or processes.get(pid, ("", 0.0))[0], spent)

        thread = threading.Thread(target=look)
        thread.start()
        child.wait()  # not with a timeout, for which Python looks again and again: that takes of the cores too
        seconds = time.perf_counter() - began
        ended.set()
        thread.join()
    if child.returncode or not stepped:
        raise RuntimeError(f"the search failed:\n{log.read_text()}")
    cpu = dict.fromkeys((*PARTS, "command"), 0.0)
    for line, spent in processes.values():
        cpu[next((part for part, pattern in PARTS.items() if re.search(pattern, line)), "command")] += spent
    return {"seconds": seconds, "first_step": stepped[0], "cpu_seconds": cpu}


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
    found: dict[str, list[Any]] = {"command": [], "bare_loop": [], "first_step": [], "cpu": []}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        words = (*words, "--cache-dir", str(folder / "cache"))
        cache_text(words, folder / "cache")
        for repeat in range(repeats):
            place = folder / str(repeat)
            place.mkdir()
            read_libraries()
            timed = timed_command(words, place)
            run = next(find_runs(place / "runs"))
            read_libraries()
            bare = run_python("-m", "benchmarks.bare_loop", str(run.path), str(place / "bare"), peak_memory=False)
            found["bare_loop"].append(bare.seconds)
            found["command"].append(timed["seconds"])
            found["first_step"].append(timed["first_step"])
            found["cpu"].append(timed["cpu_seconds"] | {"bare_loop": bare.cpu_seconds})
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
        "cpu_seconds": {part: [cpu[part] for cpu in found["cpu"]] for part in found["cpu"][0]},
        "readout_interval_seconds": median(intervals),
        "readout": readout_costs(specs[0].model, 5 * repeats),
    }


def read_libraries() -> None:
    """Have the system hold the libraries' files in memory: a run of minutes may find them gone to disk."""
    run_python("-c", "import ray.tune, analysis.coefficients, analysis.drawing, analysis.report, tune_dd.trainable")


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


def readout_costs(model: ModelSpec, repeats: int) -> dict[str, list[float]]:
    """What each of so many read-outs takes of a trial of the model and of Tune's driver: ``benchmarks.tune_report``."""
    found: dict[str, list[float]] = json.loads(
        run_python("-m", "benchmarks.tune_report", model.name, str(repeats)).output.splitlines()[-1]
    )
    return found


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


def measure(pairs: dict[str, tuple[str, ...]], *, repeats: int, memory_trials: int, planned: int) -> dict[str, Any]:
    """``pairs``: name of a search -> its words."""
    return {
        "searches": {name: searches(words, repeats) for name, words in pairs.items()},
        "memory": state_memory(memory_trials),
        "planning": planning_costs(planned, repeats),
    }


def run(*, quick: bool = False) -> dict[str, Any]:
    where = machine()
    if quick:
        pairs = {"quick": (*QUICK, *TOY), "pocket": (*POCKET, *TOY)}
        figures = measure(pairs, repeats=1, memory_trials=200, planned=1_000)
    else:
        figures = measure({"quick": QUICK, "pocket": POCKET}, repeats=PAIRS, memory_trials=1_000, planned=10_000)
    for name, search in figures["searches"].items():
        show(name, search)
    memory, plan = figures["memory"], figures["planning"]
    first, last = memory["resident_bytes"][0], memory["resident_bytes"][-1]
    print(
        f"state of {memory['trials']:,} trials        {first / 1e6:.0f} MB at the first, {last / 1e6:.0f} at the last"
    )
    print(f"planning {plan['trials']:,} trials       {spread(plan['cpu_seconds'])} s of cpu", flush=True)
    return {**where, **figures}


def show(name: str, search: dict[str, Any]) -> None:
    print(f"{name}: {search['trials']} trials, in pairs: medians and ranges")
    print(f"  command                       {spread(search['command_seconds'])} s")
    print(f"  bare loop                     {spread(search['bare_loop_seconds'])} s")
    print(f"  command / bare loop           {spread(search['command_over_bare_loop'])}")
    print(f"  first training step           {spread(search['first_step_seconds'])} s after the command")
    cpu = search["cpu_seconds"]
    print(f"  cpu seconds                   {', '.join(f'{part} {median(cpu[part]):.3g}' for part in cpu)}")
    interval, readout = search["readout_interval_seconds"], search["readout"]
    for part, what in (
        ("waited", "a read-out: training waits "),
        ("cpu", "  cpu of the worker         "),
        ("driver_cpu", "  cpu of Tune's driver      "),
        ("until_reported", "  reported after            "),
    ):
        share = median(readout[part]) / interval
        print(f"  {what}   {spread(readout[part])} s, {share:.2%} of {interval:.2f} s")
