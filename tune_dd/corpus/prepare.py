"""A corpus as training sees it: one memory-mapped array of tokens, train split first, validation after it.

``prepare_corpus`` builds it from a regime's sources, or loads what it built before from these sources with
these settings. Workers open it again by ``load_corpus``.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from tune_dd.corpus import pydocs
from tune_dd.corpus.bars import progress_bar
from tune_dd.corpus.build import (
    TRAIN,
    VALIDATION,
    Document,
    build_files,
    split_documents,
    write_manifest,
)
from tune_dd.corpus.cache import (
    FORMAT,
    CacheFiles,
    DamagedCacheError,
    NoCacheError,
    build_folder,
    file_hash,
    held,
    install,
    locked,
    read_cache,
    read_manifest,
    set_aside,
)
from tune_dd.corpus.fetch import check_record, read_record
from tune_dd.corpus.sources import check_column, read_documents, source_files
from tune_dd.corpus.wikitext import wikitext_form
from tune_dd.errors import UserError
from tune_dd.regimes import CorpusSource
from tune_dd.tokenizer import check_vocab_size

MAX_UNEVEN = 2.0  # times the share of validation that was asked for, or this part of it, that nothing is said of

log = logging.getLogger("tune_dd")


@dataclass(frozen=True, eq=False)
class Corpus:
    """A prepared corpus.

    Attributes:
        folder: where its cache lies.
        tokens: (n_train + n_validation,), uint16, memory-mapped read-only; every document after a ``<|bos|>``.
        n_train, n_validation: tokens of each split.
        token_bytes: (vocab_size,), int64, UTF-8 bytes of each token, 0 for ``<|bos|>``.
        corpus_hash, tokenizer_hash: 16 hex digits of the SHA-256 of the token file and of the tokenizer file.
        manifest: sources, settings, counts of each split, overlap, versions, hashes: what the file says.
    """

    folder: Path
    tokens: npt.NDArray[np.uint16] = field(repr=False)
    n_train: int
    n_validation: int
    token_bytes: npt.NDArray[np.int64] = field(repr=False)
    corpus_hash: str
    tokenizer_hash: str
    manifest: dict[str, Any] = field(repr=False)

    @property
    def train(self) -> npt.NDArray[np.uint16]:
        return self.tokens[: self.n_train]

    @property
    def validation(self) -> npt.NDArray[np.uint16]:
        return self.tokens[self.n_train :]


def prepare_corpus(
    source: CorpusSource,
    *,
    vocab_size: int,
    train_tokens: int,
    validation_tokens: int,
    min_train_tokens: int,
    cache_dir: Path,
    use_cached: bool = False,
    n_workers: int | None = None,
    show_progress: bool = False,
) -> Corpus:
    """Load the corpus from its cache, or build it if there is none or its sources or settings have changed.

    The same sources and settings give the same files, whatever ``n_workers``. A damaged cache is set aside
    and built anew. Two commands may prepare one cache at once: the second waits and loads. One that a running search
    reads is not replaced by another.

    Args:
        train_tokens, validation_tokens: tokens of each split, at most.
        min_train_tokens: tokens that the train split must have: the largest prefix.
        cache_dir: folder of the cache, made if it is not there.
        use_cached: take the cache as it is and look at no source.
        n_workers: cores used; by default all that this process may use.
        show_progress: draw progress bars on standard error if it is a terminal.

    Raises:
        UserError: for every way in which sources, cache or disk can be unfit; nothing half-written is left.
    """
    check_vocab_size(vocab_size)
    files = CacheFiles(cache_dir.absolute(), vocab_size)
    if use_cached:
        corpus = load_corpus(files.folder, vocab_size)
    else:
        origin = _Origin.of(source)
        settings = {key: value for key, value in asdict(source).items() if key != "globs"} | {
            "vocab_size": vocab_size,
            "train_tokens": train_tokens,
            "validation_tokens": validation_tokens,
        }
        workers = n_workers or available_cores()
        try:
            files.folder.mkdir(parents=True, exist_ok=True)
            with locked(files.folder):
                found = _load_unchanged(files, settings, origin)
                with held(files, to_replace=True) if found is None else contextlib.nullcontext():
                    corpus = found or _build(files, source, settings, origin, workers, show_progress)
        except OSError as error:
            raise _cannot_write(files.folder, error) from error
    if warning := uneven_split(corpus.manifest):
        log.warning("warning: %s", warning)
    if corpus.n_train < min_train_tokens:
        raise UserError(
            f"the train split has {corpus.n_train:,} tokens, fewer than the largest prefix of {min_train_tokens:,}: "
            "give more text, or smaller prefixes (--prefixes, or those of a regime file)"
        )
    return corpus


def load_corpus(folder: Path, vocab_size: int, *, verify: bool = True) -> Corpus:
    """Open a cache by its path.

    Args:
        verify: compare the hashes of all files; without it only their sizes and shapes, which is what a
            worker does whose driver has verified them.

    Raises:
        UserError: there is no cache for this vocabulary, or its files do not match its manifest.
    """
    files = CacheFiles(Path(folder).absolute(), vocab_size)
    try:
        return _load(files, read_manifest(files), verify=verify)
    except NoCacheError:
        raise UserError(
            f"there is no corpus cache in {folder} for a vocabulary of {vocab_size}: {files.manifest.name} is missing; "
            "give its sources, or the right --cache-dir"
        ) from None
    except DamagedCacheError as damaged:
        raise UserError(
            f"the corpus cache in {folder} is damaged: {damaged}; restore it, or give its sources to build it anew"
        ) from None
    except OSError as error:
        raise UserError(
            f"cannot read the corpus cache in {folder} ({error.strerror or error}): make it readable"
        ) from None


def uneven_split(manifest: dict[str, Any]) -> str:
    """What is to be said where a text of few documents is divided far from as was asked; empty where it is not.

    A document goes to its split whole, so that a text without separators gives a share by chance.
    """
    settings, tokens, documents = manifest["settings"], manifest["tokens"], manifest["documents"]
    asked, share = settings["validation_fraction"], tokens[VALIDATION] / (tokens[TRAIN] + tokens[VALIDATION])
    # A split that is full says nothing of what the text had for it.
    larger = share > MAX_UNEVEN * asked and tokens[TRAIN] < settings["train_tokens"]
    smaller = share * MAX_UNEVEN < asked and tokens[VALIDATION] < settings["validation_tokens"]
    if settings["kind"] != "files" or not (larger or smaller):
        return ""
    return (
        f"validation is {share:.0%} of the text, where {asked:.0%} was asked for, since documents are divided whole "
        f"and there are {documents[TRAIN] + documents[VALIDATION]}: give text of more documents, name what divides "
        "them (separator in a regime file), or write one a line as .jsonl"
    )


def available_cores() -> int:
    """Cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


