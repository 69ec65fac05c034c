"""The coordinator: plans rounds, aggregates, publishes."""
