"""Singular values of many small matrices: reduction to bidiagonal form, then counting and bisection.

Nothing here knows operators or heads. Files of this room import the common files, and no other room.
"""
