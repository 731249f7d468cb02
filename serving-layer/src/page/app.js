// The page: a board of charts over one span, one zone and common filters, asked at one tidemark; live counters are pushed.
//
// The state is what the address bar has. All charts that aren't live are asked in one request, so that they agree.

import { key, get, query, csv, Push, Refused } from './api.js';
import { behind } from './behind.js';
import { choose as chooseBoard } from './boards.js';
import { Catalog, firstBoard } from './catalog.js';
import { buckets, draw, show } from './charts.js';
import { showControls, wireControls } from './controls.js';
import { $, download, fault, h, modal } from './dom.js';
import { edit, tell } from './editor.js';
import { strip } from './health.js';
import { item, opens } from './menu.js';
import { columnsOf, curl, filtersOf, queryOf, sql } from './request.js';
import { FIRST, fromAddress, merged, toAddress } from './state.js';

const HOUR = 3600 * 1000;
// The most queries that one request may hold.
const TOGETHER = 20;
// An event time so far from ours is the clock of data from another time.
const APART = 24 * HOUR;
const CLOCK = '(clock)';

let catalog;
let state = fromAddress();
let dataClock;
let timer = 0;
let asking;
const cards = new Map();
const health = { connected: true };
const push = new Push((connected) => { health.connected = connected; showHealth(); });

const board = () => state.charts ?? firstBoard(catalog);
// The data's clock, where it is not ours.
const now = () => (dataClock !== undefined && Math.abs(dataClock - Date.now()) > APART ? dataClock : undefined);

// What the controls need of the page.
const page = { get state() { return state; }, get catalog() { return catalog; }, now, change, addFilters, say };

// ---- the state

// `how` is `pushState`, or `replaceState` where a page around this one says so: the way back is that page's.
function change(next, how = 'pushState') {
  const [before, address] = [state, next].map(toAddress);
  if (address === before) return;
  state = next;
  history[how](null, '', address);
  say('');
  told();
  showAll();
}

// A page around this one hears of the state; who may be that is for `--cors-origins` to say.
function told() {
  if (parent === window) return;
  const { range, zone, filters, charts } = state;
  parent.postMessage({ tidemark: 'state', state: { range, zone, filters, charts } }, '*');
}

function changeChart(chart) {
  const charts = board();
  const there = charts.some(({ id }) => id === chart.id);
  change({ ...state, charts: there ? charts.map((one) => (one.id === chart.id ? chart : one)) : [...charts, chart] });
}

function addFilters(tests) {
  const known = state.filters.map((one) => JSON.stringify(one));
  change({ ...state, filters: [...state.filters, ...tests.filter((one) => !known.includes(JSON.stringify(one)))] });
}

const pick = (key) => addFilters(Object.entries(key).map(([dimension, value]) => (value === null ? { dimension, op: 'is_null' } : { dimension, op: '=', value })));

// ---- the charts

function card(chart) {
  const body = h('div', { class: 'body' });
  const menu = h('button', { type: 'button', class: 'menu', 'aria-haspopup': 'true', 'aria-expanded': 'false', 'aria-label': `Menu of ${chart.title}` }, '⋯');
  const items = h('div', { class: 'items', hidden: true });
  const note = h('p', { class: 'note' });
  const section = h('section', { class: `chart ${chart.kind}`, 'data-chart': chart.id, 'data-kind': chart.kind, 'data-state': 'loading', 'data-updates': '0' },
    h('div', { class: 'head' }, h('h2', {}, chart.title), h('div', { class: 'menu-of' }, menu, items)), note, body);
  const of = { chart, section, body, note, updates: 0, asTable: false, reply: undefined };
  items.append(
    item('as-table', 'As a table, or not', () => { of.asTable = !of.asTable; if (of.reply) drawn(of, of.reply); }),
    ...(chart.live ? [] : [
      ...(chart.kind === 'line' ? [item('behind', 'Behind a bucket …', () => choose(of))] : []),
      item('csv', 'CSV', () => csv(of.query).then((blob) => download(`${chart.title.replace(/\W+/g, '_')}.csv`, blob), ({ message }) => say(message))),
      item('copy-curl', 'Copy as curl', () => copy(curl(of.query, key.get() !== ''))),
      item('copy-sql', 'Copy as SQL', () => { let text; if (tried(of, () => { text = sql(of.query, of.reply, catalog); })) copy(text); }),
    ]),
    item('edit', 'Change …', async () => { const made = await edit(chart, catalog); if (made) changeChart(made); }),
    item('remove', 'Remove', () => change({ ...state, charts: board().filter(({ id }) => id !== chart.id) })));
  opens(menu, items);
  return of;
}

