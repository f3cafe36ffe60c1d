"""The text of a search: fetched, tokenized, long enough for its plan, and the same when a run is taken up."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from search_spaces.space import DataIdentity
from tune_dd.console import Console
from tune_dd.corpus import Corpus, load_corpus, prepare_corpus
from tune_dd.corpus.bars import transfer_bar
from tune_dd.corpus.fetch import ensure_text
from tune_dd.corpus.sources import source_files
from tune_dd.errors import UserError
from tune_dd.regimes import VALIDATION_SALT, Regime, Scale
from tune_dd.stream import evaluation_windows
from tune_dd.sweep import plan as planning
from tune_dd.sweep.plan import Plan
from tune_dd.sweep.runs import RunFolder


def fetch_text(args: argparse.Namespace, regime: Regime, console: Console) -> None:
    """Fetch a built-in regime's text where it is missing, having said how much."""
    if not args.use_cached_data:
        ensure_text(
            regime,
            offline=args.offline,
            say=lambda text: console.print(text, soft_wrap=True),
            bar=transfer_bar,
        )


def check_named(args: argparse.Namespace, regime: Regime) -> None:
    """What a dry run, which reads no text, looks at all the same.

    Raises:
        UserError: --corpus or --corpus-glob names no file, or nothing but empty ones.
    """
    if (args.corpus or args.corpus_glob) and not args.use_cached_data:
        files = source_files(regime.corpus.globs)
        if not any(file.stat().st_size for file in files):
            raise UserError(f"{args.corpus or args.corpus_glob} is empty: name a text with --corpus or --corpus-glob")


def prepare(plan: Plan, cache_folder: Path, *, use_cached: bool, console: Console, chained: bool = False) -> Corpus:
    """The text of a plan, tokenized.

    ``chained``: a stream follows, so its tokens are asked for before anything is trained.

    Raises:
        UserError: as ``prepare_corpus``; a chain's text is too short for its stream.
    """
    scale = plan.scale
    corpus = prepare_corpus(
        plan.regime.corpus,
        vocab_size=scale.vocab_size,
        train_tokens=scale.train_tokens,
        validation_tokens=scale.validation_tokens,
        min_train_tokens=scale.prefixes[-1],
        cache_dir=cache_folder,
        use_cached=use_cached,
        show_progress=console.is_terminal,
    )
    if chained and corpus.n_train < scale.prefixes_of_stream[-1]:
        raise UserError(
            f"the train split has {corpus.n_train:,} tokens, fewer than the {scale.prefixes_of_stream[-1]:,} of the "
            "stream that --phase all ends with: give more text (--corpus-glob), or a regime file with smaller "
            "stream_prefixes"
        )
    return corpus


def identify(corpus: Corpus, scale: Scale) -> DataIdentity:
    """The hashes of a text.

    Raises:
        UserError: its validation split does not fill the scale's evaluation windows.
    """
    context = scale.protocol.context
    windows = evaluation_windows(corpus.validation, context, scale.eval_tokens, salt=VALIDATION_SALT)
    needed = scale.eval_tokens // context * context  # whole windows
    if windows.n_tokens < needed:
        remedy = (
            "give more text (--corpus-glob), or a regime file with a larger validation_fraction or fewer eval_tokens"
        )
        if corpus.n_validation >= scale.validation_tokens:  # the text has more, and the scale takes no more of it
            remedy = "give a regime file with more validation_tokens or fewer eval_tokens"
        raise UserError(
            f"the validation split has {corpus.n_validation:,} tokens, and the {needed // context:,} windows of "
            f"eval_tokens {scale.eval_tokens:,} need {needed + 1:,}: {remedy}"
        )
    return DataIdentity(corpus.corpus_hash, corpus.tokenizer_hash, windows.hash)


def same_text(
    config: dict[str, Any], plan: Plan, cache_folder: Path, run: RunFolder, console: Console, *, build: bool
) -> Corpus | None:
    """The text that a run was planned on: its cache, or the cache built again from the run's own sources.

    None where it would have to be built and must not be.
    """
    try:
        corpus = load_corpus(cache_folder, plan.scale.vocab_size)
        if identify(corpus, plan.scale) == planning.identity(config):
            return corpus
    except UserError:
        pass
    if not build:
        return None
    sources = ", ".join(plan.regime.corpus.globs) or "the packages of its docstrings"
    try:
        corpus = prepare(plan, cache_folder, use_cached=False, console=console)
        same = identify(corpus, plan.scale) == planning.identity(config)
    except UserError:
        if not _sources_changed(config):
            raise
        same = False  # what was found wrong with the text would be mended by a new run's options
    if not same:
        raise UserError(
            f"the text that {run.path} was planned on has changed or gone: restore its sources ({sources}), or start a "
            "new run"
        )
    return corpus


def _sources_changed(config: dict[str, Any]) -> bool:
    """Whether a file that a run's text was read from has gone or has another size."""
    sources = config["data"]["manifest"].get("sources", ())
    files = [(Path(each["path"]), each["bytes"]) for each in sources if "path" in each]
    return any(not path.is_file() or path.stat().st_size != size for path, size in files)
