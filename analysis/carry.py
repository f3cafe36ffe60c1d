"""A law for a text that nothing was trained on: ``python -m analysis carry``.

Between the texts that we measured, one number is the difference: a law calibrated on one of them holds on another
if U of that other text is multiplied by a scale of its own. The scale follows the validation loss b of a bigram
model (``tune_dd.corpus.bigram``), which is counted when a text is tokenized: ``log10(scale) = 0.36 (b of the
calibrated text - b of the other)``. A text that surprises less counts for more (docs/methodology.md, section 7).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from analysis.advise import read_coefficients
from analysis.coefficients import LEVEL, Coefficients
from analysis.report import make_folder
from analysis.saved import CHAIN
from tune_dd.arguments import OneLineParser
from tune_dd.artifacts import CONFIG, read_json, write_json
from tune_dd.errors import UserError

# Ours, decades of U per nat: the slope over seven texts (docs/methodology.md, section 7), whose bigram losses lay
# between these at this vocabulary. On a text far below them the slope was twice what it should have been.
BIGRAM_SLOPE = 0.36
MEASURED_LOSSES, MEASURED_VOCABULARY = (2.96, 3.97), 512


@dataclass(frozen=True)
class Text:
    """A tokenized text.

    Attributes:
        regime: its name.
        bigram_loss: validation loss of a bigram model of it, nats per token.
        train_tokens, val_tokens: tokens that were counted and judged for it.
        vocab_size, tokenizer_hash, corpus_hash: as in config.json.
    """

    regime: str
    bigram_loss: float
    train_tokens: int
    val_tokens: int
    vocab_size: int
    tokenizer_hash: str
    corpus_hash: str


def text_of(config: dict[str, Any]) -> Text | None:
    """The text that a run was trained on, from its config.json; None where its bigrams were not counted yet."""
    data = config.get("data") or {}
    counted = (data.get("manifest") or {}).get("bigram")
    if counted is None:
        return None
    return Text(
        regime=str(config["regime"]["name"]),
        bigram_loss=float(counted["val_loss"]),
        train_tokens=int(counted["train_tokens"]),
        val_tokens=int(counted["val_tokens"]),
        vocab_size=int(data["manifest"]["settings"]["vocab_size"]),
        tokenizer_hash=str(data["tokenizer_hash"]),
        corpus_hash=str(data["corpus_hash"]),
    )


def unique_scale(calibrated: Text, other: Text) -> float:
    """What U of the other text is multiplied by under a law of the calibrated one.

    Raises:
        UserError: their losses do not compare: other vocabularies, or other numbers of tokens counted.
    """
    for name in ("vocab_size", "train_tokens", "val_tokens"):
        here, there = getattr(calibrated, name), getattr(other, name)
        if here != there:
            raise UserError(
                f"{calibrated.regime} and {other.regime} differ in {name} ({here:,} and {there:,}), so that their "
                "bigram losses do not compare: tokenize as much of both, with one size of vocabulary"
            )
    return float(10.0 ** (BIGRAM_SLOPE * (calibrated.bigram_loss - other.bigram_loss)))


def carry(fitted: Coefficients, calibrated: Text, other: Text) -> Coefficients:
    """The law of one text as a law of another, with its draws and cells in the other text's U."""
    scale = unique_scale(calibrated, other)
    change = fitted.form.change_of_scale(scale)
    draws = np.array(fitted.draws).reshape(-1, len(change)) @ change.T
    ends = np.quantile(draws, [(1 - LEVEL) / 2, (1 + LEVEL) / 2], axis=0).T if len(draws) else None
    names = fitted.form.coefficients
    note = (
        f"carried from {calibrated.regime} by bigram loss ({calibrated.bigram_loss:.3f} there and "
        f"{other.bigram_loss:.3f} here, nats per token): U counts {scale:.2f} times; nothing was trained on this text, "
        "and the intervals hold no doubt about that scale"
    )
    notes = [note, *fitted.notes]
    low, high = MEASURED_LOSSES
    if other.vocab_size != MEASURED_VOCABULARY or not low <= other.bigram_loss <= high:
        notes.insert(
            1,
            f"the scale was measured between bigram losses of {low:g} and {high:g} at a vocabulary of "
            f"{MEASURED_VOCABULARY}: this text lies outside, and its scale is a guess",
        )
    return replace(
        fitted,
        regime=other.regime,
        coefficients=fitted.form.carried(fitted.coefficients, scale),
        intervals=fitted.intervals if ends is None else dict(zip(names, map(tuple, ends.tolist()), strict=True)),
        draws=tuple(tuple(draw) for draw in draws.tolist()),
        cells=tuple(cell | {"unique_tokens": cell["unique_tokens"] / scale} for cell in fitted.cells),
        tokenizer_hash=other.tokenizer_hash,
        corpus_hash=other.corpus_hash,
        notes=tuple(notes),
        held_out=(),
    )


