"""The apparatus of `elasticnet.losses`: a step's factors, its count, parameters without a use."""
