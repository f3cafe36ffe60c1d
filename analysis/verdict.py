"""Which form of law the hold-outs speak for, from the tables of ``analysis.bakeoff``."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import pandas as pd

from tune_dd.laws import LAWS, REFERENCE_LAW

# Kinds of hold-out without a vote: the mean law of other texts, and a law that was carried.
TYPICAL, TYPICAL_PILOTED = "another corpus, by the mean of texts", "another corpus, by the mean and a pilot"
CARRIED, PILOTED = "another corpus, by counts", "another corpus, by a pilot"
NO_VOTE = (TYPICAL, TYPICAL_PILOTED, CARRIED, PILOTED)

# Nats per token: half of the last digit shown. Laws that differ by less are level.
TIED = 5e-5


def winner(cells: pd.DataFrame, streams: pd.DataFrame) -> tuple[str, str]:
    """The law to prefer and why: the reference form, unless another is shown ahead of it somewhere and nowhere behind.

    On cells a form is shown behind where the whole interval of its regret less the reference's lies above 0, and
    ahead where it lies below; on streams it is behind where its mean is higher over those that both ran on. Of several
    forms the one that leads on most kinds, streams being one, in its form for streams that leads there. Carried laws
    have no vote: their cells are those of the other corpora, and how a law is carried was chosen on some of them.

    Args:
        cells: of ``analysis.bakeoff.summarise_cells``.
        streams: of ``analysis.bakeoff.judge_streams``.
    """
    voting = cells[~cells["kind"].isin(NO_VOTE)] if len(cells) else cells
    kinds = {str(kind): own for kind, own in voting.groupby("kind", sort=False)} if len(voting) else {}
    told = [f"{kind}: {alike(level_laws(own))}" for kind, own in kinds.items()]
    allowed = set.intersection(set(LAWS), *(set(own.loc[~(own["less_low"] > 0), "law"]) for own in kinds.values()))
    ahead = {str(law) for own in kinds.values() for law in own.loc[own["less_high"] < 0, "law"]}
    leads = Counter(law for own in kinds.values() for law in level_laws(own[own["law"].isin(allowed)]))
    fit = sorted(allowed & ahead if kinds else allowed - {REFERENCE_LAW})
    ends = streams.pivot_table(index="run", columns="law", values="against_static") if len(streams) else pd.DataFrame()
    tried = {LAWS[str(law)].cells for law in ends}
    if REFERENCE_LAW in ends:
        ends = ends.loc[:, ~(ends.sub(ends[REFERENCE_LAW], axis=0).mean() > 0)]
    standing = {str(law): LAWS[str(law)].cells for law in ends}
    fit = [law for law in fit if law in standing.values() or law not in tried]  # what no stream has seen yet stays
    if len(streams):
        leader = stream_leader(ends)
        told.append(f"streams: {leader or 'none'}")
        leads.update([standing[leader]] if leader else [])
    best = max(fit, key=lambda law: leads[law], default=REFERENCE_LAW)
    own = [law for law, cells_form in standing.items() if cells_form == best]
    if own and best != REFERENCE_LAW:
        best = stream_leader(ends[own]) or own[0]
    where = ", ".join(told)
    if LAWS[best].cells == REFERENCE_LAW:
        return best, (
            "No other form is shown ahead of the reference form on cells held out, behind it on no kind of them, and "
            f"no higher than it on streams (least mean on {where})."
        )
    return best, (
        "It is shown ahead of the reference form on cells held out, behind it on no kind of them nor on streams, and "
        f"has the least mean on most kinds among those that are so (least mean on {where})."
    )


def level_laws(of_kind: pd.DataFrame) -> list[str]:
    """The laws with the least mean regret on one kind of hold-out, those that are level with it included."""
    least = of_kind["regret_mean"].min()
    return [str(law) for law in of_kind.loc[of_kind["regret_mean"] <= least + TIED, "law"]]


def alike(laws: Sequence[str]) -> str:
    return " and ".join(laws) if len(laws) < 3 else "several forms alike"


def stream_leader(ends: pd.DataFrame) -> str | None:
    """The law that ends no higher than any other, in the mean over the streams that both ran on; None if none does.

    Where several laws ran together, one that was in less than half of those streams leads nothing, since most streams
    say nothing of it; the others must not end higher than it all the same.

    Args:
        ends: final loss less the best static's, a row per stream and a column per law.
    """
    together = ends[ends.notna().sum(axis=1) > 1]
    candidates = ends.columns[2 * together.notna().sum() >= len(together)]
    for law in candidates:
        apart = ends.drop(columns=law).rsub(ends[law], axis=0).mean()
        if (apart.dropna() <= 0).all() and (apart.notna().any() or ends.shape[1] == 1):
            return str(law)
    return None
