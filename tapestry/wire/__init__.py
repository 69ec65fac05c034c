"""gRPC: channels, credentials, limits, errors as statuses, messages as our dataclasses."""
