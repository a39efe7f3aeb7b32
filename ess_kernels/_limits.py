"""Limits that help texts name without loading what keeps to them."""

# The demo's forward pass and attention's T take a few L x L matrices per head, and its model was trained on windows of
# 1024 bytes: far beyond that its numbers say little.
MAX_DEMO_BYTES = 4096
