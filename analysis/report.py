"""One call from runs to everything that is read: tables, coefficients, comparison, pictures, the page."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd
from threadpoolctl import threadpool_limits

from analysis.companions import outcomes, read_predictions, read_trace, transfers
from analysis.painters import Painters
from analysis.tables import Experiment, beside_saved, load_experiment
from analysis.terminal import print_tables
from tune_dd.artifacts import COEFFICIENTS, write_json, write_text_atomic
from tune_dd.errors import UserError
from tune_dd.laws import DEFAULT_LAW, get_law

if TYPE_CHECKING:
    from analysis.adaptive import Adaptive
    from analysis.coefficients import Coefficients
    from analysis.figures import Picture
    from analysis.optimum import CellFit
    from analysis.searched import Searched

__all__ = ["Analysis", "analyse", "compute", "print_tables", "write"]

REPORT, FIGURES, COMBINED = "report.html", "figures", "combined"
SUMMARY, SELECTION, COMPARISON = "summary", "model_selection", "comparison"
SEARCH = "search"
FALLBACK_LAW = "first_order"
CELL = ["regime", "phase", "model", "n_params", "unique_tokens", "sampled_tokens"]


@dataclass(frozen=True)
class Settings:
    """What was asked of an analysis, beyond its runs: the options that change a number or where it is written.

    Attributes:
        law: name of the law asked for, or None for the default and its fallback.
        margin: plateau margin in nats per token, or None for one pooled paired standard error.
        bootstrap, seed: draws of every bootstrap, and what seeds them.
        out: folder asked for, or None for the default one.
    """

    law: str | None = None
    margin: float | None = None
    bootstrap: int = 2000
    seed: int = 0
    out: Path | None = None

    def arguments(self) -> list[str]:
        """The command-line options that give these settings; none that are the default."""
        given = [(field.name, getattr(self, field.name)) for field in fields(self)]
        default = Settings()
        return [text for name, value in given if value != getattr(default, name) for text in (f"--{name}", str(value))]


@dataclass(frozen=True)
class Analysis:
    """Everything that an analysis found.

    Attributes:
        experiment: the tidy table and where it came from.
        summary, selection: the tables of summary.csv and model_selection.csv; ``selection`` is empty where
            there is no calibration cell.
        fits: the statistics behind each row of ``selection``.
        coefficients: the fitted law, or None; ``law_note`` then says why.
        held_out: regret of every law on what was held out (``analysis.holdout.rivals``), or None.
        comparison: the table of comparison.csv, or None where there is no stream.
        search: what a search for a schedule found, or None where there is none.
        adaptive: where the cells of each adaptive calibration stand.
        predictions: what was predicted beside what came out, empty where nothing was.
        trace: training loss by step, or None.
        notes: sentences that the reader must be told.
        settings: what was asked.
        folder: where the files are.
        files: what was written, the report last.
    """

    experiment: Experiment
    summary: pd.DataFrame
    selection: pd.DataFrame
    fits: tuple[CellFit, ...]
    coefficients: Coefficients | None
    law_note: str
    held_out: pd.DataFrame | None
    comparison: pd.DataFrame | None
    search: Searched | None
    adaptive: tuple[Adaptive, ...]
    predictions: pd.DataFrame
    trace: pd.DataFrame | None
    notes: tuple[str, ...]
    settings: Settings
    folder: Path
    files: tuple[Path, ...] = ()

    @property
    def report(self) -> Path:
        return self.folder / REPORT

    @property
    def why_no_law(self) -> str:
        """``law_note`` as it is shown: of a run under way no remedy is told, since its grid is not trained yet."""
        under_way = self.experiment.so_far and len(self.selection)
        return f"No law is fitted yet: {self.experiment.so_far}." if under_way else self.law_note


def analyse(
    paths: Sequence[Path | str],
    *,
    out: Path | str | None = None,
    law: str | None = None,
    margin: float | None = None,
    n_bootstrap: int = 2000,
    seed: int = 0,
    report: bool = True,
    export: bool = True,
    optuna: bool = False,
    tensorboard: bool = False,
) -> Analysis:
    """Analyse one run, or several together, and write what is found.

    Args:
        paths: as ``load_experiment`` takes them.
        out: folder for the files; by default the run's own, and for several runs ``combined`` beside the first.
        law: name of the law to fit. Asked for by name, a design that cannot give it is an error; by default
            the default law is tried, then the first-order one, and the result says which and why.
        margin: plateau margin in nats per token; by default one pooled paired standard error.
        n_bootstrap, seed: draws of every bootstrap (optima, coefficients, comparison), and what seeds them.
        report: write report.html and figures/.
        export: write table.csv and table.parquet.
        optuna, tensorboard: write those exports too.

    Raises:
        UserError: as ``load_experiment``; a table without an analysable row; ``law`` cannot be fitted; the
            folder cannot be written. Nothing is written before everything is computed.
    """
    if law is not None:
        get_law(law)
    if n_bootstrap < 1:
        raise UserError(f"--bootstrap {n_bootstrap} must be at least 1, better 2000")
    experiment = load_experiment(paths)
    folder = output_folder(experiment, paths, out)
    settings = Settings(law, margin, n_bootstrap, seed, Path(out) if out is not None else None)
    analysis = compute(experiment, folder, settings)
    return write(analysis, report=report, export=export, optuna=optuna, tensorboard=tensorboard)


def output_folder(experiment: Experiment, paths: Sequence[Path | str], out: Path | str | None) -> Path:
    if out is not None:
        folder = Path(out)
    elif len(experiment.folders) > 1:
        folder = beside_saved(experiment.folders[0].parent / COMBINED)
    else:
        folder = beside_saved(experiment.folders[0] if experiment.folders else Path(paths[0]).resolve().parent)
    nearest = next(place for place in (folder, *folder.resolve().parents) if place.exists())
    if not nearest.is_dir() or not os.access(nearest, os.W_OK):
        raise UserError(f"cannot write to {folder}: give another folder with --out")
    return folder


def compute(
    experiment: Experiment, folder: Path, settings: Settings = Settings(), painters: Painters | None = None
) -> Analysis:
    """Every statistic of an experiment; nothing is written.

    ``painters`` begin to draw what is known before the law is fitted.
    """
    # The matrices are small: BLAS's threads cost more than they bring, and move last digits with the number of cores.
    with threadpool_limits(limits=1, user_api="blas"):
        return _compute(experiment, folder, settings, painters)


def _compute(experiment: Experiment, folder: Path, settings: Settings, painters: Painters | None) -> Analysis:
    from analysis.optimum import cell_fits, selection_table, summarise

    table, notes = experiment.table, [*experiment.notes, *transfers(experiment.configs)]
    summary = summarise(table)
    try:
        static, told = calibration_rows(table)
    except UserError as error:
        if not experiment.so_far:
            raise
        raise UserError(f"{experiment.so_far}: {str(error).split(':')[0]}: let the run go on, or --resume it") from None
    notes += told
    n_bootstrap, seed = settings.bootstrap, settings.seed
    fits = cell_fits(static, margin=settings.margin, n_bootstrap=n_bootstrap, seed=seed) if len(static) else []
    trace, untraced = read_trace(experiment.folders)
    if painters is not None:
        painters.begin([picture for _, picture in early_pictures(fits, table, trace)])
    if rough := sum(each.rough for each in fits):
        notes.append(
            f"In {rough} of {len(fits)} cells the losses lie about the fitted curve by more than their noise: what is "
            "read off it is rough, and model_selection.csv says which dropouts to add."
        )
    selection = selection_table(fits)
    coefficients, held_out, law_note = fit(selection, static, settings)
    comparison = compare_stream(table, notes, n_bootstrap, seed)
    search = search_result(experiment, notes)
    return Analysis(
        experiment=experiment,
        summary=summary,
        selection=selection,
        fits=tuple(fits),
        coefficients=coefficients,
        law_note=law_note,
        held_out=held_out,
        comparison=comparison,
        search=search,
        adaptive=adaptive_result(experiment, notes),
        predictions=outcomes(read_predictions(experiment.folders), selection, comparison),
        trace=trace,
        notes=(*notes, *untraced),
        settings=settings,
        folder=folder,
    )


def calibration_rows(table: pd.DataFrame) -> tuple[pd.DataFrame, list[str]]:
    """The rows that make cells. Cells with one dropout so far (a run under way) are left out, and told.

    Raises:
        UserError: no cell has more than one dropout.
    """
    from analysis.cells import cell_rows

    rows = cell_rows(table)
    if rows.empty:
        return rows, []
    tried = rows.groupby(CELL)["dropout"].transform("nunique")
    if (tried < 2).all():
        raise UserError(
            f"every cell has one dropout only ({rows['dropout'].iloc[0]:g} for {rows['trial_name'].iloc[0]}): "
            "an optimum needs at least two, better seven; run more with --dropouts"
        )
    left_out = rows[tried < 2].drop_duplicates(CELL)
    notes = [
        f"{row['model']} U={row['unique_tokens']} C={row['sampled_tokens']} has one dropout only so far: left out."
        for row in left_out.to_dict("records")
    ]
    return rows[tried >= 2], notes


def fit(
    selection: pd.DataFrame, table: pd.DataFrame, settings: Settings
) -> tuple[Coefficients | None, pd.DataFrame | None, str]:
    """The law's coefficients and every law on every hold-out that the table allows, or twice None and the reason.

    A law asked for by name must be possible.
    """
    from analysis.coefficients import fit_law
    from analysis.holdout import rivals
    from analysis.targets import make_targets

    law, draws, seed = settings.law, settings.bootstrap, settings.seed
    if selection.empty:
        if law is not None:
            raise UserError(f"--law {law} needs calibration cells: analyse a calibrate run, or leave --law out")
        return None, None, "There are no calibration cells to fit a law to."
    try:
        targets = make_targets(selection, table, seed=seed)
        form, fallback = (DEFAULT_LAW, FALLBACK_LAW) if law is None else (law, None)
        fitted = fit_law(selection, table, law=form, fallback=fallback, n_bootstrap=draws, seed=seed, targets=targets)
    except UserError as error:
        if law is not None:
            raise
        return None, None, f"No law is fitted: {error}."
    held_out = rivals(selection, table, seed=seed, targets=targets)
    records = tuple({str(key): value for key, value in row.items()} for row in held_out.to_dict("records"))
    return replace(fitted, held_out=records), held_out, ""


def compare_stream(table: pd.DataFrame, notes: list[str], n_bootstrap: int, seed: int) -> pd.DataFrame | None:
    """The comparison of stream conditions; None, with a note why, where the stream does not allow one yet."""
    if not (table["phase"] == "stream").any():
        return None
    from analysis.comparison import compare

    try:
        return compare(table, n_bootstrap=n_bootstrap, seed=seed)
    except UserError as error:
        notes.append(f"The stream's conditions are not compared: {error}.")
        return None


def search_result(experiment: Experiment, notes: list[str]) -> Searched | None:
    """What a search for a schedule found; None, with a note why, where its points cannot be told apart yet."""
    from analysis.searched import searched

    try:
        return searched(experiment.table, experiment.folders)
    except UserError as error:
        notes.append(f"The search's points are not shown: {error}.")
        return None


def adaptive_result(experiment: Experiment, notes: list[str]) -> tuple[Adaptive, ...]:
    """Where the cells of adaptive calibrations stand; none, with a note why, where a record cannot be read."""
    from analysis.adaptive import read_adaptive

    try:
        return tuple(read_adaptive(experiment.folders))
    except UserError as error:
        notes.append(f"What is decided is not shown: {error}.")
        return ()


def pictures(analysis: Analysis) -> list[tuple[str, Picture]]:
    """Every picture of the report with the section that it belongs to."""
    from analysis import figures

    found: list[tuple[str, Picture]] = []
    if analysis.comparison is not None:
        found += [("stream", picture) for picture in figures.comparison_pictures(analysis.comparison)]
    found += early_pictures(analysis.fits, analysis.experiment.table, analysis.trace)
    if len(analysis.selection):
        shown = figures.optimum_pictures(analysis.selection, analysis.coefficients)
        found += [("optimum", picture) for picture in shown]
    if analysis.coefficients is not None:
        found += [("law", picture) for picture in figures.law_pictures(analysis.coefficients, analysis.held_out)]
    if analysis.search is not None:
        from analysis.search_figures import search_pictures

        found += [("search", picture) for picture in search_pictures(analysis.search)]
    return found


def early_pictures(
    fits: Sequence[CellFit], table: pd.DataFrame, trace: pd.DataFrame | None
) -> list[tuple[str, Picture]]:
    """Those that need no law and no comparison, which take longest to compute."""
    from analysis import figures

    found = [("cells", picture) for picture in figures.cell_pictures(fits)]
    found += [("stream", picture) for picture in figures.stream_pictures(table)]
    found += [("curves", picture) for picture in figures.curve_pictures(table)]
    return found + [("trace", picture) for picture in figures.trace_pictures(table, trace)]


def write(
    analysis: Analysis,
    *,
    report: bool = True,
    export: bool = True,
    optuna: bool = False,
    tensorboard: bool = False,
    painters: Painters | None = None,
) -> Analysis:
    """Write the files of an analysis; returns it with ``files`` filled in. ``painters``: who helps to draw."""
    from analysis import exports

    folder = analysis.folder
    found = pictures(analysis) if report else []
    drawn = (painters or Painters()).draw([picture for _, picture in found]) if found else []
    shown = [(section, picture, *images) for (section, picture), images in zip(found, drawn, strict=True)]
    exports.make_folder(folder / FIGURES if report else folder)
    files = [*exports.write_pair(folder, SUMMARY, analysis.summary, per_seed(analysis))]
    if len(analysis.selection):
        files += exports.write_pair(folder, SELECTION, analysis.selection)
    if analysis.comparison is not None:
        files += exports.write_pair(folder, COMPARISON, analysis.comparison)
    if analysis.search is not None:
        files += exports.write_pair(folder, SEARCH, analysis.search.history, analysis.search.to_dict())
    if analysis.coefficients is not None:
        write_json(folder / COEFFICIENTS, analysis.coefficients.to_dict())
        files.append(folder / COEFFICIENTS)
    else:
        (folder / COEFFICIENTS).unlink(missing_ok=True)  # a former law: `advise` would give it for these rows
    if export:
        files += exports.write_table(analysis.experiment.table, folder)
    if optuna:
        files.append(exports.write_optuna(analysis.experiment.table, folder))
    if tensorboard:
        files.append(exports.write_tensorboard(analysis.experiment.table, folder, analysis.trace))
    if report:
        from analysis.page import render_page

        drawings = [(exports.safe_name(picture.name), svg, png, picture.data) for _, picture, svg, png in shown]
        exports.write_drawings(folder / FIGURES, drawings)
        write_text_atomic(folder / REPORT, render_page(analysis, [(s, p, svg) for s, p, svg, _ in shown]))
        files += [folder / FIGURES, folder / REPORT]
    return replace(analysis, files=tuple(files))


def per_seed(analysis: Analysis) -> list[dict[str, Any]]:
    """The rows of summary.csv with every seed's values beside the mean, so that anyone can recompute it."""
    from analysis.exports import plain_records
    from analysis.optimum import SUMMARY_KEYS, SUMMARY_VALUES

    table, columns = analysis.experiment.table, ["seed", *SUMMARY_VALUES]
    place = table.groupby(SUMMARY_KEYS, sort=True).ngroup()  # of a row's group among those of the summary
    seeds: list[list[dict[str, Any]]] = [[] for _ in range(len(analysis.summary))]
    for group, *values in zip(place.tolist(), *(table[name].tolist() for name in columns), strict=True):
        seeds[group].append(dict(zip(columns, values, strict=True)))
    return [{**row, "seeds": own} for row, own in zip(plain_records(analysis.summary), seeds, strict=True)]
