"""Whether a localized model got better: measures, their comparison, the floor, the report."""
