"""Published checkpoints: manifest, lineage, publication, verification."""
