"""Pillow's arithmetic, compiled, and copies past the caches."""

import numpy as np
import numpy.typing as npt

Pixels = npt.NDArray[np.uint8]
"""Pixels of one or many images; the name of a variable ends in its axes."""
