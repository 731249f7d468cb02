// Asking the API: plain requests, and one WebSocket that carries every subscription.
//
// Every error is a `Refused` with what the API says: a code, a text for people, and the faults by field.

const KEPT = 'tidemark-key';
const KEY = /^tm_[0-9a-f]{16}_[0-9a-f]{64}$/;
// In a frame that may not keep anything the key is known as long as the page is.
let token = kept((store) => store.getItem(KEPT)) ?? '';

function kept(work) {
  try {
    return work(sessionStorage);
  } catch {
    return undefined;
  }
}

export const key = {
  get: () => token,
  // For this tab, until it is closed; none with an empty text.
  set(value) {
    const given = value.trim();
    if (given && !KEY.test(given)) throw new Error('that is no key: one begins with tm_, and is shown when it is made');
    token = given;
    kept((store) => store.setItem(KEPT, token));
  },
};

export class Refused extends Error {
  constructor(status, { code, message, details } = {}) {
    super(message ?? `the serving layer answers ${status || 'nothing'}`);
    Object.assign(this, { status, code, details: details ?? [] });
  }
}

// A reply to a request, if it is none of an error's.
export async function ask(path, { headers, ...init } = {}) {
  let reply;
  try {
    reply = await fetch(path, { ...init, headers: { ...(token && { authorization: `Bearer ${token}` }), ...headers } });
  } catch (error) {
    if (error.name === 'AbortError') throw error;
    throw new Refused(0, { code: 'unreachable', message: 'the serving layer can\'t be reached' });
  }
  if (reply.ok) return reply;
  throw new Refused(reply.status, await reply.json().then((body) => body.error, () => undefined));
}

// The body of a reply; what was cut off, or came from elsewhere, is none.
async function json(reply) {
  try {
    return await reply.json();
  } catch (error) {
    if (error.name === 'AbortError') throw error;
    throw new Refused(0, { code: 'unreadable', message: 'the serving layer\'s answer can\'t be read' });
  }
}

export const get = async (path) => json(await ask(path));
const post = (path, body, signal) => ask(path, {
  method: 'POST', body: JSON.stringify(body), signal, headers: { 'content-type': 'application/json' },
});
export const query = async (body, signal) => json(await post('/api/v1/query', body, signal));
export const csv = async (body) => (await post('/api/v1/query', { ...body, format: 'csv' })).blob();
// The records behind a metric's value.
export const facts = async (body) => json(await post('/api/v1/facts', body));

// Applies a JSON Patch as the API sends them: `add` at the end of a list, `replace` and `remove`.
function patched(document, operations) {
  const root = { document };
  for (const { op, path, value } of operations) {
    const names = ['document', ...path.split('/').slice(1).map((name) => name.replaceAll('~1', '/').replaceAll('~0', '~'))];
    const last = names.pop();
    const inside = names.reduce((at, name) => at[name], root);
    if (op !== 'remove') inside[last] = value;
    else if (Array.isArray(inside)) inside.splice(Number(last), 1);
    else delete inside[last];
  }
  return root.document;
}

// How long it waits before it connects again, in ms: longer each time.
const PAUSES = [250, 500, 1000, 2000, 5000];
// How long before it asks again for what was refused for now, in ms: twice as long each time, up to five minutes.
const REFUSED = 5000;
const LONGEST = 300000;
// What is refused for now alone; of other codes nothing comes of asking again.
const FOR_NOW = ['too_many_requests', 'too_many_subscriptions', 'unavailable'];

// Live values, pushed. A connection that ends is made anew, and goes on from the versions that are there.
export class Push {
  #socket = null;
  #followed = new Map();
  #count = 0;
  #failures = 0;
  #timer = 0;
  #retry = 0;
  #pause = REFUSED;
  #says;

  // `says(connected)` is told whenever that changes.
  constructor(says) {
    this.#says = says;
  }

