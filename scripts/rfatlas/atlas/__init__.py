"""Atlas: the site of a run, to look at in a browser.

The data that the page reads and its pictures.
"""
