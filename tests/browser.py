"""A headless Chromium that this machine has, for tests and screenshots."""

import contextlib
import os
import shutil

PROGRAMS = (
  'chromium', 'chromium-browser', 'google-chrome', 'google-chrome-stable',
)  # fmt: skip


def find():
  """Its path, from $OGLS_CHROMIUM or $PATH; None if there is none."""
  given = os.environ.get('OGLS_CHROMIUM')
  return given or next(filter(None, map(shutil.which, PROGRAMS)), None)


@contextlib.contextmanager
def launched(path):
  """A browser that can reach no network."""
  from playwright.sync_api import sync_playwright

  # Chromium refuses its own sandbox to root, as in containers.
  is_root = hasattr(os, 'geteuid') and os.geteuid() == 0
  with sync_playwright() as playwright:
    browser = playwright.chromium.launch(
      executable_path=path, chromium_sandbox=not is_root
    )
    try:
      yield browser
    finally:
      browser.close()


@contextlib.contextmanager
def page_of(browser, path, **options):
  """A page of the file at `path`; an error in it, or a request, fails."""
  problems = []
  with contextlib.closing(browser.new_context(**options)) as context:
    page = context.new_page()
    page.set_default_timeout(20_000)
    page.on(
      'console',
      lambda message: (
        message.type in ('error', 'warning') and problems.append(message.text)
      ),
    )
    page.on('pageerror', lambda error: problems.append(str(error)))
    page.on('dialog', lambda dialog: problems.append(dialog.message))
    page.on('request', lambda request: problems.append(request.url))
    page.goto(path.as_uri())
    page.wait_for_selector('html[data-ready]')
    yield page
  assert problems == [path.as_uri()], problems
