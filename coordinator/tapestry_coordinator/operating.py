"""What an operator can do to a federation: the same at the coordinator's machine and from afar."""

import getpass
import ssl
import time
from collections.abc import Callable
from typing import Any

from tapestry.errors import ConfigError, RejectedError
from tapestry.identity.invitations import Invitation, encode
from tapestry.identity.names import check_member_id
from tapestry_coordinator import views
from tapestry_coordinator.actions import PAUSE, RESUME, newest_pause, record
from tapestry_coordinator.home import CoordinatorHome
from tapestry_coordinator.inviting import new_invitation
from tapestry_coordinator.registry import Registry
from tapestry_coordinator.roster import CONTRIBUTOR, LEFT, REVOKED, ROLES
from tapestry_coordinator.status import status_table

_MAX_REASON = 500


class Operator:
    """One operator at work; whatever it changes is entered in the log of actions."""

    def __init__(
        self,
        home: CoordinatorHome,
        registry: Registry,
        *,
        who: str | None = None,
        clock: Callable[[], float] = time.time,  # noqa: TID251 - the edge that owns the clock
    ) -> None:
        """Act as `who`, by default the user of this machine.

        Args:
            home: The coordinator's folder.
            registry: Its registry, which the caller closes.
            who: A member id.
            clock: Unix seconds.
        """
        self._home = home
        self._registry = registry
        self._who = who or f"{_user()} at the coordinator"
        self._clock = clock

    def show(self, view: str, *, last: int) -> dict[str, Any]:
        """Return a table of `views`; of long ones the newest `last` rows.

        Raises:
            RejectedError: There is no such view.
        """
        make = views.VIEWS.get(view)
        if make is None:
            raise RejectedError(f"no view {view!r:.40}: there are {', '.join(views.VIEWS)}")
        return make(self._home, self._registry, last=last, now=self._clock())

    def pause(self, reason: str) -> dict[str, Any]:
        """Let no further round open; one that is open goes on to its end."""
        self._record(PAUSE, _one_line(reason))
        return views.pause_table(self._registry)

    def resume(self) -> dict[str, Any]:
        """Let rounds open again."""
        with self._registry.begin() as connection:
            was_paused = newest_pause(connection) is not None
            if was_paused:
                record(connection, who=self._who, what=RESUME, detail="", now=self._clock())
        return {"was_paused": was_paused, **views.pause_table(self._registry)}

    def invite(self, member_id: str, *, role: str, replaces: bool) -> dict[str, Any]:
        """Return a new invitation, once: the registry keeps only its token's digest.

        Raises:
            ConfigError: No such role, no slug, or invited already and nothing is replaced.
        """
        check_member_id(member_id)
        if role not in ROLES:
            raise ConfigError(f"role {role!r:.40}: expected one of {', '.join(ROLES)}")
        invitation = new_invitation(
            self._home,
            self._registry,
            member_id,
            now=self._clock(),
            role=role,
            replaces=replaces,
        )
        self._record("invite", f"{member_id} as {role}{', again' if replaces else ''}")
        return _invitation_table(invitation, role)

    def revoke(self, member_id: str) -> dict[str, Any]:
        """End a membership at once, and withdraw open invitations to it.

        Raises:
            ConfigError: Neither a member nor invited.
        """
        was_member, withdrawn = self._registry.revoke(member_id, now=self._clock())
        self._record("revoke", member_id)
        members = views.members_table(self._home, self._registry, last=0, now=self._clock())
        gone = {REVOKED, LEFT}
        active = [
            m for m in members["members"] if m["status"] not in gone and m["role"] == CONTRIBUTOR
        ]
        return {
            "member_id": member_id,
            "was_member": was_member,
            "withdrawn_invitations": withdrawn,
            "contributors_left": len(active),
            "quorum": self._home.load_settings().rounds.quorum,
        }

    def rule(self, number: int, *, is_released: bool, reason: str) -> dict[str, Any]:
        """Decide about a candidate that a member found worse for its text.

        Raises:
            ConfigError: There is none, or that was decided before.
        """
        table = status_table(self._home, self._registry)
        if table["round"] != number or table["phase"] not in {"measuring", "held"}:
            raise ConfigError(
                f"round {number} has no candidate to decide about: round {table['round']} is "
                f"{table['phase']}"
            )
        if not is_released and not reason.strip():
            raise ConfigError("--reason: say why; it is published with the checkpoint")
        self._registry.rule(number, is_released=is_released, reason=reason, now=self._clock())
        what = "release" if is_released else "revert"
        self._record(what, f"round {number}: {_one_line(reason)}")
        return {"round": number, "is_released": is_released}

    def _record(self, what: str, detail: str) -> None:
        with self._registry.begin() as connection:
            record(connection, who=self._who, what=what, detail=detail, now=self._clock())


def _invitation_table(invitation: Invitation, role: str) -> dict[str, Any]:
    return {
        "member_id": invitation.member_id,
        "role": role,
        "invitation": encode(invitation),
        "expires_at": invitation.expires_at,
        "root_certificate": ssl.DER_cert_to_PEM_cert(invitation.root_certificate),
    }


def _user() -> str:
    try:
        return getpass.getuser()
    except (OSError, KeyError):  # a user id without a name, as in a container
        return "somebody"


def _one_line(text: str) -> str:
    printable = "".join(c if c.isprintable() else " " for c in text)
    return " ".join(printable.split())[:_MAX_REASON]
