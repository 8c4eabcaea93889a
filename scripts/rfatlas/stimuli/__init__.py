"""Stimuli: images optimised to drive a channel.

Gradient ascent with the penalties and starts that the stage preferred_stimulus uses.
"""
