"""What the launches of every operator's kernels share, a module a backend."""
