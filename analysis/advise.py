"""The law's dropout for a size and a stream not yet tried: ``python -m analysis advise``."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from statistics import NormalDist
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

from analysis.figures import count_text
from tune_dd.arguments import OneLineParser
from tune_dd.artifacts import coefficients_file, read_json
from tune_dd.errors import UserError
from tune_dd.law import Array
from tune_dd.laws import DEFAULT_LAW, LAWS, get_law

if TYPE_CHECKING:
    from rich.table import Table

    from analysis.coefficients import Coefficients
    from tune_dd.console import Console

_TWO_SIDED = NormalDist().inv_cdf(0.975)  # standard deviations to either end of a 95 % interval
# The law that is asked where none is named (``analysis.typical``, which imports more than a quick answer needs).
TYPICAL_FILE = Path(__file__).parent / "typical_law.json"
UNITS = {"k": 1e3, "K": 1e3, "m": 1e6, "M": 1e6, "g": 1e9, "G": 1e9, "B": 1e9}


def parse_count(text: str) -> float:
    """A count as people write it: 31e6, 4k, 2.5M.

    Raises:
        UserError: it is not a positive finite number.
    """
    stripped = text.strip()
    scale = UNITS.get(stripped[-1:], 1.0)
    try:
        value = float(stripped[:-1] if scale != 1.0 else stripped) * scale
    except ValueError:
        value = math.nan
    if not (math.isfinite(value) and value > 0):
        raise UserError(f"{text!r} is not a positive count: write 31e6, 4k or 2.5M")
    return value


def parse_stages(text: str) -> list[tuple[float, float]]:
    """``4k:65k,8k:131k`` -> pairs (U, C), C cumulative.

    Raises:
        UserError: a pair is malformed, or U or C does not grow.
    """
    pairs = []
    for part in text.split(","):
        unique, separator, sampled = part.partition(":")
        if not separator:
            raise UserError(f"stage {part!r} is not of the form U:C: write --stages 4k:65k,8k:131k")
        pairs.append((parse_count(unique), parse_count(sampled)))
    for (u, c), (later_u, later_c) in pairwise(pairs):
        if later_u <= u or later_c <= c:
            raise UserError(f"stages {text!r}: U and C (cumulative) must grow from stage to stage")
    return pairs


def read_coefficients(path: Path) -> Coefficients:
    """Read a coefficients.json.

    Raises:
        UserError: it is missing, damaged or of another schema.
    """
    from analysis.coefficients import Coefficients

    file = coefficients_file(path)
    if path.is_dir() and not file.exists():
        raise UserError(
            f"{path} has no {file.name}: name a calibrate run, or a folder that `python -m analysis carry` wrote "
            f"(`python -m analysis {path}` says why a run has none)"
        )
    data = read_json(file)
    if not isinstance(data, dict):
        raise UserError(f"{file} is not a coefficients.json: name the one that `python -m analysis` wrote")
    try:
        return Coefficients.from_dict(data)
    except UserError as error:
        raise UserError(f"{file}: {error}") from None


def advise(coefficients: Coefficients, n_params: float, stages: Sequence[tuple[float, float]]) -> pd.DataFrame:
    """The law's dropout at each (U, C).

    Returns:
        One row per stage: unique_tokens, sampled_tokens, dropout, low, high (95 % interval of the law's
        value), optimum_low, optimum_high (that of a cell's optimum: the cells' scatter about the law added, NaN where
        there is no interval), inside (``inside_calibration``).
    """
    unique, drawn = [u for u, _ in stages], [c for _, c in stages]
    dropout, low, high = coefficients.along(n_params, unique, drawn)
    sampled = coefficients.form.along(unique, drawn)  # what the calibration is held against
    scatter = _TWO_SIDED * coefficients.discrepancy
    least, most = coefficients.p_min, coefficients.form.at_most(len(stages), coefficients.p_max)
    return pd.DataFrame(
        {
            "unique_tokens": unique,
            "sampled_tokens": drawn,
            "dropout": dropout,
            "low": low,
            "high": high,
            "optimum_low": np.clip(dropout - np.hypot(dropout - low, scatter), least, most),
            "optimum_high": np.clip(dropout + np.hypot(high - dropout, scatter), least, most),
            "inside": inside_calibration(coefficients, n_params, unique, sampled),
        }
    )


def inside_calibration(
    coefficients: Coefficients, n_params: ArrayLike, unique_tokens: ArrayLike, sampled_tokens: ArrayLike
) -> NDArray[np.bool_]:
    """Whether points lie in the convex hull of the cells in (log10 P, log10 U, log10 C), and among the sizes fitted to.

    A size beyond those of the cells that the law is fitted to is not inside, whatever was trained there.

    By linear programming (is the point a weighted mean of cells?), which also holds where all cells have
    one model size and the hull is flat. Points within 1 % of it in P, U and C count as inside.
    """
    from scipy.optimize import linprog  # few analyses need it, and it takes long to import

    corners = _log_points([[c["n_params"], c["unique_tokens"], c["sampled_tokens"]] for c in coefficients.cells])
    arrays = np.broadcast_arrays(*(np.asarray(a, dtype=np.float64) for a in (n_params, unique_tokens, sampled_tokens)))
    points = _log_points(np.stack([a.ravel() for a in arrays], axis=-1))
    tolerance = np.log10(1.01)
    upper = np.concatenate([corners.T, -corners.T])
    inside = [
        linprog(
            np.zeros(len(corners)),
            A_ub=upper,
            b_ub=np.concatenate([point + tolerance, tolerance - point]),
            A_eq=np.ones((1, len(corners))),
            b_eq=[1.0],
        ).status
        == 0
        for point in points
    ]
    sizes = np.log10(sorted(coefficients.sizes))
    fitted = (points[:, 0] >= sizes[0] - tolerance) & (points[:, 0] <= sizes[-1] + tolerance)
    return np.asarray(np.array(inside, dtype=np.bool_) & fitted).reshape(arrays[0].shape)


def _log_points(values: Sequence[Sequence[float]] | Array) -> Array:
    array = np.asarray(values, dtype=np.float64)
    if not np.all(np.isfinite(array) & (array > 0)):
        raise UserError("parameters, unique and sampled tokens must be positive and finite")
    return np.asarray(np.log10(array))


def advise_command(arguments: Sequence[str]) -> int:
    from rich.text import Text

    from analysis.terminal import interval_text, make_console, new_table

    options = parser().parse_args(arguments)
    stages = requested(options.stages, options.unique_tokens, options.sampled_tokens)
    n_params = parse_count(options.params)
    coefficients = in_form(read_coefficients(options.coefficients or TYPICAL_FILE), options.law)
    advice = advise(coefficients, n_params, stages)
    console = make_console()
    console.print(
        Text(f"{coefficients.regime}, P = {count_text(n_params)}: p = {coefficients.form.formula}"),
    )
    table = new_table(f"Dropout by the {coefficients.law} law", console)
    for name in ("stage", "U", "C", "dropout", "95 % interval", "optimum in", "calibrated"):
        table.add_column(name, justify="right", no_wrap=True)
    for number, row in enumerate(advice.to_dict("records")):
        table.add_row(
            str(number),
            count_text(row["unique_tokens"]),
            count_text(row["sampled_tokens"]),
            f"{row['dropout']:.3f}",
            interval_text(row["low"], row["high"], 3),
            interval_text(row["optimum_low"], row["optimum_high"], 2),
            "inside" if row["inside"] else "OUTSIDE",
        )
    console.print_table(table)
    if not advice["inside"].all():
        outside = int((~advice["inside"]).sum())
        console.print(
            Text(f"Warning: {outside} of {len(advice)} points lie outside the calibrated cells ({hull(coefficients)}).")
        )
        console.print(Text("There the law extrapolates, and its interval does not tell how far it may be off."))
    console.print(Text(scatter_text(coefficients, known=bool(advice["low"].notna().all()))))
    for note in [*coefficients.notes, *(superseded(coefficients) if options.law is None else ())]:
        console.print(Text(f"Note: {note}."))
    if options.coefficients is None:
        told = "Note: nothing was trained on your text. A pilot of a few trials there tells what its tokens count as"
        console.print(Text(f"{told} (`python -m analysis carry PILOT --out FOLDER`), a calibration more."))
    if coefficients.held_out:
        console.print_table(held_out_table(coefficients, console))
    return 0


def in_form(coefficients: Coefficients, name: str | None) -> Coefficients:
    """The coefficients read as the form ``name``, which may differ from theirs on streams alone.

    Raises:
        UserError: it is fitted otherwise, so these are not its coefficients.
    """
    if name is None:
        return coefficients
    if get_law(name).cells != coefficients.form.cells:
        raise UserError(
            f"--law {name}: the coefficients are of the {coefficients.law} law: fit it with "
            f"`python -m analysis RUN --law {name}`"
        )
    return replace(coefficients, law=name)


def superseded(coefficients: Coefficients) -> list[str]:
    """What to do about coefficients of another form than the one that the hold-outs speak for, or of a former fit."""
    again = f"`python -m analysis RUN --law {DEFAULT_LAW} --out FOLDER` fits that to their runs"
    if coefficients.form.cells != LAWS[DEFAULT_LAW].cells:
        spoken_for = f"the hold-outs speak for {DEFAULT_LAW} (docs/laws.md)"
        return [f"these coefficients are of the {coefficients.law} law, and {spoken_for}: {again}"]
    if coefficients.expected != dict(coefficients.form.expected):
        return [
            f"these coefficients were fitted when other values were expected of the {coefficients.law} law: {again}"
        ]
    return []


def held_out_table(coefficients: Coefficients, console: Console) -> Table:
    """What speaks for the form: every law's regret on what its fit left out, the law's own marked."""
    from analysis.terminal import new_table

    rows = pd.DataFrame(coefficients.held_out)
    table = new_table("Regret of each law on cells left out, nats per token, mean (largest)", console)
    kinds = list(dict.fromkeys(rows["holdout"]))
    table.add_column("law")
    for kind in kinds:
        table.add_column(kind, justify="right")
    for name, own in rows.groupby("law", sort=False):
        by_kind = own.set_index("holdout")
        shown = [
            f"{by_kind.loc[kind, 'regret_mean']:.3f} ({by_kind.loc[kind, 'regret_max']:.3f})"
            if kind in by_kind.index and pd.notna(by_kind.loc[kind, "regret_mean"])
            else "-"
            for kind in kinds
        ]
        table.add_row(str(name) + (" *" if name == coefficients.form.cells else ""), *shown)
    return table


def scatter_text(coefficients: Coefficients, *, known: bool) -> str:
    """What the interval leaves out. ``known``: whether there is one; without, scatter of 0 says nothing."""
    discrepancy = coefficients.discrepancy
    if not known and discrepancy <= 0:
        return "No interval can be given for the law's own value."
    if discrepancy > 0:
        amount = f"{discrepancy:.3f} (standard deviation, in dropout)"
        scatter = f"'optimum in' adds the cells' scatter about it, {amount}" if known else f"cells scatter by {amount}"
    elif coefficients.scatter_told:
        scatter = "no scatter of the cells about it beyond noise was found"
    else:
        scatter = "how far cells scatter about it, so few of them cannot tell"
    return f"{'The interval is' if known else 'No interval can be given for'} the law's own value; {scatter}."


def hull(coefficients: Coefficients) -> str:
    """The ranges of the calibrated cells, for people; the hull itself is smaller."""
    cells = pd.DataFrame(coefficients.cells)
    ranges = []
    for letter, name in (("P", "n_params"), ("U", "unique_tokens"), ("C", "sampled_tokens")):
        values = sorted(coefficients.sizes) if name == "n_params" else sorted(cells[name])
        ends = dict.fromkeys((count_text(values[0]), count_text(values[-1])))
        ranges.append(f"{letter} {' to '.join(ends)}")
    return ", ".join(ranges)


def requested(stages: str | None, unique: str | None, sampled: str | None) -> list[tuple[float, float]]:
    if stages is not None:
        if unique is not None or sampled is not None:
            raise UserError("give either --stages or --unique-tokens with --sampled-tokens, not both")
        return parse_stages(stages)
    if unique is None or sampled is None:
        raise UserError("give --unique-tokens and --sampled-tokens, or --stages 4k:65k,8k:131k")
    return [(parse_count(unique), parse_count(sampled))]


def parser() -> OneLineParser:
    result = OneLineParser(prog="python -m analysis advise", description=__doc__)
    add = result.add_argument
    add(
        "--coefficients",
        type=Path,
        metavar="FILE",
        help="a coefficients.json, or the run that has it (default: what the texts that we calibrated have on average)",
    )
    add("--law", choices=sorted(LAWS), help="read the coefficients as this form, such as a diluted one for a stream")
    add("--params", required=True, metavar="P", help="parameters of the model, such as 31e6")
    add("--unique-tokens", metavar="U", help="unique tokens in the training prefix, such as 1e6")
    add("--sampled-tokens", metavar="C", help="tokens sampled in all by then, such as 8e6")
    add("--stages", metavar="U:C,...", help="a stream instead: U:C of each stage, C cumulative, such as 4k:65k,8k:131k")
    return result
