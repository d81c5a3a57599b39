"""Counts the words of a text that say something. The C extension does the counting, a data file lists the rest."""

from importlib.resources import files

from tally._fast import count_words

STOPWORDS = frozenset(files("tally").joinpath("stopwords.txt").read_text(encoding="utf-8").split())


def tally(text: str) -> dict[str, int]:
    """Return how often each word occurs in a text, without the stopwords."""
    return {word: count for word, count in count_words(text.lower()).items() if word not in STOPWORDS}
