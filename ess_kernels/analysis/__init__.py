"""What people do with ESS once it is measured: plots."""