  // Follows just these: `{ name: { live, key, k, tell(reply), fail(error) } }`.
  follow(wanted) {
    for (const [id, { name, request }] of this.#followed) {
      if (JSON.stringify(asked(wanted[name])) !== JSON.stringify(request)) {
        this.#followed.delete(id);
        this.#send({ unsubscribe: id });
      }
    }
    const there = new Map([...this.#followed.values()].map((one) => [one.name, one]));
    for (const [name, one] of Object.entries(wanted)) {
      const old = there.get(name);
      if (old) {
        Object.assign(old, { tell: one.tell, fail: one.fail });
        if (old.reply) one.tell(old.reply);
        else if (old.error) one.fail(old.error);
        continue;
      }
      const id = `${name}#${(this.#count += 1)}`;
      this.#followed.set(id, { name, request: asked(one), tell: one.tell, fail: one.fail });
      this.#subscribe(id);
    }
    if (!this.#socket && this.#followed.size > 0) this.#connect();
  }

  #connect() {
    clearTimeout(this.#timer);
    const url = new URL('/api/v1/subscribe', location.href);
    url.protocol = url.protocol.replace('http', 'ws');
    // A page can't set a header: the key goes as a protocol.
    const socket = new WebSocket(url, token ? ['tidemark', `bearer.${token}`] : ['tidemark']);
    this.#socket = socket;
    socket.onopen = () => {
      this.#says(true);
      [...this.#followed.keys()].forEach((id) => this.#subscribe(id));
    };
    socket.onmessage = ({ data }) => this.#hear(JSON.parse(data));
    socket.onclose = () => {
      if (this.#socket !== socket) return;
      this.#socket = null;
      this.#says(false);
      const pause = PAUSES[Math.min(this.#failures, PAUSES.length - 1)];
      this.#failures += 1;
      if (this.#followed.size > 0) this.#timer = setTimeout(() => this.#connect(), pause);
    };
  }

  #send(message) {
    if (this.#socket?.readyState === WebSocket.OPEN) this.#socket.send(JSON.stringify(message));
  }

  // There is no such subscription. Without a name it was any of those that nothing has come of yet.
  #refused(id, one, error) {
    const meant = one ? [one] : id ? [] : [...this.#followed.values()].filter(({ reply, error: told }) => !reply && !told);
    for (const each of meant) {
      Object.assign(each, { error, refused: FOR_NOW.includes(error.code) });
      each.fail(error);
    }
    if (this.#retry || !meant.some(({ refused }) => refused)) return;
    this.#retry = setTimeout(() => this.#again(), this.#pause);
    this.#pause = Math.min(2 * this.#pause, LONGEST);
  }

  #again() {
    this.#retry = 0;
    for (const [id, one] of this.#followed) {
      if (one.refused && !one.reply) this.#subscribe(id);
      one.refused = false;
    }
  }

  #subscribe(id) {
    const { request, version } = this.#followed.get(id);
    this.#send({ subscribe: { id, ...request, ...(version && { last: version }) } });
  }

  #hear({ id, event, version, reply, patch, error }) {
    const one = this.#followed.get(id);
    if (event === 'error' && !version) {
      this.#refused(id, one, new Refused(0, error));
      return;
    }
    if (!one) return;
    if (event === 'error') {
      Object.assign(one, { reply: undefined, version: undefined, error: new Refused(0, error) });
      one.fail(one.error);
      return;
    }
    one.error = undefined;
    [this.#failures, this.#pause] = [0, REFUSED];
    if (event === 'snapshot') one.reply = reply;
    else if (event === 'change') one.reply = patched(one.reply, patch);
    else return;
    one.version = version;
    one.tell(one.reply);
  }
}

// What is said of a live value to the server; a key without columns is left out.
function asked(one) {
  if (!one) return undefined;
  const { live, key: columns, k } = one;
  return { live, ...(columns && Object.keys(columns).length > 0 && { key: columns }), ...(k && { k }) };
}
