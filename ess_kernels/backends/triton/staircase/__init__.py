"""The staircase inside blocks: nodes of 64, 32, 16 or 8 positions are halved down to single positions.

Recurrences and matrices both end here. Files of this room import the common files beside it, and no other room.
"""
