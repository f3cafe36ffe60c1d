"""What is saved, as studies: a chain with the runs of its phases, or a run that belongs to none."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from pathlib import Path
from typing import Any

from analysis.figures import count_text
from analysis.paper.blocks import listed
from analysis.report import Analysis, Settings, compute
from analysis.saved import CHAIN
from analysis.tables import SAVED, load_experiment
from tune_dd.artifacts import CONFIG, METRICS, read_json
from tune_dd.errors import UserError

CLASSES = ("evidence", "run", "rehearsal")
# The screen chooses the model and is no part of the law; alone, it is shown.
PHASES = ("confirm", "calibrate", "stream", "search")
KINDS = {"confirm": "confirmation", "calibrate": "calibration"}  # of a run alone; others are called by their phase


@dataclass(frozen=True)
class Study:
    """One chain or one run, analysed.

    Attributes:
        name: of its folder below the results folder: ``tinystories-all-pocket/20260101-000000``.
        title: its corpus for people.
        mark: what tells it apart where there are several of a corpus and class.
        runs: phase -> name of the run, as ``name``.
        configs: the config.json of each of those.
        chain: chain.json, None of a run alone.
        analysis: what ``python -m analysis`` finds in the runs together.
    """

    name: str
    title: str
    runs: dict[str, str]
    configs: dict[str, dict[str, Any]]
    chain: dict[str, Any] | None
    analysis: Analysis
    mark: str = ""

    @property
    def label(self) -> str:
        return f"{self.title} ({self.mark})" if self.mark else self.title

    @property
    def lines(self) -> str:
        """The label in two lines, for a figure."""
        return f"{self.title}\n{self.mark}".strip()

    @property
    def regime(self) -> str:
        return self.analysis.experiment.regime

    @property
    def evidence(self) -> str:
        return self.analysis.experiment.evidence

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
    return CLASSES.index(study.evidence) if known else len(CLASSES), study.title, study.name


def distinct(studies: Sequence[Study]) -> Iterator[Study]:
    """The same, with marks that tell studies of one corpus and class apart.

    Of a run alone its kind and largest model, and of ``FACTS`` no more than it takes; those that no fact tells apart
    are numbered in the order of their names.
    """
    for _, group in groupby(studies, key=lambda study: (study.evidence, study.title)):
        same = list(group)
        marks: list[tuple[str, ...]] = [
            (kind(study),) if study.chain is not None else (kind(study), largest(study)) for study in same
        ]
        for fact in FACTS:
            facts = [fact(study) for study in same]
            told: dict[tuple[str, ...], set[str]] = {}
            for mark, own in zip(marks, facts, strict=True):
                told.setdefault(mark, set()).add(own)
            marks = [(*mark, own) if len(told[mark]) > 1 else mark for mark, own in zip(marks, facts, strict=True)]
        for number, (study, mark) in enumerate(zip(same, marks, strict=True)):
            words = (*mark, f"run {marks[: number + 1].count(mark)}") if marks.count(mark) > 1 else mark
            yield study if len(same) == 1 else replace(study, mark=", ".join(words))


def kind(study: Study) -> str:
    """What a study is, in a word: a calibration for which a law was frozen is a hold-out."""
    if study.chain is not None:
        return "chain"
    phase = next(iter(study.runs))
    return "hold-out" if study.held_out else KINDS.get(phase, phase)


def largest(study: Study) -> str:
    table = study.analysis.experiment.table
    return str(table.sort_values("n_params")["model"].iloc[-1])


def reach(study: Study, letter: str, column: str) -> str:
    return f"{letter} = {count_text(study.analysis.experiment.table[column].max())}"


def seeds(study: Study) -> str:
    """``seed 3``, ``seeds 30 to 34``, ``seeds 1, 2 and 5``."""
    found = sorted(map(int, study.analysis.experiment.table["seed"].unique()))
    if len(found) == 1:
        return f"seed {found[0]}"
    row = found[-1] - found[0] == len(found) - 1 > 1
    return f"seeds {found[0]} to {found[-1]}" if row else f"seeds {listed(list(map(str, found)))}"


# What tells studies of one kind and model apart, the plainest first; chains differ by their models too.
FACTS: tuple[Callable[[Study], str], ...] = (
    largest,
    lambda study: reach(study, "C", "sampled_tokens"),
    lambda study: reach(study, "U", "unique_tokens"),
    seeds,
)


def make_study(results: Path, folder: Path, runs: dict[str, Path], chain: dict[str, Any] | None) -> Study:
    chosen = {phase: runs[phase] for phase in PHASES if phase in runs} or runs or {"": folder}
    analysis = compute(load_experiment(list(chosen.values())), folder, Settings())
    if not runs:
        runs = {str(analysis.experiment.table["phase"].iloc[0]): folder}
    configs = {phase: read_json(run / CONFIG) for phase, run in runs.items() if (run / CONFIG).is_file()}
    regimes = [config["regime"] for config in configs.values() if isinstance(config.get("regime"), dict)]
    return Study(
        name=name_of(folder, results),
        title=str(regimes[0].get("title") or analysis.experiment.regime) if regimes else analysis.experiment.regime,
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
