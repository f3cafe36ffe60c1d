"""What the reference study reported, as it stands there: DOI 10.5281/zenodo.20616633. None of it was measured by us."""

from __future__ import annotations

from collections.abc import Sequence

from analysis.paper.blocks import DASH, Block, Cited, Parts, Section, Table
from analysis.paper.studies import Study

NAME = "reference"
SOURCE = "doi:10.5281/zenodo.20616633"
# TinyStories, L12_H8_D320, final validation loss of five seeds on MPS: (name, dropout by stage, mean, std or None).
TINYSTORIES: tuple[tuple[str, tuple[float, ...], float, float | None], ...] = (
    ("interaction law", (0.18, 0.14, 0.08, 0.04), 2.5311, 0.0213),
    ("smooth low", (0.16, 0.11, 0.07, 0.05), 2.5321, None),
    ("baseabc", (0.25, 0.19, 0.10, 0.02), 2.5357, None),
    ("fixed", (0.08,), 2.5444, 0.0211),
    ("fixed", (0.12,), 2.5477, None),
    ("fixed", (0.18,), 2.5644, None),
)
# Schedules of its OpenWebText10K stream (L16_H8_D384).
OWT: tuple[tuple[str, tuple[float, ...]], ...] = (
    ("interaction law", (0.39, 0.32, 0.23, 0.14, 0.07)),
    ("hold 30, then decay", (0.30, 0.30, 0.20, 0.10, 0.02)),
    ("mild, 30 to 08", (0.30, 0.24, 0.18, 0.12, 0.08)),
)


def section(_: Sequence[Study]) -> Section:
    """The same whatever is saved."""
    cited = Cited(SOURCE)
    best = min(mean for name, _, mean, _ in TINYSTORIES if name == "fixed")
    lead = cited.number(TINYSTORIES[0][2] - best, "difference of its reported means", 4, signed=True)
    blocks: list[Block] = [table(cited)]
    return Section(NAME, "What the reference study reported", blocks, {"ReferenceLead": (lead,)})


def table(cited: Cited) -> Table:
    def path(rates: Sequence[float]) -> Parts:
        texts = [f"{rate:.2f}" for rate in rates]
        return (" ".join(texts),)

    def value(number: float | None, column: str) -> Parts:
        return (DASH,) if number is None else (cited.number(number, column, 4),)

    tiny: list[list[Parts]] = [
        [("TinyStories" if not i else "",), (name,), path(rates), value(mean, "mean"), value(std, "std")]
        for i, (name, rates, mean, std) in enumerate(TINYSTORIES)
    ]
    owt: list[list[Parts]] = [
        [("OpenWebText10K" if not i else "",), (name,), path(rates), (DASH,), (DASH,)]
        for i, (name, rates) in enumerate(OWT)
    ]
    return Table(
        name="reference",
        caption=(
            "As reported by the reference study, not measured by us: schedules, and final validation loss (mean and "
            "standard deviation of its seeds, nats per token) where it gives one. Evidence class there: full scale, "
            "Apple MPS. No row of it is compared with ours by a test.",
        ),
        header=("corpus", "schedule", "dropout by stage", "loss", "std"),
        align="lllrr",
        groups=[tiny, owt],
    )