@dataclass(frozen=True)
class _Origin:
    """Where the text comes from: files, or packages of known versions.

    ``stamp`` is cheap: for files their paths, sizes and times of change. ``identify`` reads them whole.
    """

    files: tuple[Path, ...]
    stamp: list[dict[str, Any]]

    @classmethod
    def of(cls, source: CorpusSource) -> _Origin:
        if source.kind == "pydocs":
            return cls((), pydocs.versions())
        files = tuple(source_files(source.globs))
        check_column(source, files)
        stats = [(file, file.stat()) for file in files]
        return cls(files, [{"path": str(f), "bytes": s.st_size, "mtime_ns": s.st_mtime_ns} for f, s in stats])

    def identify(self) -> list[dict[str, Any]]:
        """The stamp with the SHA-256 of each file, and the hub's record of it: what the manifest records.

        Raises:
            UserError: a file cannot be read, or is not the one that the record beside it is of.
        """
        if not self.files:
            return self.stamp
        identified = []
        for entry, file in zip(self.stamp, self.files, strict=True):
            record, sha256 = read_record(file), _source_hash(file)
            check_record(file, record, sha256)
            identified.append(entry | {"sha256": sha256} | ({"hub": record} if record else {}))
        return identified

    def unchanged_since(self, recorded: list[dict[str, Any]]) -> bool:
        """Whether these are the recorded sources: by their stamps, or else by their content."""
        if not self.files:
            return self.stamp == recorded
        if self.stamp == [{key: entry.get(key) for key in ("path", "bytes", "mtime_ns")} for entry in recorded]:
            return True
        if [entry["bytes"] for entry in self.stamp] != [entry.get("bytes") for entry in recorded]:
            return False
        return [_source_hash(file) for file in self.files] == [entry.get("sha256") for entry in recorded]


