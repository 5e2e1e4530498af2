"""The apparatus of `elasticnet.wrapper`: guarded tensors, hooks, checks, growing, other forms."""