// The way to what lies behind a bucket for who doesn't point at it.
function choose(of) {
  if (!of.reply) return;
  const all = buckets(of.reply);
  const select = h('select', { 'aria-label': 'Bucket' }, all.map(([text], i) => h('option', { value: String(i), selected: i === all.length - 1 }, text)));
  const dialog = tell('Behind a bucket', select, ' ', h('button', {
    type: 'button', onclick: () => { const [, from, to] = all[Number(select.value)]; dialog.close(); behind(of.chart, from, to, state, catalog); },
  }, 'Show'));
}

async function copy(text) {
  // Without a secure origin there is no clipboard: the text is shown to be taken by hand.
  try {
    await navigator.clipboard.writeText(text);
    say('copied');
  } catch {
    tell('To copy', h('textarea', { class: 'copied', rows: '12', cols: '80', readonly: true, 'aria-label': 'What to copy' }, text));
  }
}

const FOCUSABLE = 'button, [tabindex]';

function drawn(of, reply) {
  const [old] = of.body.children;
  const { rows, value, items, from, to } = reply;
  const what = JSON.stringify([rows, value, items, from, to, state.zone, of.asTable, of.chart.per && Date.now()]);
  const stays = of.reply && (of.drawn === what || (!of.asTable && of.zone === state.zone && old?.goesOn?.(reply)));
  of.reply = reply;
  if (!stays) {
    // Who is at something stays there.
    const focused = [...of.body.querySelectorAll(FOCUSABLE)].indexOf(document.activeElement);
    const scrolled = $('.scroll', of.body)?.scrollTop ?? 0;
    old?.ended?.();
    const context = { zone: state.zone, height: 220, now: now() ?? Date.now(), asTable: of.asTable, pick, spike: (from, to) => behind(of.chart, from, to, state, catalog) };
    of.body.replaceChildren(draw(of.chart, reply, catalog, context));
    if (focused >= 0) of.body.querySelectorAll(FOCUSABLE)[focused]?.focus();
    if (scrolled > 0) $('.scroll', of.body)?.scrollTo(0, scrolled);
  }
  [of.drawn, of.zone] = [what, state.zone];
  of.updates += 1;
  of.section.dataset.updates = String(of.updates);
  of.section.dataset.state = 'ready';
  note(of, reply);
}

// What an answer can't promise, and which filters it leaves out, beside the answer itself.
function note(of, reply) {
  const { left } = filtersOf(of.chart, state, catalog);
  const live = of.chart.live && state.filters.length > 0;
  const bounds = Object.values(reply.error_bound ?? {}).filter((bound) => bound > 0);
  const said = [
    ...(reply.complete ? [] : [`incomplete: ${reply.incomplete_because.join('; ')}`]),
    ...(live ? ['a live counter: not filtered'] : left.length > 0 ? [`not filtered by ${left.flatMap(columnsOf).join(', ')}: it has no such key`] : []),
    ...(reply.total_rows > reply.row_count && of.chart.kind === 'line' ? [`the first ${reply.row_count} of ${reply.total_rows} rows`] : []),
    ...(bounds.length > 0 ? [`within ${show(100 * Math.max(...bounds))} %`] : []),
    ...(of.chart.range && of.chart.range !== state.range ? [of.chart.range] : []),
  ];
  of.note.textContent = said.join(' · ');
  of.section.classList.toggle('incomplete', !reply.complete);
}

function failed(of, error) {
  of.reply = undefined;
  of.section.dataset.state = 'error';
  const [old] = of.body.children;
  const shown = fault(error);
  // Said once.
  if (old?.isEqualNode(shown)) return;
  old?.ended?.();
  of.body.replaceChildren(shown);
}

