"""The charter as a system prompt: short, in the community's own words."""

from tapestry_finetune.charter.settings import Charter, Principle, Protected


def render(charter: Charter) -> str:
    """Return the system prompt; the principles that weigh most come first."""
    labels = charter.labels
    community = charter.identity.community
    principles = sorted(charter.principle, key=lambda one: -one.weight)
    blocks = [
        labels.you_are.replace("{community}", community),
        "\n".join([labels.principles, *map(_principle, principles)]),
    ]
    tone = [part.strip() for part in (charter.tone.address, charter.tone.style) if part.strip()]
    if tone:
        blocks.append(f"{labels.tone} {' '.join(tone)}")
    refused = [_protected(one) for one in charter.protected if one.refuse]
    if refused:
        blocks.append("\n".join([labels.protected, *refused]))
    return "\n\n".join(blocks)


def _principle(principle: Principle) -> str:
    scope = f"{principle.scope.strip()}: " if principle.scope.strip() else ""
    return f"- {scope}{principle.text} {principle.behaviour}".rstrip()


def _protected(protected: Protected) -> str:
    return f"- {protected.topic}: {protected.answer.strip()}"
