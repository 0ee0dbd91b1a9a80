"""Text that is made of whole characters."""

from __future__ import annotations


def is_whole(text: str) -> bool:
    """Whether a text is free of lone surrogates, halves of a character in UTF-16.

    JSON may hold them escaped; tokenizers and files in UTF-8 fail on them.
    """
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True
