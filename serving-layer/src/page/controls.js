// The controls on top: span, zone, how often anew, and the common filters.

import { query } from './api.js';
import { $, h, options } from './dom.js';
import { RANGES } from './editor.js';
import { queryOf } from './request.js';
import { zoneNamed } from './state.js';

const HOUR = 3600 * 1000;
const OPS = ['=', '!=', 'in', 'like', '<', '<=', '>', '>=', 'is_null', 'is_not_null'];

const shownFilter = ({ dimension, op = '=', value, values, ...other }) =>
  (dimension ? `${dimension} ${op.replaceAll('_', ' ')} ${values?.join(', ') ?? value ?? ''}`.trim() : JSON.stringify(other));

// Shows what the state says.
export function showControls(state) {
  document.body.classList.toggle('embed', state.embed);
  const custom = state.range.includes('/');
  $('#range').replaceChildren(...options([...new Set([...RANGES, ...(custom ? [] : [state.range])])], state.range), h('option', { value: 'custom', selected: custom }, 'from … to'));
  $('#dates').hidden = !custom;
  if (custom) [$('#from').value, $('#to').value] = state.range.split('/');
  $('#zone').value = state.zone;
  $('#every').replaceChildren(...options([['0', 'never'], ['2', 'every 2 s'], ['5', 'every 5 s'], ['15', 'every 15 s'], ['60', 'every minute']], String(state.every)));
  const chip = (filter, i) => h('span', { class: 'filter' }, shownFilter(filter),
    h('button', { type: 'button', class: 'remove', 'aria-label': `Remove the filter ${shownFilter(filter)}`, 'data-at': String(i) }, '×'));
  $('#chips').replaceChildren(...state.filters.map(chip));
}

// The filter's value, of its column's type; an error where it is none.
function typed(text, type) {
  if (type === 'string' || type === 'decimal') return text;
  if (type === 'bool' && ['true', 'false'].includes(text)) return text === 'true';
  if (['int', 'float'].includes(type) && text.trim() !== '' && Number.isFinite(Number(text))) return Number(text);
  throw new Error(`${JSON.stringify(text)} is no ${type}`);
}

export function wireControls(page) {
  const { catalog, change, now, say } = page;
  const dimensions = catalog.allDimensions();
  $('#filter-dimension').replaceChildren(...options(dimensions.map(({ name }) => name), dimensions[0]?.name));
  $('#filter-op').replaceChildren(...options(OPS.map((op) => [op, op.replaceAll('_', ' ')]), '='));
  $('#filters').hidden = dimensions.length === 0;
  $('#zones').replaceChildren(...(Intl.supportedValuesOf?.('timeZone') ?? []).map((value) => h('option', { value })));
  $('#filters').addEventListener('submit', (event) => {
    event.preventDefault();
    const [dimension, op, text] = ['#filter-dimension', '#filter-op', '#filter-value'].map((id) => $(id).value);
    const { type } = dimensions.find(({ name }) => name === dimension);
    try {
      const one = { dimension, op };
      if (op === 'in') one.values = text.split(',').map((part) => typed(part.trim(), type));
      else if (!op.startsWith('is_')) one.value = typed(text, type);
      $('#filter-value').value = '';
      page.addFilters([one]);
    } catch (error) {
      say(error.message);
    }
  });
  $('#filter-dimension').addEventListener('change', () => suggest(page));
  $('#filter-value').addEventListener('focus', () => suggest(page));
  $('#span').addEventListener('submit', (event) => event.preventDefault());
  $('#range').addEventListener('change', ({ target }) => {
    if (target.value !== 'custom') { change({ ...page.state, range: target.value }); return; }
    $('#dates').hidden = false;
    const at = now() ?? Date.now();
    const local = (time) => new Date(time).toLocaleString('sv-SE', { timeZone: page.state.zone }).replace(' ', 'T').slice(0, 13) + ':00';
    change({ ...page.state, range: `${local(at - 24 * HOUR)}/${local(at)}` });
  });
  for (const id of ['#from', '#to']) {
    $(id).addEventListener('change', () => {
      const [from, to] = [$('#from').value, $('#to').value];
      if (!from || !to) return;
      if (from < to) change({ ...page.state, range: `${from}/${to}` });
      else say('the span must begin before it ends');
    });
  }
  $('#zone').addEventListener('change', ({ target }) => {
    const zone = zoneNamed(target.value);
    if (zone) change({ ...page.state, zone });
    else say(`${JSON.stringify(target.value)} is no time zone: give an IANA name, such as Europe/Berlin`);
    target.value = page.state.zone;
  });
  $('#every').addEventListener('change', ({ target }) => change({ ...page.state, every: Number(target.value) }));
  $('#chips').addEventListener('click', ({ target }) => {
    const at = Number(target.dataset.at);
    if (!target.dataset.at) return;
    change({ ...page.state, filters: page.state.filters.filter((_, i) => i !== at) });
    // What had the focus is gone.
    $('#filter-dimension').focus();
  });
}

// The values that a column has most often, to choose from.
async function suggest({ catalog, state, now }) {
  const list = $('#values');
  const dimension = $('#filter-dimension').value;
  if (list.dataset.of === dimension) return;
  list.dataset.of = dimension;
  list.replaceChildren();
  const metric = catalog.metrics.find(({ aggregate, by }) => ['count', 'sum'].includes(aggregate) && by.some(({ name }) => name === dimension));
  if (!metric) return;
  const chart = { kind: 'bars', metrics: [metric.name], group_by: [dimension], limit: 30 };
  try {
    const { rows } = await query(queryOf(chart, { ...state, filters: [] }, catalog, now()));
    if (list.dataset.of !== dimension) return;
    const values = rows.map(({ key: columns }) => columns[dimension]).filter((value) => value !== null);
    list.replaceChildren(...values.map((value) => h('option', { value: String(value) })));
  } catch {
    // Any value can be written.
    list.dataset.of = '';
  }
}
