r"""What steering does to single tokens of rollouts of configs/tiny.py.

    python -m benchmarks.tiny_tokens --config=configs/tiny.py \
        --config.warmup.workdir=runs/tiny --config.distill.response_tokens=48

Rolls out 64 training questions with the warmed-up model and averages, over the
incorrect rollouts, the probability of a token under the anchor, under the pool
means and under the steered target, in three places:

  first slip   the right token where a rollout first leaves the worked solution
  before it    the rollout's own tokens in the results of the steps before
  after it     the same in later steps whose arithmetic is right for their
               prefix, though the totals are not the question's

A target that teaches raises the first without lowering the others.
"""

import contextlib
import re

import jax
import numpy as np
from flax import nnx

from ogls_jax import build, cli, data, programs, rounds, step, teacher, warmup
from ogls_jax.batches import flatten_rows, unflatten_rows
from ogls_jax.mesh import make_mesh
from ogls_jax.models.transformer import project
from ogls_jax.questions import load_questions
from ogls_jax.validate import validate

_NUM_QUESTIONS = 64
_LINE = re.compile(r'(\d+) ([+-]) (\d+) = (\d+)')


def token_places(ids: list[int], solution: list[int], tokenizer):
  """(first slip or None, positions before it, positions after it)."""
  slip = next(
    (t for t, i in enumerate(ids) if solution[t : t + 1] != [i]), None
  )
  newline, equals = (tokenizer.encode(text)[0] for text in ('\n', ' = '))
  before, after, start = [], [], 0
  for end, token in enumerate(ids):
    if token != newline:
      continue
    line = ids[start:end]
    match = _LINE.fullmatch(tokenizer.decode(line))
    if match and equals in line and slip is not None:
      left, sign, term, total = match.groups()
      result = range(start + line.index(equals) + 1, end + 1)
      if end < slip:
        before += result
      elif start > slip and int(left) + int(sign + term) == int(total):
        after += result
    start = end + 1
  return slip, before, after


def collect(samples, batch, questions, tokenizer):
  """{place: [(row, position, token)]} over the incorrect rollouts."""
  solutions = {
    q.id: [*tokenizer.encode(q.solution), tokenizer.eos_id] for q in questions
  }
  response_RT = np.asarray(batch.response_RT)
  places = {'first slip': [], 'before it': [], 'after it': []}
  kept = len(response_RT) // _NUM_QUESTIONS
  groups = np.reshape(np.array(samples, object), (_NUM_QUESTIONS, -1))
  # Rows with loss come first in each group of the batch.
  scored = [
    (kept * b + i, sample)
    for b, group in enumerate(groups)
    for i, sample in enumerate(s for s in group if s['is_scored'])
  ]
  for row, sample in scored:
    num_tokens = int(np.asarray(batch.token_mask_RT[row]).sum())
    ids = response_RT[row, :num_tokens].tolist()
    solution = solutions[sample['id']]
    slip, before, after = token_places(ids, solution, tokenizer)
    if slip is not None and slip < len(solution):
      places['first slip'].append((row, slip, solution[slip]))
    places['before it'] += [(row, t, ids[t]) for t in before]
    places['after it'] += [(row, t, ids[t]) for t in after]
  return places


def main():
  config = cli.read_config()
  sizes = validate(config, jax.device_count())
  maker = build.load_maker(config)
  questions, _, _ = load_questions(config, maker)
  mesh = make_mesh(dict(config.mesh))
  grader = contextlib.closing(build.make_grader(config))
  with jax.set_mesh(mesh), grader as grader:
    settings = build.decoder_settings(config, maker.tokenizer.vocab_size)
    base = build.base_model(config, settings, mesh)
    folder = warmup.folder_of(config, '.')
    base = warmup.load_warm(config, base, mesh, folder)
    state = build.init_state(
      config, base.params, build.make_optimizer(config), mesh, has_ema=False
    )
    roll = step.make_rollout_step(
      base.graphdef,
      group_size=sizes.group_size,
      temperature=config.rollouts.temperature,
      max_tokens=config.rollouts.max_tokens,
      eos_ids=maker.tokenizer.eos_ids,
    )
    iterator = data.question_iterator(
      questions, batch_questions=_NUM_QUESTIONS, seed=config.seed
    )
    round_ = rounds.sampled_round(
      next(iterator),
      lambda prompts, meanwhile: roll(
        state, base.frozen, prompts, meanwhile=meanwhile
      ),
      maker,
      programs.round_rules(
        config,
        sizes.group_size,
        build.objective(config, eos_ids=maker.tokenizer.eos_ids),
      ),
      mesh,
      grader,
    )
    batch, hints = round_.batch, round_.batch.hints
    decoder = nnx.merge(base.graphdef, base.params)
    response_BGT = unflatten_rows(batch.response_RT, _NUM_QUESTIONS)

    @jax.jit
    def probabilities(weights_BGM):
      hidden = teacher.pooled_states(decoder, hints, weights_BGM, response_BGT)
      logits_RTV = project(flatten_rows(hidden), decoder.unembedding_VD)
      return jax.nn.softmax(logits_RTV)

    difference = hints.positive_BGM - hints.negative_BGM
    targets = {
      'anchor': hints.anchor_BGM,
      'mean of P+': hints.positive_BGM,
      'mean of P-': hints.negative_BGM,
      **{
        f'strength {s}': hints.anchor_BGM + s * difference for s in (0.5, 1, 3)
      },
    }
    places = collect(round_.samples, batch, questions, maker.tokenizer)
    print('| target |', *(f'{p} (n={len(x)}) |' for p, x in places.items()))
    print('|---|---|---|---|')
    for name, weights_BGM in targets.items():
      p_RTV = np.asarray(probabilities(weights_BGM))
      means = [p_RTV[tuple(np.array(x).T)].mean() for x in places.values()]
      print(f'| {name} |', *(f'{mean:.3f} |' for mean in means))


if __name__ == '__main__':
  cli.define_config()
  cli.run(main)
