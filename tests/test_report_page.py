"""The page of a run in headless Chromium."""

import json

import pytest

from ogls_jax import report
from tests import browser as browsers
from tests.report_runs import inspected_row, make_run, sample_row

TOKENS = ['13', ' + ', '7', ' = ', '20', '\n', '20', ' - ', '4', '']


@pytest.fixture(scope='module')
def browser():
  path = browsers.find()
  if not path:
    pytest.skip('no chromium on this machine; $OGLS_CHROMIUM can name one')
  with browsers.launched(path) as found:
    yield found


@pytest.fixture(scope='module')
def plain(tmp_path_factory):
  """The page of a run with 8 inspected rollouts and 4 samples."""
  workdir = tmp_path_factory.mktemp('run') / 'plain'
  make_run(
    workdir,
    inspected=[
      inspected_row(step, TOKENS, seed=k, rest=' and on', is_scored=k < 3)
      for step in (1, 10)
      for k in range(4)
    ],
    samples=[sample_row(step, k) for step in (1, 20) for k in range(2)],
  )
  report.write_report(workdir, workdir / 'report.html')
  return workdir / 'report.html'


def write(workdir, **options):
  make_run(workdir, **options)
  report.write_report(workdir, workdir / 'report.html')
  return workdir / 'report.html'


def test_a_run_without_rollouts_takes_every_key(browser, tmp_path):
  with browsers.page_of(browser, write(tmp_path / 'none')) as page:
    for key in ('/', 'Escape', 'j', 'k', 'ArrowDown', 'Enter', 'n'):
      page.keyboard.press(key)
    page.keyboard.press('/')
    assert focused(page) == 'by-text'


def test_what_is_not_known_is_no_zero(browser, tmp_path):
  row = inspected_row(1, TOKENS, divergence=[None] * len(TOKENS))
  row['top']['student'][0] = [None] * len(row['top']['student'][0])
  with browsers.page_of(
    browser, write(tmp_path / 'nan', inspected=[row])
  ) as page:
    assert page.inner_text('#list .mean') == '–'
    page.locator('[data-t="0"]').focus()
    student = page.locator('.columns section').first
    assert set(student.locator('li b').all_inner_texts()) == {'–'}


def options_of(page):
  return page.locator('#list [role=option]').count()


def focused(page):
  return page.evaluate(
    'document.activeElement.dataset.t ?? document.activeElement.id'
  )


def test_it_loads_and_shows_what_there_is(browser, plain):
  with browsers.page_of(browser, plain) as page:
    assert page.inner_text('h1') == 'plain'
    assert page.inner_text('#lead') == 'ogls_sd, 40 of 40 updates, finished'
    assert page.locator('#charts figure').count() == 14
    assert '43.4% [40.0, 46.8]' in page.inner_text('#tiles')
    note = page.inner_text('#rollouts-note')
    assert note == (
      '8 of 8 rollouts with tokens (inspect.jsonl) are shown;'
      ' 4 of 4 others (samples.jsonl) are shown.'
    )
    assert options_of(page) == 12


def test_filters(browser, plain):
  with browsers.page_of(browser, plain) as page:
    page.select_option('#by-step', '10')
    assert options_of(page) == 4
    page.select_option('#by-reward', 'right')
    assert options_of(page) == 2
    assert page.inner_text('#num-found') == '2 of 12'
    page.select_option('#by-reward', 'wrong')
    page.select_option('#by-step', '')
    assert options_of(page) == 8
    page.select_option('#by-kind', 'scored')
    assert options_of(page) == 4
    page.select_option('#by-reward', '')
    page.select_option('#by-kind', 'tokens')
    assert options_of(page) == 8
    page.fill('#by-text', 'WHAT IS 3 + 10')
    assert options_of(page) == 1
    page.fill('#by-text', 'nowhere')
    assert options_of(page) == 0
    assert 'No rollout' in page.inner_text('#detail')
    page.fill('#config-text', 'steering')
    assert page.locator('#config-rows tr:visible').count() == 2
    page.check('#config-changed')
    page.fill('#config-text', '')
    changed = page.locator('#config-rows tr:visible')
    assert 'model.width' not in changed.all_inner_texts()
    assert changed.count() == page.locator('#config-rows .tag').count() > 10


