"""Questions of a line each, and files of their rows."""

import gzip
import json

from ogls_jax.tasks import superglue_metrics
from ogls_jax.tasks.question import Question


def row(i, **fields):
  return {'id': f'r{i}', 'question': f'{i} + 1', 'answer': str(i + 1), **fields}


def write(path, rows):
  lines = [r if isinstance(r, str) else json.dumps(r) for r in rows]
  content = '\n'.join([*lines, '']).encode('utf-8')
  opener = gzip.open if path.suffix == '.gz' else open
  with opener(path, 'wb') as f:
    f.write(content)
  return str(path)


def superglue_scores(rows):
  """Metrics by `<task>/<metric>` and their average, of (question, response)."""
  found, means = {}, []
  for task, pairs in superglue_metrics.pairs_of(rows).items():
    values = {
      name: float(metric.value(metric.counts(pairs).sum(0)))
      for name, metric in superglue_metrics.METRICS[task].items()
    }
    found |= {f'{task}/{name}': value for name, value in values.items()}
    means.append(sum(values.values()) / len(values))
  return found | {'average': sum(means) / len(means)}


def make_questions(n):
  return [Question(f'r{i}', f'{i} + 1', str(i + 1)) for i in range(n)]
