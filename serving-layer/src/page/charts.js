// Drawing a chart's answer: a number, lines, bars, a table, a heat map. Each can be read as a table, too.

import { h } from './dom.js';

const WEEKDAYS = ['Monday', 'Tuesday', 'Wednesday', 'Thursday', 'Friday', 'Saturday', 'Sunday'];
const NULL = '∅';

const whole = new Intl.NumberFormat('en', { maximumFractionDigits: 0 });
const fine = new Intl.NumberFormat('en', { maximumSignificantDigits: 3 });
const part = new Intl.NumberFormat('en', { style: 'percent', maximumFractionDigits: 0 });
const percent = new Intl.NumberFormat('en', { style: 'percent', maximumFractionDigits: 1, signDisplay: 'always' });

export function show(value) {
  if (value === null || value === undefined) return '–';
  if (Array.isArray(value)) return value.map(show).join(' / ');
  if (typeof value !== 'number') return String(value);
  return Number.isInteger(value) || Math.abs(value) >= 1000 ? whole.format(value) : fine.format(value);
}

// Part of a key is a text, whatever its type: a document's number isn't cut by thousands.
export const showOne = (value) => (value === '' ? '(empty)' : String(value ?? NULL));
const showKey = (key) => Object.values(key ?? {}).map(showOne).join(' · ');
// What a row is about: its key and, of a top-k, its item.
const label = (row) => [showKey(row.key), row.item && showKey(row.item)].filter(Boolean).join(' · ') || 'all';

// The value columns of an answer: of a quantile metric one for each quantile. `of` takes a row's `values` or `previous`.
function columnsOf(chart, catalog) {
  return (chart.metrics ?? []).flatMap((column) => {
    const name = typeof column === 'string' ? column : column.name;
    const formula = catalog.formulas.find((one) => one.name === name);
    if (formula) return formula.columns.map((one) => ({ name: one.name, label: one.name, of: (values) => values?.[one.name] }));
    const quantiles = catalog.byName.get(name)?.quantiles;
    if (!quantiles) return [{ name, label: name, of: (values) => values?.[name] }];
    return quantiles.map((q, i) => ({ name, label: `${name} p${q * 100}`, of: (values) => values?.[name]?.[i] }));
  });
}

const shown = (chart, columns) => columns.find(({ name }) => name === chart.show) ?? columns[0];
const numeric = (value) => (typeof value === 'number' ? value : typeof value === 'string' && value !== '' ? Number(value) : null);

// Whatever a chart draws, as a table: a list of names and rows of values.
export function tableOf(chart, reply, catalog) {
  if (chart.live) {
    if (!reply.items) return { names: ['value'], rows: [[reply.value]] };
    return { names: ['rank', 'item', 'value'], rows: reply.items.map((item) => [item.rank, showKey(item.item), item.value]) };
  }
  const columns = columnsOf(chart, catalog);
  const [first] = reply.rows;
  const keys = Object.keys(first?.key ?? {});
  const item = Object.keys(first?.item ?? {});
  const timed = !['number', 'bars', 'table'].includes(chart.kind);
  const before = reply.compared ? columns : [];
  const names = [...(timed ? ['bucket'] : []), ...keys, ...item, ...columns.map(({ label }) => label), ...before.map(({ label }) => `${label}, before`)];
  const rows = reply.rows.map((row) => [
    ...(timed ? [row.bucket.replace('T', ' ').replace(/:\d\d\.\d+/, '')] : []),
    ...keys.map((key) => showOne(row.key[key])), ...item.map((key) => showOne(row.item[key])),
    ...columns.map((column) => column.of(row.values)), ...before.map((column) => column.of(row.previous)),
  ]);
  return { names, rows };
}

export function table({ names, rows }, caption) {
  const cell = (value) => (typeof value === 'number' ? h('td', { class: 'of-number' }, show(value)) : h('td', {}, show(value)));
  return h('div', { class: 'scroll', tabindex: '0', role: 'region', 'aria-label': caption },
    h('table', {}, h('caption', { class: 'unseen' }, caption),
      h('thead', {}, h('tr', {}, names.map((name) => h('th', { scope: 'col' }, name)))),
      h('tbody', {}, rows.slice(0, 500).map((row) => h('tr', {}, row.map(cell))))));
}

function number(chart, reply, catalog, { now }) {
  if (chart.live) {
    const metric = catalog.live.get(chart.live);
    const value = reply.items ? reply.items[0]?.value : reply.value;
    return h('p', { class: 'number' }, h('span', { class: 'value' }, show(value)),
      h('span', { class: 'unit' }, `${metric?.unit ?? ''} in the last ${metric?.window ?? 'window'}`));
  }
  const column = shown(chart, columnsOf(chart, catalog));
  const [row] = reply.rows;
  const perSecond = (value, from, to) => (value === null || chart.per !== 'second' ? value : to > from ? value / ((to - from) / 1000) : null);
  const value = perSecond(numeric(column.of(row?.values)), Date.parse(reply.from), Math.min(Date.parse(reply.to), now));
  const unit = chart.per ? `per ${chart.per}` : reply.metrics.length === 1 ? reply.metrics[0].unit : '';
  const parts = [h('span', { class: 'value' }, show(value)), h('span', { class: 'unit' }, unit)];
  const { compared } = reply;
  const before = compared && perSecond(numeric(column.of(row?.previous)), Date.parse(compared.from), Date.parse(compared.to));
  if (before && value !== null) {
    const change = (value - before) / before;
    const said = `${percent.format(change)} against ${show(before)} (${chart.compare.replace('_', ' ')})`;
    parts.push(h('span', { class: `change ${change >= 0 ? 'up' : 'down'}` }, said));
  }
  return h('p', { class: 'number' }, parts);
}

