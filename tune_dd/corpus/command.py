"""The steps of ``python -m tune_dd.corpus``."""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

from rich.table import Table

from tune_dd.arguments import OneLineParser
from tune_dd.builtin_regimes import REGIMES
from tune_dd.console import Console
from tune_dd.corpus.bars import transfer_bar
from tune_dd.corpus.cache import (
    CacheFiles,
    DamagedCacheError,
    NoCacheError,
    cache_folder,
    cached_regimes,
    caches,
    read_manifest,
)
from tune_dd.corpus.fetch import DATA_DIR, TEXTS, ensure_text, fetch, read_record, verify
from tune_dd.corpus.prepare import Corpus, load_corpus, prepare_corpus
from tune_dd.corpus.sources import RECORD
from tune_dd.errors import UserError
from tune_dd.regime_file import resolve_regime
from tune_dd.regimes import SCALES

ALL = "all"

EXAMPLES = """examples:
  python -m tune_dd.corpus fetch owt           into data/, resumable, verified by the hub's hash
  python -m tune_dd.corpus fetch all --update  what the hub has now, in place of what was recorded
  python -m tune_dd.corpus list                texts and caches
  python -m tune_dd.corpus build tinystories   tokenize, without training
  python -m tune_dd.corpus verify my.toml      hold the caches of a regime of one's own against their hashes
"""


