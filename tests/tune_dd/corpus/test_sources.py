"""Documents come out of every kind of file as they went in, and unfit files are refused by name."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests_support import REPOSITORY

from tune_dd.corpus import sources
from tune_dd.corpus.sources import cut_document, join_articles, read_documents, source_files
from tune_dd.errors import UserError
from tune_dd.regimes import CorpusSource

CORPORA = REPOSITORY.parent / "shared" / "corpora"
DOCUMENTS = ["One day\na cat.", "Zweiter Käfer 🪲", "third\n\nwith a gap"]


def read(*paths: Path, column: str = "text", form: str = "plain", separator: str = "\n\n\n") -> list[str]:
    return list(read_documents(CorpusSource(column=column, form=form, separator=separator), paths))


def compress(path: Path, data: bytes) -> Path:
    """Write ``data`` as the last suffix of ``path`` says."""
    if path.suffix == ".gz":
        path.write_bytes(gzip.compress(data))
    elif path.suffix == ".zst":
        with pa.output_stream(str(path), compression="zstd") as stream:
            stream.write(data)
    else:
        path.write_bytes(data)
    return path


@pytest.mark.parametrize("name", ["a.txt", "a.txt.gz", "a.txt.zst", "a.TXT"])
@pytest.mark.parametrize("line_end", ["\n", "\r\n"])
def test_text_is_divided_at_its_separator(tmp_path: Path, name: str, line_end: str) -> None:
    text = "\n\n\n".join([*DOCUMENTS, "  \n ", ""]).replace("\n", line_end)
    assert read(compress(tmp_path / name, b"\xef\xbb\xbf" + text.encode())) == DOCUMENTS
    other = "<|endoftext|>".join(DOCUMENTS)
    assert read(compress(tmp_path / name, other.encode()), separator="<|endoftext|>") == DOCUMENTS


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz", "a.jsonl.zst"])
def test_json_lines_by_key(tmp_path: Path, name: str) -> None:
    lines = [json.dumps({"id": i, "story": text}) for i, text in enumerate(DOCUMENTS)]
    data = "\n".join([*lines, "", '{"story": null}', '{"story": "a\u2028b"}']).encode()
    assert read(compress(tmp_path / name, data), column="story") == [*DOCUMENTS, "a\u2028b"]


@pytest.mark.parametrize("kind", [pa.string(), pa.large_string(), pa.dictionary(pa.int32(), pa.string())])
def test_parquet_by_column(tmp_path: Path, kind: pa.DataType) -> None:
    table = pa.table({"n": [1, 2, 3, 4], "body": pa.array([*DOCUMENTS, None], type=kind)})
    pq.write_table(table, tmp_path / "a.parquet", row_group_size=2)
    assert read(tmp_path / "a.parquet", column="body") == DOCUMENTS


def test_several_members_in_one_compressed_file(tmp_path: Path) -> None:
    (tmp_path / "a.txt.gz").write_bytes(gzip.compress(b"one\n\n\n") + gzip.compress(b"two"))
    assert read(tmp_path / "a.txt.gz") == ["one", "two"]


def test_files_come_in_the_order_given_each_pattern_sorted_and_none_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("b.txt", "a.txt", "z.jsonl", "notes.md"):
        (tmp_path / name).write_text("x")
    monkeypatch.chdir(tmp_path)
    assert [f.name for f in source_files(["z.jsonl", "*.txt", str(tmp_path / "b.txt")])] == [
        "z.jsonl",
        "a.txt",
        "b.txt",
    ]
    assert [f.name for f in source_files([str(tmp_path)])] == ["a.txt", "b.txt", "z.jsonl"]
    (tmp_path / "odd[1].txt").write_text("x")
    assert [f.name for f in source_files(["odd[1].txt"])] == ["odd[1].txt"]


@pytest.mark.parametrize(
    ("pattern", "message"),
    [
        ("none/*.parquet", "no file matches none/.*--corpus-glob.*--quick"),
        ("gone.txt", "there is no file gone.txt"),
        ("notes.md", "notes.md: this kind of file is not supported: give .parquet, .txt"),
        ("empty", "no text in empty"),
    ],
)
def test_unfit_names_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pattern: str, message: str) -> None:
    (tmp_path / "notes.md").write_text("x")
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=message):
        source_files([pattern])


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("a.txt", b"caf\xe9 au lait", r"a.txt is not UTF-8 text \(byte 0xe9\).*iconv"),
        ("a.txt", "text".encode("utf-16"), "first bytes are those of UTF-16: convert it with iconv -f utf-16 -t utf-8"),
        ("a.txt", b"\xfe\xff" + "text".encode("utf-16-be"), "iconv -f utf-16 -t utf-8"),
        ("a.txt", "text".encode("utf-32"), "iconv -f utf-32 -t utf-8"),
        ("a.txt.gz", gzip.compress("text".encode("utf-16")), "iconv -f utf-16 -t utf-8"),
        ("a.jsonl", '{"text": "a"}'.encode("utf-16"), "line 1 is not UTF-8: its first bytes are those of UTF-16"),
        ("a.txt", b"\x89PNG\r\n\x1a\n\x00\x00", "a.txt is not UTF-8"),
        ("a.txt", b"MZ\x00\x01 text", "a.txt is binary"),
        ("a.txt.gz", b"plain text", "a.txt.gz is damaged"),
        ("a.txt.gz", gzip.compress(b"text" * 1000, mtime=0)[:-9], "a.txt.gz is damaged"),
        ("a.txt.zst", b"plain text", "cannot read .*a.txt.zst"),
        ("a.jsonl", b'{"text": "a"}\n{"text": \n', "a.jsonl, line 2 is not JSON"),
        (
            "a.jsonl",
            b'{"text": "a"}\n{"body": "b", "id": 1}',
            r"line 2 has no key 'text' \(it has body, id\).*--column",
        ),
        ("a.jsonl", b'{"text": "a"}\n\n{"text": 3}', "line 3 is not an object whose 'text' is text"),
        ("a.jsonl", b'["text"]', "line 1 is not an object"),
        ("a.jsonl", b'{"text": "a"}\n{"text": "\xe9"}', "line 2 is not UTF-8"),
        ("a.jsonl", b'{"text": "\\ud83d"}', "line 1 holds half a surrogate pair"),
        ("a.jsonl", b"[" * 200_000, "line 1 is not JSON"),
        ("a.parquet", b"", "a.parquet is not a whole parquet file"),
        ("a.parquet", b"PAR1 nonsense PAR1", "a.parquet is not a whole parquet file"),
    ],
)
def test_unfit_files_are_refused_by_name(tmp_path: Path, name: str, data: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(data)
    with pytest.raises(UserError, match=message) as caught:
        read(tmp_path / name)
    assert "\n" not in str(caught.value)


def test_parquet_without_the_text_is_refused_with_the_columns_it_has(tmp_path: Path) -> None:
    pq.write_table(pa.table({"id": [1], "body": ["x"]}), tmp_path / "a.parquet")
    with pytest.raises(
        UserError, match=r"no column 'text' \(it has id, body\): name the one with the text by --column"
    ):
        read(tmp_path / "a.parquet")
    with pytest.raises(UserError, match=r"column 'id' holds int64, not text"):
        read(tmp_path / "a.parquet", column="id")


def test_parquet_damaged_in_its_middle_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"text": [f"story {i} " * 50 for i in range(2000)]}), path, compression="zstd")
    data = bytearray(path.read_bytes())
    data[200:400] = bytes(200)
    path.write_bytes(data)
    with pytest.raises(UserError, match=r"not a whole parquet file|is not UTF-8"):
        read(path)


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    (tmp_path / "folder.txt").mkdir()
    with pytest.raises(UserError, match=r"cannot read .*folder.txt"):
        read(tmp_path / "folder.txt")
    with pytest.raises(UserError, match=r"cannot read .*gone.parquet"):
        read(tmp_path / "gone.parquet")


@given(text=st.text(alphabet="ab \n", max_size=60), limit=st.integers(1, 12))
@settings(deadline=None)
def test_cut_pieces_join_to_the_text(text: str, limit: int) -> None:
    pieces = list(cut_document(text, limit))
    assert "".join(pieces) == text
    assert all(0 < len(piece) <= limit for piece in pieces[:-1])
    assert len(pieces[-1]) <= limit


def test_text_without_a_separator_is_read_in_pieces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources, "CHUNK", 50)
    monkeypatch.setattr(sources, "MAX_DOCUMENT", 100)
    monkeypatch.setattr(cut_document, "__defaults__", (100,))
    words = " ".join(str(i) for i in range(1000))
    (tmp_path / "a.txt").write_text(words + "\n\n\nend")
    documents = read(tmp_path / "a.txt")
    assert max(map(len, documents)) <= 100
    assert documents[-1] == "end"
    assert "".join(documents[:-1]) == words


@given(texts=st.lists(st.text(alphabet="ab-\n", max_size=9), max_size=8), chunk=st.integers(1, 5))
@settings(deadline=None, max_examples=50)
def test_a_separator_across_pieces_is_found(
    tmp_path_factory: pytest.TempPathFactory, texts: list[str], chunk: int
) -> None:
    path = tmp_path_factory.mktemp("text") / "a.txt"
    whole = "-=-".join(texts)
    path.write_text(whole)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sources, "CHUNK", chunk)
        expected = [t.strip("\n") for t in whole.split("-=-")]
        assert read(path, separator="-=-") == [t for t in expected if t.strip()]


WIKI_LINES = [
    "",
    " = Valkyria Chronicles = \n",
    "",
    " It is a game . \n",
    "",
    " = = Gameplay = = \n",
    "",
    " It is played so : \n",
    " = 5 is not a heading after text = \n",
    " = = = Deep = = = \n",
    "",
    " = Tower ( Arkansas ) = \n",
    "",
    " It is a tower . \n",
]


def test_wikitext_lines_are_joined_into_articles(tmp_path: Path) -> None:
    articles = list(join_articles(WIKI_LINES))
    assert [a.splitlines()[0] for a in articles] == ["= Valkyria Chronicles = ", "= Tower ( Arkansas ) = "]
    assert "Gameplay" in articles[0]
    assert "5 is not a heading" in articles[0]
    pq.write_table(pa.table({"text": WIKI_LINES}), tmp_path / "wiki.parquet")
    (tmp_path / "wiki.txt").write_text("\n".join(line.removesuffix("\n") for line in WIKI_LINES))
    assert read(tmp_path / "wiki.parquet", form="wikitext") == articles
    assert read(tmp_path / "wiki.txt", form="wikitext") == articles


def test_text_before_the_first_heading_is_kept() -> None:
    assert list(join_articles([" the end of an article . \n", "", " = Next = \n"])) == [
        "the end of an article .",
        "= Next =",
    ]


@pytest.mark.skipif(not CORPORA.exists(), reason="no corpora beside the repository")
def test_whole_articles_come_through_unchanged() -> None:
    path = CORPORA / "wikitext" / "shard_00000.parquet"
    rows = pq.read_table(path)["text"].to_pylist()
    assert read(path, form="wikitext") == rows
