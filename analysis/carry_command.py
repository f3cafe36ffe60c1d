"""The law of one text for another: ``python -m analysis carry [RUN] TEXT``.

U of the other text counts for more or less than that of the calibrated one, by a scale. Where TEXT is a run on the
other text its trials tell the scale: a pilot of the largest calibrated model, three small prefixes, five dropouts and
one seed does. Where TEXT is a token cache, its counts foretell it. Without RUN what is carried is the mean law of the
texts that we calibrated, and TEXT is a pilot.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from analysis.advise import TYPICAL_FILE, read_coefficients
from analysis.carry import carry
from analysis.coefficients import Coefficients
from analysis.exports import make_folder
from analysis.foretell import Text, text_of
from analysis.saved import CHAIN
from analysis.typical import ANY
from tune_dd.arguments import OneLineParser
from tune_dd.artifacts import COEFFICIENTS, CONFIG, METRICS, coefficients_file, read_json, write_json
from tune_dd.console import Console
from tune_dd.errors import UserError

TRIALS, COUNTS = "trials", "counts"  # what may tell the scale


def carry_command(arguments: Sequence[str]) -> int:
    """Write coefficients.json for the other text, and say what the scale is."""
    options = parser().parse_intermixed_args(arguments)  # with RUN optional, others take TEXT after an option for none
    source = options.coefficients or TYPICAL_FILE
    fitted = read_coefficients(source)
    if (options.out / CONFIG).exists() or (options.out / CHAIN).exists():
        raise UserError(f"{options.out} is a run with coefficients of its own: give --out another folder")
    if (options.out / COEFFICIENTS).resolve() == coefficients_file(source).resolve():
        raise UserError(f"{options.out} holds the law that is to be carried: give --out another folder")
    run = _run_of(options.text)
    if not options.text.exists():
        raise UserError(f"{options.text} is not there: name a run on the other text, or its token cache")
    if (options.by or (COUNTS if run is None else TRIALS)) == COUNTS:
        carried = _by_counts(fitted, source, options)
    elif run is None:
        raise UserError(f"{options.text} is no run with read-outs: train a pilot on that text and name its run")
    else:
        carried = _by_trials(fitted, run)
    carried = replace(carried, regime=options.regime or carried.regime)
    make_folder(options.out)
    file = options.out / COEFFICIENTS
    write_json(file, carried.to_dict())
    console = Console()
    for note in carried.notes:
        console.print(f"{carried.regime}: {note}", soft_wrap=True)
    console.print(f"Coefficients: {file}", soft_wrap=True)
    return 0


def _by_trials(fitted: Coefficients, run: Path) -> Coefficients:
    """A law as one of the text of a run, by that run's trials.

    Raises:
        UserError: the run has no cell of two dropouts, or its trials do not tell the scale.
    """
    from analysis.pilot import carry_by_trials
    from analysis.report import calibration_rows
    from analysis.tables import load_experiment

    experiment = load_experiment([run])
    rows, _ = calibration_rows(experiment.table)
    if rows.empty:
        raise UserError(
            f"{run} has no cell of two fixed dropouts to tell a scale by: name a calibrate run on that text, or take "
            f"--by {COUNTS}"
        )
    carried = carry_by_trials(fitted, rows)
    if not experiment.so_far:
        return carried
    return replace(carried, notes=(*carried.notes, f"the pilot has {experiment.so_far}: --resume it, and carry again"))


def _by_counts(fitted: Coefficients, source: Path, options: argparse.Namespace) -> Coefficients:
    if fitted.regime == ANY:
        what, run = ("the mean law of texts", ", or RUN before it") if options.coefficients is None else (source, "")
        raise UserError(f"{what} is of no one text: it is carried by trials; name a pilot as TEXT{run}")
    home = options.calibrated_on or options.coefficients
    calibrated, other = read_text(home), read_text(options.text)
    if fitted.tokenizer_hash not in ("", calibrated.tokenizer_hash):
        raise UserError(
            f"{options.coefficients} was not fitted on the text of {home} as it is tokenized there: name a run on its "
            "own text with --calibrated-on"
        )
    return carry(fitted, calibrated, other)


def _run_of(place: Path) -> Path | None:
    """The run that a place is, or a chain's calibration, where it has read-outs."""
    try:
        if (place / CHAIN).is_file():
            place = place / read_json(place / CHAIN)["runs"]["calibrate"]
    except KeyError:
        raise UserError(f"{place} is a chain that has not come to its calibration: name a run") from None
    except TypeError as error:
        raise UserError(f"{place} is damaged ({error!r}): name another run") from None
    return place if (place / METRICS).is_file() else None


def read_text(place: Path) -> Text:
    """The text of a run, of a chain, or of a token cache: its folder, or its manifest where it has several.

    Raises:
        UserError: it is none of them, is damaged, or was made before its bigrams were counted.
    """
    try:
        text = text_of(_config(place))
    except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
        raise UserError(f"{place} is damaged ({error!r}): name another run, or build the cache anew") from None
    if text is None:
        raise UserError(
            f"{place} is from before its counts were taken: build its text with `python -m tune_dd.corpus build` and "
            "name that cache (for a RUN by --calibrated-on)"
        )
    return text


def _config(place: Path) -> Any:
    """What config.json says of a run, or would say of a cache."""
    if place.is_file():
        return _of_cache(place)
    if (place / CHAIN).is_file():
        return read_json(place / read_json(place / CHAIN)["runs"]["calibrate"] / CONFIG)
    if (place / CONFIG).is_file():
        return read_json(place / CONFIG)
    manifests = sorted(place.glob("manifest-v*.json"))
    if len(manifests) == 1:
        return _of_cache(manifests[0])
    if manifests:
        raise UserError(f"{place} is the cache of several vocabularies: name one, such as {manifests[0]}")
    raise UserError(f"{place} is neither a run nor a token cache: name one of them")


def _of_cache(file: Path) -> dict[str, Any]:
    """The folder of a cache is named by its regime; that of the extrapolation ends in another way."""
    manifest = read_json(file)
    hashes = {name.split("-")[0]: entry["sha256"][:16] for name, entry in manifest["files"].items()}
    data = {"manifest": manifest, "tokenizer_hash": hashes["tokenizer"], "corpus_hash": hashes["tokens"]}
    return {"regime": {"name": file.parent.name.removeprefix("dropout_decay_").removesuffix("_8m")}, "data": data}


def parser() -> OneLineParser:
    result = OneLineParser(prog="python -m analysis carry", description=__doc__)
    add = result.add_argument
    law = "a calibrate run or a chain: its law, and the text it is of (default: the mean law of our texts)"
    add("coefficients", nargs="?", type=Path, metavar="RUN", help=law)
    other = "the other text: a run on it or, after RUN, its cache .cache/dropout_decay_NAME"
    add("text", type=Path, metavar="TEXT", help=other)
    by = "what tells the scale (default: a run's trials, a cache's counts)"
    add("--by", choices=(TRIALS, COUNTS), help=by)
    where = "for the counts of coefficients that lie without their run: a run on the text they are of, or its cache"
    add("--calibrated-on", type=Path, metavar="TEXT", help=where)
    add("--regime", metavar="NAME", help="name of the other text's regime (default: its run's, or its cache folder's)")
    add("--out", type=Path, required=True, metavar="FOLDER", help="where the other text's coefficients.json goes")
    return result
