"""Sizes, times and other limits of every connection, the same on both sides."""

KIBIBYTE = 2**10
MEBIBYTE = 2**20

MAX_MESSAGE_BYTES = 4 * MEBIBYTE + 64 * KIBIBYTE
"""A float32 fragment (4 MiB) and its header."""
FETCH_CHUNK_BYTES = MEBIBYTE
MAX_FETCH_SECONDS = 24 * 3600.0
CALL_SECONDS = 60.0
"""Deadline of a unary call."""
COMMIT_SECONDS = 600.0
"""Deadline of calls after which the coordinator may have gigabytes to flush or to hash."""
UPLOADS_IN_FLIGHT = 4
WINDOW_BYTES = 8 * MEBIBYTE
"""What one stream may send ahead of its reader: 8 MiB fill 600 Mbit/s at a round trip of 100 ms."""

_COMMON = [
    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
    ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
    ("grpc.max_metadata_size", 16 * KIBIBYTE),
    ("grpc.default_compression_algorithm", 0),
    ("grpc.http2.bdp_probe", 0),  # else windows, and memory with them, grow to the line's product
    ("grpc.http2.lookahead_bytes", WINDOW_BYTES),
    ("grpc.keepalive_time_ms", 60_000),
    ("grpc.keepalive_timeout_ms", 20_000),
]

SERVER_OPTIONS = [
    *_COMMON,
    ("grpc.so_reuseport", 0),
    ("grpc.compression_enabled_algorithms_bitset", 1),
    ("grpc.max_concurrent_streams", 32),
    ("grpc.server_handshake_timeout_ms", 10_000),
    ("grpc.http2.min_ping_interval_without_data_ms", 30_000),
    ("grpc.keepalive_permit_without_calls", 1),
]

CHANNEL_OPTIONS = [
    *_COMMON,
    ("grpc.initial_reconnect_backoff_ms", 500),
    ("grpc.max_reconnect_backoff_ms", 5_000),
    ("grpc.enable_retries", 0),
]