function showAll() {
  showControls(state);
  const known = new Map(cards);
  cards.clear();
  for (const chart of board()) {
    const old = known.get(chart.id);
    const same = old && JSON.stringify(old.chart) === JSON.stringify(chart);
    cards.set(chart.id, same ? old : card(chart));
    if (same) known.delete(chart.id);
  }
  known.forEach((of) => of.body.firstElementChild?.ended?.());
  const focused = document.activeElement;
  const chart = focused?.closest('[data-chart]')?.dataset.chart;
  $('#board').replaceChildren(...[...cards.values()].map(({ section }) => section));
  // Who is at a chart stays there, and without it on the board.
  if (chart) (focused.isConnected ? focused : cards.has(chart) ? $('.menu', cards.get(chart).section) : $('#board')).focus({ preventScroll: true });
  follow();
  refresh();
}

// ---- what is asked

function follow() {
  const wanted = {};
  const clock = catalog.clock();
  const ours = { [CLOCK]: { live: clock, ...(catalog.live.get(clock)?.aggregate === 'top_k' && { k: 1 }), tell: ticked, fail: () => {} } };
  for (const of of cards.values()) {
    const { live, key: columns, limit } = of.chart;
    if (!live) continue;
    const k = catalog.live.get(live)?.aggregate === 'top_k' ? limit ?? 10 : undefined;
    wanted[of.chart.id] = { live, key: columns, k, tell: (reply) => tried(of, () => drawn(of, reply)), fail: (error) => failed(of, error) };
  }
  push.follow({ ...wanted, ...(clock && ours) });
}

// Event time goes on: spans that end with the present move with it.
function ticked(reply) {
  const first = dataClock === undefined;
  dataClock = Date.parse(reply.window_end);
  health.live = reply;
  showHealth();
  if (first && now() !== undefined) refresh();
}

async function refresh() {
  clearTimeout(timer);
  asking?.abort();
  asking = new AbortController();
  const { signal } = asking;
  const found = { answers: [], failed: undefined };
  try {
    const asked = [...cards.values()].filter(({ chart }) => !chart.live);
    const started = asked.filter((of) => tried(of, () => { of.query = queryOf(of.chart, state, catalog, now()); }));
    // What was refused is refused again: until it is another query.
    const fresh = started.filter((of) => of.refused !== said(of.query));
    for (let i = 0; i < fresh.length && !signal.aborted; i += TOGETHER) await together(fresh.slice(i, i + TOGETHER), signal, found);
    if (!signal.aborted) await audit();
  } finally {
    if (!signal.aborted) {
      Object.assign(health, found);
      showHealth();
      if (state.every > 0) timer = setTimeout(() => (document.hidden ? undefined : refresh()), state.every * 1000);
    }
  }
}

const said = ({ now: _, ...query }) => JSON.stringify(query);

// Whether work for a chart, which may have come from anywhere, was done; the others go on without it.
function tried(of, work) {
  try {
    work();
    return true;
  } catch (error) {
    failed(of, new Refused(0, { message: `this chart can't be shown: ${error.message}` }));
    return false;
  }
}

// Errors that the same query has the next time, too.
const LASTING = ['invalid_request', 'unanswerable', 'unknown_metric', 'forbidden'];

// Asks several charts at once; those that are refused by name are left out, and else each is asked alone.
async function together(of, signal, found) {
  if (of.length === 0) return;
  try {
    const { answers } = await query({ queries: Object.fromEntries(of.map(({ chart, query: one }) => [chart.id, one])) }, signal);
    if (signal.aborted) return;
    found.answers.push(...Object.values(answers));
    of.forEach((one) => tried(one, () => drawn(one, answers[one.chart.id])));
  } catch (error) {
    if (signal.aborted || error.name === 'AbortError') return;
    if (!(error instanceof Refused)) throw error;
    if (error.status === 401) { unknown(); return; }
    const named = (one) => error.details.filter(({ field }) => field?.startsWith(`queries.${one.chart.id}.`));
    const faulty = of.filter((one) => named(one).length > 0);
    faulty.forEach((one) => refused(one, new Refused(error.status, { ...error, message: 'this can\'t be asked', details: named(one) })));
    if (faulty.length > 0) await together(of.filter((one) => !faulty.includes(one)), signal, found);
    else if (of.length > 1 && ([403, 422].includes(error.status) || error.code === 'time_limit')) for (const one of of) await together([one], signal, found);
    else if (of.length === 1 && [400, 403, 422].includes(error.status)) refused(of[0], error);
    else { found.failed = error.message; of.forEach((one) => failed(one, error)); }
  }
}

