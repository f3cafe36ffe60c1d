"""A law for a text that nothing was trained on: ``python -m analysis carry``.

Between the texts that we measured, one number is the difference: a law calibrated on one of them holds on another
if U of that other text is multiplied by a scale of its own. The scale follows the validation loss b of a bigram
model (``tune_dd.corpus.bigram``), which is counted when a text is tokenized: ``log10(scale) = 0.36 (b of the
calibrated text - b of the other)``. A text that surprises less counts for more. Of four texts that the rule was not
made on it was off by a tenth of a decade or more on two: a start, not a calibration (docs/methodology.md, section 7).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
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
# between these at this vocabulary. Of four texts looked at later it told two; one that it missed lies far below them.
BIGRAM_SLOPE = 0.36
MEASURED_LOSSES, MEASURED_VOCABULARY = (2.96, 3.97), 512


@dataclass(frozen=True)
class Text:
    """A tokenized text.

    Attributes:
        regime: its name.
        losses: tokens counted -> validation loss of the bigram model of so many of its tokens, nats per token.
        vocab_size, tokenizer_hash, corpus_hash: as in config.json.
    """

    regime: str
    losses: Mapping[int, float]
    vocab_size: int
    tokenizer_hash: str
    corpus_hash: str


def text_of(config: Mapping[str, Any]) -> Text | None:
    """The text that a run was trained on, from its config.json; None where its bigrams were not counted yet."""
    data = config.get("data") or {}
    counted = (data.get("manifest") or {}).get("bigram")
    if counted is None:
        return None
    losses = {int(tokens): float(loss) for tokens, loss in counted.get("by_train_tokens", {}).items()}
    return Text(
        regime=str(config["regime"]["name"]),
        losses=losses | {int(counted["train_tokens"]): float(counted["val_loss"])},
        vocab_size=int(data["manifest"]["settings"]["vocab_size"]),
        tokenizer_hash=str(data["tokenizer_hash"]),
        corpus_hash=str(data["corpus_hash"]),
    )


def comparable(calibrated: Text, other: Text) -> bool:
    """Whether both texts are under one size of vocabulary, and were counted on some one number of tokens."""
    return calibrated.vocab_size == other.vocab_size and bool(calibrated.losses.keys() & other.losses.keys())


def compared(calibrated: Text, other: Text) -> tuple[float, float]:
    """The two texts' losses on the largest number of tokens that both were counted on, nats per token.

    Raises:
        UserError: there is none, or their vocabularies differ in size.
    """
    if not comparable(calibrated, other):
        raise UserError(
            f"the bigram losses of {_told(calibrated)} and of {_told(other)} do not compare: tokenize both with one "
            "size of vocabulary, and 62,500 training tokens or more of each"
        )
    most = max(calibrated.losses.keys() & other.losses.keys())
    return calibrated.losses[most], other.losses[most]


def _told(text: Text) -> str:
    return f"{text.regime} (vocabulary {text.vocab_size:,}, {max(text.losses):,} tokens counted)"


def loss_difference(calibrated: Text, other: Text) -> float:
    """Of the bigram losses, the calibrated text's less the other's, nats per token."""
    here, there = compared(calibrated, other)
    return here - there


def unique_scale(calibrated: Text, other: Text) -> float:
    """What U of the other text is multiplied by under a law of the calibrated one.

    Raises:
        UserError: their losses do not compare.
    """
    return float(10.0 ** (BIGRAM_SLOPE * loss_difference(calibrated, other)))


def carry(fitted: Coefficients, calibrated: Text, other: Text) -> Coefficients:
    """The law of one text as a law of another, with its draws and cells in the other text's U."""
    scale = unique_scale(calibrated, other)
    here, there = compared(calibrated, other)
    change = fitted.form.change_of_scale(scale)
    draws = np.array(fitted.draws).reshape(-1, len(change)) @ change.T
    ends = np.quantile(draws, [(1 - LEVEL) / 2, (1 + LEVEL) / 2], axis=0).T if len(draws) else None
    names = fitted.form.coefficients
    notes = [
        f"carried from {calibrated.regime} by bigram loss ({here:.3f} there and {there:.3f} here, nats per token): U "
        f"counts {scale:.2f} times; nothing was trained on this text, and the intervals hold no doubt about that scale"
    ]
    low, high = MEASURED_LOSSES
    if other.vocab_size != MEASURED_VOCABULARY or not low <= min(here, there) <= max(here, there) <= high:
        notes.append(
            f"the scale was measured between bigram losses of {low:g} and {high:g} at a vocabulary of "
            f"{MEASURED_VOCABULARY}: these texts lie outside, and their scale is a guess"
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
        notes=(*notes, *fitted.notes),
        held_out=(),
        carried_from=calibrated.regime,
    )


def read_text(place: Path) -> Text:
    """The text of a run, of a chain, or of a token cache: its folder, or its manifest where it has several.

    Raises:
        UserError: it is none of them, is damaged, or was made before bigrams were counted.
    """
    try:
        text = text_of(_config(place))
    except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
        raise UserError(f"{place} is damaged ({error!r}): name another run, or build the cache anew") from None
    if text is None:
        raise UserError(
            f"{place} is from before bigrams were counted: build its text with `python -m tune_dd.corpus build` and "
            "name that cache (for a RUN by --calibrated-on)"
        )
    return text


def _config(place: Path) -> Any:
    """What config.json says of a run, or would say of a cache."""
    if place.is_file():
        return _of_cache(place)
    if (place / CHAIN).is_file():
        return read_json(place / read_json(place / CHAIN)["runs"]["calibrate"] / CONFIG)
    if (place / CONFIG).is_file():
        return read_json(place / CONFIG)
    manifests = sorted(place.glob("manifest-v*.json"))
    if len(manifests) == 1:
        return _of_cache(manifests[0])
    if manifests:
        raise UserError(f"{place} is the cache of several vocabularies: name one, such as {manifests[0]}")
    raise UserError(f"{place} is neither a run nor a token cache: name one of them")


def _of_cache(file: Path) -> dict[str, Any]:
    """The folder of a cache is named by its regime; that of the extrapolation ends in another way."""
    manifest = read_json(file)
    hashes = {name.split("-")[0]: entry["sha256"][:16] for name, entry in manifest["files"].items()}
    data = {"manifest": manifest, "tokenizer_hash": hashes["tokenizer"], "corpus_hash": hashes["tokens"]}
    return {"regime": {"name": file.parent.name.removeprefix("dropout_decay_").removesuffix("_8m")}, "data": data}


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
    carried = carry(fitted, calibrated, replace(other, regime=options.regime or other.regime))
    if (options.out / CONFIG).exists() or (options.out / CHAIN).exists():
        raise UserError(f"{options.out} is a run with coefficients of its own: give --out another folder")
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
    add("text", type=Path, metavar="TEXT", help="the other text: its cache .cache/dropout_decay_NAME, or a run on it")
    where = "where the coefficients lie without their run: a run on the text that they were fitted on, or its cache"
    add("--calibrated-on", type=Path, metavar="TEXT", help=where)
    add("--regime", metavar="NAME", help="name of the other text's regime (default: its run's, or its cache folder's)")
    add("--out", type=Path, required=True, metavar="FOLDER", help="where the other text's coefficients.json goes")
    return result
