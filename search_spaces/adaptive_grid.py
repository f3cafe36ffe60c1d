"""The static-dropout grid, trained only where it decides (``--adaptive``).

The trials are those of the full grid, by the same names and ids, in *rounds*; a round is chosen from all that the
rounds before it came to. The first is a coarse set of dropouts on the first seed. The next ones complete, on that seed,
the neighbourhood of every cell's best dropout. Those after them give a further seed to the dropouts around the optimum
of every cell whose interval is wider than asked for. A trial is read out at several C and so tells of several cells:
within a round those come first that most cells want. It ends when no cell wants a trial, or the budget is spent.
docs/methodology.md defines it in full.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import math
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, NoReturn

from search_spaces.space import Following, Outcome, Setting
from search_spaces.static_dropout import StaticGrid, static_trial
from tune_dd.errors import UserError
from tune_dd.regimes import ModelSpec, Scale
from tune_dd.trial import TrialSpec, format_dropout

TARGET_WIDTH, BUDGET = 0.05, 0.4  # defaults: in dropout; share of the full grid's trials
COARSE = 5  # dropouts of the first round, both ends of the grid among them
MIN_SEEDS = 2  # one tells no noise; and an interval that is narrow after one is narrow by chance too often
NEIGHBOURHOOD = 2  # grid steps on either side of the best dropout: the five that its quadratic is fitted to

COARSE_ROUND, NEIGHBOURS, SEEDS = "coarse", "neighbours", "seeds"  # why a trial was chosen
NARROW, EDGE = "narrow", "edge"  # why a cell is decided
FLAT, OUT_OF_REACH, ALL_SEEDS, SPENT, OPEN = "flat", "out_of_reach", "all_seeds", "budget", "open"  # why not
DECIDED = (NARROW, EDGE)

Block = tuple[str, int]  # model and U: what the cells of one trial share


@dataclass(frozen=True)
class GridPoint:
    """One trial of the grid. ``stage``: why it was chosen (``coarse``, ``neighbours``, ``seeds``)."""

    index: int
    round: int
    stage: str
    model: str
    unique_tokens: int
    dropout: float
    seed: int

    @property
    def block(self) -> Block:
        return self.model, self.unique_tokens

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class CellEstimate:
    """What the trials so far say of one cell.

    Attributes:
        best: the dropout of the lowest level among those tried.
        low, high: 95 % interval of the optimum, in dropout; NaN where nothing tells the noise.
        status: as in model_selection.csv.
    """

    model: str
    unique_tokens: int
    sampled_tokens: int
    best: float
    low: float
    high: float
    status: str

    @property
    def block(self) -> Block:
        return self.model, self.unique_tokens

    @property
    def width(self) -> float:
        return self.high - self.low


@dataclass(frozen=True)
class Verdict:
    """Where a cell stands.

    Attributes:
        reason: ``narrow`` or ``edge``, which decide it; ``flat``, ``out_of_reach``, ``all_seeds``, ``budget``; or
            ``open``: it wants further trials.
        width: of the 95 % interval of its optimum, in dropout; None where there is none yet.
        n_trials, n_seeds: finished trials that it was read out of; seeds of its best dropout.
    """

    model: str
    unique_tokens: int
    sampled_tokens: int
    reason: str
    width: float | None
    n_trials: int
    n_seeds: int

    def to_dict(self) -> dict[str, Any]:
        return asdict(self) | {"decided": self.reason in DECIDED}


# Rows of finished trials, as in metrics.jsonl -> the cells that they tell of.
Estimate = Callable[[Sequence[Mapping[str, Any]]], Sequence[CellEstimate]]


def _no_estimate(rows: Sequence[Mapping[str, Any]]) -> NoReturn:
    raise NotImplementedError("an adaptive grid that is searched is given its estimate")


@dataclass(frozen=True)
class AdaptiveGrid:
    """A static grid and how much of it may be trained for what.

    Attributes:
        grid: the full one.
        target_width: a cell whose interval is no wider is decided; in dropout.
        budget: at most this share of the full grid's trials, which are all of one length.
        estimate: the statistics of the cells; no part of what is stored.
    """

    grid: StaticGrid
    target_width: float = TARGET_WIDTH
    budget: float = BUDGET
    estimate: Estimate = field(default=_no_estimate, compare=False, repr=False)

    def __post_init__(self) -> None:
        if not 0 < self.target_width < 1:
            raise UserError(f"--target-width {self.target_width:g}: give a width in dropout above 0, such as 0.05")
        if not 0 < self.budget <= 1:
            raise UserError(f"--budget {self.budget:g}: give a share of the full grid above 0 and at most 1")
        if len(self.grid.dropouts) <= COARSE or len(self.grid.seeds) < MIN_SEEDS:
            raise UserError(
                f"--adaptive chooses among {COARSE + 1} dropouts and {MIN_SEEDS} seeds or more, and the grid has "
                f"{len(self.grid.dropouts)} and {len(self.grid.seeds)}: give more, or leave --adaptive out"
            )
        if self.points < len(self.known):
            least = math.ceil(100 * len(self.known) / self.n_full) / 100
            raise UserError(
                f"--budget {self.budget:g} allows {self.points} of the full grid's {self.n_full} trials, and the "
                f"coarse ones alone are {len(self.known)}: give at least {least:g}"
            )

    @property
    def models(self) -> tuple[ModelSpec, ...]:
        return self.grid.models

    @property
    def prefixes(self) -> tuple[int, ...]:
        return self.grid.prefixes

    @property
    def seeds(self) -> tuple[int, ...]:
        return self.grid.seeds

    @property
    def n_full(self) -> int:
        """Trials of the full grid."""
        return len(self.models) * len(self.prefixes) * len(self.grid.dropouts) * len(self.seeds)

    @property
    def points(self) -> int:
        """Trials at most."""
        return math.floor(self.budget * self.n_full + 1e-9)

    @property
    def known(self) -> tuple[GridPoint, ...]:
        """The coarse round: dropouts spread evenly over the places of the grid, on the first seed."""
        last = len(self.grid.dropouts) - 1
        coarse = [self.grid.dropouts[(i * last + 2) // (COARSE - 1)] for i in range(COARSE)]
        chosen = itertools.product(self.models, self.prefixes, coarse)
        return tuple(
            GridPoint(index, 0, COARSE_ROUND, model.name, prefix, dropout, self.seeds[0])
            for index, (model, prefix, dropout) in enumerate(chosen)
        )

    @property
    def n_later(self) -> int:
        return self.points - len(self.known)

    def needed(self, n_points: int) -> int:
        """A round is chosen from all before it."""
        return n_points

    def following(self, n_points: int, earlier: Sequence[tuple[GridPoint, Outcome]]) -> Following:
        """The next round, empty at the end, and where every cell stands."""
        points = [point for point, _ in earlier]
        finished = [(point, rows) for point, rows in earlier if rows is not None]
        rows = [row for _, trials in finished for trial in trials for row in trial]
        estimates = self.estimate(rows) if rows else ()
        chosen, reasons = self.next_round(points, estimates)
        n_trials = Counter(point.block for point, _ in finished)
        cells = [
            Verdict(
                cell.model,
                cell.unique_tokens,
                cell.sampled_tokens,
                reason,
                None if math.isnan(cell.width) else cell.width,
                n_trials[cell.block],
                sum(point.block == cell.block and point.dropout == cell.best for point, _ in finished),
            )
            for cell, reason in zip(estimates, reasons, strict=True)
        ]
        return Following(chosen, {"cells": [cell.to_dict() for cell in cells]})

    def next_round(
        self, points: Sequence[GridPoint], estimates: Sequence[CellEstimate]
    ) -> tuple[list[GridPoint], list[str]]:
        """What follows from the trials so far: the next ones in order, and a reason for every cell (``Verdict``).

        Args:
            points: every trial chosen so far, crashed ones too: none is chosen twice.
        """
        tried: dict[Block, Counter[int]] = defaultdict(Counter)  # block -> place of the dropout -> seeds
        for point in points:
            tried[point.block][self.grid.dropouts.index(point.dropout)] += 1
        reasons = [self._reason(cell, tried[cell.block]) for cell in estimates]
        stage, wanted = NEIGHBOURS, _votes((e.block, self._untried_neighbours(e, tried[e.block])) for e in estimates)
        if not wanted:
            stage = SEEDS
            asking = [cell for cell, reason in zip(estimates, reasons, strict=True) if reason == OPEN]
            if not asking and all(math.isnan(cell.width) for cell in estimates):
                asking = list(estimates)  # every optimum looks like an edge: without a replicate none is shown to be
            wanted = _votes((cell.block, self._next_seeds(cell, tried[cell.block])) for cell in asking)
        groups = self._by_turn(wanted, tried)
        room, chosen = self.points - len(points), list[GridPoint]()
        for (model, prefix), seed, places in groups:
            taken = places[: room - len(chosen)]
            if seed and len(taken) < 2 and not any(count > seed for count in tried[model, prefix].values()):
                continue  # a seed on one dropout alone compares it with nothing
            for place in sorted(taken):
                index = len(points) + len(chosen)
                chosen.append(
                    GridPoint(
                        index,
                        points[-1].round + 1 if points else 0,
                        stage,
                        model,
                        prefix,
                        self.grid.dropouts[place],
                        self.seeds[seed],
                    )
                )
        if not chosen:
            reasons = [SPENT if reason == OPEN else reason for reason in reasons]
        return chosen, reasons

    def _reason(self, cell: CellEstimate, tried: Mapping[int, int]) -> str:
        best = self.grid.dropouts.index(cell.best)
        n_seeds, all_seeds = tried[best], len(self.seeds)
        if self._untried_neighbours(cell, tried):
            return OPEN
        if cell.width <= self.target_width and n_seeds >= MIN_SEEDS:
            return NARROW
        if cell.status.startswith("censored") and best in (0, len(self.grid.dropouts) - 1):
            return EDGE
        if cell.status == "no_signal" and n_seeds >= MIN_SEEDS:
            return FLAT
        if n_seeds >= all_seeds:
            return ALL_SEEDS
        # A width falls with the root of the seeds.
        if n_seeds >= MIN_SEEDS and cell.width * math.sqrt(n_seeds / all_seeds) > self.target_width:
            return OUT_OF_REACH
        return OPEN

    def _untried_neighbours(self, cell: CellEstimate, tried: Mapping[int, int]) -> list[int]:
        best, last = self.grid.dropouts.index(cell.best), len(self.grid.dropouts) - 1
        around = range(max(0, best - NEIGHBOURHOOD), min(last, best + NEIGHBOURHOOD) + 1)
        return [j for j in around if not tried[j]]

    def _next_seeds(self, cell: CellEstimate, tried: Mapping[int, int]) -> list[int]:
        """Places of a cell's best dropout and its neighbours, of those that have no more seeds than the best one."""
        best = self.grid.dropouts.index(cell.best)
        if tried[best] >= len(self.seeds):
            return []
        return [j for j in (best - 1, best, best + 1) if 0 < tried[j] <= tried[best]]

    def _by_turn(
        self, wanted: Mapping[tuple[Block, int], int], tried: Mapping[Block, Mapping[int, int]]
    ) -> list[tuple[Block, int, list[int]]]:
        """(block, place of the seed, places of the dropouts, those that most cells want first): a block's lower seed
        comes before its higher ones, and blocks whose trials more cells want come first."""
        groups: dict[tuple[Block, int], dict[int, int]] = defaultdict(dict)
        for (block, place), votes in wanted.items():
            groups[block, tried[block][place]][place] = votes
        order = [(model.name, prefix) for model in self.models for prefix in self.prefixes]

        def turn(group: tuple[tuple[Block, int], dict[int, int]]) -> tuple[int, float, int]:
            (block, seed), votes = group
            return seed, -sum(votes.values()) / len(votes), order.index(block)

        return [
            (block, seed, sorted(votes, key=lambda place: (-votes[place], place)))
            for (block, seed), votes in sorted(groups.items(), key=turn)
        ]

    def trials_of(self, point: GridPoint, setting: Setting) -> list[TrialSpec]:
        """The point's one trial: that of the full grid."""
        model = ModelSpec.parse(point.model)
        return [static_trial(setting, model, point.unique_tokens, point.dropout, point.seed, self.grid.readouts)]

    def read_point(self, data: dict[str, Any]) -> GridPoint:
        return GridPoint(**data)

    def record(self) -> dict[str, Any]:
        return {"grid": self.to_dict(), "full_grid": self.n_full, "at_most": self.points}

    def identity(self) -> str:
        """Content hash of all that decides a choice beside what was measured, 16 hex digits."""
        return hashlib.sha256(json.dumps(self.to_dict(), sort_keys=True).encode()).hexdigest()[:16]

    def union(self, other: Any) -> AdaptiveGrid:
        raise UserError(
            "--extend: an adaptive run chooses its trials from the values that it was begun with: start a new run, "
            "with --adaptive or without, for others"
        )

    def on_scale(self, scale: Scale) -> Scale:
        return self.grid.on_scale(scale)

    def described(self) -> list[tuple[str, str]]:
        coarse = " ".join(format_dropout(p) for p in sorted({point.dropout for point in self.known}))
        tokens = self.grid.readouts[-1] * self.n_full
        return [
            *self.grid.described(),
            (
                "adaptive",
                f"{len(self.known)} coarse trials ({coarse} on seed {self.seeds[0]}), then where it decides, until "
                f"every interval is within {self.target_width:g} or no further trial would help",
            ),
            (
                "budget",
                f"at most {self.points} trials, {self.points / self.n_full:.0%} of the full grid's {self.n_full:,} "
                f"({tokens:,} tokens)",
            ),
        ]

    def to_dict(self) -> dict[str, Any]:
        return self.grid.to_dict() | {"target_width": self.target_width, "budget": self.budget}

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> AdaptiveGrid:
        return cls(StaticGrid.from_dict(data), data["target_width"], data["budget"])

    @classmethod
    def trials(cls, spaces: Sequence[AdaptiveGrid], setting: Setting) -> list[TrialSpec]:
        """The coarse round."""
        return [spec for point in spaces[-1].known for spec in spaces[-1].trials_of(point, setting)]

    def with_estimate(self, estimate: Estimate) -> AdaptiveGrid:
        return replace(self, estimate=estimate)


def _votes(wanted: Iterable[tuple[Block, Sequence[int]]]) -> Counter[tuple[Block, int]]:
    """How many cells want each dropout of each block."""
    return Counter((block, place) for block, places in wanted for place in places)
