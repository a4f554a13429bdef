"""Tokens of the environment are in nothing that a run leaves."""

import contextlib
import io
import logging

from ogls_jax import train
from tests.small_run import small_config

SECRETS = {
  'HF_TOKEN': 'hf_veryveryverysecret',
  'WANDB_API_KEY': 'key_alsoveryverysecret',
  'GOOGLE_API_KEY': 'g_anotherverysecret',
}


def test_nothing_that_a_run_leaves_has_a_secret(tmp_path, monkeypatch):
  for name, value in SECRETS.items():
    monkeypatch.setenv(name, value)
  said = io.StringIO()
  handler = logging.StreamHandler(said)
  logging.getLogger().addHandler(handler)
  try:
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
      train.train(
        small_config(num_steps=1, warmup__num_steps=0), tmp_path / 'run'
      )
  finally:
    logging.getLogger().removeHandler(handler)
  files = [x for x in (tmp_path / 'run').rglob('*') if x.is_file()]
  assert len(files) > 8
  texts = [said.getvalue().encode(), *(x.read_bytes() for x in files)]
  for value in SECRETS.values():
    assert not any(value.encode() in text for text in texts)
