"""What is saved, as studies: a chain with the runs of its phases, or a run that belongs to none."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from pathlib import Path
from typing import Any

from analysis.report import Analysis, Settings, compute
from analysis.saved import CHAIN
from analysis.tables import SAVED, load_experiment
from tune_dd.artifacts import CONFIG, METRICS, read_json
from tune_dd.errors import UserError

CLASSES = ("evidence", "run", "rehearsal")
# The screen chooses the model and is no part of the law; alone, it is shown.
PHASES = ("confirm", "calibrate", "stream", "search")


@dataclass(frozen=True)
class Study:
    """One chain or one run, analysed.

    Attributes:
        name: of its folder below the results folder: ``tinystories-all-pocket/20260101-000000``.
        label: its corpus for people; with the folder's name where there are several of a corpus and class.
        runs: phase -> name of the run, as ``name``.
        configs: the config.json of each of those.
        chain: chain.json, None of a run alone.
        analysis: what ``python -m analysis`` finds in the runs together.
    """

    name: str
    label: str
    runs: dict[str, str]
    configs: dict[str, dict[str, Any]]
    chain: dict[str, Any] | None
    analysis: Analysis

    @property
    def regime(self) -> str:
        return self.analysis.experiment.regime

    @property
    def evidence(self) -> str:
        return self.analysis.experiment.evidence

    @property
    def title(self) -> str:
        """The corpus alone."""
        return self.label.split(" (")[0]

    @property
    def held_out(self) -> bool:
        """A calibration that laws were frozen for beforehand."""
        frozen = any(config.get("coefficients") for config in self.configs.values())
        return self.chain is None and frozen and next(iter(self.runs)) in ("confirm", "calibrate")

    def source(self, phase: str) -> str:
        """The run of a phase."""
        return self.runs.get(phase, self.name)


def find_studies(results: Path) -> list[Study]:
    """Every finished chain and every other run below a folder, ordered by class, corpus and name.

    Raises:
        UserError: there is none, or one is damaged (file and line named).
    """
    found: list[tuple[Path, dict[str, Path], dict[str, Any] | None]] = []
    taken: set[Path] = set()
    for file in below(results, CHAIN):
        record = read_json(file)
        if not isinstance(record, dict) or not isinstance(record.get("runs"), dict):
            raise UserError(f"{file} is damaged: save its chain again")
        runs = {phase: (file.parent / run).resolve() for phase, run in record["runs"].items()}
        absent = [run for run in runs.values() if not (run / METRICS).is_file()]
        if absent:
            raise UserError(
                f"{file} names the run {absent[0].parent.name}/{absent[0].name}, which is not there: save it too"
            )
        if record.get("finished"):
            taken |= set(runs.values())
            found.append((file.parent, runs, record))
    for file in below(results, METRICS):
        if file.parent.resolve() not in taken:
            found.append((file.parent, {}, None))
    if not found:
        raise UserError(f"no saved run below {results}: keep one with `python -m analysis save RUN_OR_CHAIN`")
    studies = sorted((make_study(results, *place) for place in found), key=order)
    return list(distinct(studies))


def below(results: Path, name: str) -> Iterator[Path]:
    """Files of a name, sorted; of a folder that holds raw runs and saved ones, the raw ones."""
    for path in sorted(results.glob(f"**/{name}")):
        parts = path.relative_to(results).parts
        if SAVED not in parts[:-1] and not any(part.startswith(".") for part in parts):
            yield path


def order(study: Study) -> tuple[int, str, str]:
    known = study.evidence in CLASSES
    return CLASSES.index(study.evidence) if known else len(CLASSES), study.label, study.name


def distinct(studies: Sequence[Study]) -> Iterator[Study]:
    """The same, with labels that tell studies of one corpus and class apart: by what they are, else by their name."""
    for _, group in groupby(studies, key=lambda study: (study.evidence, study.label)):
        same = list(group)
        marks = [[kind(study), f"{kind(study)}, {largest(study)}", study.name] for study in same]
        for number, study in enumerate(same):
            mark = next(own for own, *others in zip(marks[number], *marks, strict=True) if others.count(own) == 1)
            yield study if len(same) == 1 else replace(study, label=f"{study.label} ({mark})")


def kind(study: Study) -> str:
    """What a study is, in a word: a calibration for which a law was frozen is a hold-out."""
    if study.chain is not None:
        return "chain"
    return "hold-out" if study.held_out else next(iter(study.runs))


def largest(study: Study) -> str:
    table = study.analysis.experiment.table
    return str(table.sort_values("n_params")["model"].iloc[-1])


def make_study(results: Path, folder: Path, runs: dict[str, Path], chain: dict[str, Any] | None) -> Study:
    chosen = {phase: runs[phase] for phase in PHASES if phase in runs} or runs or {"": folder}
    analysis = compute(load_experiment(list(chosen.values())), folder, Settings())
    if not runs:
        runs = {str(analysis.experiment.table["phase"].iloc[0]): folder}
    configs = {phase: read_json(run / CONFIG) for phase, run in runs.items() if (run / CONFIG).is_file()}
    regimes = [config["regime"] for config in configs.values() if isinstance(config.get("regime"), dict)]
    return Study(
        name=name_of(folder, results),
        label=str(regimes[0].get("title") or analysis.experiment.regime) if regimes else analysis.experiment.regime,
        runs={phase: name_of(run, results) for phase, run in runs.items()},
        configs=configs,
        chain=chain,
        analysis=analysis,
    )


def name_of(folder: Path, results: Path) -> str:
    return folder.resolve().relative_to(results.resolve()).as_posix()


def by_class(studies: Sequence[Study]) -> Iterator[tuple[str, list[Study]]]:
    """Evidence classes, which no table mixes, each with its studies."""
    for evidence, group in groupby(studies, key=lambda study: study.evidence):
        yield evidence, list(group)


def class_words(studies: Sequence[Study]) -> str:
    """For a caption: the class of these studies, with its scale and device."""
    tables = [study.analysis.experiment.table for study in studies]
    scales = sorted({str(scale) for table in tables for scale in table["scale"].unique()})
    devices = sorted({str(device) for table in tables for device in table["device"].unique()})
    return f"Evidence class: {studies[0].evidence} ({', '.join(scales)} scale, {', '.join(devices)})."
