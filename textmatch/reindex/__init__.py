"""Keeping a second collection equal to the one in use, and building one for another model.

Workers and the command `textmatch reindex` share it: both copy documents by copying.py, whose docstring says
why nothing is lost, stale or resurrected in the copy.
"""
