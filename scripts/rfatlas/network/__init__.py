"""Network: a trained network as the analyses see it.

Factories and weights, the graph of its operations, receptive-field arithmetic, devices.
"""
