// What lies behind a bucket of a line: the same metric in that bucket alone, by each of its keys, the greatest first; and the
// records themselves, where they are kept.

import { facts, query } from './api.js';
import { showOne, table, tableOf } from './charts.js';
import { fault, h } from './dom.js';
import { tell } from './editor.js';
import { testsOf } from './request.js';

// The most keys that it is shown by.
const KEYS = 6;
const ROWS = 20;

// Which rows of a key are asked for, by what the metric's values are.
function best(metric, value, key) {
  if (metric?.aggregate === 'top_k') return { group_by: [key], k: 5 };
  const orders = metric && metric.aggregate !== 'quantile';
  return { group_by: [key], limit: ROWS, ...(orders && { order: [{ by: value, desc: true }] }) };
}

// The first records, or why they aren't there: that is no reason to show nothing else.
async function records({ metrics, from, to, time_zone, filters }) {
  const said = (text) => h('p', { class: 'note' }, text);
  try {
    const reply = await facts({ metrics, from, to, time_zone, filters, limit: ROWS });
    const fields = [...new Set(reply.rows.flatMap((row) => Object.keys(row.fields)))];
    const rows = reply.rows.map((row) => [
      row.event_time.replace('T', ' '), row.stream, ...fields.map((name) => (name in row.fields ? showOne(row.fields[name]) : '')),
      `${row.topic}/${row.partition}/${row.offset}`,
    ]);
    return [
      table({ names: ['event time', 'stream', ...fields, 'place in the log'], rows }, 'Records'),
      said(`${reply.more ? `The first ${ROWS}` : 'All'} that came before ${reply.as_of ?? 'the first run'}; each delivery is a row.`),
      reply.incomplete_because.map(said),
    ];
  } catch (error) {
    return said(error.message);
  }
}

export async function behind(chart, from, to, board, catalog) {
  const [first] = chart.metrics;
  const [metric] = catalog.of({ metrics: [first] });
  const filters = testsOf(chart, board, catalog);
  const span = [from, to].map((at) => new Date(at));
  const shared = {
    metrics: [first], granularity: 'none', from: span[0].toISOString(), to: span[1].toISOString(), time_zone: board.zone,
    ...(filters.length > 0 && { filters }),
  };
  const keys = catalog.dimensions({ metrics: [first] }).slice(0, KEYS).map(({ name }) => name);
  const value = catalog.firstValue({ metrics: [first] });
  const queries = { all: { ...shared, ...(metric?.aggregate === 'top_k' && { k: ROWS }) } };
  keys.forEach((name, i) => { queries[`by${i}`] = { ...shared, ...best(metric, value, name) }; });
  const title = `${first}, ${span.map((at) => at.toLocaleString('en-GB', { timeZone: board.zone })).join(' to ')}`;
  try {
    const [{ answers }, kept] = await Promise.all([query({ queries }), metric?.name === first && metric.facts && records(shared)]);
    const part = (name, answer) => h('section', {}, h('h3', {}, name), table(tableOf({ ...chart, metrics: [first], kind: 'table' }, answer, catalog), name));
    tell(title, part('In all', answers.all), keys.map((name, i) => part(`By ${name}`, answers[`by${i}`])),
      kept && h('section', {}, h('h3', {}, 'Records'), kept));
  } catch (error) {
    tell(title, fault(error));
  }
}
