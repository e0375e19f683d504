// The state of the page lives in location.hash, so that every view is a link. Fields hold plain
// values; a value that a link gets wrong falls back to the default and is reported, never thrown.

const VIEW_IDS = ['overview', 'clusters', 'experts', 'documents', 'keep', 'domains'];
const MAX_LAYERS = Math.max(...MODELS.map((model) => model.layers));
const MAX_EXPERTS = Math.max(...MODELS.map((model) => model.routed + model.shared));

const choice = (...values) => ({
  base: values[0],
  read: (text) => (values.includes(text) ? text : undefined),
  write: (value) => value,
});
const whole = (base, low, high) => ({
  base,
  read: (text) => {
    const value = /^\d{1,9}$/.test(text) ? Number(text) : NaN;
    return value >= low && value <= high() ? value : undefined;
  },
  write: String,
});
// Dotted whole numbers that `fits` accepts: "model.cluster" or "model.layer.expert".
const place = (length, fits) => ({
  base: null,
  read: (text) => {
    if (!/^\d{1,6}(\.\d{1,6})*$/.test(text)) return undefined;
    const parts = text.split('.').map(Number);
    return parts.length === length && parts[0] < MODELS.length && fits(...parts)
      ? parts.join('.')
      : undefined;
  },
  write: (value) => value,
});
const clusterPlace = (kind) => place(2, (m, c) => c < MODELS[m][kind].clusters.length);
const expertPlace = () => place(3, (m, l, e) => l < MODELS[m].layers && e < expertsIn(m, l));

const FIELDS = {
  view: choice(...VIEW_IDS),
  models: choice('both', 'a', ...(MODELS.length > 1 ? ['b'] : [])),
  layer: whole(MODELS[0].layers_here.at(-1) ?? 0, 0, () => MAX_LAYERS - 1),
  // filters, shared by all views
  q: { base: '', read: (text) => text.slice(0, 200), write: (value) => value },
  domain: {
    base: null,
    read: (text) => (DOMAINS.includes(text) ? DOMAINS.indexOf(text) : undefined),
    write: (value) => DOMAINS[value],
  },
  picks: expertPlace(), // tokens that picked this expert
  tokencluster: clusterPlace('token_clusters'),
  doccluster: clusterPlace('document_clusters'),
  // what is open
  expert: expertPlace(),
  doc: whole(null, 0, () => documentCount() - 1),
  token: whole(null, 0, () => 1e8), // place in the document; checked when the tokens are there
  // how it is shown
  kind: choice('token', 'document'),
  order: choice('size', 'number', ...(manyDomains ? ['domain'] : []), 'entropy'),
  measure: choice('use', 'picked'),
  rows: choice('domains', 'tokenclusters', 'docclusters'),
  sort: choice('number', 'load', ...(manyDomains ? ['domain'] : []), 'cluster'),
  scale: choice('linear', 'root'),
  color: choice('cluster', 'expert', 'probability'),
  labels: choice('off', 'on'),
  page: whole(0, 0, () => 1e6),
  keep: whole(null, 1, () => MAX_EXPERTS),
  curve: choice('rise', 'loss'),
  theme: choice('auto', 'light', 'dark'),
};

const defaults = () => Object.fromEntries(Object.entries(FIELDS).map(([k, f]) => [k, f.base]));
let state = defaults();

// [state, problems] of a hash.
function readHash(hash) {
  const next = defaults();
  const problems = [];
  for (const part of hash.replace(/^#/, '').split('&')) {
    if (!part) continue;
    const [name, ...rest] = part.split('=');
    let text = null;
    try {
      text = decodeURIComponent(rest.join('=').replace(/\+/g, ' '));
    } catch {
      /* a broken escape: reported below like any other bad value */
    }
    if (!Object.hasOwn(FIELDS, name)) {
      problems.push(`the link names “${plain(name, 30)}”, which this page does not have`);
      continue;
    }
    const value = text === null ? undefined : FIELDS[name].read(text);
    if (value === undefined) {
      problems.push(
        `the link asks for ${name} “${plain(text ?? rest.join('='), 30)}”, ` + 'which is not here',
      );
    } else {
      next[name] = value;
    }
  }
  return [next, problems];
}

function hashOf(values) {
  const parts = [];
  for (const [name, field] of Object.entries(FIELDS)) {
    const value = values[name];
    if (value === field.base || value === null || value === undefined) continue;
    parts.push(`${name}=${encodeURIComponent(field.write(value)).replace(/%20/g, '+')}`);
  }
  return '#' + parts.join('&');
}

// Going to another list or document starts it from its first page and token.
const FILTER_FIELDS = ['q', 'domain', 'picks', 'tokencluster', 'doccluster'];
function withPatch(patch) {
  const next = { ...state, ...patch };
  if (!('page' in patch) && FILTER_FIELDS.some((f) => f in patch)) next.page = 0;
  if ('doc' in patch && !('token' in patch)) next.token = null;
  return next;
}
const hashFor = (patch) => hashOf(withPatch(patch));

// Changes the state: a new entry of the history, or (for sliders and typing) the same one.
function go(patch, { replace = false } = {}) {
  const began = performance.now();
  state = withPatch(patch);
  const hash = hashOf(state);
  if (hash !== location.hash && !(hash === '#' && location.hash === '')) {
    try {
      if (replace) history.replaceState(null, '', hash);
      else history.pushState(null, '', hash);
    } catch {
      location.hash = hash; // where the browser allows no history calls, or too many of them
    }
  }
  render(began);
}

const splitPlace = (value) => (value === null ? null : value.split('.').map(Number));
const shownModels = () => {
  if (MODELS.length === 1 || state.models === 'a') return [0];
  return state.models === 'b' ? [1] : [0, 1];
};
