"""What the makers say of a TPU chip, and a program's time at those rates.

Sources, read in November 2026: docs.cloud.google.com/tpu/docs/{v4, v5e, v5p,
v6e, tpu7x}. Nothing here was measured.
"""

import dataclasses

from ogls_jax.program_cost import Cost


@dataclasses.dataclass(frozen=True)
class Chip:
  """Published figures of one chip; a second has 10^12 of tera.

  Attributes:
    flops: of bfloat16 products, a second.
    memory_gib: main memory.
    memory_rate: bytes a second of it.
    usable_gib: what the compiler lets a device's program have of it.
    links_rate: bytes a second of all its links, both directions together.
    num_links: two for each dim of the torus.
    network_rate: bytes a second and chip between slices.
    num_devices: JAX devices of a chip; they share all of the above.
    ring_chips: a dim of the torus closes to a ring where it is a multiple of
      this.
    most_chips: along a dim, of the largest slice.
  """

  flops: float
  memory_gib: float
  usable_gib: float
  memory_rate: float
  links_rate: float
  num_links: int
  network_rate: float
  num_devices: int
  ring_chips: int
  most_chips: int


CHIPS = {
  'v4': Chip(275e12, 32, 30.75, 1200e9, 600e9, 6, 3.1e9, 1, 4, 16),
  'v5e': Chip(197e12, 16, 15.75, 819e9, 400e9, 4, 3.1e9, 1, 16, 16),
  'v5p': Chip(459e12, 95, 95.73, 2765e9, 1200e9, 6, 6.25e9, 1, 4, 28),
  'v6e': Chip(918e12, 32, 31.24, 1638e9, 800e9, 4, 12.5e9, 1, 16, 16),
  'tpu7x': Chip(2307e12, 192, 94.74, 7380e9, 1200e9, 6, 12.5e9, 2, 4, 24),
}


@dataclasses.dataclass(frozen=True)
class Times:
  """Seconds at the published rates, each by itself.

  Compute and memory are bounds, links an estimate, as in `times`.
  """

  compute: float
  memory: float
  links: float

  @property
  def seconds(self) -> float:
    """If all three overlap in full."""
    return max(self.compute, self.memory, self.links)

  @property
  def bound(self) -> str:
    """compute, memory or links: what takes longest."""
    return max(dataclasses.asdict(self).items(), key=lambda item: item[1])[0]


def times(cost: Cost, chip: Chip, *, is_ring: bool) -> Times:
  """The times of a device's share of a program.

  A collective is taken to use the two links of one dim of the torus, half as
  fast where not all dims are rings, or the network where it is between slices.
  That of links is no bound: one over several dims may use more of them, and one
  over a part of a dim has no ring.

  Args:
    cost: of one device.
    chip: its kind.
    is_ring: whether the dims of the slice close to rings.
  """
  share = 1 / chip.num_devices
  # Each link's rate counts both directions, and a ring uses two links one way.
  ring_rate = chip.links_rate / chip.num_links * (1.0 if is_ring else 0.5)
  links = 0.0
  for collective, (_, num_bytes) in cost.collectives.items():
    is_far = collective.is_between_slices
    links += num_bytes / ((chip.network_rate if is_far else ring_rate) * share)
  return Times(
    compute=cost.flops / (chip.flops * share),
    memory=cost.num_bytes / (chip.memory_rate * share),
    links=links,
  )
