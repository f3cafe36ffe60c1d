from __future__ import annotations

from pathlib import Path

import pytest

from tune_dd.corpus import prepare_corpus
from tune_dd.corpus.wikitext import wikitext_form
from tune_dd.regimes import CorpusSource

TOKEN = "The ship , a 12 @-@ gun <unk> , was sold for 1 @,@ 200 pounds ."
RAW = "The ship , a 12 @-@ gun brig , was sold for 1 @,@ 200 pounds ."
PLAIN = "The ship, a 12-gun brig, was sold for 1,200 pounds."


@pytest.mark.parametrize(("text", "form"), [(TOKEN, "token"), (RAW, "raw"), (PLAIN, "plain")])
def test_each_form_is_known_by_its_marks(text: str, form: str) -> None:
    assert wikitext_form([text] * 5) == form
    assert wikitext_form([text] * 300) == form


def test_a_stray_mark_does_not_decide() -> None:
    assert wikitext_form([RAW] * 20 + [TOKEN]) == "raw"  # an article about language models may write <unk>
    assert wikitext_form([PLAIN] * 20 + [RAW]) == "plain"


@pytest.mark.parametrize(("text", "form"), [(TOKEN, "token"), (RAW, "raw"), (PLAIN, "plain")])
def test_the_form_is_in_the_manifest(tmp_path: Path, text: str, form: str) -> None:
    articles = [f" = Ship {n} = \n\n {text} It had {n} decks .\n" for n in range(200)]
    (tmp_path / "wiki.txt").write_text("\n".join(articles))
    settings = {"vocab_size": 280, "train_tokens": 5000, "validation_tokens": 500, "min_train_tokens": 1}
    source = CorpusSource(globs=(str(tmp_path / "wiki.txt"),), form="wikitext")
    corpus = prepare_corpus(source, **settings, cache_dir=tmp_path / "cache")
    assert corpus.manifest["wikitext_form"] == form
    plain = CorpusSource(globs=(str(tmp_path / "wiki.txt"),), separator="\n\n")
    assert "wikitext_form" not in prepare_corpus(plain, **settings, cache_dir=tmp_path / "b").manifest
