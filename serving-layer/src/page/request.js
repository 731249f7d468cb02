// From a chart to its query, and from there to what a person can copy: curl and SQL.

import { seconds } from './catalog.js';

// The widths of buckets to choose from, in seconds.
const WIDTHS = [['minute', 60], ['5m', 300], ['15m', 900], ['30m', 1800], ['hour', 3600], ['6h', 21600], ['day', 86400], ['week', 604800]];
// The most buckets that a line has, unless it is told a width.
const BUCKETS = 170;
const LINES = 8;

// How long a span is, in seconds, near enough to choose a width of buckets.
export function length(range) {
  const [from, to] = range.split('/');
  if (to) return Math.max(60, (Date.parse(to) - Date.parse(from)) / 1000);
  const [, count, unit] = /(?:last|this|previous)\s+(\d+)?\s*([a-z]+?)s?(?:\s|$)/.exec(range) ?? [];
  return unit ? Number(count ?? 1) * (seconds(unit) || 86400) : 86400;
}

function granularity(chart, range, catalog) {
  if (chart.granularity && chart.granularity !== 'auto') return chart.granularity;
  const grain = catalog.grain(chart);
  const fits = WIDTHS.find(([, width]) => width % grain === 0 && length(range) / width <= BUCKETS);
  return fits ? fits[0] : 'grain';
}

function span(range) {
  const [from, to] = range.split('/');
  return to ? { from, to } : { time_range: range };
}

const isRanked = (chart, catalog) => catalog.of(chart).some((metric) => metric.aggregate === 'top_k');

// The columns that a test is about.
export function columnsOf(filter) {
  const parts = filter.and ?? filter.or ?? (filter.not ? [filter.not] : undefined);
  return parts ? parts.flatMap(columnsOf) : [filter.dimension];
}

// Those of the common filters that a chart's metrics can be asked with, and those that they can't.
export function filtersOf(chart, board, catalog) {
  const known = new Set(catalog.dimensions(chart).map(({ name }) => name));
  const all = board.filters.map((filter) => [columnsOf(filter).every((name) => known.has(name)), filter]);
  return { held: all.filter(([is]) => is).map(([, filter]) => filter), left: all.filter(([is]) => !is).map(([, filter]) => filter) };
}

// All tests that a chart is asked with: the common ones that it can have, and its own.
export const testsOf = (chart, board, catalog) => [...filtersOf(chart, board, catalog).held, ...(chart.filters ?? [])];

// The query of a chart; `now` is the data's clock where that is not ours.
export function queryOf(chart, board, catalog, now) {
  const range = chart.range || board.range;
  const query = { metrics: chart.metrics, ...span(range), ...clock(range, now), time_zone: board.zone };
  const filters = testsOf(chart, board, catalog);
  if (filters.length > 0) query.filters = filters;
  const group = ['number', 'heat', 'grid'].includes(chart.kind) ? [] : chart.group_by ?? [];
  if (group.length > 0) query.group_by = group;
  const first = catalog.firstValue(chart);
  const orders = catalog.of(chart)[0]?.aggregate !== 'quantile';
  const ranked = isRanked(chart, catalog);
  if (ranked) query.k = chart.limit ?? 10;
  if (chart.kind === 'grid') return { ...query, granularity: granularity(chart, range, catalog), retention: chart.retention ?? 7 };
  for (const option of ['rolling', 'cumulative', 'compare']) if (chart[option]) query[option] = chart[option];
  if (chart.kind === 'line') {
    query.granularity = granularity(chart, range, catalog);
    if (group.length > 0 && orders) {
      query.order = [{ by: 'bucket' }, { by: first, desc: true }];
      query.limit_by = { columns: ['bucket'], limit: chart.limit ?? LINES };
    } else if (!ranked && !open(range)) query.fill = true;
  } else if (chart.kind === 'heat') {
    query.granularity = 'hour';
  } else {
    query.granularity = 'none';
    if (chart.kind === 'number' && !ranked) query.fill = true;
    if (!ranked && group.length > 0) {
      if (orders) query.order = [{ by: first, desc: true }];
      query.limit = chart.limit ?? 10;
    }
  }
  return query;
}

// Spans that end with the present: buckets beyond it would be filled with zeros that nobody has counted yet.
const open = (range) => /^(today|this \w+)$/.test(range);
const clock = (range, now) => (now && !range.includes('/') ? { now } : {});

