"""Physiology: how units answer to drawn stimuli.

Gratings, tuning indices, cone space and opponency of single channels.
"""
