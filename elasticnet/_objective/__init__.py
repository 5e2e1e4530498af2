"""The apparatus of `elasticnet.losses`: a step's factors and count, masks, unused parameters."""
