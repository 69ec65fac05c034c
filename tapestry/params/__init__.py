"""The parameter vector: layout, fragments, codecs, pseudo-gradients."""
