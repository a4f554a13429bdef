// Elements and texts. Nothing here or elsewhere makes HTML out of a string.

const byId = (id) => document.getElementById(id);

// make('p', {class: 'x', role: 'y'}, 'text', element, ...)
function make(tag, attributes = {}, ...children) {
  const svg = ['svg', 'path', 'line', 'text', 'circle', 'g', 'title'];
  const element = svg.includes(tag)
    ? document.createElementNS('http://www.w3.org/2000/svg', tag)
    : document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (value !== undefined && value !== null) {
      element.setAttribute(name, value);
    }
  }
  element.append(...children);
  return element;
}

// Control characters, also those that turn the direction of text around, as
// something that can be seen and does nothing.
function visible(text) {
  return text.replace(
    /[\u0000-\u0008\u000b-\u001f\u007f-\u009f\u00ad\u061c\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb]/g,
    (mark) => {
      const code = mark.charCodeAt(0);
      if (code < 0x20) return String.fromCharCode(0x2400 + code);
      return `⟨U+${code.toString(16).toUpperCase().padStart(4, '0')}⟩`;
    },
  );
}

// A token by itself: spaces and line ends can be seen, too.
function spelled(text) {
  return visible(text).replace(/ /g, '␣').replace(/\n/g, '⏎').replace(/\t/g, '⇥');
}

function figure(value, digits = 3) {
  if (value === null || value === undefined) return '–';
  if (value === 0) return '0';
  const size = Math.abs(value);
  if (size >= 1e6 || size < 1e-3) return value.toExponential(1);
  if (size >= 1000) return String(Math.round(value));
  return String(Number(value.toPrecision(digits)));
}

// Probabilities of candidates come in units of 1 / 10,000.
function percent(probability) {
  if (probability === null || probability === undefined) return '–';
  const value = 100 * probability;
  if (value < 0.005) return '<0.01%';
  return `${value >= 99.995 ? 100 : value.toFixed(value < 10 ? 2 : 1)}%`;
}

function duration(seconds) {
  if (seconds < 100) return `${figure(seconds, 2)} s`;
  const minutes = Math.round(seconds / 60);
  if (minutes < 120) return `${minutes} min`;
  return `${Math.floor(minutes / 60)} h ${minutes % 60} min`;
}
