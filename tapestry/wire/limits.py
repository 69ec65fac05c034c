"""Sizes, times and other limits of every connection, the same on both sides."""

KIBIBYTE = 2**10
MEBIBYTE = 2**20

FRAGMENT_BYTES = 4 * MEBIBYTE
MAX_MESSAGE_BYTES = FRAGMENT_BYTES + 64 * KIBIBYTE
"""A float32 fragment (4 MiB) and its header."""
FETCH_CHUNK_BYTES = MEBIBYTE
MAX_FETCH_SECONDS = 24 * 3600.0
CALL_SECONDS = 60.0
"""Deadline of a unary call."""
COMMIT_SECONDS = 600.0
"""Deadline of calls after which the coordinator may have gigabytes to flush or to hash."""
PIECE_BYTES = MEBIBYTE
"""A fragment goes up in messages of this size where more members send than whole ones have room.

Else it goes in one, which takes a fifth less of both sides' processors.
"""
UPLOADS_IN_FLIGHT = 4
"""Fragments that a member sends at once, at most."""
FRAGMENTS_IN_FLIGHT = 8
"""Fragments that all members together send at once, unless they are more than that: one each."""
HEARTBEAT_SECONDS = 5.0
"""The coordinator says how things stand at least this often, to every node that listens.

It is what keeps a line known to be alive. A node that sends a vector hears nothing else for minutes
if the line is slow; and what is not acknowledged tells the coordinator that a node has vanished.
"""
STALL_SECONDS = 120.0
"""A call is ended whose other side sends or takes no message for so long: 1 MiB at 70 kbit/s."""
CALLS_OF_ONE = 12
"""Calls of one member at once: it listens, sends `UPLOADS_IN_FLIGHT` fragments, and has spare."""
MOST_CONNECTIONS = 1024
"""At once to one port; one more is closed before a byte of it is read. A member has one.

Without it, ten thousand strangers that say nothing took 210 MB and as many files, which are an
operating system's scarcer good. A stranger keeps its place for the time of a handshake.
"""
WINDOW_BYTES = 8 * MEBIBYTE
"""Of a download, what the coordinator may send ahead: 600 Mbit/s at a round trip of 100 ms."""
UPLOAD_WINDOW_BYTES = MEBIBYTE
"""What a member may send ahead on one of its streams, while the coordinator holds it for all."""

CALLS_END_SECONDS = 600.0
"""For calls that are under way when their connection is to end: as long as a fragment may take."""

_COMMON = [
    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
    ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
    ("grpc.max_metadata_size", 16 * KIBIBYTE),
    ("grpc.default_compression_algorithm", 0),
    ("grpc.http2.bdp_probe", 0),  # else windows, and memory with them, grow to the line's product
    # TCP gives up what nobody acknowledges for 15 s (its user timeout). It sends again at doubling
    # intervals, so after an outage of d seconds it may wait for as long again: with this limit for
    # 7.5 s at most, and a new connection takes the rest of the 10 s within which all goes on.
    ("grpc.keepalive_timeout_ms", 15_000),
    # The answer to a ping waits behind what the line has yet to carry: 4 MiB, a full socket buffer,
    # take 34 s at 1 Mbit/s.
    ("grpc.http2.ping_timeout_ms", 40_000),
]

SERVER_OPTIONS = [
    *_COMMON,
    ("grpc.http2.lookahead_bytes", UPLOAD_WINDOW_BYTES),
    ("grpc.so_reuseport", 0),
    ("grpc.compression_enabled_algorithms_bitset", 1),
    ("grpc.max_concurrent_streams", 32),
    ("grpc.max_allowed_incoming_connections", MOST_CONNECTIONS),
    ("grpc.server_handshake_timeout_ms", 10_000),
    ("grpc.max_connection_idle_ms", 300_000),
    # Every call looks its caller up; but only a handshake asks for a certificate that is still
    # valid.
    ("grpc.max_connection_age_ms", 12 * 3_600_000),
    ("grpc.max_connection_age_grace_ms", int(CALLS_END_SECONDS * 1000)),
    # A node that fetches says little: one window update for 4 MiB. So the coordinator, which has
    # its heartbeats, asks only where nothing came for long: 4 MiB in 20 minutes are 28 kbit/s.
    ("grpc.keepalive_time_ms", 1_200_000),
    ("grpc.http2.min_ping_interval_without_data_ms", 10_000),
    ("grpc.keepalive_permit_without_calls", 1),
]

CHANNEL_OPTIONS = [
    *_COMMON,
    ("grpc.http2.lookahead_bytes", WINDOW_BYTES),
    # Longer than TCP's 15 s: a coordinator that has given the connection up answers with a reset.
    # Longer than some heartbeats: a ping is sent only if they fail to come.
    ("grpc.keepalive_time_ms", 20_000),
    ("grpc.http2.max_pings_without_data", 0),  # any number: who fetches sends no data
    ("grpc.initial_reconnect_backoff_ms", 500),
    ("grpc.max_reconnect_backoff_ms", 2_000),
    # An attempt to connect whose packets are swallowed: TCP sends its first one again after 1, 3
    # and 7 s and would wait for 15, so that attempt makes room for a new one.
    ("grpc.min_reconnect_backoff_ms", 10_000),
    ("grpc.enable_retries", 0),
]
