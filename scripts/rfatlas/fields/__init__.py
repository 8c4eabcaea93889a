"""Fields: what the units of a layer look at.

Activations, exact crops, gradient receptive fields, virtual filters, and Gabors fitted to them.
"""
