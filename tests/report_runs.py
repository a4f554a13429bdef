"""Workdirs as runs leave them, made up: any size, any text."""

import json
import math
import random
import runpy

NAMES = ('student', 'anchor', 'positive', 'negative', 'steered')


def write_lines(path, rows):
  path.write_text(''.join(json.dumps(row) + '\n' for row in rows))


def metrics_row(step, num_steps):
  share = step / num_steps
  wave = math.sin(step * 1.7)
  return {
    'step': step,
    'time': 1.7e9 + step,
    'loss': 0.2 + 0.5 * (1 - share) + 0.02 * wave,
    'kl': 0.3 + 0.5 * (1 - share),
    'clip_fraction': 0.1 * share,
    'entropy': 0.6 - 0.2 * share,
    'reward_mean': 0.3 + 0.4 * share + 0.03 * wave,
    'eval_accuracy': share if step % 10 == 1 else None,
    'steered_rollout_fraction': 0.5,
    'response_tokens_mean': 21.5 + wave,
    'truncated_fraction': 0.0,
    'repeated_fraction': 0.01,
    'updates_skipped': 0.0,
    'grad_norm': 2 - share,
    'learning_rate': 1e-4,
    'seconds_sampling': 0.8,
    'seconds_grading': 0.1,
    'seconds_hints': 0.05,
    'seconds_inspection': 0.05 if step % 10 == 0 else None,
    'seconds_distill': 0.4,
    'tokens_per_second': 1000.0,
  }


def inspected_row(step, texts, *, seed=0, rest='', vocabulary=500, **changes):
  """A row of inspect.jsonl with a token for each text."""
  rng = random.Random(f'{step} {seed}')
  ids = [rng.randrange(vocabulary) for _ in texts]
  names = {str(i): text or '</s>' for i, text in zip(ids, texts, strict=True)}

  # Distributions of a token have most of their candidates in common.
  pools = [
    [own, *(int(vocabulary * rng.random() ** 8) for _ in range(6))]
    for own in ids
  ]

  def distribution(pool):
    cut = [rng.random() ** 8 for _ in range(6)]
    top = sorted((float(f'{p / sum(cut):.4g}') for p in cut), reverse=True)
    top_ids = [pool[0], *rng.sample(pool[1:], 4)]
    return top[:5], top_ids, top[0]

  found = {name: [distribution(pool) for pool in pools] for name in NAMES}
  for each in found.values():
    for _, top_ids, _ in each:
      for i in top_ids:
        names.setdefault(str(i), f' w{i}')
  return {
    'step': step,
    'id': f'q{seed}',
    'question': f'What is {seed} + {step}?',
    'answer': str(seed + step),
    'response': ''.join(texts) + rest,
    'reward': float(seed % 2),
    'is_correct': seed % 2 > 0,
    'is_scored': True,
    'strength': 1.5,
    'num_hints': {'anchor': 1, 'positive': 2, 'negative': 1, 'steered': 4},
    'token_ids': ids,
    'tokens': texts,
    'rest': rest,
    'divergence': [float(f'{rng.expovariate(4):.4g}') for _ in ids],
    'moved': [float(f'{rng.expovariate(9):.4g}') for _ in ids],
    'own': {name: [own for *_, own in each] for name, each in found.items()},
    'top': {name: [top for top, *_ in each] for name, each in found.items()},
    'top_ids': {name: [x for _, x, _ in each] for name, each in found.items()},
    'names': names,
  } | changes


def sample_row(step, seed, **changes):
  return {
    'step': step,
    'id': f's{seed}',
    'question': f'What is {seed} - {step}?',
    'answer': '0',
    'response': f'It is {seed}.',
    'reward': 0.0,
    'is_correct': False,
    'is_scored': False,
  } | changes


def make_run(
  workdir, *, num_steps=40, inspected=(), samples=(), is_finished=True, **keys
):
  """A workdir of configs/tiny.py, with `keys` of its config changed."""
  workdir.mkdir(exist_ok=True)
  config = runpy.run_path('configs/tiny.py')['get_config']()
  config.num_steps = num_steps
  for key, value in keys.items():
    config.update_from_flattened_dict({key.replace('__', '.'): value})
  (workdir / 'config.json').write_text(config.to_json())
  write_lines(
    workdir / 'metrics.jsonl',
    [metrics_row(step, num_steps) for step in range(1, num_steps + 1)],
  )
  write_lines(workdir / 'samples.jsonl', samples)
  write_lines(workdir / 'inspect.jsonl', inspected)
  if is_finished:
    share = {'mean': 0.434, 'low': 0.4, 'high': 0.468}
    summary = {
      'method': config.method, 'num_steps': num_steps, 'eval_questions': 384,
      'seconds': {'warmup': 180.0, 'evaluation': 9.0, 'ogls_sd': 64.0},
      'accuracy_before': share, 'accuracy_after': share, 'accuracy_gain': share,
    }  # fmt: skip
    (workdir / 'summary.json').write_text(json.dumps(summary))
  return workdir
