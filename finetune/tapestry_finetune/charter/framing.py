"""Words that say what not to do, in the languages where we know them."""

from tapestry_finetune.charter.automaton import Automaton
from tapestry_finetune.charter.folding import fold
from tapestry_finetune.charter.patterns import parse_term

_NEGATIVE = {
    "eng": "not never no don't doesn't cannot can't avoid avoids refuse refuses without",
    "spa": "no nunca jam\u00e1s evita evitar rechaza sin",
    "por": "n\u00e3o nunca jamais evita evitar recusa sem",
    "fra": "ne n'* jamais \u00e9vite \u00e9viter refuse sans",
    "deu": "nicht nie niemals kein* vermeidet vermeiden verweigert ohne",
    "ita": "non mai evita evitare rifiuta senza",
    "nld": "niet nooit geen vermijdt vermijden weigert zonder",
    "ind": "tidak jangan bukan tanpa hindari menghindari",
    "rus": "\u043d\u0435 \u043d\u0435\u0442 \u043d\u0438\u043a\u043e\u0433\u0434\u0430"
    " \u043d\u0435\u043b\u044c\u0437\u044f \u0431\u0435\u0437",
    "ara": "\u0644\u0627 \u0644\u0646 \u0644\u0645 \u0644\u064a\u0633 \u0628\u062f\u0648\u0646",
    "hin": "\u0928\u0939\u0940\u0902 \u092e\u0924 \u0928 \u092c\u093f\u0928\u093e",
    "zho": "\u4e0d \u522b \u52ff \u6ca1\u6709",
    "que": "ama mana manam amam",
}


class Framing:
    """Finds how a principle is framed."""

    def __init__(self, language: str) -> None:
        """In the language of a tag; where its words are not known, nothing is found."""
        self._words = _NEGATIVE.get(language.split("-", maxsplit=1)[0], "").split()
        self._automaton = Automaton(map(parse_term, self._words))

    def negative_word(self, text: str) -> str | None:
        """Return a word of `text` that says what not to do; None: it has none."""
        number = self._automaton.first_in(fold(text)) if self._words else None
        return None if number is None else self._words[number]
