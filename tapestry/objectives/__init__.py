"""What is trained, found through the entry-point group `tapestry.objectives`."""
