"""Corpora: fetched from the hub or named by the user, split, tokenized once, and opened memory-mapped.

python -m tune_dd.corpus fetch owt       fetch a regime's text from the Hugging Face hub
python -m tune_dd.corpus list            what is there, of text and of caches
python -m tune_dd.corpus verify          hold it against what was recorded
python -m tune_dd.corpus build owt       tokenize it into the cache, without training
"""

from tune_dd.corpus.prepare import Corpus, load_corpus, prepare_corpus

__all__ = ["Corpus", "load_corpus", "prepare_corpus"]
