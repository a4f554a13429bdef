"""Every key, with its default and unit. Other configs import this one.

Keys end in their unit where they have one. An empty string means "none"; the
command line sets any key: `--config.steering.max_strength=2`.
"""

from ml_collections import config_dict


def get_config() -> config_dict.ConfigDict:
  config = config_dict.ConfigDict()
  # ogls_sd, opsd, pos_mean, pos_only, kd, sft or grpo.
  config.method = 'ogls_sd'
  # Starts every random choice of the run but those of `data.seed`.
  config.seed = 0
  # Updates of stage 2. The learning-rate schedule ends here.
  config.num_steps = 100
  # Who is steered: base (the starting weights), ema or live (the student).
  config.teacher = 'base'
  config.ema_decay = 0.999  # of teacher = ema, per update

  config.data = _data()
  config.prompt = _prompt()
  config.model = _model()
  config.lora = config_dict.create(
    rank=64,  # 0 trains all weights
    alpha=128.0,  # adapters count alpha / rank times
    # Variance of lora_a at the start, times its inputs: 1/3 in PEFT and in
    # LoRA's own code, 2 in Flax. The first updates move the weights in
    # proportion to its square root, as they do to the learning rate.
    init_variance=1 / 3,
    targets='q,k,v,o,gate,up,down',  # layers with adapters
  )
  config.rollouts = config_dict.create(
    batch_questions=32,  # B
    group_size=8,  # G
    max_tokens=8192,  # length of a rollout
    temperature=1.1,  # of sampling, not of the divergence
    top_k=0,  # 0 keeps all
    top_p=1.0,  # 1 keeps all
    min_p=0.0,  # 0 keeps all
  )
  config.hints = config_dict.create(
    min_reward=1.0,  # a rollout of at least this reward is in P+, else in P-
    exclude_self=False,  # leave the scored rollout out of its own pools
    max_per_pool=0,  # 0 for all; the solution first, then rollouts in order
    max_tokens=8192,  # longer hints lose their end; counted as hints_cut
    strip_thinking=False,  # drop <think> blocks from hints
    # Rows without `solution` have \boxed{answer}; solutions that have no
    # \boxed{} end with it.
    answer_as_solution=False,
  )
  config.steering = config_dict.create(
    max_strength=3.0,  # lambda after the ramp
    ramp_steps=20,  # updates of its linear ramp
  )
  config.distill = config_dict.create(
    response_tokens=1024,  # the first of a rollout, which carry the loss
  )
  config.loss = config_dict.create(
    kl='forward',  # forward KL(teacher || student), reverse, or jsd
    jsd_beta=0.5,  # the teacher's share of the mixture
    clip_mode='symmetric',  # of each vocabulary entry: none, upper, symmetric
    pointwise_clip=0.05,  # nats
    temperature=1.0,  # divides both logits; changes the effective lambda
    block_tokens=16,  # columns of logits held at a time; docs/performance.md
    merge_eos=False,  # one stopping action for all end-of-sequence ids
  )
  # Negative log-likelihood of the last tokens of correct rollouts.
  config.tail = config_dict.create(
    weight=0.0,  # of it in the loss
    tokens=64,  # how many, end-of-sequence included
  )
  config.kd = config_dict.create(
    teacher_workdir='',  # a finished run whose weights teach
    teacher_path='',  # or a model that does; like model.path
    source='rollouts',  # rollouts, or solutions of the dataset (offline)
  )
  config.grpo = config_dict.create(
    clip_low=0.2,  # ratios count from 1 - clip_low
    clip_high=0.2,  # to 1 + clip_high
    kl_weight=0.0,  # of the KL to base
  )
  config.optimizer = config_dict.create(
    learning_rate=5e-6,  # of AdamW, after warmup_steps
    schedule='constant',  # constant, linear or cosine
    warmup_steps=0,  # updates of a linear rise
    b1=0.9,  # decay of the mean of gradients
    b2=0.999,  # and of their squares
    weight_decay=0.0,  # decoupled, times the learning rate
    max_grad_norm=0.1,  # 0 turns clipping off
    # Of a run: updates whose loss or gradient is not finite are skipped, up to
    # so many; then the run stops.
    max_skipped_steps=3,
    num_microbatches=1,  # divides batch_questions; bounds memory
  )
  config.warmup = _warmup()
  # Answers are graded in two worker processes; those that only algebra tells
  # by math-verify. What exceeds a limit gets reward 0, and is counted as
  # grader_timeouts.
  config.grading = config_dict.create(
    # For one answer, without algebra: linear in the text, and a megabyte takes
    # a second or two; or what a task of your own takes.
    seconds=60.0,
    symbolic_seconds=2.0,  # for one answer; 0 grades none of them
    symbolic_mib=2048,  # of address space, of each of two workers
  )
  config.eval = config_dict.create(
    # Held-out questions before and after; 0 for none, in `evaluate` for all.
    num_questions=0,
    has_before_after=True,  # False: held out all the same, but not asked then
    every_steps=0,  # and after every so many updates; 0: not in between
    samples=1,  # rollouts per question
    batch_questions=32,  # sampled at a time
    temperature=1.0,  # of sampling; 0 is greedy
    max_tokens=0,  # length of its rollouts; 0: rollouts.max_tokens
    # Of `python -m ogls_jax.evaluate` alone:
    has_greedy=False,  # one more rollout of each question, the most likely
    has_likelihood=False,  # the most likely of a question's choices
  )
  config.checkpoint = config_dict.create(
    every_steps=25,  # updates between saves
    keep=2,  # the newest so many, and the best by evaluation
    verify=True,  # compare restored arrays with their checksums
  )
  config.stop = config_dict.create(
    # Whether a run ends once its loss, reward, entropy, response length or
    # repeated text has been out of its usual band for patience_steps updates.
    on_collapse=False,
    patience_steps=10,  # updates
  )
  config.log = config_dict.create(
    samples_every_steps=10,  # updates between them; 0 for none
    samples_rollouts=8,  # of an update, in samples.jsonl
    # For `python -m ogls_jax.report`: token by token what student and teacher
    # made of a few rollouts, before an update. 0 for none; never for sft and
    # grpo, which have no steered teacher.
    inspect_every_steps=0,
    inspect_rollouts=4,  # of an update, in inspect.jsonl
    inspect_candidates=5,  # likeliest tokens of each distribution
    wandb_project='',  # of Weights & Biases, if installed; empty: none
  )
  # One may be -1: all devices that the others leave.
  config.mesh = config_dict.create(
    data=-1,  # copies of the model; rows are shared out
    fsdp=1,  # rows are, and weights
    model=1,  # layers are
  )
  # So that a config that misspells a key is an error, not a new key.
  return config.lock()


