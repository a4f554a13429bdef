// The browser of rollouts: filters, list, text by token, and the token panel.

const MODES = {
  divergence: ['divergence', 'divergence of student and steered teacher'],
  moved: ['moved', 'how far steering moved the teacher'],
  none: [null, 'nothing'],
};
const COLUMNS = {
  student: ['Student', 'what is trained'],
  anchor: ['Anchor', 'teacher, no hint'],
  positive: ['Positive mean', 'teacher, over P+'],
  negative: ['Negative mean', 'teacher, over P−'],
  steered: ['Steered target', 'what is taught'],
};
const KLS = {
  forward: 'KL(steered || student)', reverse: 'KL(student || steered)', jsd: 'JSD',
};

// The methods whose teacher has a strength.
const STEERED = ['ogls_sd', 'pos_only'];

class Browser {
  constructor(run) {
    this.run = run;
    this.all = run.rollouts.list;
    this.texts = this.all.map((row) =>
      `${row.id}\n${row.question}\n${row.answer}\n${wholeText(row)}`.toLowerCase());
    this.mode = 'divergence';
    this.scale = { divergence: this.strong('divergence'), moved: this.strong('moved') };
    this.found = [];
    this.place = 0;
    this.spans = [];
    this.token = 0;
    this.setUpFilters();
    this.setUpKeys();
    this.filter();
    this.note();
  }

  // What is coloured in full: 98 of 100 tokens are below.
  strong(name) {
    const values = this.all.flatMap((row) => row[name] || []).filter((v) => v !== null);
    values.sort((a, b) => a - b);
    return Math.max(values[Math.floor(0.98 * values.length)] || 0, 0.01);
  }

  note() {
    const r = this.run.rollouts;
    const notes = [];
    if (!r.num_inspected) {
      notes.push(
        ['sft', 'grpo'].includes(this.run.method)
          ? `${this.run.method} has no steered teacher, so that there is nothing to say of single tokens.`
          : 'inspect.jsonl has no tokens. Training writes them with --config.log.inspect_every_steps=10, say.',
      );
    } else {
      notes.push(`${r.num_inspected_shown} of ${r.num_inspected} rollouts with tokens (inspect.jsonl) are shown`);
    }
    if (r.num_samples) {
      notes.push(`${r.num_samples_shown} of ${r.num_samples} others (samples.jsonl) are shown`);
    }
    const isCut = r.num_inspected_shown < r.num_inspected || r.num_samples_shown < r.num_samples;
    byId('rollouts-note').textContent = notes.join('; ').replace('.;', '.')
      + (isCut ? '; more do not fit this file.' : notes.length && r.num_inspected ? '.' : '');
  }

  setUpFilters() {
    const steps = [...new Set(this.all.map((row) => row.step))];
    byId('by-step').append(
      make('option', { value: '' }, 'all'),
      ...steps.map((step) => make('option', { value: step }, String(step))),
    );
    for (const id of ['by-step', 'by-reward', 'by-kind', 'by-text']) {
      byId(id).addEventListener('input', () => this.filter());
    }
    byId('list').addEventListener('click', (event) => {
      const item = event.target.closest('[role=option]');
      if (item) this.open(Number(item.dataset.place));
    });
  }

  filter() {
    const [step, reward, kind, text] = ['by-step', 'by-reward', 'by-kind', 'by-text']
      .map((id) => byId(id).value);
    const wanted = text.toLowerCase();
    this.found = this.all.filter((row, i) =>
      (!step || row.step === Number(step))
      && (!reward || (row.is_correct !== null && row.is_correct === (reward === 'right')))
      && (kind !== 'scored' || row.is_scored)
      && (kind !== 'tokens' || row.tokens)
      && (!wanted || this.texts[i].includes(wanted)));
    byId('num-found').textContent = `${this.found.length} of ${this.all.length}`;
    byId('list').replaceChildren(...this.found.map((row, place) => this.item(row, place)));
    this.open(0);
  }

