"""Which differences between two spellings make none: case, width, marks that may be left out.

Folded text is compared with folded text. Letters are decomposed and lose their case; blanks of any
length become one; invisible characters, Arabic and Hebrew vowel signs and the tatweel go; the
kinds of apostrophe, and of hyphen, are one. Marks that are part of a letter stay: without them
Devanagari or Vietnamese would be other words.
"""

import re
import unicodedata
from functools import lru_cache

_JOINS = re.compile(r"[\u1160-\u11ff\ud7b0-\ud7fb]")
"""Vowels and finals of Hangul, which join what is before them."""
_APOSTROPHES = "\u2018\u2019\u201b\u02bb\u02bc\u02b9\u2032\uff07\u05f3`\u00b4"
_HYPHENS = "\u2010\u2011\u2012\u2013\u2014\u2212\u05be\ufe63\uff0d"
_MOST_MARKS = 64
"""Nobody writes a letter with more."""
_OPTIONAL = re.compile(
    "[\u00ad\u034f\u061c\u180b-\u180e\u200b-\u200f\u202a-\u202e\u2060-\u206f\ufe00-\ufe0f\ufeff"
    "\u0640\u064b-\u065f\u0670\u06d6-\u06dc\u06df-\u06e8\u06ea-\u06ed\u0591-\u05bd\u05bf"
    "\u05c1\u05c2\u05c4\u05c5\u05c7]"
)
"""Invisible, or a sign that writers may leave out."""
_UNSPACED = re.compile(
    "[\u0e00-\u0fff\u1000-\u109f\u1100-\u11ff\u1780-\u17ff\u1950-\u19df\u1a20-\u1aaf\u1b00-\u1b7f"
    "\u2e80-\u31ff\u3400-\u4dbf\u4e00-\u9fff\ua000-\ua4cf\ua980-\ua9df\uaa60-\uaa7f\uac00-\ud7ff"
    "\uf900-\ufaff\U00020000-\U0003ffff]"
)
"""Of scripts that put no blanks between words, or grow words by what follows them."""


@lru_cache(maxsize=2**16)
def joins(character: str) -> bool:
    """Whether it changes the character before it, and has to be folded with it."""
    is_mark = character > "\u02ff" and unicodedata.combining(character) > 0
    return is_mark or bool(_JOINS.match(character))


def fold(text: str) -> str:
    """Return `text` without the differences that make none."""
    folded: list[str] = []
    is_blank = False
    for cluster in clusters(text):
        piece = fold_cluster(cluster)
        if piece == " ":
            if not is_blank:
                folded.append(" ")
            is_blank = True
        elif piece:
            folded.append(piece)
            is_blank = False
    return "".join(folded)


def clusters(text: str) -> list[str]:
    """Return `text` in pieces that can be folded one by one: a character and what joins it."""
    if text.isascii():
        return list(text)
    found: list[str] = []
    for character in text:
        if found and joins(character) and len(found[-1]) < _MOST_MARKS:
            found[-1] += character
        else:
            found.append(character)
    return found


@lru_cache(maxsize=2**16)
def fold_cluster(cluster: str) -> str:
    """Return a character, with what joins it, as it is compared; a blank as one space."""
    if cluster.isspace():
        return " "
    composed = unicodedata.normalize("NFC", cluster)
    kept = "".join(map(_decomposed, composed))
    kept = unicodedata.normalize("NFD", kept) if not _is_hangul(kept) else kept
    kept = _OPTIONAL.sub("", kept)
    return kept.replace("\u0131", "i").replace("i\u0307", "i")


@lru_cache(maxsize=2**16)
def is_letter(character: str) -> bool:
    """Whether a folded character is part of a word that blanks set apart."""
    return (
        character.isalnum() or unicodedata.category(character)[0] == "M" or character == "_"
    ) and not _UNSPACED.match(character)


def _decomposed(character: str) -> str:
    if character in _APOSTROPHES:
        return "'"
    if character in _HYPHENS:
        return "-"
    if "\uac00" <= character <= "\ud7a3":
        return character
    plain = unicodedata.normalize("NFKD", character).casefold()
    return unicodedata.normalize("NFKD", plain)


def _is_hangul(text: str) -> bool:
    return any("\uac00" <= character <= "\ud7a3" for character in text)
