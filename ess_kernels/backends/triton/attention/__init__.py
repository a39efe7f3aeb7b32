"""Softmax attention: `T` written out, or multiplied with thin matrices without ever being stored.

What is written out goes to the matrix's engine, which does not know where a matrix came from. Files of this room import
the common files, and no other room.
"""
