"""What reuse of sites does to the finished clip at every step, told by probes at some of them."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt
from torch import Tensor

_TINY = 1e-30


def spread_effects(probed: Mapping[int, Tensor], change: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Returns [S, n]: the effect of every step from those of some; there is none at step 0.

    `change` [S - 1]: mean squared change of the output from each step to the next. Between two probed steps the direction
    goes along a straight line, and the size of the effect for a change of one along a geometric one.
    """
    steps = sorted(probed)
    vectors = np.stack([probed[step].double().numpy() for step in steps])
    norms = np.maximum(np.linalg.norm(vectors, axis=1), _TINY)
    amplitudes = np.sqrt(np.maximum(np.concatenate([change[:1], change]), _TINY))
    sensitivity = np.log(norms / amplitudes[steps])
    rows = [np.zeros(vectors.shape[1])]
    for step in range(1, len(amplitudes)):
        place = float(np.interp(step, steps, np.arange(len(steps))))
        before, after = int(place), min(int(place) + 1, len(steps) - 1)
        share = place - before
        direction = (1 - share) * vectors[before] / norms[before] + share * vectors[after] / norms[after]
        size = amplitudes[step] * np.exp((1 - share) * sensitivity[before] + share * sensitivity[after])
        rows.append(size * direction / max(float(np.linalg.norm(direction)), _TINY))
    return np.stack(rows)
