"""Files: what every stage reads and writes, and how a job does it.

HDF5 results, CSV tables, progress of long jobs, logs, and the version of the code behind a result.
"""
