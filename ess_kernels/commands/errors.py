"""How a command says that the caller has to put something right."""


class UserError(Exception):
    """Something that the caller can put right: one line on stderr, exit code 2."""
