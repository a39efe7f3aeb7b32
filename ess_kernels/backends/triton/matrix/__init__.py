"""Any lower triangular `T` that is given as a matrix: the large nodes of its staircase, by elimination and products.

The room ends where nodes are small enough for the staircase's kernels. Its files import the common files and the
staircase, and no other room.
"""
