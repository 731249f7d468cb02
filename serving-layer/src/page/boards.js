// Boards that the serving layer keeps: opened, saved and deleted under their names.
//
// A board is saved from the version that was opened: whoever was faster meanwhile is not written over.

import { ask, get } from './api.js';
import { h, modal } from './dom.js';

const path = (name) => `/api/v1/boards/${encodeURIComponent(name)}`;

// The board that is shown, if it was opened or saved: its name, version, and whether everyone may read it.
let opened;

async function save(name, board, shared) {
  const version = opened?.name === name ? opened.version : undefined;
  const body = JSON.stringify({ board, shared, ...(version && { version }) });
  opened = await (await ask(path(name), { method: 'PUT', headers: { 'content-type': 'application/json' }, body })).json();
}

async function remove({ name, version }) {
  await ask(`${path(name)}?version=${version}`, { method: 'DELETE' });
  if (opened?.name === name) opened = undefined;
}

// A dialog with the boards that there are. `shown` is the one that the page shows; `show(board)` shows another.
export async function choose(shown, show) {
  const said = h('p', { class: 'fault', role: 'alert' });
  const list = h('ul', { class: 'boards' });
  const name = h('input', { id: 'board-name', maxlength: '100', required: true, value: opened?.name ?? '' });
  const shared = h('input', { type: 'checkbox', id: 'board-shared', checked: Boolean(opened?.shared) });
  const tried = async (work) => {
    try {
      said.textContent = '';
      await work();
    } catch (error) {
      said.textContent = error.message;
    }
  };
  const open = (one) => tried(async () => {
    const { board, ...about } = await get(path(one.name));
    opened = about.own ? about : undefined;
    dialog.close();
    show(board);
  });
  const row = (one) => h('li', {},
    h('button', { type: 'button', class: 'plain', onclick: () => open(one) }, one.name), one.shared ? ' (for everyone) ' : ' ',
    one.own && h('button', { type: 'button', class: 'remove', 'aria-label': `Delete ${one.name}`, onclick: () => tried(async () => { await remove(one); await relist(); name.focus(); }) }, '×'));
  const relist = async () => list.replaceChildren(...(await get('/api/v1/boards')).boards.map(row));
  const form = h('form', {}, h('h2', {}, 'Boards'), list,
    h('p', {}, h('label', {}, 'Name ', name), ' ', h('label', {}, shared, ' for everyone'), ' ', h('button', { class: 'main save' }, 'Save what is shown')),
    said, h('p', { class: 'actions' }, h('button', { type: 'button', class: 'cancel', onclick: () => dialog.close() }, 'Close')));
  form.addEventListener('submit', (event) => {
    event.preventDefault();
    tried(async () => { await save(name.value.trim(), shown, shared.checked); await relist(); });
  });
  const dialog = modal({ 'aria-label': 'Boards' }, form);
  await tried(relist);
  name.focus();
}
