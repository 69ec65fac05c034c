"""The form that asks for the password: plain HTML, without any script."""

from tapestry.web.look import STYLE
from tapestry.web.markup import Markup, tag


def login_page(problem: str = "") -> str:
    """Return the page, with what went wrong."""
    form = tag(
        "form",
        tag("h1", "Tapestry"),
        tag("label", "The operator's password", for_="password"),
        Markup(
            '<input id="password" name="password" type="password" required autofocus'
            ' autocomplete="current-password">'
        ),
        tag("p", problem, class_="problem", role="alert"),
        tag("button", "Log in", type="submit"),
        tag("p", "Set on the coordinator's machine with ", tag(
            "code", "tapestry coordinator page-password"), class_="muted"),
        method="post",
        action="/login",
        class_="login",
    )  # fmt: skip
    head = (
        '<meta charset="utf-8"><meta name="viewport" content="width=device-width">'
        f"<title>Tapestry: log in</title><style>{STYLE}</style>"
    )
    return f'<!doctype html><html lang="en"><head>{head}</head><body>{form}</body></html>'
