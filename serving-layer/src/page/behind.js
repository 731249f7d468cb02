// What lies behind a bucket of a line: the same metric in that bucket alone, by each of its keys, the greatest first.

import { query } from './api.js';
import { table, tableOf } from './charts.js';
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
    const { answers } = await query({ queries });
    const part = (name, answer) => h('section', {}, h('h3', {}, name), table(tableOf({ ...chart, metrics: [first], kind: 'table' }, answer, catalog), name));
    tell(title, part('In all', answers.all), keys.map((name, i) => part(`By ${name}`, answers[`by${i}`])));
  } catch (error) {
    tell(title, fault(error));
  }
}