// The most bars that are drawn; a table has more.
const BARS = 50;

function bars(chart, reply, catalog, { pick }) {
  const column = chart.live ? undefined : shown(chart, columnsOf(chart, catalog));
  const rows = chart.live
    ? (reply.items ?? []).map((item) => ({ text: showKey(item.item), value: numeric(item.value) }))
    : reply.rows.map((row) => ({
      text: label(row), key: row.item ? undefined : row.key, value: numeric(column.of(row.values)), before: reply.compared && numeric(column.of(row.previous)),
    }));
  const most = Math.max(...rows.map(({ value }) => value ?? 0), 0);
  const bar = ({ text, key, value, before }) => {
    const of = h('span', { class: 'bar' });
    of.style.width = `${most > 0 ? (100 * Math.max(value ?? 0, 0)) / most : 0}%`;
    const name = key && Object.keys(key).length > 0
      ? h('button', { class: 'plain', title: 'Filter by this', onclick: () => pick(key) }, text)
      : h('span', {}, text);
    const amount = typeof before === 'number' ? `${show(value)} (${show(before)} before)` : show(value);
    return h('li', {}, of, name, h('span', { class: 'amount' }, amount));
  };
  return rows.length > 0 ? h('ol', { class: 'bars' }, rows.slice(0, BARS).map(bar)) : h('p', { class: 'empty' }, 'nothing in this span');
}

// The most lines of one chart.
const LINES = 8;

// One line for each column, and for what it is compared with.
function byColumn(columns, reply) {
  const line = (name, of) => [name, reply.rows.map((row) => numeric(of(row)))];
  const own = columns.map((column) => line(column.label, (row) => column.of(row.values)));
  const before = reply.compared ? columns.map((column) => line(`${column.label}, before`, (row) => column.of(row.previous))) : [];
  return [...own, ...before];
}

// One line for each key or item. A bucket has no more than `most` of them: which a full one lacks, is not known of it, and
// is zero elsewhere, if values are counts.
function byKey(column, reply, buckets, most, counted) {
  const sizes = new Array(buckets.length).fill(0);
  const at = new Map(buckets.map((bucket, i) => [bucket, i]));
  reply.rows.forEach((row) => { sizes[at.get(row.bucket)] += 1; });
  const empty = sizes.map((size) => (counted && size < most ? 0 : null));
  const lines = new Map();
  for (const row of reply.rows) {
    const name = label(row);
    if (!lines.has(name)) lines.set(name, [...empty]);
    lines.get(name)[at.get(row.bucket)] = numeric(column.of(row.values));
  }
  const total = (values) => values.reduce((sum, value) => sum + (value ?? 0), 0);
  return [...lines].sort(([, a], [, b]) => total(b) - total(a)).slice(0, LINES);
}

const startsOf = (reply) => [...new Set(reply.rows.map((row) => row.bucket))];

function series(chart, reply, catalog) {
  const columns = columnsOf(chart, catalog);
  const buckets = startsOf(reply);
  const grouped = reply.rows.some((row) => row.item || Object.keys(row.key).length > 0);
  const [metric] = catalog.of(chart);
  const counted = ['count', 'sum', 'distinct', 'top_k'].includes(metric?.aggregate) && !chart.show;
  const most = chart.limit ?? (metric?.aggregate === 'top_k' ? 10 : LINES);
  const lines = grouped ? byKey(shown(chart, columns), reply, buckets, most, counted) : byColumn(columns, reply);
  return { times: buckets.map((bucket) => Date.parse(bucket) / 1000), lines };
}

const style = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();

