"""The command line: options, and how they choose a regime, a scale and a search space."""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence
from pathlib import Path

from search_spaces.adaptive_grid import BUDGET, TARGET_WIDTH
from search_spaces.samplers import SAMPLERS
from search_spaces.schedule_coefficients import OBJECTIVES, SPACES
from tune_dd.arguments import OneLineParser
from tune_dd.builtin_regimes import REGIMES
from tune_dd.corpus.cache import cache_folder
from tune_dd.device import DEVICES, device_count
from tune_dd.errors import UserError
from tune_dd.laws import DEFAULT_LAW, LAWS
from tune_dd.regime_file import pattern_below, resolve_regime
from tune_dd.regimes import SCALES, Regime
from tune_dd.sweep.frozen_law import FrozenLaw
from tune_dd.sweep.phases import PHASES
from tune_dd.sweep.plan import Plan
from tune_dd.sweep.runs import DEFAULT_STORAGE

ALL = "all"
CALIBRATE = "calibrate"  # the phase where none is named
CHAINED = ("screen", "confirm", "calibrate", "stream")  # by --phase all
NEWEST = "newest"
EVERY = "every"
_EMBEDDED = "pydocs"
_TEXT_OPTIONS = ("corpus", "corpus_glob", "column", "use_cached_data", "cache_dir")

EXAMPLES = """examples:
  python -m tune_dd.sweep --quick                     24 trials on the embedded corpus, cpu, some two minutes
  python -m tune_dd.sweep owt --dry-run --device cpu  what the full search would cost here
  python -m tune_dd.sweep tinystories --scale pocket --device cpu --corpus-glob 'stories/*.parquet'
  python -m tune_dd.sweep pydocs --phase stream --scale pocket --device cpu --coefficients CALIBRATE_RUN
  python -m tune_dd.sweep pydocs --phase search --scale pocket --device cpu --coefficients CALIBRATE_RUN
  python -m tune_dd.sweep pydocs --phase all --scale pocket --device cpu      the whole study, as a rehearsal
  python -m tune_dd.sweep owt --resume                go on with the newest unfinished search
"""


