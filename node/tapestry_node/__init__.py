"""The contributor node: trains where the data is, lets out only parameter vectors."""
