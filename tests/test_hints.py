import numpy as np
import pytest

from ogls_jax import hints as hints_lib
from ogls_jax import hosts, programs, rounds
from ogls_jax import prompts as prompts_lib
from ogls_jax.errors import UserError
from ogls_jax.mesh import single_device_mesh
from ogls_jax.questions import own_questions, uids_of
from ogls_jax.step import Objective
from ogls_jax.tasks.question import Question
from tests.small_run import small_config

RULES = hints_lib.HintRules(
  exclude_self=False, max_per_pool=0, max_tokens=50, strip_thinking=False
)
# Question 0 is mixed, 1 all correct, 2 all wrong.
IS_CORRECT = np.array([[1, 0, 0], [1, 1, 1], [0, 0, 0]], bool)


def pools(method, *, has_solution=(False,) * 3, **rules):
  return hints_lib.build_pools(
    is_correct_BG=IS_CORRECT,
    has_solution_B=np.array(has_solution),
    method=method,
    rules=hints_lib.dataclasses.replace(RULES, **rules),
  )


def test_ogls_pools_without_solutions():
  got = pools('ogls_sd')
  # Only the wrong rollouts of the mixed group: an all-correct group gives no
  # loss, an all-wrong one none without a solution.
  np.testing.assert_array_equal(got.is_scored_R, [0, 1, 1, 0, 0, 0, 0, 0, 0])
  for g in (1, 2):
    assert got.anchor_BGN[0, g].tolist() == [1, 0, 0, 0, 0]
    assert got.positive_BGN[0, g].tolist() == [0, 0, 1, 0, 0]
    assert got.negative_BGN[0, g].tolist() == [0, 0, 0, 0.5, 0.5]
  for weights in (got.anchor_BGN, got.positive_BGN, got.negative_BGN):
    assert not weights[0, 0].any()
    assert not weights[1:].any()


def test_ogls_pools_with_solutions():
  got = pools('ogls_sd', has_solution=(True, True, True))
  np.testing.assert_array_equal(got.is_scored_R, [0, 1, 1, 0, 0, 0, 1, 1, 1])
  assert got.positive_BGN[0, 1].tolist() == [0, 0.5, 0.5, 0, 0]
  assert got.positive_BGN[2, 0].tolist() == [0, 1, 0, 0, 0]
  third = np.float32(1 / 3)
  assert got.negative_BGN[2, 0].tolist() == [0, 0, third, third, third]


def test_exclude_self_leaves_the_scored_rollout_out():
  got = pools('ogls_sd', exclude_self=True)
  assert got.negative_BGN[0, 1].tolist() == [0, 0, 0, 0, 1]
  assert got.negative_BGN[0, 2].tolist() == [0, 0, 0, 1, 0]


def test_max_per_pool_takes_the_solution_first():
  got = pools('ogls_sd', has_solution=(True,) * 3, max_per_pool=1)
  assert got.positive_BGN[0, 1].tolist() == [0, 1, 0, 0, 0]
  assert got.negative_BGN[0, 2].tolist() == [0, 0, 0, 1, 0]


@pytest.mark.parametrize('method', ['pos_mean', 'pos_only'])
def test_positive_methods_score_all_rollouts_with_a_positive_pool(method):
  got = pools(method)
  np.testing.assert_array_equal(got.is_scored_R, [1, 1, 1, 1, 1, 1, 0, 0, 0])
  assert got.positive_BGN[0, 0].tolist() == [0, 0, 1, 0, 0]
  assert not got.negative_BGN.any()
  assert got.anchor_BGN[0, 0, 0] == (method == 'pos_only')


def test_opsd_is_taught_by_the_solution_alone():
  got = pools('opsd', has_solution=(True, False, True))
  np.testing.assert_array_equal(got.is_scored_R, [1, 1, 1, 0, 0, 0, 1, 1, 1])
  assert got.positive_BGN[0, 2].tolist() == [0, 1, 0, 0, 0]
  assert not got.anchor_BGN.any()


def build(maker, method='ogls_sd', rules=RULES, solutions=(None,) * 3):
  questions = [Question(f'q{i}', f'{i} + 1', '1') for i in range(3)]
  return hints_lib.build_hints(
    questions=questions,
    solutions=list(solutions),
    responses=[f'try {i}' for i in range(9)],
    pools=pools(method, has_solution=[text is not None for text in solutions]),
    maker=maker,
    rules=rules,
    max_contexts=hints_lib.num_contexts(method, 3),
    bucket_tokens=8,
  )