def _data() -> config_dict.ConfigDict:
  return config_dict.create(
    # How to grade: arithmetic (generated), math, superglue, or the path of a
    # Python file with `reward(text, question)`; docs/tasks.md.
    task='math',
    path='',  # .jsonl or .jsonl.gz; `data:x` is x under $OGLS_DATA_DIR
    eval_path='',  # empty: a share of `path`, chosen by each row's id
    eval_fraction=0.2,  # of the rows, held out
    tfds_name='',  # a TFDS name instead of `path`, in array_record format
    tfds_split='train',  # trained on
    tfds_eval_split='',  # empty: a share of tfds_split, as for eval_path
    tfds_dir='',  # where it was prepared; empty: TFDS's own default
    on_bad_row='error',  # error, or skip (counted in the metrics)
    seed=0,  # of generation and the split by id; order: this and config.seed
    num_questions=20_000,  # generated for training (task arithmetic)
    arithmetic=config_dict.create(
      num_terms=4,  # of a sum
      max_number=99,  # the largest term
    ),
  )


def _prompt() -> config_dict.ConfigDict:
  return config_dict.create(
    student_template='student',  # a packaged name, or the path of a file
    teacher_template='teacher',  # the same, with a hint
    # Whether the chat template asks for thinking first; the teacher's key is
    # also for its prompt without a hint. False needs a template that can.
    student_thinking=True,
    teacher_thinking=True,  # the same, of the teacher
    # Of a student prompt; longer ones are bad rows (data.on_bad_row).
    max_tokens=1024,
    bucket_tokens=64,  # all texts are padded to a multiple: few programs
  )


def _model() -> config_dict.ConfigDict:
  return config_dict.create(
    path='',  # a .gguf file, a folder, hub:OWNER/NAME or package:NAME
    tokenizer_path='',  # like path; empty: the tokenizer with the model
    dtype='bfloat16',  # of activations
    param_dtype='bfloat16',  # of the base weights; adapters are float32
    quantize='',  # int8 or nf4: the kernels that LoRA freezes; needs qwix
    # Of a layer, what the backward pass finds: none (all of it; no
    # rematerialisation), dots (products with weights) or full (its input).
    remat='full',
    is_scanned=True,  # layers in a loop, or written out: slow to compile
    attention='auto',  # splash (a TPU kernel) or plain; auto: by the device
    # Sizes of a model that starts from random weights (path empty).
    width=128,
    num_layers=4,  # blocks
    num_heads=4,  # of attention, dividing width
    num_kv_heads=4,  # of keys and values, dividing num_heads
    mlp_size=384,  # inner width
  )


def _warmup() -> config_dict.ConfigDict:
  # Stage 1: SFT on worked solutions before `method` starts. 0 steps for none.
  return config_dict.create(
    num_steps=0,  # updates
    workdir='',  # another run whose stage 1 to share; empty: this run's
    batch_questions=16,  # of an update
    learning_rate=1.2e-3,  # at its peak, early; then a cosine to 0
    slip_rate=0.2,  # share of wrong steps in the worked solutions
    # Share of batches shown after hints, so that the teacher learns to read
    # them (task arithmetic).
    hint_fraction=0.45,
    wrong_hint_fraction=0.5,  # share of those hints that are wrong
    # Share of steps that leave the hint; these carry no loss.
    hinted_slip_rate=0.3,
  )
