"""The registry's tables; `migrations/` brings a database to this state.

Plain SQL types only: the same statements run on SQLite and PostgreSQL. Times are Unix seconds,
digests hex, signed statements DSSE JSON.
"""

from sqlalchemy import BigInteger, Column, Float, Index, Integer, MetaData, String, Table, Text

metadata = MetaData()

_Id = BigInteger().with_variant(Integer, "sqlite")

members = Table(
    "members",
    metadata,
    Column("member_id", String(64), primary_key=True),
    Column("signing_key", String(64), nullable=False),
    Column("certificate_serial", String(48), nullable=False),
    Column("previous_serial", String(48), nullable=False),
    Column("status", String(16), nullable=False),
    Column("joined_at", Float(53), nullable=False),
    Column("last_seen_at", Float(53), nullable=False),
    Column("missed_rounds", Integer, nullable=False, server_default="0"),
    Column("tokens_per_second", Float(53), nullable=False, server_default="0"),
    Column("role", String(16), nullable=False, server_default="contributor"),
)

policies = Table(
    "policies",
    metadata,
    Column("version", Integer, primary_key=True, autoincrement=False),
    Column("digest", String(64), nullable=False),
    Column("body", Text, nullable=False),
    Column("at", Float(53), nullable=False),
)

invitations = Table(
    "invitations",
    metadata,
    Column("token_digest", String(64), primary_key=True),
    Column("member_id", String(64), nullable=False),
    Column("created_at", Float(53), nullable=False),
    Column("expires_at", Float(53), nullable=False),
    Column("used_at", Float(53), nullable=True),
    Column("role", String(16), nullable=False, server_default="contributor"),
    Column("withdrawn_at", Float(53), nullable=True),
)

actions = Table(
    "actions",
    metadata,
    Column("id", _Id, primary_key=True, autoincrement=True),
    Column("at", Float(53), nullable=False),
    Column("who", String(128), nullable=False),
    Column("what", String(16), nullable=False),
    Column("detail", Text, nullable=False),
    Index("actions_by_what", "what", "id"),
)

plans = Table(
    "plans",
    metadata,
    Column("round", _Id, primary_key=True, autoincrement=False),
    Column("attempt", Integer, primary_key=True, autoincrement=False),
    Column("digest", String(64), nullable=False, unique=True),
    Column("envelope", Text, nullable=False),
)

events = Table(
    "events",
    metadata,
    Column("id", _Id, primary_key=True, autoincrement=True),
    Column("round", _Id, nullable=False),
    Column("at", Float(53), nullable=False),
    Column("kind", String(16), nullable=False),
    Column("body", Text, nullable=False),
    Index("events_by_round", "round", "id"),
)

contributions = Table(
    "contributions",
    metadata,
    Column("round", _Id, primary_key=True, autoincrement=False),
    Column("member_id", String(64), primary_key=True),
    Column("digest", String(64), nullable=False),
    Column("envelope", Text, nullable=False),
    Column("receipt", Text, nullable=False),
    Column("norm", Float(53), nullable=False),
    Column("used_round", _Id, nullable=False),
    Column("signing_key", String(64), nullable=False),
    Index("contributions_by_use", "used_round", "member_id", unique=True),
)

manifests = Table(
    "manifests",
    metadata,
    Column("round", _Id, primary_key=True, autoincrement=False),
    Column("digest", String(64), nullable=False, unique=True),
    Column("envelope", Text, nullable=False),
)

exclusions = Table(
    "exclusions",
    metadata,
    Column("id", _Id, primary_key=True, autoincrement=True),
    Column("round", _Id, nullable=False),
    Column("member_id", String(64), nullable=False),
    Column("kind", String(16), nullable=False),
    Column("reason", Text, nullable=False),
    Column("at", Float(53), nullable=False),
    Column("answer", Text, nullable=False, server_default=""),
    Column("answered_at", Float(53), nullable=True),
    Index("exclusions_by_member", "member_id", "id"),
)

rulings = Table(
    "rulings",
    metadata,
    Column("round", _Id, primary_key=True, autoincrement=False),
    Column("is_released", Integer, nullable=False),
    Column("reason", Text, nullable=False),
    Column("at", Float(53), nullable=False),
)

evaluations = Table(
    "evaluations",
    metadata,
    Column("round", _Id, primary_key=True, autoincrement=False),
    Column("member_id", String(64), primary_key=True),
    Column("language", String(64), nullable=False),
    Column("bits_per_byte", Float(53), nullable=False),
    Column("held_out_bytes", _Id, nullable=False),
    Column("at", Float(53), nullable=False),
)

leases = Table(
    "leases",
    metadata,
    Column("name", String(16), primary_key=True),
    Column("holder", String(200), nullable=False),
    Column("identity", String(64), nullable=False),
    Column("term", _Id, nullable=False),
    Column("beat", _Id, nullable=False),
)

ledger = Table(
    "ledger",
    metadata,
    Column("position", _Id, primary_key=True, autoincrement=False),
    Column("entry", Text, nullable=False),
    Column("payload_digest", String(64), nullable=False),
    Index("ledger_by_digest", "payload_digest", "position"),
)

ledger_heads = Table(
    "ledger_heads",
    metadata,
    Column("size", _Id, primary_key=True, autoincrement=False),
    Column("note", Text, nullable=False),
)

ledger_cosignatures = Table(
    "ledger_cosignatures",
    metadata,
    Column("size", _Id, primary_key=True, autoincrement=False),
    Column("member_id", String(64), primary_key=True),
    Column("line", Text, nullable=False),
)
