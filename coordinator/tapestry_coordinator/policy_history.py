"""The policies that a federation has had, as the registry has them."""

from dataclasses import dataclass

from sqlalchemy import insert, select

from tapestry.checkpoints.policy import FederationPolicy
from tapestry.errors import UnavailableError
from tapestry_coordinator.book import Book
from tapestry_coordinator.database import transaction
from tapestry_coordinator.tables import policies


@dataclass(frozen=True, kw_only=True, slots=True)
class PolicyVersion:
    """A federation policy as it was recorded."""

    version: int
    digest: str
    policy: FederationPolicy
    at: float


class PolicyHistory(Book):
    """Policies, by version."""

    def adopt_policy(self, policy: FederationPolicy, *, now: float) -> PolicyVersion:
        """Record a policy as the newest version, unless it is that already; return the newest."""
        newest = self.newest_policy()
        if newest is not None and newest.digest == policy.digest:
            return newest
        version = 1 if newest is None else newest.version + 1
        with transaction(self._engine) as connection:
            connection.execute(
                insert(policies).values(
                    version=version,
                    digest=policy.digest,
                    body=policy.canonical().decode(),
                    at=now,
                )
            )
        return PolicyVersion(version=version, digest=policy.digest, policy=policy, at=now)

    def newest_policy(self) -> PolicyVersion | None:
        """Return the policy that the next round will have, None before the first."""
        found = self.policies(last=1)
        return found[0] if found else None

    def policies(self, *, last: int | None = None) -> list[PolicyVersion]:
        """Return the recorded policies, newest first."""
        query = select(policies).order_by(policies.c.version.desc()).limit(last)
        with transaction(self._engine) as connection:
            rows = connection.execute(query).all()
        return [_policy_version(row.version, row.digest, row.body, row.at) for row in rows]

    def policy(self, digest: str) -> FederationPolicy:
        """Return the recorded policy with that digest.

        Raises:
            UnavailableError: None has it: the database is damaged.
        """
        query = select(policies).where(policies.c.digest == digest).limit(1)
        with transaction(self._engine) as connection:
            row = connection.execute(query).one_or_none()
        if row is None:
            raise UnavailableError(f"the database has no policy {digest[:16]}: restore a backup")
        return _policy_version(row.version, row.digest, row.body, row.at).policy


def _policy_version(version: int, digest: str, body: str, at: float) -> PolicyVersion:
    policy = FederationPolicy.model_validate_json(body)
    if policy.digest != digest:
        raise UnavailableError(
            f"policy {version} is damaged in the database, or was made by another version of "
            "Tapestry: restore a backup"
        )
    return PolicyVersion(version=version, digest=digest, policy=policy, at=at)
