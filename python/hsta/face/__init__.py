"""Faces in frames: where they are, how they move, and when a micro-expression is."""
