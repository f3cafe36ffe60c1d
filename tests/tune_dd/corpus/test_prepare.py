"""A corpus from sources to tokens: the split, the caps, the manifest, and when the cache is taken."""

from __future__ import annotations

import errno
import hashlib
import logging
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests_support import REPOSITORY, synthetic_text

from tune_dd.builtin_regimes import REGIMES
from tune_dd.corpus import Corpus, cache, load_corpus, prepare_corpus
from tune_dd.corpus.bigram import bigram_record
from tune_dd.corpus.build import split_documents
from tune_dd.corpus.prepare import uneven_split
from tune_dd.errors import UserError
from tune_dd.regimes import CorpusSource
from tune_dd.tokenizer import BOS, load_tokenizer

CORPORA = REPOSITORY.parent / "shared" / "corpora"
DOCUMENTS = synthetic_text(200).split("\n\n")


@pytest.fixture
def text(tmp_path: Path) -> Path:
    path = tmp_path / "text.txt"
    path.write_text("\n\n\n".join(DOCUMENTS))
    return path


def prepare(tmp_path: Path, *files: Path, source: dict[str, Any] | None = None, **changes: Any) -> Corpus:
    settings: dict[str, Any] = {
        "vocab_size": 300,
        "train_tokens": 10**9,
        "validation_tokens": 10**9,
        "min_train_tokens": 1000,
        "cache_dir": tmp_path / "cache",
        "n_workers": 2,
    }
    globs = tuple(str(f) for f in files)
    return prepare_corpus(CorpusSource(globs=globs, **(source or {})), **{**settings, **changes})


def documents_of(corpus: Corpus, split: np.ndarray[Any, Any]) -> list[str]:
    path = corpus.folder / f"tokenizer-v{len(corpus.token_bytes)}.json"
    tokenizer = load_tokenizer(path.read_text(encoding="utf-8"))
    return tokenizer.decode(split.tolist(), skip_special_tokens=False).split(BOS)[1:]


def test_every_document_is_on_one_side_in_source_order(tmp_path: Path, text: Path) -> None:
    corpus = prepare(tmp_path, text)
    train, validation = documents_of(corpus, corpus.train), documents_of(corpus, corpus.validation)
    assert sorted(train + validation) == sorted(DOCUMENTS)
    assert train == [d for d in DOCUMENTS if d in set(train)]
    assert validation == [d for d in DOCUMENTS if d in set(validation)]
    assert 8 <= len(validation) <= 35  # a tenth of 200, by hash
    assert corpus.tokens.dtype == np.uint16
    assert isinstance(corpus.tokens, np.memmap)
    assert not corpus.tokens.flags.writeable
    assert len(corpus.tokens) == corpus.n_train + corpus.n_validation
    assert len(corpus.token_bytes) == 300


def test_the_manifest_counts_what_is_there(tmp_path: Path, text: Path) -> None:
    corpus = prepare(tmp_path, text)
    manifest = corpus.manifest
    train = documents_of(corpus, corpus.train)
    assert manifest["documents"]["train"] == len(train)
    assert manifest["bytes"]["train"] == sum(len(d.encode()) for d in train) == corpus.token_bytes[corpus.train].sum()
    assert manifest["tokens"] == {"train": corpus.n_train, "validation": corpus.n_validation}
    assert manifest["sources"][0]["path"] == str(text)
    assert manifest["sources_read_to_the_end"] is True
    assert manifest["validation_overlap"] == 0.0
    assert manifest["bigram"] == bigram_record(corpus.train, corpus.validation, 300)
    assert 0.5 < manifest["bigram"]["val_loss"] < np.log(300)
    assert corpus.corpus_hash == manifest["files"]["tokens-v300-uint16.npy"]["sha256"][:16]
    assert {p.name for p in corpus.folder.iterdir()} == {
        "tokenizer-v300.json",
        "tokens-v300-uint16.npy",
        "manifest-v300.json",
        ".lock",
    }


