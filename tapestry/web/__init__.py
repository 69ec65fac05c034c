"""What the web pages of the parts share: markup, look, charts, and what keeps strangers out."""
