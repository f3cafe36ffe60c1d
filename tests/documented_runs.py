"""How each command of the documents is run, with the substitutions that make it small: see documents_support."""

from __future__ import annotations

from documents_support import Run
from tests_support import REPOSITORY

from tune_dd.builtin_regimes import REGIMES

SWEEP = "python -m tune_dd.sweep"
SAVED = REPOSITORY / "ray_results" / "saved"
TINY = "tiny.toml"  # of tests/tune_dd/sweep/test_chain.py: a regime file whose pocket and full scales take seconds
OWN = {"{REGIME}": TINY}
FEW = "--prefixes 4k --readouts 16384 --dropouts 0,0.2 --seeds 0"  # two trials of eight steps
SMALL_SHAPE = "--models L1_H2_D32"  # a step of it is measured for the plan in no time

# Stopped in its second phase and resumed. Without --scale it is the same command with the study's sizes.
CHAIN = Run(
    f"{SWEEP} {{REGIME}} --phase all --scale pocket --device cpu --models L1_H2_D32,L2_H2_D64 --law saturating_capped",
    put=OWN,
    name="tiny",
    regimes=("REGIME", *REGIMES),
    also=(f"{SWEEP} REGIME --phase all",),
    prints=r"report: ray_results/tiny-all-pocket/",
    leaves="ray_results/tiny-all-pocket/*/report.html",
)

# Samples of the study's texts were named to it, as the tiny regime file names its own.
_SAMPLES = {"owt": "openwebtext", "tinystories": "tinystories", "wikitext103": "wikitext"}


def _phase(step: str) -> list[str]:
    """The command of a phase of each regime's chain."""
    texts = {name: f" --corpus-glob '.../{_SAMPLES[name]}/*.parquet'" if name in _SAMPLES else "" for name in REGIMES}
    words = f"{SWEEP} {{REGIME}} --scale pocket --device cpu{{TEXT}} --phase {step}"
    return [words.replace("{REGIME}", name).replace("{TEXT}", texts[name]) for name in REGIMES]


_LAW = "ray_results/{REGIME}-all-pocket/TIMESTAMP/law/coefficients.json"
# (command, the run of the chain that was begun with it); MODEL is what the screen chose, or the size beside it.
STEPS: list[tuple[str, str]] = [
    (f"{SWEEP} REGIME --phase screen", "screen"),
    (f"{SWEEP} REGIME --phase confirm --from RUN", "confirm"),
    (f"{SWEEP} REGIME --phase stream --coefficients RUN", "stream"),
    *((words, "screen") for words in _phase("screen --models L1_H2_D32,L2_H2_D64 --address local")),
    *(
        (words, "confirm")
        for words in _phase("confirm --from ray_results/{REGIME}-screen-pocket/TIMESTAMP --address local")
    ),
    *(
        (words.replace("MODEL", "L1_H2_D32" if "tinystories" in words else "L2_H2_D64"), "calibrate")
        for words in _phase("calibrate --models MODEL --address local")
    ),
    *(
        (words.replace("MODEL", "L2_H2_D64" if "tinystories" in words else "L1_H2_D32"), "stream")
        for words in _phase(f"stream --models MODEL --coefficients {_LAW} --address local")
    ),
]

_LAWS = "ray_results/laws"
_TINYSTORIES = f"{SWEEP} tinystories --scale pocket --device cpu"
_HELD_OUT = "--prefixes 16k,64k,128k --readouts 131072,262144,524288"
_FOUR_LAWS = " ".join(
    f"--coefficients {_LAWS}/{{REGIME}}/{name}" for name in ("interaction", "odds", "separable", "first_order")
)
_GRID = "--dropouts 0,0.1,0.2,0.3,0.4,0.5,0.6"
_FROZEN = " ".join(f"--coefficients {_LAWS}/{{REGIME}}/{name}" for name in ("floored", "saturating", "interaction"))
_SAMPLE = ".../{REGIME}/*.parquet"
_STREAM = (
    f"{SWEEP} {{REGIME}} --scale pocket --device cpu --corpus-glob '{_SAMPLE}' --phase stream --models L2_H2_D64 "
    f"{_FROZEN} --law floored_capped --law saturating_capped --law interaction "
    "--dropouts 0.1,0.15,0.2,0.3 --seeds 95,96,97,98,99"
)
_SEARCH = f"{SWEEP} {{REGIME}} --scale pocket --device cpu --phase search --models L2_H2_D64 --coefficients"
_ADVICE = "python -m analysis advise --coefficients"
_POINT = "--params 164e3 --unique-tokens 16e3 --sampled-tokens 262144"
_THREE = ("dictionary", "golang", "sqlitedoc")  # what texts share: the study has one
_ANCHOR = "searched=0.5575,0.3946,0.1930,0.0425,0.0200"