function refused(of, error) {
  if (LASTING.includes(error.code)) of.refused = said(of.query);
  failed(of, error);
}

let audits = 0;
// The newest audited runs, once in a while. A key that may not see them is told so once.
async function audit() {
  if (audits === null || Date.now() - audits < 15000) return;
  audits = Date.now();
  try {
    health.runs = (await get('/api/v1/audit?limit=5')).runs;
    showHealth();
  } catch (error) {
    if (error.status === 403) audits = null;
  }
}

// ---- around the charts

function showHealth() {
  strip($('#health'), health, state.zone, now());
}

function say(text) {
  $('#said').textContent = text;
}

function wire() {
  wireControls(page);
  boardMenu();
  addEventListener('popstate', () => { state = fromAddress(); told(); showAll(); });
  $('.skip').addEventListener('click', (event) => { event.preventDefault(); $('#board').focus(); });
  document.addEventListener('visibilitychange', () => document.hidden || state.every === 0 || refresh());
  matchMedia('(prefers-color-scheme: dark)').addEventListener('change', () => cards.forEach((of) => {
    if (!of.reply) return;
    of.body.firstElementChild?.ended?.();
    of.body.replaceChildren();
    of.drawn = undefined;
    drawn(of, of.reply);
  }));
}

function boardMenu() {
  const button = $('#board-menu');
  const items = $('.items', button.parentElement);
  items.append(
    item('add', 'Add a chart …', async () => {
      const next = 1 + Math.max(0, ...board().map(({ id }) => Number(id.slice(1))));
      const made = await edit({ id: `c${next}`, kind: 'line' }, catalog);
      if (made) changeChart(made);
    }),
    item('boards', 'Saved boards …', () => {
      const { range, zone, filters } = state;
      chooseBoard({ range, zone, filters, charts: board() }, (other) => change(merged(state, other)));
    }),
    item('link', 'Copy its link', () => copy(location.href)),
    item('first', 'As at first', () => change({ ...state, range: FIRST.range, filters: [], charts: null })),
    item('key', 'API key …', () => askForKey()),
    // Where a key is needed, an address alone can't bring it.
    ...(key.get() ? [] : [item('docs', 'API documentation', () => open('/api/docs', '_blank', 'noopener'))]));
  opens(button, items);
}

// Asks for an API key, and begins anew with it. `refused` says why the one that is there won't do.
function askForKey(refused) {
  if ($('#api-key')) return;
  const input = h('input', { type: 'password', size: '70', autocomplete: 'off', value: key.get(), id: 'api-key' });
  const said = h('p', { class: 'fault', role: 'alert' }, refused);
  const form = h('form', { method: 'dialog' }, h('h2', {}, 'API key'), h('p', {}, 'It is kept in this tab alone, until that is closed.'),
    h('label', {}, 'Key ', input), said, h('p', { class: 'actions' }, h('button', { class: 'main' }, 'Use it')));
  form.addEventListener('submit', (event) => {
    event.preventDefault();
    try {
      key.set(input.value);
      location.reload();
    } catch (error) {
      said.textContent = error.message;
    }
  });
  modal({ 'aria-label': 'API key' }, form);
}

// Without a key, or with one that isn't known, or not any more, nothing is answered.
const unknown = () => askForKey(key.get() && 'this key is not valid, or not any more');

async function start() {
  try {
    catalog = new Catalog(await get('/api/v1/metrics'));
  } catch (error) {
    if (error.status === 401) {
      say('nothing is shown without a key: load the page anew to give one');
      unknown();
      return;
    }
    say(error.message);
    timer = setTimeout(start, 5000);
    return;
  }
  say('');
  wire();
  showAll();
  told();
}

addEventListener('message', ({ source, data }) => {
  if (parent === window || source !== parent || data?.tidemark !== 'set' || typeof data.state !== 'object' || !data.state) return;
  const next = merged(state, data.state);
  if (catalog) change(next, 'replaceState');
  else state = next;
});
start();