const quoted = (text) => `'${String(text).replaceAll("'", "''")}'`;
const shell = (text) => `'${text.replaceAll("'", "'\\''")}'`;

// The query for a shell. A key is left to the environment.
export function curl(query, withKey) {
  const header = withKey ? ' -H "authorization: Bearer $TOKEN"' : '';
  return `curl ${location.origin}/api/v1/query -H 'content-type: application/json'${header} -d ${shell(JSON.stringify(query))}`;
}

const literal = (value) => (value === null ? 'null' : typeof value === 'string' ? quoted(value) : String(value));
const name = (text) => `"${text.replaceAll('"', '""')}"`;

function condition(filter) {
  for (const [op, word] of [['and', ' and '], ['or', ' or ']]) {
    if (filter[op]) return `(${filter[op].map(condition).join(word)})`;
  }
  if (filter.not) return `not (${condition(filter.not)})`;
  const { dimension, op = '=', value, values } = filter;
  const column = name(dimension);
  if (op === 'is_null') return `${column} is null`;
  if (op === 'is_not_null') return `${column} is not null`;
  if (op === 'in') return `${column} in (${values.map(literal).join(', ')})`;
  if (op === 'between') return `${column} between ${values.map(literal).join(' and ')}`;
  // What a link says is not SQL yet.
  if (!['=', '!=', '<', '<=', '>', '>=', 'like'].includes(op)) throw new Error(`${JSON.stringify(op)} is no test that SQL knows`);
  return `${column} ${op === '!=' ? '<>' : op} ${literal(value)}`;
}

// How the batch view's values of a metric add up; nothing where they don't.
const SUMS = { count: 'sum(value)', sum: 'sum(value)', top_k: 'sum(value)', mean: 'sum("sum") / nullif(sum("count"), 0)' };
const TRUNCATED = ['minute', 'hour', 'day', 'week', 'month'];
const WIDE = { '5m': '5 minutes', '15m': '15 minutes', '30m': '30 minutes', '6h': '6 hours' };
const UNSAID = ['rolling', 'cumulative', 'retention', 'compare', 'fill', 'limit_by', 'now'];

function bucketOf({ granularity, time_zone: zone }) {
  const local = `bucket at time zone ${quoted(zone)}`;
  if (TRUNCATED.includes(granularity)) return [`date_trunc(${quoted(granularity)}, ${local}) as bucket`];
  if (WIDE[granularity]) return [`date_bin(${quoted(WIDE[granularity])}, ${local}, timestamp '2000-01-01') as bucket`];
  return granularity === 'none' ? [] : [`${local} as bucket`];
}

// The same of the batch view alone, which ends at the tidemark: one statement a metric. What SQL leaves out is said on top.
export function sql(query, reply, catalog) {
  const where = [`bucket >= ${quoted(reply?.from ?? query.from)}`, `bucket < ${quoted(reply?.to ?? query.to)}`];
  where.push(...(query.filters ?? []).map(condition));
  const statements = catalog.of({ metrics: query.metrics }).map((metric) => {
    const sum = SUMS[metric.aggregate];
    const from = `from metrics.${name(metric.name)}\nwhere ${where.join('\n  and ')}`;
    if (!sum) return `-- Its values don't add up: these are those of each bucket of ${metric.grain}.\nselect * ${from};`;
    const bucket = bucketOf(query);
    const columns = [...(query.group_by ?? []), ...(metric.item ? [metric.item.name] : [])].map(name);
    const groups = [...bucket.map(() => '1'), ...columns];
    const limit = Math.trunc(Number(query.k ?? query.limit));
    return [
      `select ${[...bucket, ...columns, `${sum} as ${name(metric.name)}`].join(', ')}`, from,
      ...(groups.length > 0 ? [`group by ${groups.join(', ')}`] : []),
      ...(limit ? [`order by ${name(metric.name)} desc`, `limit ${limit}`] : bucket.length > 0 ? ['order by 1'] : []),
    ].join('\n') + ';';
  });
  const unsaid = [...UNSAID.filter((name) => query[name]), ...query.metrics.filter((one) => typeof one === 'object').map((one) => `the formula ${one.formula}`)];
  const without = unsaid.length > 0 ? `-- Without ${unsaid.join(', ')}, which the API computes.\n` : '';
  return `-- The batch view, up to the tidemark; what came since is in the API's answers.\n${without}${statements.join('\n\n')}\n`;
}
