"""Find the passages of a pool that are closest to a query by BM25, without torch."""

from __future__ import annotations

import re
import sys
import unicodedata
from array import array
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from reranker_ft.errors import ArgumentError
from reranker_ft.progress import on_terminal, progress_bar


@contextmanager
def _no_jax() -> Iterator[None]:
    """Imports inside find no JAX, unless something has imported it already."""
    if "jax" in sys.modules:
        yield
        return
    sys.modules["jax"] = None  # type: ignore[assignment]
    try:
        yield
    finally:
        del sys.modules["jax"]


# Where there is a JAX, bm25s calls it at its import, and JAX takes three quarters of a GPU's memory
# at its first call. This module has no use for it.
with _no_jax():
    import bm25s

Ranking = NDArray[np.int64]

# Scripts that put no space between words: kana, Han, and those from Thai to Khmer.
_UNSPACED = (
    "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff"
    "\uf900-\ufaff\U00020000-\U0003134f"
)
_RUNS = re.compile(rf"([{_UNSPACED}]+)|([^\W_{_UNSPACED}]+)")


def lexical_tokens(text: str) -> list[str]:
    """Return lower-cased words, and overlapping character pairs of scripts without spaces.

    Full-width and other compatibility forms count as the plain ones (NFKC).

    Character pairs serve Chinese retrieval about as well as a segmenter does (Nie et al., "On the
    use of words and n-grams for Chinese information retrieval", 2000) and need no dictionary.

    >>> lexical_tokens("GPU加速 of BM25")
    ['gpu', '加速', 'of', 'bm25']
    >>> lexical_tokens("大熊猫")
    ['大熊', '熊猫']
    """
    tokens: list[str] = []
    for unspaced, word in _RUNS.findall(unicodedata.normalize("NFKC", text).lower()):
        if word:
            tokens.append(word)
        elif len(unspaced) == 1:
            tokens.append(unspaced)
        else:
            tokens += [unspaced[i : i + 2] for i in range(len(unspaced) - 1)]
    return tokens


class Retriever(Protocol):
    """Ranks a fixed pool of passages."""

    def search(self, queries: Sequence[str], top_k: int) -> Iterator[Ranking]:
        """Yield for each query at most ``top_k`` indices into the pool, best first."""


RetrieverFactory = Callable[[Sequence[str]], Retriever]


class BM25:
    """BM25 (Lucene's variant, k1 = 1.5, b = 0.75) by bm25s, over ``lexical_tokens``.

    Holds the postings of the pool, about 8 bytes for each distinct word of each passage, and the
    scores of one query at a time. Passages that share no word with the query are never returned.

    Args:
        pool: Passages.
        progress: Show progress bars.

    Raises:
        ArgumentError: The pool has no word.
    """

    def __init__(self, pool: Sequence[str], *, progress: bool = False) -> None:
        self._vocabulary: dict[str, int] = {}
        number = self._vocabulary.setdefault
        # An array takes 4 bytes a word, a list of strings about 60.
        numbered = []
        with progress_bar(len(pool), "reading words", unit="passages", shown=progress) as bar:
            for text in pool:
                tokens = lexical_tokens(text)
                numbered.append(array("i", (number(t, len(self._vocabulary)) for t in tokens)))
                bar.update()
        if not self._vocabulary:
            raise ArgumentError(
                f"none of the {len(pool)} candidate passages has a word - BM25 compares words - "
                "check the pool, or mine with an encoder (--embedder_name_or_path)"
            )
        self._index = bm25s.BM25(backend="numpy")
        self._index.index((numbered, self._vocabulary), show_progress=progress and on_terminal())
        self._progress = progress

    def search(self, queries: Sequence[str], top_k: int) -> Iterator[Ranking]:
        """As ``Retriever.search``."""
        words = self._vocabulary
        with progress_bar(len(queries), "searching", unit="queries", shown=self._progress) as bar:
            for query in queries:
                known = [words[token] for token in lexical_tokens(query) if token in words]
                yield _best(self._index.get_scores_from_ids(known), top_k)
                bar.update()


def _best(scores: NDArray[np.float32], top_k: int) -> Ranking:
    """Return indices of the ``top_k`` greatest scores above 0, greatest first."""
    found = np.flatnonzero(scores > 0)
    if len(found) > top_k:
        found = found[np.argpartition(-scores[found], top_k - 1)[:top_k]]
    return found[np.lexsort((found, -scores[found]))]
