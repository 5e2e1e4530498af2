"""The apparatus of `elasticnet.wrapper`: what a pass keeps, hooks, checks, growing, other forms."""
