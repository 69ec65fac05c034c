"""A spooled contribution goes out, and its receipt takes its place."""

from collections.abc import Callable

from tapestry.checkpoints.statements import Receipt, payload_digest
from tapestry.errors import RejectedError
from tapestry_node.client import NodeClient
from tapestry_node.consensus import Standing
from tapestry_node.home import NodeHome
from tapestry_node.keeping import keep_contribution, keep_receipt
from tapestry_node.residual import accept_residual
from tapestry_node.spool import Spooled


def deliver(
    client: NodeClient,
    spooled: Spooled,
    home: NodeHome,
    standing: Standing,
    *,
    coordinator_key: bytes,
    on_arrived: Callable[[int, int], None] | None = None,
    keep: bool = False,
) -> Receipt:
    """Send a contribution; nothing is deleted before its receipt is durable here.

    Args:
        client: Connected as this node.
        spooled: What is sent.
        home: Of the node.
        standing: Changed when the receipt is here.
        coordinator_key: Raw public key that signs receipts.
        on_arrived: Told how many fragments have arrived, and how many there are.
        keep: Whether its fragments stay here, to be examined.

    Raises:
        UnavailableError: The line broke; call again.
        RejectedError: The round does not take it.
    """
    number = spooled.contribution.round
    with spooled.becoming_durable():
        envelope = client.upload(
            spooled.contribution,
            spooled.envelope,
            spooled.digests,
            spooled.read_fragment,
            on_arrived=on_arrived,
        )
    what = f"receipt of round {number}"
    receipt = Receipt.opened(envelope, public_key=coordinator_key, what=what)
    if receipt.contribution != payload_digest(spooled.envelope):
        raise RejectedError(
            f"{what}: is for another contribution of this node, {receipt.contribution[:16]}: "
            "it had sent one before it lost its state"
        )
    keep_receipt(home, spooled, envelope)
    state = standing.state
    standing.change(
        contributed=max(number, state.contributed),
        answered=max(number, receipt.used_round, state.answered),
    )
    accept_residual(spooled.folder, home.residual)
    if keep:
        keep_contribution(home, spooled)
    spooled.remove(home.spare_spools)
    return receipt
