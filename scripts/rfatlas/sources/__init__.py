"""Sources: the forms in which people have photographs.

A class for each, with the keys of the config that it reads; listings with labels, undecoded.
"""
