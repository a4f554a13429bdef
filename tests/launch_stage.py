"""Stand-ins for gcloud, git, kubectl, srun and scontrol, and what they saw."""

import json
import os
import pathlib
import subprocess
import sys

LAUNCH = pathlib.Path('launch')
ZONE = ['job', '--zone=us-west4-a', '--poll_seconds=0']
GIVEN = ['--', '--config=configs/tiny.py', '--workdir=/mnt/ogls/x']
# What a shell would take apart, fill in or run.
ODD = ['--config.model.path=a b$c\'d"e', '--x=$(touch pwned)', '--y=*;`ls`', '']

STAND_IN = """#!{python}
import json, pathlib, sys
folder = pathlib.Path({folder!r})
name = pathlib.Path(sys.argv[0]).name
if name != 'git':
  with open(folder / 'calls.jsonl', 'a') as file:
    file.write(json.dumps([name, *sys.argv[1:]]) + '\\n')
play = folder / 'play.json'
state = json.loads(play.read_text())
words, code, answer = sys.argv[1:], 0, ''
def take(key):
  rows = state.get(key, [0])
  return rows.pop(0) if len(rows) > 1 else rows[0]
if name == 'gcloud' and 'describe' in words:
  answer = take('states')
  if answer == 'NONE':
    print('NOT_FOUND: no such resource', file=sys.stderr)
    answer, code = '', 1
  if answer == 'NETWORK':
    print('could not resolve host', file=sys.stderr)
    answer, code = '', 1
elif name == 'gcloud' and 'create' in words:
  state['states'] = take('after_create')
  code = 1 if state['states'] == ['QUOTA'] else 0
  state['states'] = ['NONE'] if code else state['states']
elif name == 'gcloud' and 'delete' in words:
  state['states'] = ['NONE']
elif name == 'gcloud' and any('cat ogls_run/exit_code' in w for w in words):
  answer = take('answers')
  if answer == 'no ssh':
    answer, code = '', 255
elif name == 'gcloud' and 'list' in words and '--format=value(name)' in words:
  answer = state.get('running', '')
elif name == 'gcloud' and 'scp' in words:
  code = take('scp')
elif name == 'gcloud' and any('pip install' in w for w in words):
  code = take('setup')
elif name == 'gcloud' and any('worker.sh' in w for w in words):
  code = take('start')
elif name == 'git' and 'status' in words:
  answer, code = take('git_status') or '', 128 * ('no_git' in state)
elif name == 'git':
  code = take('archive')
elif name == 'srun':
  code = state['code']
play.write_text(json.dumps(state))
if answer:
  print(answer)
sys.exit(code)
"""


class Stage:
  """A folder of stand-ins, what they play and what they were asked."""

  def __init__(self, folder, **play):
    self.folder = folder
    text = STAND_IN.format(python=sys.executable, folder=str(folder))
    for name in ('gcloud', 'git', 'kubectl', 'srun', 'scontrol'):
      (folder / name).write_text(text)
      (folder / name).chmod(0o755)
    (folder / 'play.json').write_text(json.dumps(play))

  def run(self, script, *arguments, **environment):
    path = f'{self.folder}{os.pathsep}{os.environ["PATH"]}'
    return subprocess.run(
      [str(LAUNCH / script), *arguments],
      env=os.environ | {'PATH': path} | environment,
      capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip

  def calls(self):
    path = self.folder / 'calls.jsonl'
    if not path.exists():
      return []
    return [json.loads(line) for line in path.read_text().splitlines()]

  def commands(self, part):
    """What the workers were given that has `part` in it."""
    words = [word for call in self.calls() for word in call if part in word]
    return [word.removeprefix('--command=') for word in words]

  def verbs(self):
    """The calls that change or use something, by their verb."""
    verbs = []
    for call in self.calls():
      for verb in ('create', 'delete', 'scp', 'ssh'):
        if verb in call:
          command = next((x for x in call if x.startswith('--command=')), '')
          kind = 'start' if '/worker.sh' in command else verb
          kind = 'setup' if 'pip install' in command else kind
          verbs.append('poll' if 'exit_code 2>' in command else kind)
    return verbs
