"""A community's charter: one file, used as prompt, as training data, as judge and as guard."""