def test_contexts_hold_what_the_pools_weigh(maker):
  hints, num_cut_B = build(maker)
  assert not num_cut_B.any()
  texts = [
    maker.tokenizer.decode(hints.context_BMC[0, m, :n].tolist())
    for m, n in enumerate(hints.length_BM[0])
  ]
  # The longest come first, so the anchor last.
  assert texts[:3] == [
    f'Question: 0 + 1\nHint: try {i}\nAnswer: ' for i in range(3)
  ]
  assert texts[3] == 'Question: 0 + 1\nAnswer: '
  assert hints.length_BM[0, 4] == 0
  assert hints.anchor_BGM[0, 1].tolist() == [0, 0, 0, 1, 0]
  assert hints.positive_BGM[0, 1].tolist() == [1, 0, 0, 0, 0]
  assert hints.negative_BGM[0, 1].tolist() == [0, 0.5, 0.5, 0, 0]
  # Questions without a scored rollout are not read.
  assert not hints.length_BM[1:].any()
  assert hints.context_BMC.shape[-1] % 8 == 0


def with_switch(tokenizer):
  """One whose prompts end in '=' where thinking is off."""

  def encode_chat(text, *, is_thinking=True):
    return tokenizer.encode(text if is_thinking else text + '=')

  return hints_lib.dataclasses.replace(tokenizer, encode_chat=encode_chat)


def test_the_anchor_thinks_as_the_teacher_does(maker):
  tokenizer = with_switch(maker.tokenizer)
  for student, teacher in ((True, False), (False, True)):
    own = hints_lib.dataclasses.replace(
      maker,
      tokenizer=tokenizer,
      is_student_thinking=student,
      is_teacher_thinking=teacher,
    )
    hints, _ = build(own)
    texts = [
      tokenizer.decode(hints.context_BMC[0, m, :n].tolist())
      for m, n in enumerate(hints.length_BM[0, :4])
    ]
    end = 'Answer: ' if teacher else 'Answer: ='
    assert texts[3] == 'Question: 0 + 1\n' + end
    assert texts[0] == 'Question: 0 + 1\nHint: try 0\n' + end
    ids = own.student_ids(Question('q', '0 + 1', '1'))
    assert tokenizer.decode(ids).endswith('=') != student


def test_every_needed_hint_has_a_context_with_its_weight(maker):
  for method in ('ogls_sd', 'pos_mean', 'pos_only', 'opsd'):
    hints, _ = build(maker, method, solutions=('7', '8', None))
    weighed = np.abs(hints.anchor_BGM) + hints.positive_BGM + hints.negative_BGM
    np.testing.assert_array_equal(weighed.any(1), hints.length_BM > 0)


def test_long_hints_are_cut_and_counted(maker):
  rules = hints_lib.dataclasses.replace(RULES, max_tokens=4)
  hints, num_cut_B = build(maker, rules=rules)
  assert num_cut_B.sum() == 3
  length = hints.length_BM[0, 1]
  text = maker.tokenizer.decode(hints.context_BMC[0, 1, :length].tolist())
  assert text == 'Question: 0 + 1\nHint: try \nAnswer: '


def test_thinking_is_stripped_only_on_request(maker):
  text = '<think>a\nb</think>\nc <think>d'
  assert hints_lib.cut_hint(text, maker, RULES) == (text, False)
  rules = hints_lib.dataclasses.replace(RULES, strip_thinking=True)
  assert hints_lib.cut_hint(text, maker, rules) == ('c ', False)


def test_a_long_question_is_an_error_that_names_it(maker):
  rows = [Question('short', '1', '1'), Question('long', '1' * 99, '1')]

  def check(**kwargs):
    return prompts_lib.check_prompt_lengths(rows, maker, **kwargs)

  with pytest.raises(UserError, match='long.*prompt.max_tokens = 50'):
    check(max_tokens=50, on_bad_row='error')
  kept, num_long = check(max_tokens=50, on_bad_row='skip')
  assert [q.id for q in kept] == ['short'] and num_long == 1
  with pytest.raises(UserError, match='no question fits'):
    check(max_tokens=2, on_bad_row='skip')


