"""Recorders: measurements of a run, one family a class. `base` has the protocol and the order of the loop's events."""