  item(row, place) {
    const kind = rewardKind(row);
    const values = this.mode === 'none' ? null : row[this.mode];
    const known = values && values.filter((v) => v !== null);
    const mean = known && known.length ? known.reduce((a, b) => a + b, 0) / known.length : null;
    return make('div', { role: 'option', id: `rollout-${place}`, 'data-place': place, class: kind, 'aria-selected': 'false' },
      make('span', { class: 'top' },
        make('b', {}, `step ${row.step}`),
        make('span', { class: 'reward' }, rewardText(row)),
        row.is_scored ? make('span', { class: 'tag' }, 'loss') : '',
        make('span', { class: 'mean' }, row.tokens ? `${figure(mean, 2)}` : 'no tokens')),
      make('bdi', { class: 'line' }, visible(row.question).slice(0, 120)),
      make('bdi', { class: 'line soft' }, visible(wholeText(row)).replace(/\s+/g, ' ').slice(0, 120)));
  }

  open(place) {
    const list = byId('list');
    if (!this.found.length) {
      list.removeAttribute('aria-activedescendant');
      byId('detail').replaceChildren(make('p', { class: 'note' }, 'No rollout is like that.'));
      return;
    }
    this.place = Math.min(Math.max(place, 0), this.found.length - 1);
    list.querySelector('[aria-selected=true]')?.setAttribute('aria-selected', 'false');
    const item = byId(`rollout-${this.place}`);
    item.setAttribute('aria-selected', 'true');
    list.setAttribute('aria-activedescendant', item.id);
    // Of the list alone: the page stays where it is.
    const above = item.offsetTop - list.scrollTop;
    if (above < 0) list.scrollTop = item.offsetTop;
    const below = above + item.offsetHeight - list.clientHeight;
    if (below > 0) list.scrollTop += below;
    this.show(this.found[this.place]);
  }

  show(row) {
    this.row = row;
    const parts = [
      make('h3', {}, `Step ${row.step}, `, make('span', { class: rewardKind(row) }, rewardText(row)),
        row.is_scored ? '' : make('span', { class: 'soft' }, ', carries no loss')),
      make('dl', { class: 'facts' },
        make('dt', {}, 'Question'), make('dd', {}, make('bdi', {}, visible(row.question))),
        make('dt', {}, 'Answer'), make('dd', {}, make('bdi', {}, visible(row.answer))),
        make('dt', {}, 'Id'), make('dd', {}, make('bdi', {}, visible(row.id)))),
    ];
    if (!row.tokens) {
      parts.push(make('div', { class: 'text', dir: 'auto' }, visible(row.response)));
      byId('detail').replaceChildren(...parts);
      this.spans = [];
      return;
    }
    this.panel = make('div', { id: 'panel', tabindex: '-1', role: 'region', 'aria-label': 'Token' });
    this.live = make('p', { class: 'unseen', 'aria-live': 'polite' });
    this.spans = row.tokens.map((text, t) => this.span(row, text, t));
    // The line ends after the box of its token, not within.
    const pieces = this.spans.flatMap((span, t) => [span, ending(row.tokens[t])]);
    const text = make('div', { class: 'text', dir: 'auto', role: 'group', 'aria-label': 'Response, a button for each token' },
      ...pieces);
    if (row.rest) {
      text.append(make('span', { class: 'rest', title: 'after the distilled window' }, visible(row.rest)));
    }
    text.addEventListener('click', (event) => {
      const span = event.target.closest('[data-t]');
      if (span) span.focus();
    });
    text.addEventListener('focusin', (event) => {
      const { t } = event.target.dataset;
      if (t !== undefined) this.pick(Number(t));
    });
    text.addEventListener('keydown', (event) => this.tokenKey(event));
    byId('detail').replaceChildren(...parts, this.colours(), text, this.panel, this.live);
    this.colour();
    const start = this.order[0] ?? 0;
    this.pick(start);
  }

