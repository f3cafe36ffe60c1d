"""From text to batches: encoding on all cores, memory of a large source, reload from the cache, a batch's cost.

- ``encoding``: the corpus's own encoder on all cores against ``encode_batch`` of the tokenizers library on one core,
  the same documents in turn.
- ``memory``: peak memory of a process that builds a cache from a source of each size, whole.
- ``reload``: what a command takes to find the cache unchanged and open it, all hashes compared, for each source.
- ``batches``: ``sample_batch`` against a training step of the smallest model, which has the shortest steps.
"""

from __future__ import annotations

import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.measuring import cores, machine, run_python, spread
from benchmarks.texts import VOCAB_SIZE, build, documents, write_source
from benchmarks.trials import trial_run
from tune_dd.corpus import Corpus
from tune_dd.device import open_device
from tune_dd.regimes import ModelSpec
from tune_dd.stream import sample_batch
from tune_dd.tokenizer import encode_documents, load_tokenizer, map_in_order

BATCH_DOCUMENTS = 50
SMALL_MEGABYTES = 8
WINDOW = (16, 128)  # batch size and context


def encoding(corpus: Corpus, megabytes: float, repeats: int) -> dict[str, Any]:
    """Seconds of both encoders for the same text, in turn."""
    tokenizer = load_tokenizer(next(corpus.folder.glob("tokenizer-*")).read_text(encoding="utf-8"))
    texts = list(documents(megabytes))
    batches = [texts[i : i + BATCH_DOCUMENTS] for i in range(0, len(texts), BATCH_DOCUMENTS)]
    found: dict[str, list[float]] = {"one_core": [], "all_cores": []}
    for _ in range(repeats):
        began = time.perf_counter()
        one = sum(len(encoded.ids) + 1 for batch in batches for encoded in tokenizer.encode_batch(batch))
        middle = time.perf_counter()
        encoded_batches = map_in_order(lambda batch: encode_documents(tokenizer, batch), batches, cores())
        all_of_them = sum(len(tokens) for encoded in encoded_batches for tokens in encoded)
        found["one_core"].append(middle - began)
        found["all_cores"].append(time.perf_counter() - middle)
        assert one == all_of_them
    ratios = [one / many for one, many in zip(found["one_core"], found["all_cores"], strict=True)]
    return {"cores": cores(), "megabytes": megabytes, "seconds": found, "speed_up": ratios}


def memory_and_reload(megabytes: float, repeats: int) -> dict[str, Any]:
    """Peak memory of a build from a source of so many megabytes, and seconds of loading its cache again."""
    code = "import sys; from pathlib import Path; from benchmarks.texts import build; build(*map(Path, sys.argv[1:]))"
    with tempfile.TemporaryDirectory() as name:
        source, cache = Path(name, "source.txt"), Path(name, "cache")
        write_source(source, megabytes)
        usage = run_python("-c", code, str(source), str(cache))
        seconds = []
        for _ in range(repeats):
            began = time.perf_counter()
            corpus = build(source, cache)
            seconds.append(time.perf_counter() - began)
        return {
            "megabytes": source.stat().st_size / 1e6,
            "tokens": len(corpus.tokens),
            "build_seconds": usage.seconds,
            "peak_bytes": usage.peak_bytes,
            "reload_seconds": seconds,
        }


def batches(corpus: Corpus, repeats: int) -> dict[str, Any]:
    """Seconds of a batch and of a step, in turn."""
    run = trial_run(ModelSpec(2, 2, 64), open_device("cpu", 1), vocab_size=VOCAB_SIZE, readout_steps=(10_000,))
    found: dict[str, list[float]] = {"batch": [], "step": []}
    for repeat in range(20 * repeats + 1):
        began = time.perf_counter()
        sample_batch(corpus.train, corpus.n_train, *WINDOW, seed=0, stage=0, step=repeat)
        middle = time.perf_counter()
        run.advance(run.step + 1)
        if repeat:  # the first allocates and warms up
            found["batch"].append(middle - began)
            found["step"].append(time.perf_counter() - middle)
    return {"seconds": found, "batch_over_step": median(found["batch"]) / median(found["step"])}


def measure(*, encoded: float, sources: tuple[float, ...], repeats: int) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as name:
        source = Path(name, "source.txt")
        write_source(source, min(encoded, SMALL_MEGABYTES))
        corpus = build(source, Path(name, "cache"))
        return {
            "encoding": encoding(corpus, encoded, repeats),
            "sources": [memory_and_reload(megabytes, repeats) for megabytes in sources],
            "batches": batches(corpus, repeats),
        }


def run(*, quick: bool = False) -> dict[str, Any]:
    where = machine()
    if quick:
        figures = measure(encoded=2, sources=(2, 10), repeats=1)
    else:
        figures = measure(encoded=20, sources=(10, 100, 1000), repeats=5)
    found = figures["encoding"]
    print(f"encoding {found['megabytes']} MB on {found['cores']} cores, in turn: medians and ranges")
    print(f"  encode_batch, one core        {spread(found['seconds']['one_core'])} s")
    print(f"  all cores                     {spread(found['seconds']['all_cores'])} s")
    print(f"  one core / all cores          {spread(found['speed_up'])}")
    for source in figures["sources"]:
        print(
            f"source of {source['megabytes']:,.0f} MB: built in {source['build_seconds']:.1f} s with at most "
            f"{source['peak_bytes'] / 2**20:,.0f} MiB; reloaded in {spread(source['reload_seconds'])} s"
        )
    print(f"a batch is {figures['batches']['batch_over_step']:.2%} of a step of the smallest model", flush=True)
    return {**where, **figures}