def read_text(folder: Path) -> Text:
    """The text of a run, of a chain, or of a token cache.

    Raises:
        UserError: the folder is none of them, or was made before bigrams were counted.
    """
    manifests = sorted(folder.glob("manifest-v*.json"))
    if (folder / CHAIN).is_file():
        config = read_json(folder / read_json(folder / CHAIN)["runs"].get("calibrate", "") / CONFIG)
    elif (folder / CONFIG).is_file():
        config = read_json(folder / CONFIG)
    elif len(manifests) == 1:
        config = _as_config(read_json(manifests[0]), folder.name.removeprefix("dropout_decay_"))
    else:
        raise UserError(f"{folder} is neither a run nor the token cache of one vocabulary: name one of them")
    text = text_of(config)
    if text is None:
        raise UserError(
            f"{folder} does not say how much its text surprises: tokenize it anew with `python -m tune_dd.corpus build`"
        )
    return text


def _as_config(manifest: Any, regime: str) -> dict[str, Any]:
    """What a run's config.json would say of a cache."""
    hashes = {name.split("-")[0]: entry["sha256"][:16] for name, entry in manifest["files"].items()}
    data = {"manifest": manifest, "tokenizer_hash": hashes["tokenizer"], "corpus_hash": hashes["tokens"]}
    return {"regime": {"name": regime}, "data": data}


def carry_command(arguments: Sequence[str]) -> int:
    """``python -m analysis carry``: write coefficients.json for the other text, and say what the scale is."""
    options = parser().parse_args(arguments)
    fitted = read_coefficients(options.coefficients)
    home = options.calibrated_on or options.coefficients
    calibrated, other = read_text(home), read_text(options.text)
    if fitted.tokenizer_hash not in ("", calibrated.tokenizer_hash):
        raise UserError(
            f"{options.coefficients} was not fitted on the text of {home} as it is tokenized there: name a run on its "
            "own text with --calibrated-on"
        )
    carried = carry(fitted, calibrated, other)
    make_folder(options.out)
    file = options.out / "coefficients.json"
    write_json(file, carried.to_dict())
    for note in carried.notes:
        print(f"{other.regime}: {note}")
    print(f"Coefficients: {file}")
    return 0


def parser() -> OneLineParser:
    result = OneLineParser(prog="python -m analysis carry", description=__doc__)
    add = result.add_argument
    add("coefficients", type=Path, metavar="RUN", help="a calibrate run or a chain: its law, and the text it is of")
    add("text", type=Path, metavar="TEXT", help="the other text: a run on it, or its cache .cache/dropout_decay_NAME")
    where = "where the coefficients lie without their run: a run on the text that they were fitted on, or its cache"
    add("--calibrated-on", type=Path, metavar="TEXT", help=where)
    add("--out", type=Path, required=True, metavar="FOLDER", help="where the other text's coefficients.json goes")
    return result
