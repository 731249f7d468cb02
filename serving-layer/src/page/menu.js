// Menus: buttons that open a list of others.

import { $, h } from './dom.js';

// An item of a menu.
export const item = (name, text, onclick) => h('button', { type: 'button', role: 'menuitem', class: name, onclick }, text);

// Opens a menu, or closes it.
function unfold(items, open) {
  items.hidden = !open;
  $('[aria-haspopup]', items.parentElement).setAttribute('aria-expanded', String(open));
}

// A button that opens a menu: the arrows move in it, Escape and a click elsewhere close it.
export function opens(button, items) {
  items.setAttribute('role', 'menu');
  items.setAttribute('aria-label', button.getAttribute('aria-label') ?? button.textContent);
  const move = (by) => {
    const all = [...items.querySelectorAll('button')];
    all[(all.indexOf(document.activeElement) + by + all.length) % all.length]?.focus();
  };
  button.addEventListener('click', () => { unfold(items, items.hidden); if (!items.hidden) $('button', items)?.focus(); });
  // Before the item's own work, which may move the focus elsewhere.
  items.addEventListener('click', ({ target }) => { if (target !== items) { unfold(items, false); button.focus(); } }, true);
  button.parentElement.addEventListener('keydown', (event) => {
    if (event.key === 'Escape' && !items.hidden) { unfold(items, false); button.focus(); }
    if (event.key === 'ArrowDown' && !items.hidden) { event.preventDefault(); move(1); }
    if (event.key === 'ArrowUp' && !items.hidden) { event.preventDefault(); move(-1); }
  });
}

// A click elsewhere closes menus.
document.addEventListener('click', ({ target }) => {
  for (const items of document.querySelectorAll('.menu-of .items:not([hidden])')) {
    if (!items.parentElement.contains(target)) unfold(items, false);
  }
});