def test_the_panel_has_the_figures_of_the_token(browser, plain):
  (row,) = [
    row
    for row in map(
      json.loads, (plain.parent / 'inspect.jsonl').read_text().splitlines()
    )
    if row['step'] == 10 and row['id'] == 'q2'
  ]
  with browsers.page_of(browser, plain) as page:
    page.fill('#by-text', 'q2')
    page.select_option('#by-step', '10')
    assert (
      page.inner_text('.text')
      == ''.join(TOKENS).replace('\n', '⏎\n')
      + f'⟨{row["names"][str(row["token_ids"][-1])]}⟩ and on'
    )
    page.click('[data-t="3"]')
    columns = page.locator('#panel .columns section')
    assert columns.locator('h4').all_inner_texts() == [
      'Student', 'Anchor', 'Positive mean', 'Negative mean', 'Steered target',
    ]  # fmt: skip
    for n, name in enumerate(('student', 'anchor', 'positive', 'negative')):
      column = columns.nth(n)
      texts = column.locator('li bdi').all_inner_texts()
      ids = row['top_ids'][name][3]
      assert texts == [row['names'][str(i)].replace(' ', '␣') for i in ids]
      shares = column.locator('li b').all_inner_texts()
      for text, share in zip(shares, row['top'][name][3], strict=True):
        if text != '<0.01%':
          assert float(text[:-1]) == pytest.approx(100 * share, abs=0.06)
      assert column.locator('li.own').count() == 1
    line = page.inner_text('.facts-line')
    assert 'token 4 of 10' in line and f'id {row["token_ids"][3]}\n' in line
    assert f'{row["divergence"][3]:.3g} nats' in line
    assert f'{row["moved"][3]:.3g} nats' in line
    assert 'teacher, over P+, 2 hints' in page.inner_text('#panel')


def test_colours_follow_the_figures(browser, plain):
  shares = """[...document.querySelectorAll('.token')].map(
    (x) => Number(x.style.getPropertyValue('--share')))"""
  row = json.loads((plain.parent / 'inspect.jsonl').read_text().split('\n')[0])

  def order(values):
    return sorted(range(len(values)), key=values.__getitem__)

  with browsers.page_of(browser, plain) as page:
    paints = []
    for mode in ('divergence', 'moved'):
      page.check(f'input[value={mode}]')
      found = page.evaluate(shares)
      below = [x for x in order(row[mode]) if found[x] < 1]
      assert len(below) > 5 and below == [
        x for x in order(found) if found[x] < 1
      ]
      paints.append(page.locator('.token').nth(below[-1]).evaluate(
        'x => getComputedStyle(x).backgroundColor'))  # fmt: skip
      assert 'nats' in page.inner_text('.scale')
    assert paints[0] != paints[1]
    page.check('input[value=none]')
    assert set(page.evaluate(shares)) == {0}


