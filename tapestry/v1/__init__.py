"""Generated from protos/tapestry/v1 by protos/generate.py; never edited."""
