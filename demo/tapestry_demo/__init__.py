"""The demonstration: a whole federation on one machine, measured."""
