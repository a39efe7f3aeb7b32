"""Why a run cannot begin."""


class RunRefused(ValueError):
    """The directory holds something else than this run, or the inputs are not what a run can take."""
