"""Files for other programs: a merged model, GGUF for llama.cpp, an adapter; each loaded back."""
