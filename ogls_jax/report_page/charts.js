// Curves: small charts that are read with the mouse or the arrow keys.

const WIDTH = 340, HEIGHT = 150;
const LEFT = 44, RIGHT = 8, TOP = 8, BOTTOM = 22;

// [title, names, unit]. Several names share a chart.
const CHARTS = [
  ['Loss', ['loss'], 'nats'],
  ['KL before clipping', ['kl'], 'nats'],
  ['Reward', ['reward_mean'], 'mean'],
  ['Accuracy, held out', ['eval_accuracy'], 'share'],
  ['Entropy', ['entropy'], 'nats'],
  ['Response length', ['response_tokens_mean'], 'tokens'],
  ['Truncated', ['truncated_fraction'], 'share'],
  ['Repeated', ['repeated_fraction'], 'share'],
  ['Rollouts with loss', ['steered_rollout_fraction'], 'share'],
  ['Clipped', ['clip_fraction'], 'share'],
  ['Gradient norm', ['grad_norm'], ''],
  ['Learning rate', ['learning_rate'], ''],
  ['Seconds an update', [
    'seconds_sampling', 'seconds_grading', 'seconds_hints',
    'seconds_inspection', 'seconds_distill',
  ], 's'],
  ['Tokens a second', ['tokens_per_second'], ''],
];

// Round numbers that enclose low to high, about three of them.
function ticks(low, high) {
  if (low === high) {
    // A constant is a line in the middle, but one at 0 is at the bottom.
    if (!low) return [0, 0.5, 1];
    [low, high] = [low - Math.abs(low) / 2, high + Math.abs(high) / 2];
  }
  const span = high - low;
  const power = 10 ** Math.floor(Math.log10(span / 2));
  const step = [1, 2, 5, 10].map((n) => n * power).find((n) => span / n <= 3);
  const found = [];
  for (let n = Math.floor(low / step + 1e-9); ; n += 1) {
    found.push(Number((n * step).toPrecision(12)));
    if (n * step >= high - 1e-9 * step) return found;
  }
}

