"""Other ranks of the same mixers, which are often taken for the ESS: what the state can hold, show, and does hold.

`H_i = O_i Gamma_i` where the operator has a finite state. `Gamma_i` says which states the past can reach, `O_i` which
states the future can tell apart, and the content `S_i` is the state that these very values have left. The docs page
`which_rank.md` says which of these ranks answers which question.
"""

from .counts import causal_ess, observable_ess
from .influence import token_influence
from .spectra import state_spectra

__all__ = ["causal_ess", "observable_ess", "state_spectra", "token_influence"]