def build_parser() -> argparse.ArgumentParser:
    parser = OneLineParser(
        prog="python -m tune_dd.sweep",
        description="Measure which dropout is best for each training prefix and budget of a regime.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("regime", nargs="?", help=f"{', '.join(REGIMES)}, or the path of a .toml regime")
    search = parser.add_argument_group("what is searched")
    search.add_argument(
        "--phase",
        help="; ".join(f"{name}: {phase.help}" for name, phase in PHASES.items()) + f"; all: {', '.join(CHAINED)}",
    )
    search.add_argument(
        "--scale",
        choices=SCALES,
        help="full (default); full-8m: the study's extrapolation; pocket: a rehearsal in minutes",
    )
    search.add_argument("--quick", action="store_true", help="pocket scale, cpu, 24 trials; the embedded corpus")
    search.add_argument("--models", help="e.g. L12_H8_D320,L16_H8_D384 (layers, heads, width); with all: the ladder")
    search.add_argument("--prefixes", help="values of U in tokens, e.g. 250k,500k,1M")
    search.add_argument("--readouts", help="values of C in tokens at which a trial is read out, e.g. 8M,16M")
    search.add_argument("--dropouts", help="e.g. 0,0.1,0.2,0.3")
    search.add_argument("--seeds", help="e.g. 0,1,2")
    search.add_argument(
        "--from",
        dest="from_run",
        metavar="RUN",
        help="confirm: the screen run whose model is meant; search: a stream run that knows the best fixed dropout",
    )
    adaptive = parser.add_argument_group("an answer for fewer tokens (--phase calibrate and confirm)")
    adaptive.add_argument(
        "--adaptive",
        action="store_const",
        const=True,
        help="instead of the whole grid: coarse dropouts on one seed, then dropouts and seeds where they decide",
    )
    adaptive.add_argument(
        "--target-width",
        type=float,
        metavar="P",
        help=f"a cell is decided once the 95 %% interval of its optimum is no wider (default: {TARGET_WIDTH})",
    )
    adaptive.add_argument(
        "--budget", type=float, metavar="SHARE", help=f"of the full grid's trials, at most (default: {BUDGET})"
    )
    stream = parser.add_argument_group("the stream")
    stream.add_argument(
        "--coefficients",
        action="append",
        metavar="FILE|RUN",
        help="the law, frozen: a coefficients.json or the calibrate run that has one; again for further laws. "
        "With --phase calibrate: write down what the law predicts for a run that it was not fitted on",
    )
    stream.add_argument(
        "--law",
        action="append",
        choices=sorted(LAWS),
        help="the form that is meant, where the coefficients serve several; again for further ones. "
        f"With --phase all: the form that is fitted (default: {DEFAULT_LAW})",
    )
    stream.add_argument("--transfer", action="store_true", help="the law may be of another regime or tokenizer")
    stream.add_argument("--stage-steps", type=int, metavar="N", help="optimizer steps of each stage")
    stream.add_argument(
        "--anchors",
        action="append",
        metavar="[NAME=]P,P,...",
        help="a path by hand, a dropout per stage, beside the regime's own; again for further ones",
    )
    points = parser.add_argument_group("the search for a schedule (--phase search, beside --coefficients)")
    points.add_argument(
        "--points", type=int, metavar="N", help="schedules to try (default: 30 at pocket scale, else 60)"
    )
    points.add_argument("--space", choices=SPACES, help="what is varied: the path's ends (default), or coefficients")
    points.add_argument("--objective", choices=OBJECTIVES, help="loss at the end (default), or along the trajectory")
    points.add_argument("--sampler", choices=SAMPLERS, help="Optuna's TPE (default) or Gaussian process")
    points.add_argument("--search-seed", type=int, metavar="N", help="of the sampler (default: 0)")
    points.add_argument("--static", type=float, metavar="P", help="the best fixed dropout known, tried beside the law")
    text = parser.add_argument_group("the text")
    text.add_argument("--corpus", metavar="PATH", help="a file, or a folder of files")
    text.add_argument("--corpus-glob", metavar="GLOB", help="files by pattern, e.g. 'texts/*.parquet'")
    text.add_argument("--column", help="parquet column or jsonl key that holds the text (default: text)")
    text.add_argument("--use-cached-data", action="store_true", help="use the tokenized cache; needs no source")
    text.add_argument("--cache-dir", metavar="PATH", help="default: .cache/dropout_decay_REGIME")
    text.add_argument("--offline", action="store_true", help="fetch no text from the Hugging Face hub")
    machine = parser.add_argument_group("the machine")
    machine.add_argument("--device", choices=DEVICES, help="default: mps, the device of the reference study")
    machine.add_argument("--devices", type=int, metavar="N", help="trials at a time, one a device; on cpu one a core")
    machine.add_argument(
        "--address",
        default="local",
        help="an existing Ray cluster, named again with --resume (default: a private local one)",
    )
    machine.add_argument("--hang-timeout", type=float, metavar="SECONDS", help="default: 900")
    machine.add_argument("--keep-weights", action="store_true", help="keep the weights of finished trials")
    run = parser.add_argument_group("the run")
    run.add_argument("--storage", metavar="PATH", default=str(DEFAULT_STORAGE), help="default: ray_results")
    run.add_argument("--resume", nargs="?", const=NEWEST, metavar="RUN", help="go on with a run (default: the newest)")
    run.add_argument("--extend", nargs="?", const=NEWEST, metavar="RUN", help="add values to a run, keep what is done")
    run.add_argument("--retry-crashed", action="store_true", help="with --resume: take crashed trials up again")
    run.add_argument("--list", action="store_true", help="show the runs and stop")
    run.add_argument(
        "--clean", nargs="?", const=EVERY, metavar="RUN", help="drop weights of finished trials, keep tables"
    )
    run.add_argument("--dry-run", action="store_true", help="print the plan and stop")
    run.add_argument("--verbose", action="store_true", help="let Ray's own output through")
    return parser


def parse(argv: list[str]) -> argparse.Namespace:
    """Parse and check what can be checked without a regime. ``any_phase``: none was named.

    Raises:
        UserError: an unknown option or value.
    """
    args = build_parser().parse_args(argv)
    args.any_phase = args.phase is None
    args.phase = args.phase or CALIBRATE
    if args.phase not in (*PHASES, ALL):
        raise UserError(f"--phase {args.phase!r} is unknown: use {', '.join((*PHASES, ALL))}")
    if args.devices is not None and args.devices < 1:
        raise UserError(f"--devices {args.devices} must be at least 1")
    if args.hang_timeout is not None and not 0 < args.hang_timeout < math.inf:
        raise UserError(f"--hang-timeout {args.hang_timeout} must be above 0 seconds and finite, such as 900")
    if args.corpus and args.corpus_glob:
        raise UserError("--corpus and --corpus-glob name the text twice: give one of them")
    if args.resume and args.extend:
        raise UserError("--resume goes on with a plan and --extend changes it: give one of them")
    _refuse_beside_storage(args)
    taken_up = args.resume or args.extend
    text = [name for name in _TEXT_OPTIONS if getattr(args, name)]
    if taken_up and text:
        raise UserError(
            f"--{text[0].replace('_', '-')}: a run keeps the text it was begun on; start a new run for another"
        )
    if args.extend and (args.scale or args.device or args.devices):
        raise UserError("--extend adds trials of the same kind: leave --scale, --device and --devices out")
    if args.retry_crashed and not args.resume:
        raise UserError("--retry-crashed goes with --resume: say which run")
    needs_regime = NEWEST in (args.resume, args.extend) or not (args.resume or args.extend or args.list or args.clean)
    if args.regime is None and not args.quick and needs_regime:
        raise UserError(f"name a regime: {', '.join(REGIMES)} or a .toml file; or try --quick")
    if args.transfer and not args.coefficients:
        raise UserError("--transfer is about a law fitted elsewhere: name it with --coefficients")
    if args.law and (args.resume or args.extend):
        raise UserError("--law: a run keeps the law that it was begun with; leave it out, or start a new run")
    if args.law and args.phase != ALL and not args.coefficients:
        raise UserError("--law names the form of a law fitted before: name its --coefficients too")
    if args.coefficients and (args.resume or args.extend):
        raise UserError("--coefficients: a run keeps the law that it was begun with; leave it out, or start a new run")
    return args


def _refuse_beside_storage(args: argparse.Namespace) -> None:
    """--list and --clean take the storage and nothing else: --clean cannot be undone.

    Raises:
        UserError: another option or a regime is given with them.
    """
    if not (args.list or args.clean):
        return
    told, takes = "list", "--storage alone"
    if args.clean:
        told, takes = "clean", "a run and --storage alone, and without a run cleans every one"
    plain = vars(build_parser().parse_args([])) | {"phase": CALIBRATE, "any_phase": True}
    for name, value in vars(args).items():
        if name not in (told, "storage") and value != plain[name]:
            option = {"regime": value, "from_run": "--from"}.get(name, f"--{name.replace('_', '-')}")
            raise UserError(f"--{told} takes {takes}: leave {'--phase' if name == 'any_phase' else option} out")


def refuse_two_texts(args: argparse.Namespace) -> None:
    """What a user types, that is; a chain begun by an earlier version may have stored both.

    Raises:
        UserError: the cache is to be read as it is, and files are named too, which would be recorded as what was read.
    """
    named = [name for name in ("corpus", "corpus_glob", "column") if getattr(args, name)]
    if args.use_cached_data and named:
        raise UserError(
            f"--use-cached-data reads what the cache holds, whatever --{named[0].replace('_', '-')} says: "
            "leave one of them out"
        )


def choose_regime(args: argparse.Namespace) -> Regime:
    """The regime with the text that the options name.

    ``--quick`` without a corpus of the user's is always the embedded one, so that it needs nothing.
    """
    return resolve_regime(regime_word(args)).reading(args.corpus_glob or args.corpus, args.column)


def regime_word(args: argparse.Namespace) -> str:
    """The regime that is meant as it is named on a command line: a regime file by its path."""
    own_text = args.corpus or args.corpus_glob or args.use_cached_data
    embedded = args.quick and not own_text and not (args.regime or "").endswith(".toml")
    return _EMBEDDED if embedded or args.regime is None else str(args.regime)


def scale_name(args: argparse.Namespace) -> str:
    return args.scale or ("pocket" if args.quick else "full")


def repeated(args: argparse.Namespace) -> list[str]:
    """The words that give another phase the same regime, scale, device and text."""
    words = [regime_word(args), "--scale", scale_name(args)]
    words += ["--device", args.device or ("cpu" if args.quick else "mps")]
    words += [] if args.devices is None else ["--devices", str(args.devices)]
    words += text_words(args)
    words += [] if args.cache_dir is None else ["--cache-dir", args.cache_dir]
    words += ["--use-cached-data"] if args.use_cached_data else []
    words += ["--storage", args.storage] if Path(args.storage) != DEFAULT_STORAGE else []
    return words


def text_words(args: argparse.Namespace) -> list[str]:
    """The words that name the same files."""
    given = [(option, getattr(args, option)) for option in ("corpus", "corpus_glob", "column")]
    return [word for option, value in given if value for word in (f"--{option.replace('_', '-')}", value)]


def from_folder(args: argparse.Namespace, folder: Path) -> argparse.Namespace:
    """Options given in a folder as they are given anywhere else: their paths absolute, those of the defaults too."""
    args = argparse.Namespace(**vars(args))
    if regime_word(args) not in REGIMES:
        args.regime = str(folder / args.regime)
    regime = choose_regime(args)
    if args.corpus:
        args.corpus = pattern_below(folder, args.corpus)
    elif args.corpus_glob:
        args.corpus_glob = pattern_below(folder, args.corpus_glob)
    elif regime.name in REGIMES and regime.corpus.globs and not args.use_cached_data:
        (args.corpus_glob,) = (pattern_below(folder, pattern) for pattern in regime.corpus.globs)
    args.cache_dir = str(folder / (args.cache_dir or cache_folder(regime.name, scale_name(args))))
    args.storage = str(folder / args.storage)
    return args


def choose_plan(args: argparse.Namespace, regime: Regime, laws: Sequence[FrozenLaw] = ()) -> Plan:
    """The plan of a new run.

    Raises:
        UserError: an option's value is wrong; the option is named.
    """
    if args.quick and scale_name(args) != "pocket":
        raise UserError("--quick is the pocket scale: leave --scale out")
    scale = regime.scale(scale_name(args))
    device = args.device or ("cpu" if args.quick else "mps")
    n_devices, n_threads = devices_and_threads(device, args.devices)
    space = PHASES[args.phase].choose(args, scale, laws, n_devices)
    return Plan(
        regime=regime,
        phase=args.phase,
        scale_name=scale_name(args),
        scale=space.on_scale(scale),
        grids=(space,),
        device=device,
        n_devices=n_devices,
        n_threads=n_threads,
    )


def devices_and_threads(device: str, asked: int | None) -> tuple[int, int]:
    """Trials at a time and threads of each. On cpu a device is a core; one device takes all cores."""
    cores = device_count("cpu")
    if device == "cpu":
        n_devices = asked or cores
        if n_devices > cores:
            raise UserError(f"--devices {n_devices}: this machine has {cores} cores, and a cpu device is a core")
        return n_devices, cores if n_devices == 1 else 1
    if device == "mps":
        if asked and asked > 1:
            raise UserError(f"--devices {asked}: a Mac has one mps device")
        return 1, max(1, cores // 2)
    count = device_count("cuda")
    n_devices = asked or max(1, count)  # a dry run plans for a GPU that is not there
    if asked and asked > count:
        raise UserError(f"--devices {n_devices}: this machine has {count} cuda devices")
    return n_devices, max(1, cores // n_devices)
