"""Documents out of files: parquet, .txt, .jsonl, and .gz or .zst of the last two, streamed.

Nothing here holds more than a few megabytes of text: files are read in pieces, parquet by batches of rows,
and a document longer than ``MAX_DOCUMENT`` is cut into several.
"""

from __future__ import annotations

import glob
import gzip
import json
import re
import zlib
from collections.abc import Iterable, Iterator
from io import BufferedReader, TextIOWrapper
from pathlib import Path
from typing import Any, cast

from tune_dd.errors import UserError
from tune_dd.regimes import CorpusSource

RECORD = "SOURCE.json"  # beside a fetched file: where it came from
MAX_DOCUMENT = 1 << 18  # characters; a thread that encodes a longer one at once takes some hundred megabytes
MAX_LINE = 1 << 26  # bytes of one line of .jsonl; a longer one is a file of another kind
CHUNK = 1 << 20  # characters read at once
ROWS = 256  # rows of parquet decoded at once

TEXT_SUFFIXES = (".txt", ".jsonl")
COMPRESSED_SUFFIXES = (".gz", ".zst")
SUPPORTED = ".parquet, .txt, .jsonl, and .gz or .zst of the last two"

# " = Title = " begins an article of WikiText; " = = Section = = " does not.
_HEADING = re.compile(r" ?= (?!=)[^\n]*(?<!=) = ?(?=\n|$)")


def source_files(globs: Iterable[str]) -> list[Path]:
    """The files that paths, folders and patterns name: as given, each pattern's matches sorted, none twice.

    Raises:
        UserError: a pattern matches no file, a path does not exist, or a file's kind is not supported.
    """
    found: dict[Path, None] = {}
    for pattern in globs:
        path = Path(pattern).expanduser()
        if path.is_dir():
            matches = sorted(p for p in path.iterdir() if p.is_file() and _kind(p))
        elif path.exists():
            matches = [path]
        else:
            found_paths = map(Path, glob.glob(str(path), recursive=True))  # noqa: PTH207
            matches = sorted(p for p in found_paths if p.is_file() and p.name != RECORD)
        if not matches:
            what = (
                "no file matches" if glob.has_magic(pattern) else "no text in" if path.is_dir() else "there is no file"
            )
            raise UserError(
                f"{what} {pattern}: name your text with --corpus-glob, or rehearse on the embedded corpus with --quick"
            )
        for match in matches:
            if not _kind(match):
                raise UserError(f"{match}: this kind of file is not supported: give {SUPPORTED}")
            found[match.absolute()] = None
    if not found:
        raise UserError("the corpus names no file: name your text with --corpus-glob")
    return list(found)


def read_documents(source: CorpusSource, files: Iterable[Path]) -> Iterator[str]:
    """Yield the documents of ``files`` in order; blank ones are left out and long ones cut.

    Raises:
        UserError: naming the file (and line) that is missing, damaged, binary, not UTF-8, or without the column.
    """
    for path in files:
        try:
            yield from _documents_of(path, source)
        except UnicodeDecodeError as error:
            byte = error.object[error.start]
            raise UserError(f"{path} is not UTF-8 text (byte {byte:#04x}): {_conversion(path)}") from None
        except (EOFError, zlib.error, gzip.BadGzipFile) as error:
            raise UserError(f"{path} is damaged ({error}): fetch or write it again") from None
        except OSError as error:
            raise UserError(
                f"cannot read {path} ({error.strerror or error}): check that it is whole and readable"
            ) from None


def check_column(source: CorpusSource, files: Iterable[Path]) -> None:
    """Raises UserError: a column is named, and no file has columns."""
    if source.column != CorpusSource.column and all(_kind(path) == ".txt" for path in files):
        raise UserError(
            f"the column {source.column!r} is looked for in parquet and jsonl, and the corpus has none of them: leave "
            "--column (in a regime file: column) out, or name other files"
        )


def _conversion(path: Path) -> str:
    """What makes UTF-8 of a text in another encoding, by its byte-order mark where it has one."""
    with _open(path) as file:
        start = file.read(4)
    for name in ("utf-32", "utf-16"):  # a mark of UTF-32 begins as one of UTF-16 does
        if any(start.startswith("\ufeff".encode(f"{name}-{order}")) for order in ("le", "be")):
            return f"its first bytes are those of {name.upper()}: convert it with iconv -f {name} -t utf-8"
    return "convert it, for example with iconv -f latin1 -t utf-8"


def _documents_of(path: Path, source: CorpusSource) -> Iterator[str]:
    kind = _kind(path)
    rows: Iterator[str]
    if kind == ".parquet":
        rows = _parquet_rows(path, source.column)
    elif kind == ".jsonl":
        rows = _jsonl_rows(path, source.column)
    elif source.form == "wikitext":
        rows = _lines(path)
    else:
        rows = _split_text(path, source.separator)
    if source.form == "wikitext":
        rows = join_articles(rows)
    for row in rows:
        for piece in cut_document(row):
            if piece and not piece.isspace():
                yield piece


