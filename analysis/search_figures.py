"""Pictures of a search: its history, a slice per parameter, their importance, the map of the ends, the paths."""

from __future__ import annotations

import pandas as pd

from analysis.figures import WIDE, Picture
from analysis.searched import Searched

LABELS = {
    "final_val_loss": "final validation loss (nats per token)",
    "trajectory_val_loss": "validation loss along the stream\n(nats per token)",
}
ENDS = {"p_first": "dropout rate at the first stage", "p_last": "dropout rate at the last stage"}


def search_pictures(search: Searched) -> list[Picture]:
    """Every picture of a search; none before a point is done."""
    done = search.finished.reset_index(drop=True)
    if done.empty:
        return []
    loss = LABELS[search.metric]
    n_seeds = len(search.about["seeds"])
    over = f"mean over {n_seeds} seeds" if n_seeds > 1 else "one seed"
    pictures = [
        Picture(
            name="search-history",
            title="What each point came to",
            caption=f"{loss.replace(chr(10), ' ').capitalize()} of each schedule tried, {over}, in the order of "
            "suggestion; the line is the best so far. Marked: the fitted law and the fixed dropout that it began with.",
            data=done,
            kind="draw_search_history",
            labels={"loss": loss},
            size=WIDE,
        )
    ]
    for name in search.params:
        meaning = f"{name}: {ENDS[name]}" if name in ENDS else name
        pictures.append(
            Picture(
                name=f"search-slice-{name}",
                title=f"Loss against {name}",
                caption=f"Every schedule tried: its loss against {ENDS.get(name, f'coefficient {name}')}, darker for "
                "earlier points. The fitted law, the fixed dropout and the best point are marked.",
                data=done,
                kind="draw_search_slice",
                labels={"x": f"param_{name}", "xlabel": meaning, "loss": loss},
            )
        )
    if set(search.params) == set(ENDS):
        pictures.append(
            Picture(
                name="search-map",
                title="Loss over the path's ends",
                caption="Every schedule tried by the dropout at its first and last stage (before the law's clamp), "
                "darker where the loss is lower. On the dashed line both ends are the same: a fixed dropout.",
                data=done,
                kind="draw_search_map",
                labels={"x": "param_p_first", "y": "param_p_last", "ends": ENDS, "loss": loss},
                size=WIDE,
            )
        )
    if len(search.importance):
        pictures.append(importance_picture(search.importance))
    pictures.append(
        Picture(
            name="search-paths",
            title="The best schedule found, the fitted law and the fixed dropout",
            caption="Dropout at each stage of the best point and of the two known beforehand.",
            data=search.path,
            kind="draw_paths",
            labels={},
            size=WIDE,
        )
    )
    return pictures


def importance_picture(importance: pd.DataFrame) -> Picture:
    return Picture(
        name="search-importance",
        title="Which parameter mattered",
        caption="Importance of each parameter for reaching the best points, as a share of 1 (PED-ANOVA); "
        "a rough guide where the points are few.",
        data=importance,
        kind="draw_search_importance",
        labels={},
    )
