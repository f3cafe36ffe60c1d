"""WikiText comes in several forms, which are different texts to a tokenizer.

All forms of the data set divide words from punctuation by blanks and write `` @-@ ``, `` @,@ ``, `` @.@ ``
inside compounds and numbers. In the *token* form rare words are ``<unk>`` besides; the *raw* form (whose
configurations are called raw-v1) spells them. A text with neither mark was put back into *plain* prose.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable

FORMS = ("token", "raw", "plain")
_DOCUMENTS = 100  # looked at
_SHARE = 0.1  # of them that must hold a mark; in the token form nearly every article holds both


def wikitext_form(documents: Iterable[str]) -> str:
    """``token``, ``raw`` or ``plain``, by the first hundred documents."""
    looked_at = list(itertools.islice(documents, _DOCUMENTS))
    for form, marks in (("token", ("<unk>",)), ("raw", (" @-@ ", " @,@ ", " @.@ "))):
        if sum(any(mark in text for mark in marks) for text in looked_at) > _SHARE * len(looked_at):
            return form
    return "plain"
