// Dialogs: the form in which a chart is made or changed, which gives back a chart or nothing, and one that tells something.

import { $, h, modal, options } from './dom.js';

const KINDS = [['number', 'a number'], ['line', 'lines'], ['bars', 'bars'], ['table', 'a table'], ['heat', 'hours by weekday'], ['grid', 'who came again']];
const GRANULARITIES = ['auto', 'grain', 'minute', '5m', '15m', '30m', 'hour', '6h', 'day', 'week', 'month'];
const COMPARISONS = [['', 'nothing'], ['previous_period', 'the span before'], ['previous_day', 'a day before'], ['previous_week', 'a week before'], ['previous_month', 'a month before'], ['previous_year', 'a year before']];
const ROLLING = [['', 'no'], ['day', 'a day'], ['7 days', '7 days'], ['30 days', '30 days']];
export const RANGES = ['last 10 minutes', 'last hour', 'last 6 hours', 'last 24 hours', 'last 7 days', 'last 30 days', 'today so far', 'yesterday', 'this week so far', 'previous week', 'this month so far', 'previous month'];

const field = (text, control) => h('label', {}, h('span', {}, text), control);
const chosen = (form, name) => [...form.elements[name].selectedOptions].map(({ value }) => value).filter(Boolean);

// What the form says, as a chart.
function read(form, chart, catalog) {
  const [live] = chosen(form, 'live');
  const text = (name) => form.elements[name].value.trim();
  const made = { id: chart.id, title: text('title'), kind: text('kind') };
  if (live) {
    if (!['number', 'bars', 'table'].includes(made.kind)) throw new Error('a live counter is shown as a number, bars or a table');
    made.live = live;
    const key = Object.fromEntries((catalog.live.get(live)?.by ?? []).map(({ name }) => [name, text(`key.${name}`)]));
    if (Object.keys(key).length > 0) made.key = key;
  } else {
    made.metrics = chosen(form, 'metrics').slice(0, 3);
    if (made.metrics.length === 0) throw new Error('choose a metric, or a live counter');
    if (text('formula')) {
      made.metrics.push({ name: 'formula', formula: text('formula') });
      made.show = 'formula';
    }
    made.group_by = chosen(form, 'group_by');
    for (const name of ['granularity', 'range', 'compare', 'rolling']) if (text(name)) made[name] = text(name);
    if (form.elements.cumulative.checked) made.cumulative = true;
    if (made.kind === 'number' && form.elements.per.checked) made.per = 'second';
    const sums = catalog.of(made).every((metric) => ['count', 'sum'].includes(metric.aggregate));
    const plain = sums && !made.show && !made.rolling && !made.cumulative;
    if (made.kind === 'heat' && !plain) throw new Error('hours by weekday are added up: choose counts or sums alone, neither rolling nor cumulative');
    const [metric, ...others] = catalog.of(made);
    if (made.kind === 'grid' && (metric?.aggregate !== 'sessions' || others.length > 0 || made.show || made.rolling || made.cumulative || made.compare)) {
      throw new Error('who came again is known of one metric of sessions: choose it alone, neither compared nor rolling nor cumulative');
    }
    if (chart.filters) made.filters = chart.filters;
  }
  const limit = Number(text('limit'));
  if (limit > 0) made.limit = limit;
  if (!made.title) made.title = live ?? made.metrics.map((one) => one.name ?? one).join(', ');
  return made;
}

// Lets a person change a chart; resolves to it, or to nothing where they think better of it.
export function edit(chart, catalog) {
  const metrics = (chart.metrics ?? []).filter((one) => typeof one === 'string');
  const formula = (chart.metrics ?? []).find((one) => typeof one === 'object')?.formula ?? '';
  // What a link brought stays to be chosen.
  const select = (name, list, value) => {
    const known = list.some((one) => (Array.isArray(one) ? one[0] : one) === value);
    return h('select', { name }, options(known ? list : [...list, value], value));
  };
  const several = (name, list, values) => h('select', { name, multiple: true, size: '6' },
    list.map((value) => h('option', { value, selected: values.includes(value) }, value)));
  const groups = several('group_by', [], []);
  const keys = h('div', { class: 'keys' });
  const said = h('p', { class: 'fault', role: 'alert' });
  const form = h('form', { method: 'dialog' },
    h('h2', {}, chart.title ? 'Change a chart' : 'A new chart'),
    field('Title', h('input', { name: 'title', value: chart.title ?? '', maxlength: '200' })),
    field('Shown as', select('kind', KINDS, chart.kind ?? 'line')),
    field('A live sliding counter', select('live', [['', 'no, a query:'], ...[...catalog.live.keys()].map((name) => [name, name])], chart.live ?? '')),
    keys,
    h('fieldset', { class: 'of-query' }, h('legend', {}, 'A query'),
      field('Metrics and formulas (up to three)', several('metrics', [...catalog.metrics, ...catalog.formulas].map(({ name }) => name), metrics)),
      field('A formula over them, such as cast(clicks as float) / views', h('input', { name: 'formula', value: formula, maxlength: '1000' })),
      field('For each', groups),
      field('Buckets of a line', select('granularity', GRANULARITIES, chart.granularity ?? 'auto')),
      field('Span', select('range', [['', 'as the board has it'], ...RANGES.map((range) => [range, range])], chart.range ?? '')),
      field('Beside', select('compare', COMPARISONS, chart.compare ?? '')),
      field('Rolling window', select('rolling', ROLLING, chart.rolling ?? '')),
      h('label', { class: 'check' }, h('input', { type: 'checkbox', name: 'cumulative', checked: Boolean(chart.cumulative) }), ' all since the start'),
      h('label', { class: 'check' }, h('input', { type: 'checkbox', name: 'per', checked: chart.per === 'second' }), ' a number per second')),
    field('At most (rows, lines, items)', h('input', { name: 'limit', type: 'number', min: '1', max: '1000', value: chart.limit ?? '' })),
    said,
    h('p', { class: 'actions' }, h('button', { type: 'submit', class: 'main', value: 'ok' }, 'Show it'), h('button', { type: 'button', class: 'cancel' }, 'Cancel')));
  const grown = () => {
    const live = form.elements.live.value;
    $('.of-query', form).hidden = Boolean(live);
    const known = catalog.dimensions({ metrics: chosen(form, 'metrics') }).map(({ name }) => name);
    const before = groups.options.length > 0 ? chosen(form, 'group_by') : chart.group_by ?? [];
    groups.replaceChildren(...known.map((value) => h('option', { value, selected: before.includes(value) }, value)));
    const by = catalog.live.get(live)?.by ?? [];
    keys.replaceChildren(...by.map(({ name }) => field(name, h('input', { name: `key.${name}`, value: chart.key?.[name] ?? '', required: true }))));
  };
  form.addEventListener('change', ({ target }) => ['live', 'metrics'].includes(target.name) && grown());
  grown();
  const dialog = modal({ class: 'editor', 'aria-label': 'A chart' }, form);
  return new Promise((resolve) => {
    let made;
    dialog.addEventListener('close', () => resolve(made));
    $('.cancel', form).addEventListener('click', () => dialog.close());
    form.addEventListener('submit', (event) => {
      event.preventDefault();
      try {
        made = read(form, chart, catalog);
        dialog.close();
      } catch (error) {
        said.textContent = error.message;
      }
    });
  });
}

// Shows a text or elements in a dialog that Escape and its button close.
export function tell(title, ...children) {
  return modal({ 'aria-label': title }, h('h2', {}, title), children,
    h('form', { method: 'dialog', class: 'actions' }, h('button', { class: 'main' }, 'Close')));
}
