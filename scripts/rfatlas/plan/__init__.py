"""Plan: all that is known before the first job starts.

The config, checked; models described and images counted; estimates of time and disk. Never torch.
"""