function drawChart(title, names, unit, curves, warnings) {
  const steps = curves.step;
  const values = names.flatMap((name) => curves[name].filter((v) => v !== null));
  const marks = ticks(Math.min(...values), Math.max(...values));
  const low = marks[0], high = marks[marks.length - 1];
  const first = steps[0], last = steps[steps.length - 1];
  const x = (step) =>
    LEFT + ((step - first) / (last - first || 1)) * (WIDTH - LEFT - RIGHT);
  const y = (value) =>
    TOP + (1 - (value - low) / (high - low)) * (HEIGHT - TOP - BOTTOM);

  const svg = make('svg', { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, 'aria-hidden': 'true' });
  for (const mark of marks) {
    svg.append(
      make('line', { class: 'grid', x1: LEFT, x2: WIDTH - RIGHT, y1: y(mark), y2: y(mark) }),
      make('text', { x: LEFT - 6, y: y(mark) + 4, class: 'y' }, figure(mark)),
    );
  }
  svg.append(
    make('text', { x: LEFT, y: HEIGHT - 5 }, String(first)),
    make('text', { x: WIDTH - RIGHT, y: HEIGHT - 5, class: 'end' }, String(last)),
  );
  names.forEach((name, n) => {
    let path = '', isOpen = false;
    const known = curves[name].filter((v) => v !== null).length;
    curves[name].forEach((value, i) => {
      // What is measured now and then is one line; a gap elsewhere is a gap.
      if (value === null) { isOpen = isOpen && known < steps.length / 2; return; }
      path += `${isOpen ? 'L' : 'M'}${x(steps[i]).toFixed(1)} ${y(value).toFixed(1)}`;
      isOpen = true;
    });
    svg.append(make('path', { class: `curve c${n}`, d: path }));
    if (known < 30) {
      curves[name].forEach((value, i) => {
        if (value === null) return;
        svg.append(make('circle', { class: `dot c${n}`, cx: x(steps[i]), cy: y(value), r: known === 1 ? 3 : 1.8 }));
      });
    }
  });
  for (const warning of warnings.filter((w) => names.includes(w.text.split(' ')[0]))) {
    const at = x(warning.step);
    svg.append(make('path', {
      class: 'warned', d: `M${at} ${HEIGHT - BOTTOM - 6}l4 7h-8z`,
    }));
  }
  const cursor = make('line', { class: 'cursor', y1: TOP, y2: HEIGHT - BOTTOM, visibility: 'hidden' });
  svg.append(cursor);

  const read = make('span', { class: 'read' });
  const label = (i) => names
    .map((name) => {
      const text = figure(curves[name][i]);
      return names.length > 1 ? `${name.replace('seconds_', '')} ${text}` : text;
    })
    .join(', ');
  const show = (i) => {
    cursor.setAttribute('visibility', i === null ? 'hidden' : 'visible');
    let at = i;
    if (at === null) {
      at = steps.length - 1;
      while (at > 0 && names.every((name) => curves[name][at] === null)) at -= 1;
    }
    cursor.setAttribute('x1', x(steps[at]));
    cursor.setAttribute('x2', x(steps[at]));
    read.textContent = `${label(at)} at ${steps[at]}`;
    box.setAttribute('aria-valuenow', String(steps[at]));
    box.setAttribute('aria-valuetext', read.textContent);
  };

  // A slider: readers of the screen say its value as the arrow keys move it.
  const box = make('figure', {
    tabindex: '0', role: 'slider',
    'aria-label': `${title}: from ${figure(Math.min(...values))} to ${figure(Math.max(...values))}`,
    'aria-valuemin': String(first), 'aria-valuemax': String(last),
  }, make('figcaption', {}, make('b', {}, title), unit ? ` ${unit}` : '', read), svg);
  show(null);
  if (names.length > 1) {
    box.append(make('p', { class: 'legend' }, ...names.flatMap((name, n) => [
      make('i', { class: `c${n}` }), `${name.replace('seconds_', '')} `,
    ])));
  }
  let at = null;
  const move = (i) => {
    at = i === null ? null : Math.min(Math.max(i, 0), steps.length - 1);
    show(at);
  };
  svg.addEventListener('pointermove', (event) => {
    const box = svg.getBoundingClientRect();
    const share = ((event.clientX - box.left) / box.width * WIDTH - LEFT) / (WIDTH - LEFT - RIGHT);
    const wanted = first + share * (last - first);
    let best = 0;
    steps.forEach((step, i) => {
      if (Math.abs(step - wanted) < Math.abs(steps[best] - wanted)) best = i;
    });
    move(best);
  });
  svg.addEventListener('pointerleave', () => move(null));
  box.addEventListener('keydown', (event) => {
    const by = { ArrowLeft: -1, ArrowRight: 1, Home: -1e9, End: 1e9 }[event.key];
    if (!by) return;
    event.preventDefault();
    move((at === null ? steps.length - 1 : at) + by);
  });
  box.addEventListener('blur', () => move(null));
  return box;
}

function drawCharts(run) {
  const { curves } = run;
  if (!curves.step.length) {
    byId('curves-note').textContent = 'metrics.jsonl has no update yet.';
    return;
  }
  const missing = [];
  for (const [title, names, unit] of CHARTS) {
    const known = names.filter((name) => curves[name]);
    if (!known.length) { missing.push(title.toLowerCase()); continue; }
    byId('charts').append(drawChart(title, known, unit, curves, run.warnings));
  }
  const notes = [];
  if (curves.every > 1) {
    notes.push(`Each point is the mean of ${curves.every} updates, at the last of them.`);
  }
  if (missing.length) notes.push(`Without values in this run: ${missing.join(', ')}.`);
  if (run.warnings.length) notes.push('Triangles: warnings.');
  byId('curves-note').textContent = notes.join(' ');
}