  span(row, text, t) {
    const start = text.slice(0, text.length - ending(text).length);
    const shown = visible(start).replace(/\n/g, '⏎\n') + '⏎'.repeat(ending(text).length)
      || `⟨${row.names[row.token_ids[t]] || row.token_ids[t]}⟩`;
    return make('span', {
      role: 'button', tabindex: '-1', 'data-t': t, class: text ? 'token' : 'token empty',
      'aria-label': `token ${t + 1}: ${spelled(text) || shown}, divergence ${figure(row.divergence[t])},`
        + ` moved ${figure(row.moved[t])}`,
    }, shown);
  }

  colours() {
    const options = Object.entries(MODES).map(([mode, [name, title]]) => {
      const input = make('input', { type: 'radio', name: 'mode', value: mode });
      input.checked = mode === this.mode;
      input.addEventListener('change', () => {
        this.mode = mode;
        this.colour();
        byId('list').replaceChildren(...this.found.map((row, place) => this.item(row, place)));
        byId(`rollout-${this.place}`).setAttribute('aria-selected', 'true');
      });
      return make('label', { class: 'check' }, input, title);
    });
    this.legend = make('span', { class: 'scale' });
    return make('fieldset', { class: 'colours' }, make('legend', {}, 'Colour by'), ...options, this.legend);
  }

  colour() {
    const [name] = MODES[this.mode];
    const most = this.scale[name];
    const values = name ? this.row[name] : [];
    this.spans.forEach((span, t) => {
      // By the square root: small figures can be told apart.
      const share = name ? Math.sqrt(Math.min(Math.max(values[t] || 0, 0) / most, 1)) : 0;
      span.style.setProperty('--share', share.toFixed(3));
      span.classList.toggle('strong', share > 0.7);
      span.classList.toggle('moved', this.mode === 'moved');
    });
    this.order = values.map((v, t) => t).sort((a, b) => (values[b] || 0) - (values[a] || 0));
    this.legend.replaceChildren();
    if (!name) return;
    this.legend.append('0 ', make('i', { class: `bar ${this.mode}` }), ` ${figure(most, 2)} nats and more`,
      make('span', { class: 'soft' }, ', underlined from half of that'));
  }

  pick(t) {
    this.spans.forEach((span, i) => {
      span.tabIndex = i === t ? 0 : -1;
      span.setAttribute('aria-pressed', String(i === t));
    });
    this.token = t;
    this.showPanel(t);
  }

  showPanel(t) {
    const { row } = this;
    const names = Object.keys(row.top);
    const own = row.token_ids[t];
    const text = row.tokens[t] || row.names[own] || String(own);
    const columns = names.map((name) => {
      const items = row.top_ids[name][t].map((id, k) => {
        const units = row.top[name][t][k];
        const share = units === null ? null : units / 10000;
        const bar = make('i', { class: 'bar' });
        bar.style.setProperty('--share', (share || 0).toFixed(4));
        return make('li', { class: id === own ? 'own' : '' },
          bar, make('bdi', {}, spelled(row.names[id])), make('b', {}, percent(share)));
      });
      const num = row.num_hints[name];
      const [title, what] = COLUMNS[name];
      const hints = ['positive', 'negative'].includes(name) ? `, ${num} hint${num === 1 ? '' : 's'}` : '';
      return make('section', { 'aria-label': title },
        make('h4', {}, title),
        make('p', { class: 'soft' }, what + hints),
        make('p', {}, 'this token ', make('b', {}, percent(row.own[name][t]))),
        make('ol', {}, ...items));
    });
    this.panel.replaceChildren(
      make('p', { class: 'facts-line' },
        make('bdi', { class: 'chip' }, spelled(text)),
        ` token ${t + 1} of ${row.tokens.length}, id ${own} `,
        make('span', {}, KLS[this.run.kl] || 'divergence', ' ', make('b', {}, figure(row.divergence[t])), ' nats'),
        make('span', {}, 'KL(steered || anchor) ', make('b', {}, figure(row.moved[t])), ' nats'),
        STEERED.includes(this.run.method)
          ? make('span', {}, 'strength ', make('b', {}, figure(row.strength))) : ''),
      make('div', { class: 'columns' }, ...columns));
    this.live.textContent = `${spelled(text)}: student ${percent(row.own.student[t])}, `
      + `steered ${percent(row.own.steered[t])}`;
  }

