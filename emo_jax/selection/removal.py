"""Which experts a domain uses and other domains do not.

Legend: L layers, M domains, R routed experts.
"""

import numpy as np

from emo_jax.config.names import REMOVAL_METHODS, RemovalMethod
from emo_jax.errors import UsageError


def removal_scores(mass_LMR: np.ndarray, domain: int, method: RemovalMethod) -> np.ndarray:
    """How much each expert is the domain's own, (L,R) float64; the largest are taken out.

    With q the share of a domain's routed mass that an expert has, q_d that of the domain and q_o
    the mean of the others, each weighted equally:

    - `contrast`: q_d − q_o, the mass that the domain loses less what the others lose.
    - `ratio`: q_d / q_o.
    - `information`: q_d · log(q_d / q_o), the expert's part of the divergence of the domain's
      routing from that of the others.
    - `mass`: q_d, whatever the others use.

    Args:
      mass_LMR: router probabilities summed over each domain's tokens; domains without tokens are
        left out.
      domain: which one is to be removed.
      method: one of the above.

    Raises:
      UsageError: no such method.
    """
    if method not in REMOVAL_METHODS:
        raise UsageError(f"--method {method}: must be one of {', '.join(REMOVAL_METHODS)}")
    there_M = mass_LMR.sum(axis=(0, 2)) > 0
    others_M = there_M & (np.arange(len(there_M)) != domain)
    share_LMR = mass_LMR / np.maximum(mass_LMR.sum(axis=-1, keepdims=True), 1e-30)
    own_LR, other_LR = share_LMR[:, domain], share_LMR[:, others_M].mean(axis=1)
    tiny = np.finfo(np.float64).tiny
    ratio_LR = np.maximum(own_LR, tiny) / np.maximum(other_LR, tiny)
    found: dict[str, np.ndarray] = {
        "contrast": own_LR - other_LR,
        "ratio": ratio_LR,
        "information": own_LR * np.log(ratio_LR),
        "mass": own_LR,
    }
    return found[method]
