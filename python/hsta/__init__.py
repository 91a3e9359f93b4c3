"""Micro-expression recognition with HSTA: data sets, training, evaluation and prediction."""
