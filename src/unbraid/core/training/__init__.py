"""The parts of `unbraid.core.train.fit_loop`."""