def cut_document(text: str, limit: int = MAX_DOCUMENT) -> Iterator[str]:
    """Pieces of at most ``limit`` characters that join to ``text``, cut after a line or a word where possible."""
    start = 0
    while len(text) - start > limit:
        end = start + limit
        for mark in ("\n", " "):
            at = text.rfind(mark, start + limit // 2, end)
            if at >= 0:
                end = at + 1
                break
        yield text[start:end]
        start = end
    yield text[start:] if start else text


def join_articles(rows: Iterable[str]) -> Iterator[str]:
    """WikiText's rows, one line each, joined into articles; a row that is a whole article comes through unchanged.

    An article begins at a line `` = Title = `` after a blank line, or at a row that begins with one and holds
    more lines.
    """
    article: list[str] = []
    size = 0
    after_blank = True
    for row in rows:
        line = row.removesuffix("\n")
        begins = _HEADING.match(line) is not None and (after_blank or "\n" in line)
        # A text with no headings at all must not gather in memory either.
        if article and (begins or size > MAX_DOCUMENT):
            yield from _joined(article)
            article, size = [], 0
        article.append(line)
        size += len(line) + 1
        after_blank = not line.strip()
    yield from _joined(article)


def _joined(rows: list[str]) -> Iterator[str]:
    if article := "\n".join(rows).strip():
        yield article


def _kind(path: Path) -> str | None:
    """The suffix that says how to read ``path``, without .gz or .zst; None if it is not supported."""
    suffixes = [suffix.lower() for suffix in path.suffixes[-2:]]
    if suffixes[-1:] == [".parquet"]:
        return ".parquet"
    if suffixes and suffixes[-1] in COMPRESSED_SUFFIXES:
        suffixes.pop()
    return suffixes[-1] if suffixes and suffixes[-1] in TEXT_SUFFIXES else None


def _open(path: Path) -> BufferedReader:
    if path.suffix.lower() == ".gz":
        return cast(BufferedReader, gzip.open(path, "rb"))
    if path.suffix.lower() == ".zst":
        import pyarrow

        return BufferedReader(pyarrow.input_stream(str(path), compression="zstd"), CHUNK)
    return open(path, "rb")


def _text_chunks(path: Path) -> Iterator[str]:
    r"""Text in pieces, line ends as ``\n``, a byte-order mark left out."""
    with _open(path) as raw, TextIOWrapper(raw, encoding="utf-8-sig", newline=None) as file:
        while chunk := file.read(CHUNK):
            if "\0" in chunk:
                raise UserError(f"{path} is binary (it holds NUL bytes): give plain text, or one of {SUPPORTED}")
            yield chunk


def _split_text(path: Path, separator: str) -> Iterator[str]:
    rest = ""
    for chunk in _text_chunks(path):
        *whole, rest = (rest + chunk).split(separator)
        for document in whole:
            yield document.strip("\n")
        if len(rest) > MAX_DOCUMENT:
            # Keep the tail: a separator may have begun in it.
            *pieces, rest = cut_document(rest)
            yield from pieces
    yield rest.strip("\n")


def _lines(path: Path) -> Iterator[str]:
    rest = ""
    for chunk in _text_chunks(path):
        *whole, rest = (rest + chunk).split("\n")
        yield from whole
        if len(rest) > MAX_DOCUMENT:
            yield rest
            rest = ""
    yield rest


def _jsonl_rows(path: Path, key: str) -> Iterator[str]:
    with _open(path) as file:
        number = 0
        while line := file.readline(MAX_LINE):
            number += 1
            where = f"{path}, line {number}"
            if len(line) == MAX_LINE:
                raise UserError(f"{where} is longer than {MAX_LINE >> 20} MiB: give one JSON object per line")
            if not line.strip():
                continue
            try:
                value = json.loads(line.decode("utf-8-sig" if number == 1 else "utf-8"))
                text = value[key]
                if text is None:
                    continue
                text.encode()
            except UnicodeDecodeError:
                raise UserError(f"{where} is not UTF-8: {_conversion(path)}") from None
            except UnicodeEncodeError:
                raise UserError(f"{where} holds half a surrogate pair: mend or delete that line") from None
            except (json.JSONDecodeError, RecursionError):
                raise UserError(f"{where} is not JSON: mend or delete that line") from None
            except KeyError:
                raise UserError(
                    f"{where} has no key {key!r} (it has {_names(value)}): name the one with the text by --column"
                ) from None
            except (TypeError, AttributeError, IndexError):
                raise UserError(
                    f"{where} is not an object whose {key!r} is text: mend it or name another key by --column"
                ) from None
            yield text


def _parquet_rows(path: Path, column: str) -> Iterator[str]:
    import pyarrow
    import pyarrow.parquet

    try:
        with pyarrow.parquet.ParquetFile(path, pre_buffer=False, buffer_size=CHUNK) as file:
            schema = file.schema_arrow
            if column not in schema.names:
                raise UserError(
                    f"{path} has no column {column!r} (it has {_names(schema.names)}): "
                    "name the one with the text by --column"
                )
            kind = schema.field(column).type
            if not _is_text(kind):
                raise UserError(
                    f"{path}: column {column!r} holds {kind}, not text (columns: {_names(schema.names)}): "
                    "name another by --column"
                )
            for batch in file.iter_batches(batch_size=ROWS, columns=[column], use_threads=False):
                for text in batch.column(0).to_pylist():
                    if text is not None:
                        yield text
    except (pyarrow.ArrowException, OSError) as error:
        if isinstance(error, (PermissionError, FileNotFoundError)):
            raise
        reason = str(error).splitlines()[0]
        raise UserError(f"{path} is not a whole parquet file ({reason}): fetch or write it again") from None


def _is_text(kind: Any) -> bool:
    import pyarrow.types as types

    if types.is_dictionary(kind):
        kind = kind.value_type
    return bool(types.is_string(kind) or types.is_large_string(kind))


def _names(names: Iterable[Any]) -> str:
    shown = [str(name) for name in names]
    return ", ".join(shown[:12]) + (", ..." if len(shown) > 12 else "")
