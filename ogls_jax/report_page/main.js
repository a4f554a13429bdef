// Reads the run out of the page and fills the sections.

async function readRun() {
  const packed = atob(byId('data').textContent);
  const bytes = Uint8Array.from(packed, (character) => character.charCodeAt(0));
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream('gzip'));
  return new Response(stream).json();
}

function interval(found) {
  const points = (value) => (100 * value).toFixed(1);
  const text = `${points(found.mean)}%`;
  return found.low === undefined || found.low === null
    ? text : `${text} [${points(found.low)}, ${points(found.high)}]`;
}

function showLead(run) {
  const { summary } = run;
  const state = summary ? 'finished' : run.last_step >= run.num_steps ? 'all updates done' : 'not finished';
  byId('lead').textContent = `${run.method}, ${run.last_step} of ${run.num_steps} updates, ${state}`;
  const tiles = [];
  if (summary) {
    for (const [name, title] of [['before', 'Accuracy before'], ['after', 'Accuracy after'], ['gain', 'Gain, points']]) {
      const found = summary[`accuracy_${name}`];
      if (found) tiles.push([title, name === 'gain' ? interval(found).replace('%', '') : interval(found)]);
    }
    const seconds = Object.entries(summary.seconds || {}).filter(([, value]) => value > 0.5);
    if (seconds.length) {
      tiles.push(['Time', seconds.map(([name, value]) => `${name} ${duration(value)}`).join(', ')]);
    }
  }
  const { curves } = run;
  for (const [name, title] of [['reward_mean', 'Reward'], ['loss', 'Loss'], ['entropy', 'Entropy']]) {
    const values = (curves[name] || []).filter((value) => value !== null);
    if (values.length) tiles.push([`${title}, first → last`, `${figure(values[0])} → ${figure(values.at(-1))}`]);
  }
  tiles.push(['Warnings', String(run.num_warnings)]);
  byId('tiles').append(...tiles.map(([title, text]) =>
    make('div', {}, make('dt', {}, title), make('dd', {}, text))));
}

function showWarnings(run) {
  const missing = run.num_warnings - run.warnings.length;
  byId('warnings-note').textContent = !run.num_warnings
    ? 'None: no figure left the band of the updates before it, and no update was skipped.'
    : missing ? `The last ${run.warnings.length} of ${run.num_warnings}.` : '';
  byId('warnings-list').append(...run.warnings.map((warning) =>
    make('li', {}, make('b', {}, `step ${warning.step}`), ` ${warning.text}`)));
}

function showConfig(run) {
  const spell = (value) => (value === null || value === undefined ? '–' : value === '' ? "''" : String(value));
  const rows = run.config.map(({ key, value, default: usual }) => {
    const isChanged = run.has_defaults && spell(value) !== spell(usual);
    const row = make('tr', { class: isChanged ? 'changed' : '' },
      make('th', { scope: 'row' }, key),
      make('td', {}, make('bdi', {}, visible(spell(value))), isChanged ? make('span', { class: 'tag' }, 'changed') : ''),
      make('td', { class: 'soft' }, make('bdi', {}, run.has_defaults ? visible(spell(usual)) : '–')));
    return { row, isChanged, text: `${key} ${spell(value)}`.toLowerCase() };
  });
  byId('config-rows').append(...rows.map(({ row }) => row));
  byId('config-note').textContent = run.has_defaults
    ? `${rows.filter((row) => row.isChanged).length} of ${rows.length} keys are not as in configs/default.py.`
    : 'configs/ was not there when this page was made, so that nothing says which keys were changed.';
  byId('config-changed').disabled = !run.has_defaults;
  const filter = () => {
    const wanted = byId('config-text').value.toLowerCase();
    const isOnly = byId('config-changed').checked;
    let num = 0;
    for (const { row, isChanged, text } of rows) {
      row.hidden = (isOnly && !isChanged) || !text.includes(wanted);
      num += !row.hidden;
    }
    byId('config-found').textContent = `${num} of ${rows.length}`;
  };
  byId('config-text').addEventListener('input', filter);
  byId('config-changed').addEventListener('input', filter);
  filter();
}

readRun().then((run) => {
  showLead(run);
  drawCharts(run);
  showWarnings(run);
  showConfig(run);
  new Browser(run);
  document.documentElement.dataset.ready = 'true';
}).catch((error) => {
  byId('failure').hidden = false;
  byId('failure').textContent = `This page cannot be drawn: ${error.message}. It needs a browser of 2023 or later.`;
  throw error;
});