def test_a_cache_that_a_running_search_reads_is_not_replaced(tmp_path: Path, text: Path) -> None:
    corpus = prepare(tmp_path, text)
    files = cache.CacheFiles(corpus.folder, 300)
    # Of processes that hold it: none that they start may hold on to it.
    program = (
        "import subprocess, sys, pathlib\nfrom tune_dd.corpus.cache import CacheFiles, held\n"
        f"with held(CacheFiles(pathlib.Path({str(corpus.folder)!r}), 300)):\n"
        "    child = subprocess.Popen(['sleep', '60'])\n"
        "    print(child.pid, flush=True)\n    sys.stdin.read()\n"
    )
    command = [sys.executable, "-c", program]
    search = subprocess.Popen(command, cwd=REPOSITORY, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert search.stdout is not None
    child = int(search.stdout.readline())
    try:
        with cache.held(files):
            assert prepare(tmp_path, text).corpus_hash == corpus.corpus_hash, "as it is it serves everybody"
            prepare(tmp_path, text, vocab_size=310)  # another one, in the same folder
        for changes in ({"train_tokens": 2000}, {"source": {"validation_fraction": 0.3}}):
            with pytest.raises(UserError, match=r"built anew .* a search that is running reads it: wait .*--cache-dir"):
                prepare(tmp_path, text, **changes)
        assert load_corpus(corpus.folder, 300).corpus_hash == corpus.corpus_hash
        search.kill()
        search.wait()
        assert prepare(tmp_path, text, train_tokens=2000).n_train == 2000
    finally:
        os.kill(child, signal.SIGKILL)
        search.kill()
        search.communicate()


def test_a_cache_that_is_being_replaced_is_not_read(tmp_path: Path, text: Path) -> None:
    files = cache.CacheFiles(prepare(tmp_path, text).folder, 300)
    refused = pytest.raises(UserError, match="is being replaced by another command")
    with cache.held(files, to_replace=True), refused, cache.held(files):
        pytest.fail("it was read")
    with cache.held(files), cache.held(files):
        pass


def test_where_there_are_no_locks_nothing_is_held(tmp_path: Path, text: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = cache.CacheFiles(prepare(tmp_path, text).folder, 300)

    def refuse(file: object, how: int) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(cache.fcntl, "flock", refuse)
    with cache.held(files), cache.held(files, to_replace=True):
        pass


def test_two_users_of_one_cache_exclude_each_other() -> None:
    """The lock is the other's and cannot be written, the folder can."""
    folder = Path(tempfile.mkdtemp(dir="/tmp"))  # where another user may look
    begin, told = os.pipe()
    try:
        folder.chmod(0o777)
        pid = os.fork()  # before the lock is held, which its child would hold too
        if pid == 0:
            try:
                signal.alarm(60)
                if os.getuid() == 0:
                    os.setgroups([])
                    os.setgid(65534)
                    os.setuid(65534)
                os.read(begin, 1)
                with cache.locked(folder):
                    os._exit(0)
            finally:
                os._exit(1)
        with cache.locked(folder):
            (folder / cache.LOCK).chmod(0o444)
            built = folder / f"{cache.BUILDING}1"
            built.mkdir(mode=0o777)
            os.write(told, b"x")
            time.sleep(0.3)
            assert os.waitpid(pid, os.WNOHANG) == (0, 0), "it did not wait"
            assert built.exists()
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    finally:
        shutil.rmtree(folder)
        os.close(begin)
        os.close(told)


def test_copies_are_dropped_and_counted(tmp_path: Path, text: Path) -> None:
    whole = prepare(tmp_path, text)
    copies = tmp_path / "copies.txt"
    copies.write_text("\n\n\n".join(DOCUMENTS[:50]))
    doubled = prepare(tmp_path, text, copies, cache_dir=tmp_path / "other")
    assert doubled.corpus_hash == whole.corpus_hash
    assert doubled.manifest["duplicates_dropped"] == 50


def test_the_split_of_a_document_does_not_depend_on_the_others() -> None:
    def validation(texts: list[str]) -> set[str]:
        return {d.text for d in split_documents(texts, 0.3, lambda split: False) if d.split == "validation"}

    assert validation(DOCUMENTS[:100]) | validation(DOCUMENTS[100:]) == validation(DOCUMENTS[::-1])


def test_caps_cut_each_split_exactly_and_end_the_reading(tmp_path: Path, text: Path) -> None:
    whole = prepare(tmp_path, text, train_tokens=3000)
    capped = prepare(tmp_path, text, train_tokens=3000, validation_tokens=500, cache_dir=tmp_path / "other")
    assert (capped.n_train, capped.n_validation) == (3000, 500)
    np.testing.assert_array_equal(capped.train, whole.train)
    np.testing.assert_array_equal(capped.validation, whole.validation[:500])
    assert capped.manifest["sources_read_to_the_end"] is False
    assert capped.manifest["bytes"]["train"] == capped.token_bytes[capped.train].sum()


@pytest.mark.parametrize("caps", [{}, {"train_tokens": 4000, "validation_tokens": 700}])
def test_the_files_do_not_depend_on_the_number_of_workers(
    tmp_path: Path, text: Path, monkeypatch: pytest.MonkeyPatch, caps: dict[str, int]
) -> None:
    monkeypatch.setattr("tune_dd.corpus.build.BATCH_CHARACTERS", 700)
    caches = []
    for workers in (1, 3):
        folder = tmp_path / f"cache{workers}"
        prepare(tmp_path, text, text, cache_dir=folder, n_workers=workers, **caps)
        caches.append({p.name: p.read_bytes() for p in folder.iterdir()})
    assert caches[0] == caches[1]


def test_an_unchanged_source_is_not_read_again(tmp_path: Path, text: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = prepare(tmp_path, text)
    monkeypatch.setattr("tune_dd.corpus.prepare.build_files", lambda *args, **kwargs: pytest.fail("built again"))
    assert prepare(tmp_path, text).corpus_hash == first.corpus_hash
    os.utime(text, (1, 1))  # touched but the same
    assert prepare(tmp_path, text).corpus_hash == first.corpus_hash
    moved = tmp_path / "moved.txt"
    shutil.copy(text, moved)
    assert prepare(tmp_path, moved).corpus_hash == first.corpus_hash


@pytest.mark.parametrize("length", ["same", "longer"])
def test_a_changed_source_is_built_anew(tmp_path: Path, text: Path, length: str) -> None:
    first = prepare(tmp_path, text)
    changed = text.read_text().replace("ka", "ku" if length == "same" else "kuku")
    text.write_text(changed)
    os.utime(text, (1, 1))
    second = prepare(tmp_path, text)
    assert second.corpus_hash != first.corpus_hash
    assert load_corpus(tmp_path / "cache", 300).corpus_hash == second.corpus_hash


@pytest.mark.parametrize(
    "change", [{"train_tokens": 2000}, {"validation_tokens": 300}, {"source": {"validation_fraction": 0.3}}]
)
def test_changed_settings_build_anew(tmp_path: Path, text: Path, change: dict[str, Any]) -> None:
    first = prepare(tmp_path, text)
    assert prepare(tmp_path, text, **change).corpus_hash != first.corpus_hash
    assert prepare(tmp_path, text).corpus_hash == first.corpus_hash


def test_two_vocabularies_share_a_folder(tmp_path: Path, text: Path) -> None:
    small, large = prepare(tmp_path, text), prepare(tmp_path, text, vocab_size=350)
    assert load_corpus(tmp_path / "cache", 300).corpus_hash == small.corpus_hash
    assert load_corpus(tmp_path / "cache", 350).corpus_hash == large.corpus_hash
    assert len(large.token_bytes) == 350


def test_the_cached_corpus_needs_no_source(tmp_path: Path, text: Path) -> None:
    first = prepare(tmp_path, text)
    text.unlink()
    assert prepare(tmp_path, text, use_cached=True).corpus_hash == first.corpus_hash
    with pytest.raises(UserError, match=r"no file .*text.txt"):
        prepare(tmp_path, text)
    with pytest.raises(UserError, match=r"no corpus cache in .* for a vocabulary of 400"):
        prepare(tmp_path, text, use_cached=True, vocab_size=400)
    with pytest.raises(UserError, match="no corpus cache in"):
        prepare(tmp_path, text, use_cached=True, cache_dir=tmp_path / "nowhere")
    assert not (tmp_path / "nowhere").exists()


@pytest.mark.parametrize("use_cached", [False, True])
def test_too_few_tokens_for_the_largest_prefix(tmp_path: Path, text: Path, use_cached: bool) -> None:
    corpus = prepare(tmp_path, text)
    message = f"the train split has {corpus.n_train:,} tokens, fewer than the largest prefix of 1,000,000: .*--prefixes"
    with pytest.raises(UserError, match=message):
        prepare(tmp_path, text, min_train_tokens=1_000_000, use_cached=use_cached)


@pytest.mark.parametrize(
    ("content", "changes", "message"),
    [
        ("", {}, "the corpus is empty"),
        (" \n\n\n\n ", {}, "the corpus is empty"),
        ("one document only, no separator " * 50, {}, "the corpus's 1 documents falls to the (train|validation) split"),
        ("caf\udce9", {}, "not UTF-8"),
        ("a b\n\n\nc d\n\n\n" * 3, {"vocab_size": 1000}, "supports a vocabulary of only"),
        ("x", {"vocab_size": 256}, "vocab_size 256 is outside 257"),
        ("x", {"vocab_size": 65_537}, "vocab_size 65537 is outside"),
    ],
)
def test_unfit_text_leaves_nothing_behind(tmp_path: Path, content: str, changes: dict[str, Any], message: str) -> None:
    path = tmp_path / "text.txt"
    path.write_text(content, errors="surrogateescape")
    changes = {"vocab_size": 257, **changes}
    with pytest.raises(UserError, match=message) as caught:
        prepare(tmp_path, path, **changes)
    assert "\n" not in str(caught.value)
    assert {p.name for p in tmp_path.glob("cache/*")} <= {".lock"}


def test_progress_is_drawn_on_a_terminal_only(tmp_path: Path, text: Path, capfd: pytest.CaptureFixture[str]) -> None:
    prepare(tmp_path, text, show_progress=True)
    assert capfd.readouterr() == ("", "")


def test_scales_that_differ_in_the_training_text_share_tokenizer_and_prefix(
    tmp_path: Path, text: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tune_dd.corpus.build.SAMPLE_CHARACTERS", 8_000)
    short, long = (
        prepare(tmp_path, text, train_tokens=n, validation_tokens=500, cache_dir=tmp_path / str(n))
        for n in (4_000, 7_000)
    )
    assert short.tokenizer_hash == long.tokenizer_hash
    assert short.corpus_hash != long.corpus_hash
    assert (short.n_train, long.n_train) == (4_000, 7_000)
    np.testing.assert_array_equal(short.train, long.train[:4_000])
    np.testing.assert_array_equal(short.validation, long.validation)


def test_neither_torch_nor_ray_is_loaded() -> None:
    code = "import sys, tune_dd.corpus, tune_dd.stream; print({'torch', 'ray', 'pyarrow'} & set(sys.modules))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "set()"


def test_nothing_is_logged_for_a_sound_cache(tmp_path: Path, text: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "tune_dd"):
        prepare(tmp_path, text)
        prepare(tmp_path, text)
    assert not caplog.records


@pytest.mark.skipif(not CORPORA.exists(), reason="no corpora beside the repository")
@pytest.mark.parametrize(
    ("regime", "folder"), [("tinystories", "tinystories"), ("wikitext103", "wikitext"), ("owt", "openwebtext")]
)
def test_real_text_at_pocket_scale_with_little_overlap(tmp_path: Path, regime: str, folder: str) -> None:
    form = REGIMES[regime].corpus.form
    pattern = CORPORA / folder / "*.parquet"
    corpus = prepare(
        tmp_path, pattern, source={"form": form}, vocab_size=512, train_tokens=300_000, validation_tokens=70_000
    )
    assert (corpus.n_train, corpus.n_validation) == (300_000, 70_000)
    assert corpus.manifest["validation_overlap"] < 0.01
    assert len(corpus.manifest["sources"]) == 4


def test_a_large_cache_is_compared_part_by_part(tmp_path: Path, text: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = prepare(tmp_path, text, cache_dir=tmp_path / "whole")
    monkeypatch.setattr(cache, "PART_BYTES", 1_000)
    corpus = prepare(tmp_path, text)
    assert corpus.corpus_hash == whole.corpus_hash
    recorded = corpus.manifest["files"]["tokens-v300-uint16.npy"]
    path = corpus.folder / "tokens-v300-uint16.npy"
    data = path.read_bytes()
    assert recorded["sha256"] == hashlib.sha256(data).hexdigest()
    starts = range(0, len(data), 1_000)
    assert recorded["parts"] == [hashlib.sha256(data[start : start + 1_000]).hexdigest() for start in starts]
    assert len(starts) > 3
    assert load_corpus(corpus.folder, 300).corpus_hash == corpus.corpus_hash
    for place in (*starts, len(data) - 1):
        path.write_bytes(data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :])
        with pytest.raises(UserError, match=r"tokens-v300-uint16\.npy does not match manifest-v300\.json"):
            load_corpus(corpus.folder, 300)


@pytest.mark.parametrize(("n_documents", "said"), [(1, True), (200, False)])
def test_a_text_that_is_divided_far_from_as_was_asked_is_warned_of(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, n_documents: int, said: bool
) -> None:
    """A long line without separators is cut into a few documents, of which some fall to validation whole."""
    words = " ".join(DOCUMENTS).replace("\n", " ")
    line = (words + " ") * (700_000 // len(words))
    documents = [line] if n_documents == 1 else [f"{number} {text}" for number, text in enumerate(DOCUMENTS)]
    path = tmp_path / "text.txt"
    path.write_text("\n\n\n".join(documents))
    with caplog.at_level(logging.WARNING, logger="tune_dd"):
        corpus = prepare(tmp_path, path, source={"validation_fraction": 0.2})
    count = sum(corpus.manifest["documents"].values())
    assert (count < 5) == said
    assert [f"there are {count}: give text of more documents" in r.getMessage() for r in caplog.records] == [
        True
    ] * said


@pytest.mark.parametrize(
    ("train", "validation", "said"),
    [(580, 420, "42%"), (1_000, 420, ""), (960, 40, "4%"), (900, 100, ""), (1_000, 5, "")],
)
def test_a_full_split_says_nothing_of_the_text_s_shares(train: int, validation: int, said: str) -> None:
    settings = {"kind": "files", "validation_fraction": 0.1, "train_tokens": 1_000, "validation_tokens": 500}
    if (train, validation) == (1_000, 5):
        settings["validation_tokens"] = 5
    counts = {"train": train, "validation": validation}
    manifest = {"settings": settings, "tokens": counts, "documents": {"train": 3, "validation": 1}}
    warning = uneven_split(manifest)
    assert (f"validation is {said} of the text, where 10% was asked for" in warning) if said else warning == ""


def test_a_column_of_plain_text_is_refused(tmp_path: Path, text: Path) -> None:
    with pytest.raises(UserError, match=r"the column 'body' is looked for in parquet and jsonl, .*leave --column"):
        prepare(tmp_path, text, source={"column": "body"})
    other = tmp_path / "b.jsonl"
    other.write_text('{"body": "some text of another kind"}\n')
    assert prepare(tmp_path, text, other, source={"column": "body"}).n_train > 1000
