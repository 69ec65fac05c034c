"""One file a revision, never edited after release."""
