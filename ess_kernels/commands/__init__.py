"""The commands of the command line, one a file, and what they share. None imports torch before it runs."""
