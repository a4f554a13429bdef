"""Curves of a comparison as a PNG, and all of it as one HTML page."""

import base64
import html
import io
import json
from collections.abc import Sequence

import numpy as np

from ogls_jax import comparison

# (metric, label of its axis)
PANELS = (
  ('eval_accuracy', 'accuracy, held out'),
  ('reward_mean', 'reward of rollouts'),
  ('response_tokens_mean', 'response length, tokens'),
  ('entropy', 'entropy of the student, nats'),
  ('kl', 'KL, nats per token'),
  ('clip_fraction', 'clipped tokens'),
)
# Okabe and Ito's, which colour-blind readers tell apart, then other lines.
_COLORS = (
  '#0072B2', '#D55E00', '#009E73', '#CC79A7', '#E69F00', '#56B4E9', '#000000'
)  # fmt: skip
_LINES = ('-', '--', ':', '-.')
CAPTION = (
  'Mean over seeds; the bands are from the lowest to the highest seed. Accuracy'
  ' is at the start, if base is compared, at the end, and in between as'
  ' eval.every_steps says. Entropy, KL and clipping are of tokens that carry'
  ' loss, which are others in each method; docs/metrics.md says what each is.'
)
_STYLE = """
:root { color-scheme: light dark }
body { font: 16px/1.5 system-ui, sans-serif; margin: 2rem auto;
  max-width: 70rem; padding: 0 1rem }
table { border-collapse: collapse; display: block; overflow-x: auto;
  margin: 1rem 0 }
td, th { border-bottom: 1px solid #8888; padding: .3rem .7rem;
  text-align: left; font-variant-numeric: tabular-nums }
img { max-width: 100%; background: #fff; border-radius: 6px }
pre { overflow-x: auto }
"""

# Steps, and one row of values for each seed.
Curve = tuple[list[int], np.ndarray]


def curve(rows_S: Sequence[list[dict]], name: str) -> Curve | None:
  """Of lines of metrics.jsonl by seed: where all seeds have a value."""
  values_S = [
    {row['step']: row[name] for row in rows if row[name] is not None}
    for rows in rows_S
  ]
  return _common(values_S)


def accuracy_curve(
  rows_S: Sequence[list[dict]],
  start_S: Sequence[float] | None,
  end_S: Sequence[float],
) -> Curve | None:
  """Held-out accuracy by seed: at the start, in training, at the end.

  A line of metrics.jsonl has that of the model before its update. `start_S` is
  None where the start was not evaluated. Ends at other updates, as a budget has
  them, stand at their mean.
  """
  values_S, last = [], round(np.mean([len(rows) for rows in rows_S]))
  for s, (rows, end) in enumerate(zip(rows_S, end_S, strict=True)):
    values = {} if start_S is None else {0: start_S[s]}
    values |= {
      row['step'] - 1: row['eval_accuracy']
      for row in rows
      if row['eval_accuracy'] is not None
    }
    values = {step: x for step, x in values.items() if step < last}
    values_S.append(values | {last: end})
  return _common(values_S)


def _common(values_S):
  steps = sorted(set.intersection(*map(set, values_S)))
  if not steps:
    return None
  return steps, np.array([[v[step] for step in steps] for v in values_S])


def draw(curves: dict[str, dict[str, Curve | None]]) -> bytes:
  """A PNG of all panels, of curves by metric and label."""
  # Slow to import, and of this command alone.
  from matplotlib.backends.backend_agg import FigureCanvasAgg
  from matplotlib.figure import Figure

  figure = Figure(figsize=(13, 7.5), layout='constrained')
  FigureCanvasAgg(figure)
  axes = figure.subplots(2, 3)
  for axis, (name, text) in zip(axes.flat, PANELS, strict=True):
    for i, (label, found) in enumerate(curves[name].items()):
      if found is None:
        continue
      steps, values_SX = found
      color = _COLORS[i % len(_COLORS)]
      line = _LINES[i // len(_COLORS) % len(_LINES)]
      axis.plot(
        steps, values_SX.mean(0), line, color=color, label=label,
        marker='o' if len(steps) < 20 else '', markersize=3,
      )  # fmt: skip
      axis.fill_between(
        steps, values_SX.min(0), values_SX.max(0), color=color, alpha=0.15,
        linewidth=0,
      )  # fmt: skip
    axis.set(xlabel='updates', ylabel=text)
    if axis.dataLim.height == 0 and axis.dataLim.y0 == 0:
      axis.set_ylim(0, 1)  # matplotlib would put 0 in the middle
    axis.xaxis.get_major_locator().set_params(integer=True)
    axis.grid(alpha=0.3)
    axis.spines[['top', 'right']].set_visible(False)
  by_label = {}
  for axis in axes.flat:
    for line, label in zip(*axis.get_legend_handles_labels(), strict=True):
      by_label.setdefault(label, line)
  figure.legend(
    by_label.values(), by_label.keys(), loc='outside lower center',
    ncols=min(max(len(by_label), 1), 4), frameon=False,
  )  # fmt: skip
  file = io.BytesIO()
  figure.savefig(file, format='png', dpi=110)
  return file.getvalue()


def page(content: dict, png: bytes) -> str:
  """compare.html: tables, curves and config; needs no other file."""
  variants, reference = content['variants'], content['reference']
  accuracies = comparison.accuracy_table(variants, reference)
  costs = comparison.cost_table(variants, reference)
  notes = ''.join(f'<p>{html.escape(note)}</p>' for note in comparison.NOTES)
  image = base64.b64encode(png).decode()
  config = json.dumps(content['config'], indent=2, sort_keys=True)
  versions = json.dumps(content['versions'], sort_keys=True)
  return (
    '<!doctype html><html lang="en"><head><meta charset="utf-8">'
    '<meta name="viewport" content="width=device-width">'
    f'<title>Comparison</title><style>{_STYLE}</style></head><body>\n'
    f'<h1>Comparison</h1><p>{html.escape(comparison.title(content))}</p>\n'
    f'{_table(accuracies)}\n{_table(costs)}\n{notes}\n'
    f'<img alt="Curves over updates" src="data:image/png;base64,{image}">\n'
    f'<p>{html.escape(CAPTION)}</p>\n'
    f'<details><summary>Config</summary><pre>{html.escape(config)}</pre>\n'
    f'<p>{html.escape(versions)}</p></details>\n</body></html>\n'
  )


def _table(table: comparison.Table) -> str:
  headings, rows = table
  head = ''.join(f'<th>{html.escape(cell)}</th>' for cell in headings)
  body = ''.join(
    f'<tr>{"".join(f"<td>{html.escape(cell)}</td>" for cell in row)}</tr>'
    for row in rows
  )
  return f'<table><tr>{head}</tr>{body}</table>'
