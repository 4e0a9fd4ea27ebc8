"""The part on a model of 10.7 M parameters, with general preference models as oracles."""
