"""Micro-expression data sets, read as they are distributed, and clips as the model takes them."""
