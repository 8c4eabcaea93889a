"""Tables: from the results of single layers to statements about a run, or several.

One row per channel, counts over layers, comparisons of networks, findings. Never torch.
"""
