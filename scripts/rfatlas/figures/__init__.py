"""Figures: PNG and PDF of what the tables and fields hold.

One style, one layout for sheets of channels, and a module per topic. Never torch.
"""
