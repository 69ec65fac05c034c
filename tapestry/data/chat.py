"""The chat template that a consensus owns: one text for training, chat, serving and export.

A turn is `<|im_start|>`, the role, a line break, the words, `<|im_end|>`, a line break (ChatML).
What stands between the `generation` markers is what training learns: the assistant's words and the
token that ends them. A tokenizer without those two tokens gets turns that its end of text closes.
"""

from tokenizers import Tokenizer

TURN_START = "<|im_start|>"
TURN_END = "<|im_end|>"
TEMPLATE_FILE = "chat_template.jinja"

CHATML = (
    "{%- for message in messages %}"
    "{{- '<|im_start|>' + message['role'] + '\\n' }}"
    "{%- if message['role'] == 'assistant' %}"
    "{%- generation %}{{- message['content'] + '<|im_end|>' }}{%- endgeneration %}"
    "{%- else %}{{- message['content'] + '<|im_end|>' }}{%- endif %}"
    "{{- '\\n' }}"
    "{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}"
)
PLAIN = (
    "{%- for message in messages %}"
    "{{- '### ' + message['role'] + '\\n' }}"
    "{%- if message['role'] == 'assistant' %}"
    "{%- generation %}{{- message['content'] + eos_token }}{%- endgeneration %}"
    "{%- else %}{{- message['content'] + eos_token }}{%- endif %}"
    "{{- '\\n' }}"
    "{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '### assistant\\n' }}{%- endif %}"
)


def has_turns(tokenizer: Tokenizer) -> bool:
    """Return whether the tokenizer has the two tokens that enclose a turn."""
    return all(tokenizer.token_to_id(token) is not None for token in (TURN_START, TURN_END))


def without_markers(template: str) -> str:
    """Return a template without the markers of what is learnt, which other engines do not know."""
    for marker in ("generation", "endgeneration"):
        for left in ("{%-", "{%"):
            for right in ("-%}", "%}"):
                template = template.replace(f"{left} {marker} {right}", "")
    return template
