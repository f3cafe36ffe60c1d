"""From a stream of documents to a tokenizer and a file of tokens, in bounded memory.

Documents are held only until the tokenizer's sample is full; from then on they pass through: read, split by
hash, encoded on several threads, written. Every count depends on the documents alone and not on how far
reading was ahead of writing, so the same sources give the same three files on any number of cores.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import platform
import shutil
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from hashlib import blake2b
from importlib.metadata import version
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np
import numpy.typing as npt

from tune_dd.corpus import overlap
from tune_dd.corpus.bars import Report
from tune_dd.corpus.bigram import bigram_record
from tune_dd.corpus.cache import FORMAT, CacheFiles, file_record, manifest_checksum
from tune_dd.errors import UserError
from tune_dd.tokenizer import (
    bos_token,
    encode_documents,
    map_in_order,
    token_byte_counts,
    token_spellings,
    train_tokenizer,
)

TRAIN, VALIDATION = "train", "validation"
# Of training text that the tokenizer learns from, at most: twice the tokens of the full scale's train split, so
# that full and full-8m, which differ in that split, have one tokenizer.
SAMPLE_CHARACTERS = 10_000_000
BATCH_CHARACTERS = 200_000  # encoded by one thread at a time


class Document(NamedTuple):
    """A document and its split. An exact copy of an earlier one has no text: it is only counted."""

    text: str
    split: str
    is_copy: bool = False


@dataclass
class Split:
    """One side of the corpus while it is written."""

    limit: int
    file: IO[bytes]
    tokens: int = 0
    documents: int = 0
    bytes: int = 0
    duplicates: int = 0
    full: bool = False

    def write(self, document: Document, tokens: npt.NDArray[np.uint16], token_bytes: npt.NDArray[np.int64]) -> None:
        """Append a document, cut where the split is full, or count a copy; a no-op once the split is full."""
        if self.full:
            return
        if document.is_copy:
            self.duplicates += 1
            return
        tokens = tokens[: self.limit - self.tokens]
        self.file.write(tokens.astype("<u2").tobytes())
        self.tokens += len(tokens)
        self.documents += 1
        self.bytes += int(token_bytes[tokens].sum())
        self.full = self.tokens >= self.limit


def split_documents(
    texts: Iterable[str], validation_fraction: float, full: Callable[[str], bool]
) -> Iterator[Document]:
    """Give each text to a split by the hash of its content, and mark exact copies.

    A text and its copy have one hash and so one split: no document is on both sides. Ends when both splits
    are full; what a full split can no longer take is neither kept nor remembered.
    """
    seen: set[int] = set()
    boundary = int(validation_fraction * 2**64)
    for text in texts:
        if full(TRAIN) and full(VALIDATION):
            return
        key = int.from_bytes(blake2b(text.encode(), digest_size=8).digest(), "big")
        split = VALIDATION if key < boundary else TRAIN
        if full(split):
            continue
        yield Document("", split, is_copy=True) if key in seen else Document(text, split)
        seen.add(key)


def build_files(
    files: CacheFiles,
    documents: Callable[[Callable[[str], bool]], Iterable[Document]],
    *,
    train_tokens: int,
    validation_tokens: int,
    n_workers: int,
    report: Report,
) -> dict[str, Any]:
    """Write tokenizer and tokens into ``files`` and return what the manifest says of them.

    Args:
        documents: given a function that says whether a split is full, the documents in order.
        train_tokens, validation_tokens: where each split is cut.
        n_workers: threads that encode.

    Raises:
        UserError: there is no document, or none for one of the splits, or too little text for the vocabulary.
    """
    parts = {name: files.folder / f"{name}.tokens" for name in (TRAIN, VALIDATION)}
    with open(parts[TRAIN], "wb") as train_file, open(parts[VALIDATION], "wb") as validation_file:
        splits = {TRAIN: Split(train_tokens, train_file), VALIDATION: Split(validation_tokens, validation_file)}
        stream = iter(documents(lambda name: splits[name].full))
        sample = _sample(stream, min(SAMPLE_CHARACTERS, 2 * train_tokens))
        tokenizer = train_tokenizer((d.text for d in sample if d.split == TRAIN), files.vocab_size)
        tokenizer_json = tokenizer.to_str(pretty=False)
        token_bytes = token_byte_counts(tokenizer_json)
        bos = bos_token(tokenizer)
        batches = _batches(itertools.chain(_drain(sample), stream))

        def encode(batch: list[Document]) -> list[tuple[Document, npt.NDArray[np.uint16]]]:
            return list(zip(batch, encode_documents(tokenizer, [d.text for d in batch]), strict=True))

        with contextlib.closing(map_in_order(encode, batches, n_workers)) as encoded:
            for pairs in encoded:
                for document, tokens in pairs:
                    splits[document.split].write(document, tokens, token_bytes)
                report(sum(s.tokens for s in splits.values()), train_tokens + validation_tokens)
                if all(s.full for s in splits.values()):
                    break
    for name, split in splits.items():
        if not split.documents:
            n_documents = sum(s.documents for s in splits.values())
            raise UserError(
                f"none of the corpus's {n_documents} documents falls to the {name} split, which goes by their hash: "
                "give more documents, or divide them by another separator"
            )
    share = overlap.overlap_share(
        overlap.read_pieces(parts[TRAIN], bos),
        overlap.read_pieces(parts[VALIDATION], bos),
        token_spellings(tokenizer_json),
        bos,
        n_workers,
    )
    _write(files.tokenizer, tokenizer_json.encode())
    _write_tokens(files.tokens, [parts[TRAIN], parts[VALIDATION]], sum(s.tokens for s in splits.values()))
    train, validation = np.split(np.load(files.tokens, mmap_mode="r"), [splits[TRAIN].tokens])
    return {
        **{key: {n: getattr(s, key) for n, s in splits.items()} for key in ("tokens", "documents", "bytes")},
        "duplicates_dropped": sum(s.duplicates for s in splits.values()),
        "sources_read_to_the_end": not all(s.full for s in splits.values()),
        "validation_overlap": share,
        "validation_overlap_measure": overlap.DESCRIPTION,
        "bigram": bigram_record(train, validation, files.vocab_size),
    }


def write_manifest(files: CacheFiles, content: dict[str, Any]) -> None:
    """Complete a manifest with versions and hashes and write it."""
    manifest = {
        "format": FORMAT,
        **content,
        "versions": {
            "python": platform.python_version(),
            **{name: version(name) for name in ("tokenizers", "numpy", "pyarrow")},
        },
        "files": {file.name: file_record(file) for file in (files.tokenizer, files.tokens)},
    }
    manifest["checksum"] = manifest_checksum(manifest)
    _write(files.manifest, (json.dumps(manifest, indent=2, sort_keys=True) + "\n").encode())


def _sample(stream: Iterator[Document], limit: int) -> list[Document]:
    """Documents until their training text has ``limit`` characters, and of both splits at most four times that."""
    held: list[Document] = []
    train = both = 0
    for document in stream:
        held.append(document)
        both += len(document.text)
        train += len(document.text) * (document.split == TRAIN)
        if train >= limit or both >= 4 * limit:
            break
    if not held:
        raise UserError("the corpus is empty: it holds no document with text in it; name another with --corpus-glob")
    return held


def _drain(held: list[Document]) -> Iterator[Document]:
    """Yield and let go."""
    held.reverse()
    while held:
        yield held.pop()


def _batches(documents: Iterable[Document]) -> Iterator[list[Document]]:
    batch: list[Document] = []
    size = 0
    for document in documents:
        batch.append(document)
        size += len(document.text)
        if size >= BATCH_CHARACTERS:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def _write(path: Path, data: bytes) -> None:
    with open(path, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def _write_tokens(path: Path, parts: list[Path], n_tokens: int) -> None:
    """Join raw little-endian parts to one .npy file."""
    with open(path, "wb") as file:
        np.lib.format.write_array_header_1_0(file, {"descr": "<u2", "fortran_order": False, "shape": (n_tokens,)})
        for part in parts:
            with open(part, "rb") as raw:
                shutil.copyfileobj(raw, file, 1 << 20)
            part.unlink()
        file.flush()
        os.fsync(file.fileno())