function line(chart, reply, catalog, { zone, height, spike }) {
  let { times, lines } = series(chart, reply, catalog);
  let end = Date.parse(reply.to) / 1000;
  if (times.length === 0) return h('p', { class: 'empty' }, 'nothing in this span');
  const holder = h('div', { class: 'plot', role: 'img' });
  const names = (list) => list.map(([name]) => name).join(', ');
  holder.setAttribute('aria-label', `Lines of ${names(lines)}; as a table from the chart's menu`);
  const axis = { stroke: style('--dim'), grid: { stroke: style('--edge'), width: 1 }, ticks: { stroke: style('--edge') } };
  const plot = new uPlot({
    width: 400, height, tzDate: (at) => uPlot.tzDate(new Date(at * 1000), zone),
    axes: [axis, { ...axis, size: 60, values: (_, values) => values.map((value) => show(value)) }],
    scales: { y: { range: (_, low, high) => [Math.min(0, low ?? 0), high > 0 ? high * 1.05 : 1] } },
    series: [{ label: 'time' }, ...lines.map(([name], i) => ({
      label: name, stroke: style(`--line-${i % LINES}`), width: 2, dash: name.endsWith(', before') ? [5, 4] : undefined,
      points: { show: times.length < 2 }, value: (_, value) => show(value),
    }))],
    cursor: { points: { size: 7 } },
  }, [times, ...lines.map(([, values]) => values)], holder);
  plot.over.addEventListener('click', () => {
    const { idx } = plot.cursor;
    if (idx !== null && idx !== undefined) spike(times[idx] * 1000, (times[idx + 1] ?? end) * 1000);
  });
  const fit = () => holder.clientWidth > 0 && plot.setSize({ width: holder.clientWidth, height });
  const watch = new ResizeObserver(fit);
  watch.observe(holder);
  holder.ended = () => { watch.disconnect(); plot.destroy(); };
  // The same lines go on where they are: what is hovered or zoomed stays.
  holder.goesOn = (next) => {
    const now = series(chart, next, catalog);
    if (names(now.lines) !== names(lines) || now.times.length === 0) return false;
    [times, lines, end] = [now.times, now.lines, Date.parse(next.to) / 1000];
    const { min, max } = plot.scales.x;
    const zoomed = min > plot.data[0][0] || max < plot.data[0].at(-1);
    plot.setData([times, ...lines.map(([, values]) => values)], !zoomed);
    if (zoomed) plot.redraw();
    return true;
  };
  return holder;
}

// Hours beside weekdays, by the clock that the answer's times are shown with.
function heat(chart, reply, catalog) {
  const column = shown(chart, columnsOf(chart, catalog));
  const sums = Array.from({ length: 7 }, () => new Array(24).fill(0));
  for (const row of reply.rows) {
    const day = (new Date(`${row.bucket.slice(0, 10)}T00:00:00Z`).getUTCDay() + 6) % 7;
    sums[day][Number(row.bucket.slice(11, 13))] += numeric(column.of(row.values)) ?? 0;
  }
  const most = Math.max(...sums.flat(), 1);
  const cell = (value) => {
    const of = h('td', { title: show(value) }, h('span', { class: 'unseen' }, show(value)));
    of.style.setProperty('--heat', value / most);
    return of;
  };
  const hours = [...Array(24).keys()].map((hour) => h('th', { scope: 'col' }, hour % 3 === 0 ? String(hour) : h('span', { class: 'unseen' }, String(hour))));
  const days = sums.map((of, day) => h('tr', {}, h('th', { scope: 'row' }, WEEKDAYS[day].slice(0, 3)), of.map(cell)));
  return h('table', { class: 'heat' }, h('caption', { class: 'unseen' }, 'by hour and weekday'),
    h('thead', {}, h('tr', {}, h('td'), hours)), h('tbody', {}, days));
}

// Who came again: a row for each bucket, a column for each of those behind it, as a share of who came in the bucket itself.
function grid(chart, reply, catalog) {
  const name = catalog.firstValue(chart);
  const rows = reply.rows.map((row) => [row.bucket.slice(0, 10), row.values[name]]);
  if (rows.length === 0) return h('p', { class: 'empty' }, 'nothing in this span');
  const cell = ([first], value) => {
    if (value === null) return h('td');
    const share = first > 0 ? value / first : 0;
    const of = h('td', { title: show(value) }, part.format(share));
    of.style.setProperty('--heat', share);
    return of;
  };
  return h('div', { class: 'scroll', tabindex: '0', role: 'region', 'aria-label': chart.title },
    h('table', { class: 'heat grid' }, h('caption', { class: 'unseen' }, 'who came again, by how much later'),
      h('thead', {}, h('tr', {}, h('td'), h('th', { scope: 'col' }, 'came'), rows[0][1].slice(1).map((_, i) => h('th', { scope: 'col' }, `+${i + 1}`)))),
      h('tbody', {}, rows.map(([text, values]) => h('tr', {}, h('th', { scope: 'row' }, text),
        h('td', { class: 'of-number' }, show(values[0])), values.slice(1).map((value) => cell(values, value)))))));
}

const DRAWN = { number, line, bars, heat, grid };
const LIVE = { number, bars };

// What a chart shows of a reply. `ended` on the element, where there is one, is to be called when it goes; `goesOn` takes a
// later reply, where that is shown in the same element.
export function draw(chart, reply, catalog, context) {
  const drawn = (chart.live ? LIVE : DRAWN)[chart.kind];
  return drawn && !context.asTable ? drawn(chart, reply, catalog, context) : table(tableOf(chart, reply, catalog), chart.title);
}

// The buckets of a line's answer: each with its start and end, ms since 1970.
export function buckets(reply) {
  const starts = startsOf(reply);
  return starts.map((text, i) => [text, Date.parse(text), Date.parse(starts[i + 1] ?? reply.to)]);
}
