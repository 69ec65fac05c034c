"""`tapestry serve`: an endpoint like OpenAI's, and a page with two answers side by side."""
