"""Words around the community's own, which it translates in its charter's `[labels]`."""

import unicodedata
from typing import Literal

from tapestry.config import Settings


class Labels(Settings):
    """What stands around the community's words, in the prompt, in the guard, and to collect."""

    you_are: str = "You are the assistant of {community}."
    """Begins the prompt."""
    principles: str = "You keep these principles:"
    """Above the principles."""
    protected: str = "You do not speak about the following; when asked, you say what stands there:"
    """Above the protected topics."""
    tone: str = "How you speak:"
    """Before the tone."""
    reason: str = "The charter protects this topic: {topic}."
    """Why the guard answered in the assistant's place."""
    which: str = "Which answer is better?"
    """On the page where people choose."""
    left: str = "This one"
    """Under the first answer."""
    right: str = "This one"
    """Under the second answer."""
    neither: str = "Both are equally good"
    """When there is nothing to prefer."""
    both_bad: str = "Both are bad"
    """When none should be learnt from."""
    because: str = "Because of which principle?"
    """Above the principles to choose from."""
    no_principle: str = "None in particular"
    """When no principle decided."""
    your_name: str = "Your name or a made-up one"
    """Before the first question."""
    name_wrong: str = "Please write a name of at most {most} letters."
    """When somebody writes none, or too long a one."""
    begin: str = "Begin"
    """Under the name."""
    back: str = "Change my last choice"
    """Takes back one choice."""
    progress: str = "{done} of {all}"
    """How far somebody is."""
    done: str = "That was all. Thank you!"
    """At the end."""

    @property
    def direction(self) -> Literal["ltr", "rtl"]:
        """Of a page with these words: that of the first letter of the question."""
        for letter in self.which:
            if (kind := unicodedata.bidirectional(letter)) in ("R", "AL"):
                return "rtl"
            if kind == "L":
                return "ltr"
        return "ltr"