def test_everything_works_from_the_keyboard(browser, plain):
  with browsers.page_of(browser, plain) as page:
    press = page.keyboard.press
    press('/')
    assert focused(page) == 'by-text'
    page.keyboard.type('jk')  # typed, not followed
    assert options_of(page) == 0
    page.fill('#by-text', '')
    press('Escape')
    assert focused(page) == 'list'
    selected = page.locator('[aria-selected=true]')
    press('j')
    press('ArrowDown')
    assert selected.get_attribute('data-place') == '2'
    press('k')
    assert selected.get_attribute('data-place') == '1'
    assert page.get_attribute('#list', 'aria-activedescendant') == 'rollout-1'
    press('Enter')
    press('Home')
    assert focused(page) == '0'
    press('ArrowRight')
    press('ArrowRight')
    press('ArrowLeft')
    assert focused(page) == '1'
    assert page.locator('[aria-pressed=true]').get_attribute('data-t') == '1'
    press('ArrowDown')
    assert int(focused(page)) in (6, 7)  # of the second line
    press('ArrowUp')
    assert int(focused(page)) < 6
    press('End')
    assert focused(page) == '9'
    press('Enter')
    assert focused(page) == 'panel'
    press('Escape')
    assert focused(page) == '9'
    values = json.loads(
      (plain.parent / 'inspect.jsonl').read_text().split('\n')[1]
    )['divergence']
    order = sorted(range(10), key=lambda t: -values[t])
    page.locator(f'[data-t="{order[0]}"]').focus()
    press('n')
    assert focused(page) == str(order[1])
    press('p')
    assert focused(page) == str(order[0])
    press('j')
    assert focused(page).isdigit()
    assert selected.get_attribute('data-place') == '2'
    press('Escape')
    assert focused(page) == 'list'
    # What has the focus can be seen.
    outline = page.locator('#list').evaluate(
      'x => getComputedStyle(x).outlineStyle'
    )
    assert outline == 'solid'
    page.locator('#charts figure').first.focus()
    press('ArrowLeft')
    assert page.inner_text('#charts figure .read >> nth=0').endswith('at 39')
    said = page.get_attribute('#charts figure >> nth=0', 'aria-valuetext')
    assert said.endswith('at 39')  # what readers of the screen say


HOSTILE = [
  '<script>alert(1)</script>',
  '</script><script>alert(2)</script>',
  '<img src=x onerror=alert(3)>',
  '<!--<script>',
  ']]>{{ 7 * 7 }}${alert(4)}',
  'a\x00b\x1b[31m',
  '\u202eabc\u2066',
  'שלום',
  '\u2028\u2029',
  '\ud800',
  '"\'`&lt;',
]


def test_what_a_model_writes_is_text(browser, tmp_path):
  rows = [
    inspected_row(
      1, HOSTILE, rest=text, question=text, answer=text, id=text, seed=k
    )
    for k, text in enumerate(HOSTILE)
  ]
  samples = [
    sample_row(2, text, response=text, question=text, answer=text, id=text)
    for text in HOSTILE
  ]
  path = write(tmp_path, inspected=rows, samples=samples, data__path=HOSTILE[1])
  with browsers.page_of(browser, path) as page:
    num_scripts = page.locator('script').count()
    assert num_scripts == 2
    for place in range(2 * len(HOSTILE)):
      page.evaluate(
        'x => document.getElementById(`rollout-${x}`).click()', place
      )
      for t in range(len(HOSTILE)) if place < 2 else ():
        page.locator(f'[data-t="{t}"]').focus()
    assert page.locator('script').count() == num_scripts
    assert page.locator('img').count() == 0
    shown = page.inner_text('.text')
    assert shown == '"\'`&lt;'
    page.evaluate('() => document.getElementById("rollout-0").click()')
    shown = page.inner_text('.text')
    assert '<script>alert(1)</script></script><script>' in shown
    assert 'a␀b␛[31m' in shown and '⟨U+202E⟩abc⟨U+2066⟩' in shown
    assert '\u202e' not in page.content() and '\x00' not in page.content()
    isolated = page.locator('.token').first.evaluate(
      'x => getComputedStyle(x).unicodeBidi'
    )
    assert isolated == 'isolate'


def test_the_policy_runs_nothing_else(browser, plain):
  with (
    pytest.raises(AssertionError, match='Content Security Policy'),
    browsers.page_of(browser, plain) as page,
  ):
    page.evaluate("""() => {
      const script = document.createElement('script');
      script.textContent = 'window.hasRun = true';
      document.body.append(script);
    }""")
    assert page.evaluate('window.hasRun') is None


