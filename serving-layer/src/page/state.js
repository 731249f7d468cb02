// What the page shows, as the address bar has it: `#range=...&zone=...&f=<test>&charts=<list>`. What is as it was at first
// isn't there, so that a plain address shows the first board of the catalog.

export const FIRST = { range: 'last 24 hours', every: 5 };

const ownZone = () => Intl.DateTimeFormat().resolvedOptions().timeZone || 'UTC';

// A zone's name as the API has it; nothing of what is none.
export function zoneNamed(text) {
  try {
    return new Intl.DateTimeFormat('en', { timeZone: text }).resolvedOptions().timeZone;
  } catch {
    return undefined;
  }
}

// Charts as they came from elsewhere, numbered anew, so that no two are of one name.
function charts(list) {
  if (!Array.isArray(list)) return null;
  return list.filter((one) => one && typeof one === 'object').slice(0, 40).map((one, i) => ({ ...one, id: `c${i + 1}` }));
}

function parsed(text) {
  try {
    return JSON.parse(text);
  } catch {
    return undefined;
  }
}

// A state of an object from elsewhere, such as a page around this one; what isn't there stays as it is.
export function merged(state, given) {
  const text = (name) => (typeof given[name] === 'string' && given[name] ? given[name] : state[name]);
  return {
    ...state, range: text('range'), zone: zoneNamed(text('zone')) ?? state.zone,
    filters: Array.isArray(given.filters) ? given.filters.filter((one) => one && typeof one === 'object') : state.filters,
    charts: 'charts' in given ? charts(given.charts) : state.charts,
  };
}

export function fromAddress() {
  const said = new URLSearchParams(location.hash.slice(1));
  const every = Number(said.get('every') ?? FIRST.every);
  return {
    range: said.get('range') || FIRST.range,
    zone: zoneNamed(said.get('zone') || ownZone()) ?? 'UTC',
    every: [0, 2, 5, 15, 60].includes(every) ? every : FIRST.every,
    filters: said.getAll('f').map(parsed).filter((one) => one && typeof one === 'object'),
    charts: said.has('charts') ? charts(parsed(said.get('charts'))) : null,
    embed: said.has('embed'),
  };
}

export function toAddress(state) {
  const said = new URLSearchParams();
  if (state.range !== FIRST.range) said.set('range', state.range);
  if (state.zone !== ownZone()) said.set('zone', state.zone);
  if (state.every !== FIRST.every) said.set('every', state.every);
  state.filters.forEach((filter) => said.append('f', JSON.stringify(filter)));
  if (state.charts) said.set('charts', JSON.stringify(state.charts));
  if (state.embed) said.set('embed', '');
  return `#${said}`;
}
