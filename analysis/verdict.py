"""Which form of law the hold-outs speak for, from the tables of ``analysis.bakeoff``."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import pandas as pd

from tune_dd.laws import LAWS, REFERENCE_LAW

# Nats per token: half of the last digit shown. Laws that differ by less are level.
TIED = 5e-5


def winner(cells: pd.DataFrame, streams: pd.DataFrame) -> tuple[str, str]:
    """The law to prefer and why: the reference form, unless others are behind it on no kind of hold-out.

    Then that of them which leads on most kinds, in its form for streams that leads there. A form is behind where its
    mean is higher by more than ``TIED``; on streams, in the mean over those that both ran on.

    Args:
        cells: of ``analysis.bakeoff.summarise_cells``.
        streams: of ``analysis.bakeoff.judge_streams``.
    """
    kinds = {str(kind): own for kind, own in cells.groupby("kind", sort=False)} if len(cells) else {}
    told = [f"{kind}: {alike(level_laws(own))}" for kind, own in kinds.items()]
    allowed = set(LAWS)
    for own in kinds.values():
        most = own.loc[own["law"] == REFERENCE_LAW, "regret_mean"].min() + TIED  # NaN where it is not there
        allowed &= set(own.loc[~(own["regret_mean"] > most), "law"])
    leads = Counter(law for own in kinds.values() for law in level_laws(own[own["law"].isin(allowed)]))
    best = max(sorted(allowed - {REFERENCE_LAW}), key=lambda law: leads[law], default=REFERENCE_LAW)
    if len(streams):
        ends = streams.pivot_table(index="run", columns="law", values="against_static")
        if REFERENCE_LAW in ends:
            ends = ends.loc[:, ~(ends.sub(ends[REFERENCE_LAW], axis=0).mean() > 0)]
        best = stream_leader(ends.loc[:, [LAWS[str(law)].cells in allowed for law in ends]]) or REFERENCE_LAW
        told.append(f"streams: {stream_leader(ends) or 'none'}")
    where = ", ".join(told)
    if LAWS[best].cells == REFERENCE_LAW:
        return best, f"Every other form is behind the reference form on some kind of hold-out (ahead on {where})."
    return (
        best,
        f"It is behind the reference form on no kind of hold-out, and leads those that are not (ahead on {where}).",
    )


def level_laws(of_kind: pd.DataFrame) -> list[str]:
    """The laws with the least mean regret on one kind of hold-out, those that are level with it included."""
    least = of_kind["regret_mean"].min()
    return [str(law) for law in of_kind.loc[of_kind["regret_mean"] <= least + TIED, "law"]]


def alike(laws: Sequence[str]) -> str:
    return " and ".join(laws) if len(laws) < 3 else "several forms alike"


def stream_leader(ends: pd.DataFrame) -> str | None:
    """The law that ends no higher than any other, in the mean over the streams that both ran on; None if none does.

    Args:
        ends: final loss less the best static's, a row per stream and a column per law.
    """
    for law in list(ends.columns):
        apart = ends.drop(columns=law).rsub(ends[law], axis=0).mean()
        if (apart.dropna() <= 0).all() and (apart.notna().any() or ends.shape[1] == 1):
            return str(law)
    return None
