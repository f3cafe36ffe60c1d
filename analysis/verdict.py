"""Which form of law the hold-outs speak for, from the tables of ``analysis.bakeoff``."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import pandas as pd

from tune_dd.laws import LAWS, REFERENCE_LAW

CARRIED = "another corpus, carried"  # a kind of hold-out: the law of one text carried to another

# Nats per token: half of the last digit shown. Laws that differ by less are level.
TIED = 5e-5


def winner(cells: pd.DataFrame, streams: pd.DataFrame) -> tuple[str, str]:
    """The law to prefer and why: the reference form, unless another is shown ahead of it somewhere and nowhere behind.

    On cells a form is shown behind where the whole interval of its regret less the reference's lies above 0, and
    ahead where it lies below; on streams it is behind where its mean is higher over those that both ran on. Of several
    forms the one that leads on most kinds, in its form for streams that leads there. Carried laws have no vote: their
    cells are those of the other corpora, and the scale was chosen on some of them.

    Args:
        cells: of ``analysis.bakeoff.summarise_cells``.
        streams: of ``analysis.bakeoff.judge_streams``.
    """
    voting = cells[cells["kind"] != CARRIED] if len(cells) else cells
    kinds = {str(kind): own for kind, own in voting.groupby("kind", sort=False)} if len(voting) else {}
    told = [f"{kind}: {alike(level_laws(own))}" for kind, own in kinds.items()]
    allowed = set.intersection(set(LAWS), *(set(own.loc[~(own["less_low"] > 0), "law"]) for own in kinds.values()))
    ahead = {str(law) for own in kinds.values() for law in own.loc[own["less_high"] < 0, "law"]}
    leads = Counter(law for own in kinds.values() for law in level_laws(own[own["law"].isin(allowed)]))
    fit = sorted(allowed & ahead if kinds else allowed - {REFERENCE_LAW})
    best = max(fit, key=lambda law: leads[law], default=REFERENCE_LAW)
    if len(streams):
        ends = streams.pivot_table(index="run", columns="law", values="against_static")
        tried = [str(law) for law in ends if LAWS[str(law)].cells in fit]
        if REFERENCE_LAW in ends:
            ends = ends.loc[:, ~(ends.sub(ends[REFERENCE_LAW], axis=0).mean() > 0)]
        told.append(f"streams: {stream_leader(ends) or 'none'}")
        standing = [law for law in tried if law in ends]
        if tried:  # forms that no stream has seen yet are judged by their cells alone
            best = stream_leader(ends[standing]) or next(iter(standing), REFERENCE_LAW)
    where = ", ".join(told)
    if LAWS[best].cells == REFERENCE_LAW:
        return best, (
            "No other form is shown ahead of the reference form on cells held out, behind it on no kind of them, and "
            f"no higher than it on streams (ahead on {where})."
        )
    return best, (
        "It is shown ahead of the reference form on cells held out, behind it on no kind of them nor on streams, and "
        f"leads those that are so (ahead on {where})."
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