# After the chain, in the order of the documents, each on what those before it left.
STUDY: list[Run] = [
    Run(
        "python -m analysis RUN",
        put={"RUN": "@tiny-calibrate-pocket"},
        prints=r"Report: .*report\.html",
        leaves="ray_results/tiny-calibrate-pocket/*/report.html",
    ),
    Run(
        "python -m analysis",
        prints=r"Report: .*tiny-stream-pocket",
        leaves="ray_results/tiny-stream-pocket/*/report.html",
    ),
    Run(
        "python -m analysis RUN1 RUN2",
        put={"RUN1": "@tiny-confirm-pocket", "RUN2": "@tiny-calibrate-pocket"},
        prints=r"The floored_capped law",
        leaves="ray_results/*/combined/report.html",
    ),
    *(
        Run(
            "python -m analysis RUN --law NAME",
            put={"RUN": "@tiny-confirm-pocket @tiny-calibrate-pocket", "NAME": name},
            more=f"--no-report --bootstrap 50 --out {_LAWS}/tiny/{name}",
            prints=r"Tables: ray_results/laws",
            leaves=f"{_LAWS}/tiny/{name}/coefficients.json",
        )
        for name in ("interaction", "odds", "separable", "first_order", "floored", "saturating")
    ),
    Run(
        f"{_ADVICE} RUN {_POINT}",
        put={"RUN": "@tiny-all-pocket"},
        prints=r"16k +\| +262k +\| +0\.\d",
    ),
    Run(
        f"{_ADVICE} RUN --params 164e3 --stages 4k:131k,8k:262k,16k:393k",
        put={"RUN": "@tiny-all-pocket"},
        prints=r"16k +\| +393k +\| +0\.\d",
    ),
    Run(
        "python -m analysis carry RUN TEXT --out FOLDER",
        put={"RUN": "@tiny-all-pocket", "TEXT": ".cache/dropout_decay_tiny", "FOLDER": "carried"},
        prints=r"tiny: carried from tiny by counts [\s\S]*U counts 1\.00 \[",
        leaves="carried/coefficients.json",
    ),
    Run(
        "python -m analysis carry RUN PILOT --out FOLDER",
        put={"RUN": "@tiny-all-pocket", "PILOT": "@tiny-confirm-pocket", "FOLDER": "piloted"},
        prints=r"tiny: carried from tiny by \d+ trials on tiny \(\d+ cells\): U counts \d",
        leaves="piloted/coefficients.json",
    ),
    Run(
        "python -m analysis carry PILOT --out FOLDER",
        put={"PILOT": "@tiny-confirm-pocket", "FOLDER": "of-texts"},
        prints=r"tiny: carried from any text by \d+ trials on tiny \(\d+ cells\): U counts \d",
        leaves="of-texts/coefficients.json",
    ),
    Run(
        "python -m analysis exponents",
        more=" ".join(
            ["--passes 2.5", *(str(run) for name in _THREE for run in SAVED.glob(f"{name}-calibrate-pocket/*"))]
        ),
        prints=r"The floored form fitted to 3 texts together",
    ),
    Run(f"python -m analysis advise {_POINT}", prints=r"nothing was trained on your text"),
    Run(
        f"{_ADVICE} FOLDER {_POINT}",
        put={"FOLDER": "piloted"},
        prints=r"Note: carried from tiny by \d+ trials",
    ),
    Run(
        f"{SWEEP} {{REGIME}} --scale pocket --device cpu --models L2_H2_D64,L4_H4_D128 {_HELD_OUT} {_GRID} --seeds 0 "
        f"{_FOUR_LAWS}",
        regimes=("owt", "pydocs", "tinystories"),
        put=OWN,
        name="tiny",
        more="--prefixes 800,1600 --readouts 640,1280 --dropouts 0,0.3",
        also=(
            f"{_TINYSTORIES} --models L4_H4_D128 {_HELD_OUT} --seeds 0 --coefficients RUN",
            f"{_TINYSTORIES} --models L6_H6_D192 --prefixes 32k --readouts 131072,262144 {_GRID} --seeds 0,1 "
            + _FOUR_LAWS.format(REGIME="tinystories-three-sizes"),
        ),
        prints=r"files: ray_results/tiny-calibrate-pocket/",
        leaves="ray_results/tiny-calibrate-pocket/*/predictions.json",
    ),
    Run(
        "python -m analysis laws RUN1 RUN2",
        put={"RUN1": "@tiny-confirm-pocket", "RUN2": "@tiny-calibrate-pocket"},
        also=("python -m analysis laws RUN RUN", "python -m analysis laws"),
        prints=r"larger P",
    ),
    Run(
        f"{_STREAM} --anchors {_ANCHOR}",
        regimes=("tinystories",),
        name="tiny",
        put={**OWN, _ANCHOR: "searched=0.4,0.1", _SAMPLE: "text.txt"},
        more="--dropouts 0.2 --seeds 20",
        prints=r"files: ray_results/tiny-stream-pocket/",
        leaves="ray_results/tiny-stream-pocket/*/comparison.csv",
    ),
    Run(
        f"{_SEARCH} ray_results/{{REGIME}}-all-pocket/TIMESTAMP/law "
        "--from ray_results/{REGIME}-stream-pocket/TIMESTAMP --points 24 --seeds 0,1,2,3",
        regimes=("tinystories",),
        name="tiny",
        put={
            **OWN,
            "ray_results/{REGIME}-all-pocket/TIMESTAMP/law": "@tiny-all-pocket/law",
            "ray_results/{REGIME}-stream-pocket/TIMESTAMP": "@tiny-stream-pocket",
        },
        more="--points 3 --seeds 1 --space coefficients --dry-run",
        prints=r"static +\S+, [\s\S]*trials +3 trials, 6 result rows",
    ),
    Run(
        f"{_SEARCH} {_LAWS}/{{REGIME}}/odds --law odds_half_diluted --points 24 --seeds 0,1 --static 0.2 "
        "--use-cached-data --cache-dir .cache/dropout_decay_{REGIME}",
        regimes=("owt", "pydocs", "wikitext103"),
        put=OWN,
        name="tiny",
        more="--points 3 --seeds 1 --space coefficients",
        also=(
            f"{SWEEP} REGIME --phase search --coefficients RUN",
            f"{_TINYSTORIES.replace(' --scale', ' --phase search --scale')} --models L2_H2_D64 --coefficients RUN",
        ),
        prints=r"next: python -m tune_dd\.sweep tiny\.toml .*--law odds_half_diluted",
        leaves="ray_results/tiny-search-pocket/*/search.csv",
    ),
    Run(
        "python -m analysis save ray_results/REGIME-all-pocket/TIMESTAMP",
        put={"ray_results/REGIME-all-pocket/TIMESTAMP": "@tiny-all-pocket"},
        also=("python -m analysis save RUN",),
        prints=r"Saved: ray_results/saved/tiny-all-pocket/",
        leaves="ray_results/saved/tiny-all-pocket/*/chain.json",
    ),
    Run("python -m analysis.paper", prints=r"paper/paper_results_summary\.json", leaves="docs/tiny_report.md"),
]