def _source_hash(file: Path) -> str:
    try:
        return file_hash(file)
    except OSError as error:
        raise UserError(
            f"cannot read {file} ({error.strerror or error}): check that it is whole and readable"
        ) from None


def _load(files: CacheFiles, manifest: dict[str, Any], *, verify: bool) -> Corpus:
    tokens, token_bytes = read_cache(files, manifest, verify=verify)
    return Corpus(
        folder=files.folder,
        tokens=tokens,
        n_train=manifest["tokens"][TRAIN],
        n_validation=manifest["tokens"][VALIDATION],
        token_bytes=token_bytes,
        corpus_hash=manifest["files"][files.tokens.name]["sha256"][:16],
        tokenizer_hash=manifest["files"][files.tokenizer.name]["sha256"][:16],
        manifest=manifest,
    )


def _load_unchanged(files: CacheFiles, settings: dict[str, Any], origin: _Origin) -> Corpus | None:
    """The cached corpus, or None if it has to be built: there is none, it is another one, or it is damaged."""
    try:
        manifest = read_manifest(files)
        if manifest["format"] != FORMAT or manifest["settings"] != settings:
            return None
        if not origin.unchanged_since(manifest["sources"]):
            return None
        return _load(files, manifest, verify=True)
    except NoCacheError:
        return None
    except DamagedCacheError as damaged:
        set_aside(damaged)
        return None


def _build(
    files: CacheFiles,
    source: CorpusSource,
    settings: dict[str, Any],
    origin: _Origin,
    n_workers: int,
    show_progress: bool,
) -> Corpus:
    sources = origin.identify()
    more: dict[str, Any] = {"settings": settings, "sources": sources}
    if source.form == "wikitext":
        more["wikitext_form"] = wikitext_form(read_documents(source, origin.files))
    with build_folder(files) as built:
        documents: Callable[[Callable[[str], bool]], Iterable[Document]]
        if source.kind == "pydocs":
            with progress_bar("Harvesting docstrings", show_progress) as report:
                harvested = pydocs.harvest(n_workers, report)
            more["split_rule"] = f"validation is the package {pydocs.HELD_OUT}; documents in the order of their hash"

            def documents(full: Callable[[str], bool]) -> Iterable[Document]:
                for doc in harvested:
                    split = VALIDATION if doc.package == pydocs.HELD_OUT else TRAIN
                    if not full(split):
                        yield Document(doc.text, split)
        else:
            more["split_rule"] = (
                f"validation if the 64-bit BLAKE2b of a document is below {source.validation_fraction} of its range"
            )

            def documents(full: Callable[[str], bool]) -> Iterable[Document]:
                return split_documents(read_documents(source, origin.files), source.validation_fraction, full)

        with progress_bar("Encoding the corpus", show_progress) as report:
            content = build_files(
                built,
                documents,
                train_tokens=settings["train_tokens"],
                validation_tokens=settings["validation_tokens"],
                n_workers=n_workers,
                report=report,
            )
        write_manifest(built, content | more)
        install(built, files)
    return _load(files, read_manifest(files), verify=False)


def _cannot_write(folder: Path, error: OSError) -> UserError:
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return UserError(f"the disk of {folder} is full: make space, or choose another place with --cache-dir")
    return UserError(
        f"cannot write the corpus cache {folder} ({error.strerror or error}): "
        "make it writable, or choose another with --cache-dir"
    )