def build_parser() -> argparse.ArgumentParser:
    parser = OneLineParser(
        prog="python -m tune_dd.corpus",
        description="The texts of the built-in regimes, and the tokenized caches of all.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(dest="command", required=True, parser_class=OneLineParser)
    place = OneLineParser(add_help=False)
    place.add_argument("--data-dir", metavar="PATH", type=Path, default=DATA_DIR, help="default: data")
    fetching = commands.add_parser("fetch", parents=[place], help="fetch a regime's text from the Hugging Face hub")
    fetching.add_argument("name", choices=(*TEXTS, ALL))
    fetching.add_argument("--update", action="store_true", help=f"take what the hub has now, whatever {RECORD} says")
    commands.add_parser("list", parents=[place], help="show the texts and caches there are")
    verifying = commands.add_parser("verify", parents=[place], help="hold texts and caches against their hashes")
    verifying.add_argument(
        "name", nargs="?", default=ALL, help=f"{', '.join(REGIMES)}, the path of a .toml regime, or {ALL} (default)"
    )
    building = commands.add_parser("build", help="tokenize a regime's text into its cache, without training")
    building.add_argument("regime", help=f"{', '.join(REGIMES)}, or the path of a .toml regime")
    building.add_argument("--scale", choices=SCALES, default="full", help="default: full")
    text = building.add_mutually_exclusive_group()
    text.add_argument("--corpus", metavar="PATH", help="a file, or a folder of files")
    text.add_argument("--corpus-glob", metavar="GLOB", help="files by pattern, e.g. 'texts/*.parquet'")
    building.add_argument("--column", help="parquet column or jsonl key that holds the text (default: text)")
    building.add_argument("--cache-dir", metavar="PATH", help="default: .cache/dropout_decay_REGIME")
    building.add_argument("--offline", action="store_true", help="fetch nothing")
    return parser


def run_command(argv: list[str]) -> int:
    """Do what the command line asks; returns the exit code.

    Raises:
        UserError: something the user must mend.
    """
    console = Console()
    args = build_parser().parse_args(argv)
    if args.command == "fetch":
        _fetch(args, console)
    elif args.command == "list":
        _list(args.data_dir, console)
    elif args.command == "verify":
        return _verify(args, console)
    else:
        _build(args, console)
    return 0


def _say(console: Console, text: str) -> None:
    console.print(text, soft_wrap=True)


def _fetch(args: argparse.Namespace, console: Console) -> None:
    names = list(TEXTS) if args.name == ALL else [args.name]
    for name in names:
        fetch(name, args.data_dir, update=args.update, say=lambda text: _say(console, text), bar=transfer_bar)
    elsewhere = f" --corpus {shlex.quote(str(TEXTS[names[0]].under(args.data_dir).parent))}"
    option = elsewhere if args.data_dir != DATA_DIR else ""
    _say(console, f"next: python -m tune_dd.sweep {names[0]}{option} --dry-run    # what the full search would cost")


def _list(data_dir: Path, console: Console) -> None:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in ("regime", "file", "size", "state"):
        table.add_column(column, justify="right" if column == "size" else "left", no_wrap=True)
    for name in REGIMES:
        path, size, state = "docstrings of the installed packages", "", "always there"
        if name in TEXTS:
            target = TEXTS[name].under(data_dir)
            path, state = str(target), _state(target)
            size = f"{target.stat().st_size / 1e6:,.1f} MB" if target.exists() else ""
        table.add_row(name, path, size, state)
    console.print_table(table)
    for name in dict.fromkeys((*REGIMES, *cached_regimes())):
        for files in caches(name):
            _say(console, f"cache of {name}: {_describe_cache(files)}")
    _say(
        console, "sizes alone were compared; python -m tune_dd.corpus verify reads the files and compares their hashes"
    )


def _state(target: Path) -> str:
    record = read_record(target)
    if not target.exists():
        have = sum(part.stat().st_size for part in target.parent.glob(f".{target.name}.*.partial"))
        return f"missing, {have / 1e6:,.1f} MB fetched" if have else "missing"
    if record is None:
        return "no record"
    if record["size"] != target.stat().st_size:
        return f"differs from {RECORD}"
    return f"as recorded, commit {record['commit'][:12]}"


def _describe_cache(files: CacheFiles) -> str:
    try:
        manifest = read_manifest(files)
    except (NoCacheError, DamagedCacheError) as damaged:
        return f"{files.folder}: damaged ({damaged})"
    tokens = manifest["tokens"]
    form = f", WikiText {manifest['wikitext_form']} form" if "wikitext_form" in manifest else ""
    return f"{files.folder}, vocabulary {files.vocab_size}: {tokens['train']:,} + {tokens['validation']:,} tokens{form}"


def _verify(args: argparse.Namespace, console: Console) -> int:
    """Every text and cache is looked at, whatever is wrong with one; returns 2 if anything is."""
    wrong = 0
    for name in _named(args.name):
        checks: list[Callable[[], str]] = [partial(verify, name, args.data_dir)] if name in TEXTS else []
        checks += [partial(_verify_cache, name, files) for files in caches(name)]
        if not checks and args.name != ALL:
            _say(console, f"{name}: there is no cache of it in .cache: python -m tune_dd.corpus build makes one")
        for check in checks:
            try:
                _say(console, check())
            except UserError as error:
                print(f"error: {error}", file=sys.stderr)
                wrong = 2
    return wrong


def _named(word: str) -> list[str]:
    """The regimes that a word names: all, one of which there is a cache, or one as ``build`` takes it."""
    cached = cached_regimes()
    if word == ALL:
        return list(dict.fromkeys((*REGIMES, *cached)))
    return [word] if word in cached else [resolve_regime(word).name]


def _verify_cache(name: str, files: CacheFiles) -> str:
    corpus = load_corpus(files.folder, files.vocab_size)
    return f"{name}: {files.folder}, vocabulary {files.vocab_size}: as its manifest says (corpus {corpus.corpus_hash})"


def _build(args: argparse.Namespace, console: Console) -> None:
    regime = resolve_regime(args.regime).reading(args.corpus_glob or args.corpus, args.column)
    scale = regime.scale(args.scale)
    ensure_text(regime, offline=args.offline, say=lambda text: _say(console, text), bar=transfer_bar)
    corpus = prepare_corpus(
        regime.corpus,
        vocab_size=scale.vocab_size,
        train_tokens=scale.train_tokens,
        validation_tokens=scale.validation_tokens,
        min_train_tokens=max(scale.prefixes[-1], scale.prefixes_of_stream[-1]),
        cache_dir=Path(args.cache_dir) if args.cache_dir else cache_folder(regime.name, args.scale),
        show_progress=True,
    )
    _say(console, f"{regime.name}: {_describe_corpus(corpus, scale.vocab_size)}")


def _describe_corpus(corpus: Corpus, vocab_size: int) -> str:
    return (
        f"{corpus.n_train:,} training and {corpus.n_validation:,} validation tokens, vocabulary {vocab_size:,}, "
        f"corpus {corpus.corpus_hash}, in {corpus.folder}"
    )