# In a folder with a text at every place where the documents name one, and a hub of our own on loopback.
SEARCHES: list[Run] = [
    Run(
        "python -m tune_dd.corpus fetch owt",
        prints=r"owt: .* has the hub's SHA-256",
        leaves="data/openwebtext10k/SOURCE.json",
    ),
    Run(
        "python -m tune_dd.corpus fetch all",
        prints=r"commit f54c09fd2331[\s\S]*commit b08601e04326",
        leaves="data/wikitext103_raw/SOURCE.json",
    ),
    Run(
        "python -m tune_dd.corpus build owt",
        more="--scale pocket",
        also=("python -m tune_dd.corpus build REGIME",),
        prints=r"training and .* validation tokens",
        leaves=".cache/*owt*/manifest-*.json",
    ),
    Run("python -m tune_dd.corpus list", prints=r"cache of owt: "),
    Run("python -m tune_dd.corpus verify", prints=r"wikitext103: .* is as recorded \(commit b08601e04326"),
    *(
        Run(f"{SWEEP} owt --dry-run{device}", more=SMALL_SHAPE, prints=r"time +mps: [\s\S]*time +cpu: about ")
        for device in ("", " --device cpu", " --device cuda")
    ),
    # Its recipe, which a test compares with this. To harvest the docstrings takes long; tests of the corpus do it.
    Run(
        "make sweep",
        put={"make": SWEEP, "sweep": "--quick"},
        more=f"{FEW} --corpus-glob 'stories/*.parquet'",
        prints=r"pydocs: 2 trials, 2 read-outs on cpu",
        leaves="ray_results/pydocs-calibrate-pocket/*/report.html",
    ),
    Run(
        f"{SWEEP} pydocs --scale pocket --device cpu --models L2_H2_D64 --adaptive",
        more="--dry-run",  # a search of tests/tune_dd/sweep/test_adaptive.py goes to its end
        prints=r"trials +(at most )?\d+ trials",
    ),
    Run(
        f"{_TINYSTORIES} --models L2_H2_D64 --corpus-glob 'tinystories/*.parquet'",
        more=FEW,
        also=(
            f"{SWEEP} tinystories --corpus-glob 'stories/*.parquet' --scale pocket --device cpu",
            f"{SWEEP} my_corpus.toml --scale pocket --device cpu",
            f"{_TINYSTORIES} --models L3_H3_D96 --prefixes 4k,8k,16k,32k --seeds 0,1",
            f"{SWEEP} pydocs --scale pocket --device cpu --models L2_H2_D64",
            f"{SWEEP} my_corpus.toml --scale pocket --device cpu --models L2_H2_D64 --prefixes 4k,8k,16k "
            "--dropouts 0,0.1,0.3,0.4,0.6 --seeds 0",
        ),
        prints=r"tinystories: 2 trials, 2 read-outs on cpu",
        leaves="ray_results/tinystories-calibrate-pocket/*/model_selection.csv",
    ),
    Run(
        f"{SWEEP} path/to/regime.toml",
        more="--device cpu --dry-run",  # a regime file of one's own is what most tests search
        prints=r"trials +4 trials, 8 result rows",
    ),
    Run(
        f"{SWEEP} owt --resume",
        put={"owt": "tinystories"},
        lose="tinystories-calibrate-pocket",
        prints=r"resuming [\s\S]*tinystories: 2 trials, 2 read-outs",
    ),
    Run(  # nothing is left of it but the report
        f"{SWEEP} --resume RUN",
        put={"RUN": "@tinystories-calibrate-pocket"},
        prints=r"resuming [\s\S]*tinystories: 2 trials, 2 read-outs",
        leaves="ray_results/tinystories-calibrate-pocket/*/report.html",
    ),
    Run(
        f"{SWEEP} --resume RUN --retry-crashed",
        put={"RUN": "@tinystories-calibrate-pocket"},
        lose="tinystories-calibrate-pocket",
        crash=True,
        prints=r"resuming [\s\S]*tinystories: 2 trials, 2 read-outs",
    ),
    Run(
        f"{SWEEP} --extend RUN --seeds 3,4 --dropouts 0.15,0.25",
        put={"RUN": "@tinystories-calibrate-pocket"},
        prints=r"extending [\s\S]*tinystories: 12 trials, 12 read-outs",
    ),
    Run(
        f"{SWEEP} --extend RUN --models L1_H2_D32,L2_H2_D64",
        put={"RUN": "@tinystories-calibrate-pocket", "L1_H2_D32,L2_H2_D64": "L1_H2_D16,L2_H2_D16"},
        prints=r"extending [\s\S]*tinystories: 36 trials, 36 read-outs",
    ),
    Run(f"{SWEEP} --list", prints=r"tinystories-calibrate-pocket/\S+ .* 36 / 36 "),
    Run(f"{SWEEP} --clean", prints=r"2 run\(s\) cleaned"),
    Run("python -m analysis.simulation", more="--sweeps 2 --calibrations 2 --streams 2", prints=r"paired t"),
    # Names of programs.
    Run(SWEEP, more="--help", prints=r"usage: python -m tune_dd\.sweep"),
    Run("python -m tune_dd.corpus", more="--help", prints=r"usage: python -m tune_dd\.corpus"),
    Run("python -m tune_dd.corpus fetch", more="--help", prints=r"usage: python -m tune_dd\.corpus fetch"),
    Run(
        "python -m benchmarks '[NAME' '...]' '[--quick]' '[--json' 'FILE]'",
        put={"[NAME": "", "...]": "", "[--quick]": "--help", "[--json": "", "FILE]": ""},
        prints=r"usage: python -m benchmarks",
    ),
]

# What the recipe of a target of make calls.
RECIPES = {
    "make sweep": "-m tune_dd.sweep --quick",
    "make test": '-m pytest -m "not faults and not slow"',
    "make test-slow": "-m pytest -m slow",
    "make test-faults": "-m pytest tests/faults -m faults",
    "make test-faults FAULT_SEED=31": "--fault-seed 31",
    "make test-faults FAULT_SEED=51": "--fault-seed 51",
    "make paper": "-m analysis.paper",
}

# Sweeps that no test runs to their end: planned, with --dry-run and SMALL_SHAPE appended.
PLANNED = {
    f"{SWEEP} owt",
    f"{SWEEP} owt --scale full-8m --coefficients RUN",
    f"{SWEEP} owt --scale full-8m --phase stream --coefficients RUN",
    f"{SWEEP} my_corpus.toml --device cuda",
}
# A full-scale chain plans sizes of the regime whose steps take a minute to measure: --models reaches its screen only.
UNPLANNED = {
    f"{SWEEP} owt --phase all",
    f"{SWEEP} owt --phase all --device cuda",
    f"{SWEEP} tinystories --phase all",
    f"{SWEEP} wikitext103 --phase all",
}