def test_templates_are_named_or_files_and_sandboxed(tmp_path):
  with pytest.raises(UserError, match='prompt.x.*none of: student'):
    prompts_lib.load_template('prompt.x', 'absent')
  bad = tmp_path / 'bad.jinja'
  bad.write_text('{{ question')
  with pytest.raises(UserError, match='bad.jinja'):
    prompts_lib.load_template('prompt.x', str(bad))
  own = tmp_path / 'own.jinja'
  own.write_text('<<{{ question }}>>')
  template = prompts_lib.load_template('prompt.x', str(own))
  assert template.render(question='{{ 1 + 1 }}') == '<<{{ 1 + 1 }}>>'


@pytest.mark.parametrize(
  ('content', 'problem'),
  [
    (b'{{ qestion }}', 'qestion'),
    (b'{{ question }} and nothing else', r'does not show \{\{ hint \}\}'),
    (b'\xff{{ question }}{{ hint }}', 'utf-8'),
  ],
)
def test_bad_templates_are_one_line(tmp_path, content, problem):
  path = tmp_path / 'bad.jinja'
  path.write_bytes(content)
  with pytest.raises(UserError, match=f'bad.jinja.*{problem}') as error:
    prompts_lib.load_template('prompt.x', str(path), ('question', 'hint'))
  assert '\n' not in str(error.value)


def test_a_question_that_comes_twice_in_a_batch_has_two_names():
  a, b = Question('a', '1', '1'), Question('b', '2', '2')
  uids = uids_of([a, b, a, a])
  assert len(set(uids)) == 4
  assert uids_of([b, a]) == [uids[1], uids[0]]


def test_that_holds_where_two_hosts_share_the_batch(monkeypatch):
  a, b, c = (Question(name, '1', '1') for name in 'abc')
  batch, found = [a, b, c, a], []
  for rows in ([0, 1], [2, 3]):
    monkeypatch.setattr(hosts, 'own_rows', lambda num, mesh, rows=rows: rows)
    own, uids = own_questions(batch, None)
    assert own == [batch[row] for row in rows]
    found += uids
  assert found == uids_of(batch) and len(set(found)) == 4


def test_a_kd_teacher_reads_its_own_prompt(maker):
  """Without a hint, whatever there is; all rollouts carry loss."""
  own = hints_lib.dataclasses.replace(
    maker, tokenizer=with_switch(maker.tokenizer), is_teacher_thinking=False
  )
  assert pools('kd', exclude_self=True).is_scored_R.all()
  hints, num_cut_B = build(own, 'kd', solutions=('7', None, '8'))
  assert not num_cut_B.any()
  assert hints.context_BMC.shape[:2] == hints.length_BM.shape == (3, 1)
  for b in range(3):
    ids = hints.context_BMC[b, 0, : hints.length_BM[b, 0]].tolist()
    assert own.tokenizer.decode(ids) == f'Question: {b} + 1\nAnswer: ='
  assert hints.anchor_BGM.shape == (3, 3, 1) and (hints.anchor_BGM == 1).all()
  assert not hints.positive_BGM.any() and not hints.negative_BGM.any()


def test_kd_on_solutions_has_one_row_a_question(maker):
  config = small_config(method='kd', prompt__bucket_tokens=4)
  rules = programs.round_rules(config, 1, Objective('kd'))
  questions = [Question(f'q{i}', f'{i} + 1', '1', 'a' * i) for i in (1, 2)]
  batch = rounds.solution_round(
    questions, maker, rules, single_device_mesh()
  ).batch
  assert batch.hints.anchor_BGM.tolist() == [[[1]], [[1]]]
  assert batch.token_mask_RT.sum(1).tolist() == [2, 3]  # and its end
  for b, question in enumerate(questions):
    ids = batch.hints.context_BMC[b, 0, : batch.hints.length_BM[b, 0]]
    assert ids.tolist() == maker.anchor_ids(question)


def test_a_boxed_choice_is_said_in_words_and_a_rollout_as_it_is():
  template = prompts_lib.load_template(
    'k', 'teacher_choice', ('question', 'hint')
  )
  for hint, text in (
    (r'\boxed{yes}', 'mistakes: The answer is yes.'),
    (r'So \boxed{yes}', r'mistakes: So \boxed{yes}'),
    (r'\frac{1}{2}', r'mistakes: \frac{1}{2}'),
  ):
    assert f'{text}\n\nExplain' in template.render(question='?', hint=hint)
