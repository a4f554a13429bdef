r"""The picture of a run's page in docs/.

    pip install -r requirements-test.txt
    python -m ogls_jax.report runs/tiny
    python -m benchmarks.report_picture --page=runs/tiny/report.html \
        --out=docs/report.png

Needs a Chromium, as tests/test_report_page.py does. Shows a rollout of the last
step with tokens, on the token that steering moved most.
"""

import argparse
import pathlib

from tests import browser as browsers


def main():
  parser = argparse.ArgumentParser()
  parser.add_argument('--page', type=pathlib.Path, required=True)
  parser.add_argument('--out', type=pathlib.Path, required=True)
  parser.add_argument('--scheme', choices=('light', 'dark'), default='light')
  flags = parser.parse_args()
  path = browsers.find()
  if not path:
    parser.error('no chromium on this machine; $OGLS_CHROMIUM can name one')
  options = {
    'viewport': {'width': 1280, 'height': 800},
    'color_scheme': flags.scheme,
  }
  with (
    browsers.launched(path) as browser,
    browsers.page_of(browser, flags.page.absolute(), **options) as page,
  ):
    page.select_option('#by-kind', 'tokens')
    steps = page.locator('#list [role=option] b').all_inner_texts()
    page.select_option('#by-step', steps[-1].removeprefix('step '))
    page.check('input[value=moved]')
    page.locator('#list').focus()
    page.keyboard.press('Enter')
    page.locator('#rollouts').evaluate(
      'x => window.scrollTo(0, x.offsetTop - 8)'
    )
    page.screenshot(path=flags.out)


if __name__ == '__main__':
  main()
