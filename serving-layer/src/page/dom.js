// Making elements. Texts are texts: nothing that comes from data is ever read as markup.

export function h(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (value === undefined || value === null || value === false) continue;
    if (name.startsWith('on')) element.addEventListener(name.slice(2), value);
    else if (name in element && typeof value !== 'string') element[name] = value;
    else element.setAttribute(name, value === true ? '' : value);
  }
  element.append(...children.flat(Infinity).filter((child) => child !== undefined && child !== null && child !== false));
  return element;
}

export const $ = (selector, inside = document) => inside.querySelector(selector);

// Options of a select; each a value, or a value and what is shown.
export function options(list, chosen) {
  return list.map((one) => {
    const [value, shown] = Array.isArray(one) ? one : [one, one];
    return h('option', { value, selected: value === chosen }, shown);
  });
}

// Shows a dialog that goes once it is closed, by Escape or whatever is in it; the focus goes back to where it was.
export function modal(attributes, ...children) {
  const dialog = h('dialog', attributes, children);
  dialog.addEventListener('close', () => dialog.remove());
  document.body.append(dialog);
  dialog.showModal();
  return dialog;
}

// An error, with its faults.
export function fault({ message, details }) {
  const faults = (details ?? []).map((one) => (one.field ? `${one.field}: ${one.message}` : one.message));
  return h('div', { class: 'fault', role: 'alert' }, h('p', {}, message), faults.length > 0 && h('ul', {}, faults.map((text) => h('li', {}, text))));
}

export function download(name, blob) {
  const url = URL.createObjectURL(blob);
  h('a', { href: url, download: name }).click();
  setTimeout(() => URL.revokeObjectURL(url), 10000);
}
