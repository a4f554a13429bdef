"""What the runs of `benchmarks/rollout.py` say, and its tables."""

import dataclasses

from benchmarks.measure import spread

# Share of the CPUs that others may take.
QUIET = 0.05


@dataclasses.dataclass(frozen=True)
class Summary:
  """What the rounds of one engine say; see `rollout_engine.py`."""

  tokens_per_second: list[float]
  first_token_seconds: list[float]
  seconds: list[float]
  peak_bytes: int
  compile_seconds: float
  others_share: float
  versions: dict[str, str]


def summarize(answers: list[dict]) -> Summary:
  warm_up, *rounds = answers
  return Summary(
    tokens_per_second=[a['tokens'] / a['seconds'] for a in rounds],
    first_token_seconds=[a['first_token_seconds'] for a in rounds],
    seconds=[a['seconds'] for a in rounds],
    peak_bytes=rounds[-1]['peak_bytes'],
    compile_seconds=warm_up['compile_seconds'],
    others_share=max(a['others_share'] for a in rounds),
    versions=warm_up['versions'],
  )


def print_table(summaries: dict[str, Summary]) -> None:
  layout = '{:19} {:>23} {:>21} {:>8} {:>8} {:>19} {:>7}'.format
  print(
    layout(
      'engine', 'tokens/s', 'first token s', 'peak GiB', 'compile', 'ours/it',
      'others',
    )
  )  # fmt: skip
  ours = summaries.get('ours')
  for name, summary in summaries.items():
    ratios = [
      a / b
      for a, b in zip(
        ours.tokens_per_second if ours else [], summary.tokens_per_second,
        strict=False,
      )
    ]  # fmt: skip
    print(
      layout(
        name,
        spread(summary.tokens_per_second, 1),
        spread(summary.first_token_seconds, 2),
        f'{summary.peak_bytes / 2**30:.2f}',
        f'{summary.compile_seconds:.1f}',
        spread(ratios, 2) if ratios else '',
        f'{summary.others_share:.0%}',
      )
    )
  most = max((s.others_share for s in summaries.values()), default=0)
  if most > QUIET:
    print(f'others took up to {most:.0%} of the CPUs: repeat it without them')


def print_roofline(summaries, model: str, least, rates: dict) -> None:
  for key, unit in (('flops', 'GFLOP/s'), ('bytes', 'GB/s')):
    best = max(rates[key], key=rates[key].get)
    print(f'{rates[key][best] / 1e9:.1f} {unit} ({best})', end=', ')
  line = (
    f'so at least {1e3 * least.step_seconds:.1f} ms a step with all rows'
    f' ({least.limit}), {least.seconds:.2f} s in all'
  )
  if 'ours' in summaries:
    seconds = summaries['ours'].seconds
    fractions = [100 * least.seconds / each for each in seconds]
    line += f'; ours reaches {spread(fractions, 0)}% of that'
  products = 1e3 / rates['products'][model]
  line += f"; a step's products alone take {products:.1f} ms"
  print(line + '\n', flush=True)
