"""Ablation: what the network loses without channels.

Replacing one channel or a group, the paired statistics of the losses, and their tables.
"""
