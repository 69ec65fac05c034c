"""Following a coordinator that has moved to another address."""

from collections.abc import Callable

from tapestry.checkpoints.manifest import Manifest
from tapestry.checkpoints.statements import payload_digest
from tapestry.errors import UntrustedError
from tapestry.identity.invitations import check_address
from tapestry_node.client import connected
from tapestry_node.home import NodeHome


def follow(home: NodeHome, address: str, *, clock: Callable[[], float]) -> int:
    """Dial the coordinator at `address` from now on, if it is the same that answers there.

    Returns:
        The number of its newest checkpoint.

    Raises:
        ConfigError: It is no address.
        UnavailableError: Nobody answers there; nothing is changed.
        UntrustedError: Somebody else does, or an older state of it; nothing is changed.
    """
    check_address(address)
    membership = home.identity.load()
    key = bytes.fromhex(membership.coordinator_key)
    with connected(home, clock=clock, address=address) as client:
        envelope, _card = client.fetcher.describe()
        genesis = client.fetcher.lineage(0)
    newest = Manifest.opened(envelope, public_key=key, what=f"manifest at {address}").round
    if [payload_digest(one) for one in genesis] != [membership.genesis]:
        raise UntrustedError(
            f"{address} serves another federation than {membership.federation} "
            f"{membership.genesis[:16]}: nothing is changed; compare with its operator"
        )
    known = home.load_state().round
    if newest < known:
        raise UntrustedError(
            f"{address} has checkpoint {newest}, and this node has verified {known}: an old backup "
            "serves there; nothing is changed"
        )
    home.identity.change_address(address)
    return newest