  tokenKey(event) {
    if (event.ctrlKey || event.altKey || event.metaKey) return;
    const last = this.spans.length - 1;
    const go = (t) => {
      event.preventDefault();
      this.spans[Math.min(Math.max(t, 0), last)].focus();
    };
    const rank = this.order.indexOf(this.token);
    switch (event.key) {
      case 'ArrowLeft': return go(this.token - 1);
      case 'ArrowRight': return go(this.token + 1);
      case 'Home': return go(0);
      case 'End': return go(last);
      case 'ArrowUp': return go(this.nextLine(-1));
      case 'ArrowDown': return go(this.nextLine(1));
      case 'n': return this.order.length ? go(this.order[(rank + 1) % this.order.length]) : undefined;
      case 'p': return this.order.length ? go(this.order[Math.max(rank - 1, 0)]) : undefined;
      case 'Enter': case ' ':
        event.preventDefault();
        return this.panel.focus();
      case 'Escape':
        event.preventDefault();
        return byId('list').focus();
      default: return undefined;
    }
  }

  // The token above or below on the screen; this one where there is none.
  nextLine(way) {
    const rects = this.spans.map((span) => span.getClientRects()[0]);
    const here = rects[this.token];
    const x = here.left + here.width / 2;
    let best = this.token, least = Infinity;
    rects.forEach((rect, t) => {
      if (!rect) return;
      const lines = way * (rect.top - here.top);
      if (lines < here.height / 2) return;
      const far = lines * 1000 + Math.abs(rect.left + rect.width / 2 - x);
      if (far < least) { least = far; best = t; }
    });
    return best;
  }

  setUpKeys() {
    document.addEventListener('keydown', (event) => {
      if (event.ctrlKey || event.altKey || event.metaKey) return;
      const { target } = event;
      const isTyping = target.matches('input:not([type=radio]):not([type=checkbox]), select');
      if (isTyping) {
        if (event.key === 'Escape') { target.blur(); byId('list').focus(); }
        return;
      }
      const isText = this.spans.includes(target);
      if (event.key === 'j' || event.key === 'k') {
        this.open(this.place + (event.key === 'j' ? 1 : -1));
        if (isText && this.spans.length) this.spans[this.token].focus();
        else byId('list').focus({ preventScroll: true });
      } else if (event.key === '/') {
        event.preventDefault();
        byId('by-text').focus();
      } else if (event.key === 'Escape' && this.panel?.contains(target)) {
        this.spans[this.token].focus();
      } else if (target === byId('list')) {
        const by = { ArrowDown: 1, ArrowUp: -1, Home: -1e9, End: 1e9 }[event.key];
        if (by) { event.preventDefault(); this.open(this.place + by); }
        if (event.key === 'Enter' && this.spans.length) {
          event.preventDefault();
          this.spans[this.token].focus();
        }
      }
    });
  }
}

function ending(text) {
  return text.match(/\n*$/)[0];
}

function wholeText(row) {
  return row.tokens ? row.tokens.join('') + row.rest : row.response || '';
}

function rewardKind(row) {
  if (row.is_correct === null) return 'given';
  return row.is_correct ? 'right' : 'wrong';
}

function rewardText(row) {
  if (row.reward === null) return 'solution';
  const mark = row.is_correct ? '✓ right' : '✗ wrong';
  return row.reward > 0 && row.reward < 1 ? `${mark}, reward ${figure(row.reward)}` : mark;
}