def contrast(page, element, background):
  """WCAG contrast of the element's text against a CSS colour over its card."""
  return page.evaluate(
    """([selector, background]) => {
    const canvas = document.createElement('canvas');
    const pen = canvas.getContext('2d', { willReadFrequently: true });
    const light = (...colours) => {
      for (const colour of colours) {
        pen.fillStyle = colour;
        pen.fillRect(0, 0, 1, 1);
      }
      const parts = [...pen.getImageData(0, 0, 1, 1).data].slice(0, 3)
        .map((x) => x / 255)
        .map((x) => (x <= 0.04045 ? x / 12.92 : ((x + 0.055) / 1.055) ** 2.4));
      return 0.2126 * parts[0] + 0.7152 * parts[1] + 0.0722 * parts[2];
    };
    const style = getComputedStyle(document.querySelector(selector));
    const root = getComputedStyle(document.documentElement);
    const card = root.getPropertyValue('--card');
    const paint = root.getPropertyValue(background);
    const pair = [light(card, style.color), light(card, paint)];
    return (Math.max(...pair) + 0.05) / (Math.min(...pair) + 0.05);
  }""",
    [element, background],
  )


@pytest.mark.parametrize('scheme', ['light', 'dark'])
def test_text_can_be_read_in_both_schemes(browser, plain, scheme):
  with browsers.page_of(browser, plain, color_scheme=scheme) as page:
    for element, background in [
      ('.token', '--hot'), ('.token', '--cool'), ('.token', '--card'),
      ('.rest', '--card'), ('.note', '--page'), ('.columns li b', '--bar'),
      ('span.reward', '--tag'), ('#list .soft', '--tag'), ('nav a', '--page'),
      ('figcaption', '--card'), ('.tag', '--tag'),
    ]:  # fmt: skip
      assert contrast(page, element, background) >= 4.5, (element, background)
    page_colour = page.evaluate(
      'getComputedStyle(document.body).backgroundColor'
    )
    is_dark = int(page_colour.removeprefix('rgb(').split(',')[0]) < 80
    assert is_dark == (scheme == 'dark')


def test_a_narrow_screen_needs_no_scrolling_to_the_side(browser, plain):
  viewport = {'width': 390, 'height': 800}
  with browsers.page_of(browser, plain, viewport=viewport) as page:
    width = page.evaluate('document.documentElement.scrollWidth')
    assert width <= 390


@pytest.mark.parametrize(
  ('method', 'text'),
  [
    ('ogls_sd', '--config.log.inspect_every_steps=10'),
    ('grpo', 'grpo has no steered teacher'),
  ],
)
def test_without_tokens_it_says_why(browser, tmp_path, method, text):
  path = write(
    tmp_path, method=method, is_finished=False, num_steps=3,
    samples=[sample_row(1, 0, reward=0.5)],
  )  # fmt: skip
  (tmp_path / 'inspect.jsonl').unlink()
  report.write_report(tmp_path, path)
  with browsers.page_of(browser, path) as page:
    assert text in page.inner_text('#rollouts-note')
    assert page.inner_text('#detail .text') == 'It is 0.'
    assert 'reward 0.5' in page.inner_text('#detail h3')
    assert 'finished' not in page.inner_text('#lead')


def test_what_is_left_out_is_said(browser, tmp_path, monkeypatch):
  monkeypatch.setattr(report, '_MOST_ROLLOUT_BYTES', 9000)
  inspected = [inspected_row(step, TOKENS) for step in range(1, 30)]
  path = write(tmp_path, num_steps=3000, inspected=inspected)
  with browsers.page_of(browser, path) as page:
    note = page.inner_text('#rollouts-note')
    assert 'of 29 rollouts with tokens' in note and 'do not fit' in note
    assert options_of(page) == int(note.split()[0]) < 29
    assert 'mean of 6 updates' in page.inner_text('#curves-note')
