// The data-health strip: whether answers are complete, how far they reach, and what the last audits found.

import { show } from './charts.js';
import { h } from './dom.js';

const item = (name, value, kind = '') => h('span', { class: `item ${kind}` }, h('span', { class: 'name' }, name), ' ', h('b', {}, value));
// An answer that lags by more has something to say for itself, in seconds.
const LATE = 60;

function promised({ failed, answers = [], live }) {
  const all = answers.length > 0 ? answers : live ? [live] : [];
  const because = [...new Set(all.flatMap((one) => one.incomplete_because))];
  if (failed) return item('not answered:', failed, 'bad');
  if (because.length > 0) return item('incomplete:', because.join('; '), 'bad');
  return all.length > 0 && item('answers are', 'complete', 'good');
}

// How far all answers reach, and what holds them back.
function reach(answers, time) {
  const [asOf] = answers.map((one) => one.as_of).filter(Boolean).sort();
  const lag = asOf && Math.max(0, Math.round((Date.now() - Date.parse(asOf)) / 1000));
  const held = Object.entries(Object.assign({}, ...answers.map(({ tidemark }) => tidemark.held))).map(([tp, why]) => `${tp}: ${why}`);
  return [
    item('tidemark', String(Math.max(...answers.map(({ tidemark }) => tidemark.generation)))),
    asOf && item('as of', `${time(asOf)} (${show(lag)} s ago)`, lag > LATE ? 'bad' : ''),
    held.length > 0 && item('held partitions', held.join('; '), 'bad'),
  ];
}

// A key of some metrics is told of these alone.
function audited({ run, status, audit }) {
  const errors = Object.values(audit.metrics ?? {}).map(({ error }) => error ?? 0);
  const error = audit.error ?? Math.max(0, ...errors);
  const kind = audit.alarm || error > 0 ? 'bad' : audit.status === 'whole' ? 'good' : '';
  const said = [audit.alarm && 'alarm', audit.status && audit.status !== 'whole' && `audited: ${audit.status}`, `error ${show(error)}`];
  return [item('last audited run', `${run}, ${status}`, status === 'done' ? '' : 'bad'), item('audit', said.filter(Boolean).join(', '), kind)];
}

// Shows what is known in an element; `clock` is the data's, where it is not ours.
export function strip(element, health, zone, clock) {
  const time = (at) => new Date(at).toLocaleString('en-GB', { timeZone: zone });
  const { answers = [], live, failed } = health;
  const all = [...answers, ...(live ? [live] : [])];
  const of = answers.length > 0 ? answers : all;
  element.dataset.complete = all.length > 0 && !failed ? String(of.every((one) => one.complete)) : '';
  element.replaceChildren(...[
    promised(health), all.length > 0 && reach(all, time), clock && item('the data\'s clock', time(clock)),
    health.runs?.[0] && audited(health.runs[0]), !health.connected && item('push', 'connects again', 'bad'),
  ].flat().filter(Boolean));
}
