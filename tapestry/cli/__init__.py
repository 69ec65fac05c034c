"""The command `tapestry`: parse, call, render."""
