"""Recurrences: from the caller's tensors to block parts, Gramians, their square roots and the boundaries of blocks.

The room ends where the staircase begins. Its files import the common files and the staircase, and no other room.
"""
