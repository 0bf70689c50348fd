"""Migrate to another model: build its collection, compare both, switch, roll back.

`textmatch reindex` runs these steps. textmatch/indexing.py explains why the copy loses no document.
"""
