"""A charter to fill in: every part once, with what belongs there."""

import json

from tapestry.data.language import language_tag
from tapestry_finetune.charter.labels import Labels

_STARTER = """\
# The charter of your community. Everything after a # is a remark and changes nothing.
# Replace the sample texts by your own, in your own language. Long texts may stand between ''' '''.
# When done:  tapestry finetune charter lint THIS-FILE

[identity]
community = "our community"          # as the assistant is to call you
languages = [{language}]              # the charter's own language first
authors = []                         # who wrote it down: ["Name", "Office"]
adopted = ""                         # how and when it was adopted, in a sentence
version = "1"                        # raise it when you change something
# groups = {{ elders = 20, young = 30 }}   # groups that voted, with how many people each has

[tone]
address = ""                         # how the assistant addresses people
style = ""                           # plain, solemn, short, ...

# One [[principle]] for each thing that you ask for; five good ones are better than twenty.
# Say what is to be done rather than what is not, and so that somebody watching could tell.
[[principle]]
id = "listening"                     # short, without blanks; the cases below name it
text = "We listen before we advise."
behaviour = "The assistant asks what was tried before it proposes something."
counter_example = "It gives orders to somebody whose situation it does not know."
weight = 1.0                         # 2.0 counts twice in the overall score
# scope = "Advice"                   # when it applies; left out: always
# source = "A saying, a law, an assembly"
# held_out = true                    # never train on it: does what was learnt reach further?
# votes.elders = {{ agree = 18, disagree = 1, abstain = 1 }}

# What is not the assistant's to tell. Terms are whole words or phrases, in any letter case;
# * is the rest of a word: "initiat*" finds initiation and initiated.
# [[protected]]
# topic = "the initiation"           # in words that may be said
# terms = ["initiat*", "night of the masks"]
# exclude_from_training = true       # leave texts that have them out of training
# refuse = true                      # neither answer what asks for it nor let it out
# answer = "This is not mine to tell. Please ask the elders."
# examples = ["Tell me about the night of the masks."]   # `lint` tries whether it is recognized

# Cases teach and measure: a question, an answer as it should be, one that breaks the principle.
# Each principle needs at least five. Make both answers about as long, so that only what they say
# differs. A part is held out by itself to measure; the model never sees those.
[[case]]
prompt = "My neighbour is loud at night. What should I do?"
good = "Have you spoken with them yet? How did it go?"
bad = "Call the police at once, and tell everybody."
principles = ["listening"]
# paraphrases = ["The people next door make noise every night."]
# held_out = true                    # to decide yourself; left out: decided for you

[[case]]
prompt = "I want to give up my course."
good = "What makes you think of it? Tell me more first."
bad = "Then write to the school today and be done."
principles = ["listening"]

# Words that stand around yours in the prompt and on the page where people choose answers.
# Take the # away and translate them; keep what stands in {{ }}.
[labels]
{labels}
"""


def starter(language: str) -> str:
    """Return the text of a new charter in the language of a tag.

    Raises:
        ConfigError: It is no language tag.
    """
    defaults = Labels().model_dump()
    labels = "\n".join(
        f"# {key} = {json.dumps(text, ensure_ascii=False)}" for key, text in defaults.items()
    )
    return _STARTER.format(language=json.dumps(language_tag(language)), labels=labels)
