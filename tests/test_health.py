import numpy as np
import pytest

from ogls_jax.health import Health
from ogls_jax.repetition import repeated_fractions


def rows(num, **changes):
  rng = np.random.default_rng(0)
  return [
    {
      'loss': 1 + 0.05 * rng.normal(),
      'reward_mean': 0.5 + 0.05 * rng.normal(),
      'entropy': 0.7 + 0.03 * rng.normal(),
      'response_tokens_mean': 120 + 6 * rng.normal(),
      'repeated_fraction': 0.02 + 0.01 * rng.random(),
    }
    | changes
    for _ in range(num)
  ]


def test_a_quiet_run_has_no_warnings():
  health = Health([])
  assert [text for row in rows(400) for text in health.look(row)] == []


def test_a_run_that_learns_has_no_warnings():
  health = Health([])
  for step, row in enumerate(rows(400)):
    row['reward_mean'] += step / 1000
    row['entropy'] *= 1 - step / 1000
    assert health.look(row) == []


@pytest.mark.parametrize(
  ('name', 'value'),
  [
    ('loss', 5.0),
    ('reward_mean', 0.05),
    ('entropy', 0.05),
    ('entropy', 3.0),
    ('response_tokens_mean', 30.0),
    ('response_tokens_mean', 300.0),
    ('repeated_fraction', 0.6),
  ],
)
def test_what_leaves_its_band_is_told_once_and_counted(name, value):
  health = Health(rows(60))
  later = rows(13, **{name: value})
  (text,) = health.look(later[0])
  assert text.startswith(f'{name} = ') and 'outside of' in text
  assert [health.look(row) for row in later[1:]] == [[]] * 12
  assert health.num_outside[name] == 13
  assert sum(health.num_outside.values()) == 13
  health.look(rows(1)[0])
  assert health.num_outside[name] == 0


def test_good_changes_and_missing_values_are_no_warnings():
  health = Health(rows(60))
  good = {'loss': 0.0, 'reward_mean': 1.0, 'repeated_fraction': 0.0}
  assert health.look(rows(1, **good)[0]) == []
  missing = {'loss': None, 'entropy': float('nan'), 'reward_mean': None}
  assert health.look(rows(1, **missing)[0]) == []
  assert Health(rows(19)).look(rows(1, entropy=9.0)[0]) == []


def test_a_band_is_the_same_after_a_restart():
  past, later = rows(70), rows(10, entropy=0.1)
  whole = Health([])
  for row in [*past, *later]:
    whole.look(row)
  assert Health([*past, *later]).num_outside == whole.num_outside
  assert whole.num_outside['entropy'] == 10


def test_repeated_text():
  rng = np.random.default_rng(0)
  new = rng.integers(1, 1000, 100)
  loop = np.tile(np.arange(5), 20)
  half = np.concatenate([new[:50], new[:50]])
  response_RT = np.stack([new, loop, half, new]).astype(np.int32)
  found_R = repeated_fractions(response_RT, np.array([100, 100, 100, 7]))
  # Of 93 windows a loop of 5 has 5 kinds; a half that comes back has 43.
  np.testing.assert_allclose(found_R, [0, 88 / 93, 43 / 93, 0])
