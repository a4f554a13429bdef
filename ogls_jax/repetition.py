"""How much of a rollout repeats itself, as a model that loops does."""

import numpy as np

WINDOW_TOKENS = 8


def repeated_fractions(
  response_RT: np.ndarray, length_R: np.ndarray
) -> np.ndarray:
  """Share of a rollout's windows of 8 tokens that it has had before.

  Float64 [R]; 0 for a rollout that is shorter than a window.
  """
  # Windows as numbers: two that differ have the same with a chance of 2^-64.
  rng = np.random.default_rng(0)
  factors = rng.integers(0, 2**64, WINDOW_TOKENS, np.uint64) | np.uint64(1)
  fractions_R = np.zeros(len(length_R))
  for r, length in enumerate(length_R):
    tokens = response_RT[r, :length].astype(np.uint64)
    if length >= WINDOW_TOKENS:
      windows = np.lib.stride_tricks.sliding_window_view(tokens, WINDOW_TOKENS)
      numbers = (windows * factors).sum(1)
      fractions_R[r] = 1 - len(np.unique(numbers)) / len(numbers)
  return fractions_R
