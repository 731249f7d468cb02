// What the catalog offers, and the board that is shown before anyone has made one.

const UNITS = { ms: 0.001, s: 1, m: 60, h: 3600, d: 86400, w: 604800 };
const NAMED = { second: 1, minute: 60, hour: 3600, day: 86400, week: 604800, month: 2678400, quarter: 7948800, year: 31622400 };

// `20m` in seconds.
export function seconds(width) {
  const [, count, unit] = /^(\d+)([a-z]+)$/.exec(width) ?? [];
  return UNITS[unit] ? Number(count) * UNITS[unit] : NAMED[width] ?? 0;
}

export class Catalog {
  constructor({ metrics, formulas }) {
    this.metrics = metrics;
    this.formulas = formulas;
    this.byName = new Map(metrics.map((metric) => [metric.name, metric]));
    this.live = new Map(metrics.filter((metric) => metric.live_name).map((metric) => [metric.live_name, metric]));
  }

  // The metrics behind the columns of a chart.
  of(chart) {
    if (chart.live) return [this.live.get(chart.live)].filter(Boolean);
    const named = (chart.metrics ?? []).filter((column) => typeof column === 'string');
    const formula = this.formulas.find(({ name }) => named.includes(name));
    const names = formula ? formula.columns.map(({ metric }) => metric) : named;
    return names.map((name) => this.byName.get(name)).filter(Boolean);
  }

  // The key columns that all metrics of a chart have.
  dimensions(chart) {
    const [first, ...others] = this.of(chart);
    return (first?.by ?? []).filter(({ name }) => others.every((metric) => metric.by.some((by) => by.name === name)));
  }

  // All key columns, by name.
  allDimensions() {
    const all = new Map(this.metrics.flatMap((metric) => metric.by.map((by) => [by.name, by])));
    return [...all.values()].sort((a, b) => a.name.localeCompare(b.name));
  }

  // The coarsest grain of a chart's metrics, in seconds.
  grain(chart) {
    return Math.max(...this.of(chart).map((metric) => seconds(metric.grain)), 1);
  }

  // What orders a chart's rows: its first value column.
  firstValue(chart) {
    if (chart.show) return chart.show;
    const [first] = chart.metrics;
    const formula = this.formulas.find(({ name }) => name === first);
    return formula ? formula.columns[0].name : first.name ?? first;
  }

  // A live name that needs no key: its window tells how far event time has come.
  clock() {
    return this.metrics.find((metric) => metric.live_name && metric.by.length === 0)?.live_name;
  }
}

// A numerator, if a formula of two columns has one.
const PART = /click|error|fail|order|purchase|conversion/i;

// A board of what a catalog has: how many now, how they have gone, which are the most.
export function firstBoard(catalog) {
  const charts = [];
  const add = (chart) => charts.push({ id: `c${charts.length + 1}`, ...chart });
  const of = (...kinds) => catalog.metrics.filter((metric) => kinds.includes(metric.aggregate));
  const title = (metric) => metric.description || metric.name;
  const [distinct] = of('distinct').filter((metric) => metric.by.length === 0);
  // What counts all first, not a part of it such as clicks or errors; of these the finest grain.
  const isPart = ({ name, unit }) => Number(PART.test(name) || PART.test(unit));
  const counts = of('count', 'sum').sort((a, b) => isPart(a) - isPart(b) || seconds(a.grain) - seconds(b.grain));
  const ranked = of('top_k');
  if (distinct) {
    if (distinct.live_name) add({ title: `Active ${distinct.unit} now`, kind: 'number', live: distinct.live_name });
    add({ title: `Weekly active ${distinct.unit}`, kind: 'number', metrics: [distinct.name], range: 'last 7 days', compare: 'previous_period' });
    add({ title: `Monthly active ${distinct.unit}`, kind: 'number', metrics: [distinct.name], range: 'last 30 days', compare: 'previous_period' });
  }
  if (counts[0]) {
    add({ title: `${counts[0].unit} per second`, kind: 'number', metrics: [counts[0].name], range: 'last 10 minutes', per: 'second' });
    add({ title: `${counts[0].unit}, beside a week before`, kind: 'number', metrics: [counts[0].name], compare: 'previous_week' });
  }
  for (const { name, columns } of catalog.formulas.filter((formula) => formula.columns.length === 2)) {
    const [part, whole] = PART.test(columns[1].name) ? [columns[1], columns[0]] : columns;
    const metrics = [part.metric, whole.metric, { name: 'ratio', formula: `cast(${part.metric} as float) / ${whole.metric}` }];
    add({ title: `${part.name} / ${whole.name}`, kind: 'number', metrics, show: 'ratio' });
    add({ title: `${name}: ${part.name} and ${whole.name}`, kind: 'line', metrics: [part.metric, whole.metric] });
  }
  if (catalog.formulas.length === 0) counts.slice(0, 2).forEach((metric) => add({ title: title(metric), kind: 'line', metrics: [metric.name] }));
  if (distinct) add({ title: title(distinct), kind: 'line', metrics: [distinct.name] });
  const items = [...new Map([...ranked].sort((a, b) => b.by.length - a.by.length).map((metric) => [metric.item.name, metric])).values()];
  for (const metric of items.slice(0, 3)) {
    add({ title: `${metric.item.name}: the most ${metric.unit}`, kind: 'bars', metrics: [metric.name], limit: 10 });
  }
  const [lived] = ranked.filter((metric) => metric.live_name && metric.by.length === 0);
  if (lived) add({ title: `${title(lived)}, in the last ${lived.window}`, kind: 'bars', live: lived.live_name, limit: 10 });
  const wide = counts.reduce((best, metric) => (metric.by.length > (best?.by.length ?? 1) ? metric : best), undefined);
  for (const { name } of wide?.by.slice(0, 5) ?? []) {
    add({ title: `${wide.unit} by ${name}`, kind: 'bars', metrics: [wide.name], group_by: [name], limit: 8 });
  }
  for (const metric of of('quantile').slice(0, 2)) add({ title: title(metric), kind: 'line', metrics: [metric.name] });
  for (const metric of of('sessions').slice(0, 1)) {
    add({ title: `${metric.unit} a day`, kind: 'line', metrics: [metric.name], range: 'last 7 days', granularity: 'day' });
    add({ title: 'Who came again, days later', kind: 'grid', metrics: [metric.name], range: 'last 8 days', granularity: 'day' });
  }
  // Hours of every zone, those at :30 and :45 too, if there is such a grain.
  const hourly = [900, 3600].map((width) => counts.find((metric) => width % seconds(metric.grain) === 0)).find(Boolean);
  if (hourly) add({ title: `${hourly.unit} by hour and weekday`, kind: 'heat', metrics: [hourly.name], range: 'last 7 days' });
  return charts;
}
