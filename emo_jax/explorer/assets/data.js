// The data of the page: the header (read at once) and the binary sections (decoded after the
// first paint), with the small indexes that the views share.

const HEADER = JSON.parse(document.getElementById('data').textContent);
const MODELS = HEADER.models;
const DOMAINS = HEADER.domains;
const TEXTS = HEADER.texts;
const MODEL_LETTERS = ['A', 'B'];
const ARRAYS = { u1: Uint8Array, u2: Uint16Array, u4: Uint32Array };

// Filled by loadSections(): typed arrays by section name, and what is made from them.
const store = {
  state: 'loading', // loading | ready | failed
  done: 0,
  total: Object.keys(HEADER.sections).length,
  error: '',
  sections: {},
  docStarts: null, // u4 (D + 1)
  docText: null, // lower-case text of each document, for the search
  lowerTexts: null, // TEXTS in lower case
};

if (HEADER.format !== 'emo_jax explorer' || HEADER.version !== 1) {
  document.getElementById('main').textContent =
    'This page holds data in a format that its scripts do not know; write it anew with emo explore.';
  throw new Error('this page holds data in a format it does not know');
}

function bytesOfBase64(text) {
  if (Uint8Array.fromBase64) return Uint8Array.fromBase64(text);
  const raw = atob(text);
  const bytes = new Uint8Array(raw.length);
  for (let i = 0; i < raw.length; i++) bytes[i] = raw.charCodeAt(i);
  return bytes;
}

async function inflate(name) {
  const node = document.getElementById(`bin-${name}`);
  if (!node) throw new Error(`section ${name} is not in the page`);
  const packed = new Blob([bytesOfBase64(node.textContent)]);
  node.remove(); // the base64 text is the larger half of the page's memory
  const stream = packed.stream().pipeThrough(new DecompressionStream('gzip'));
  const buffer = await new Response(stream).arrayBuffer();
  const { dtype, shape } = HEADER.sections[name];
  const array = new ARRAYS[dtype](buffer);
  const size = shape.reduce((a, b) => a * b, 1);
  if (array.length !== size) throw new Error(`section ${name}: ${array.length} items, not ${size}`);
  return array;
}

// Lets the page draw and answer between two steps of a long job.
const breathe = () =>
  new Promise((resolve) => {
    setTimeout(resolve, 0);
  });

async function loadSections(progress) {
  try {
    for (const name of Object.keys(HEADER.sections)) {
      await breathe();
      store.sections[name] = await inflate(name);
      store.done++;
      progress();
    }
    await indexDocuments();
    store.state = 'ready';
  } catch (error) {
    store.state = 'failed';
    store.error = String(error?.message ?? error);
  }
  progress();
}

async function indexDocuments() {
  const { tokens, doc_ends: ends } = store.sections;
  store.docStarts = new Uint32Array(ends.length + 1);
  store.docStarts.set(ends, 1);
  store.lowerTexts = TEXTS.map((text) => text.toLowerCase());
  store.docText = new Array(ends.length);
  for (let d = 0; d < ends.length; d++) {
    // join, not +=: the first search would pay for flattening a rope of pieces
    store.docText[d] = Array.from(
      tokens.subarray(store.docStarts[d], ends[d]),
      (t) => store.lowerTexts[t] ?? '',
    ).join('');
    if (d % 300 === 299) await breathe();
  }
}

const ready = () => store.state === 'ready';
const documentCount = () => HEADER.data.documents;
const manyDomains = DOMAINS.length > 1; // one has none to be told from or compared with
const domainName = (d) => DOMAINS[store.sections.doc_domain[d]];
const tokenText = (i) => TEXTS[store.sections.tokens[i]] ?? '';
const docLength = (d) => store.docStarts[d + 1] - store.docStarts[d];

// The start of a document in one line, for lists.
function docOpening(d, limit = 110) {
  let text = '';
  const end = store.docStarts[d + 1];
  for (let i = store.docStarts[d]; i < end && text.length < limit * 2; i++) text += tokenText(i);
  return plain(text.replace(/\s+/g, ' ').trim(), limit);
}

// Place of a layer among those whose picks are in the page, or -1.
const layerSlot = (m, layer) => MODELS[m].layers_here.indexOf(layer);

// The layer in the page that is nearest to the wanted one.
function nearestLayer(m, layer) {
  const here = MODELS[m].layers_here;
  return here.reduce(
    (best, l) => (Math.abs(l - layer) < Math.abs(best - layer) ? l : best),
    here[0],
  );
}

const picksOf = (m) => store.sections[`picks-${m}`];
const probsOf = (m) => store.sections[`probs-${m}`];
const tokenClusters = (m) => store.sections[`tcluster-${m}`];
const docClusters = (m) => store.sections[`dcluster-${m}`];

// A token's picks in one layer: [[expert, probability], ...], the most probable first.
function picksAt(m, slot, i) {
  const { top_k: k, layers_here: here } = MODELS[m];
  const from = (i * here.length + slot) * k;
  const picks = picksOf(m);
  const probs = probsOf(m);
  return Array.from({ length: k }, (_, j) => [picks[from + j], probs[from + j] / 255]);
}
const topPick = (m, slot, i) =>
  picksOf(m)[(i * MODELS[m].layers_here.length + slot) * MODELS[m].top_k];
const topProb = (m, slot, i) =>
  probsOf(m)[(i * MODELS[m].layers_here.length + slot) * MODELS[m].top_k] / 255;

// Layers need not have the same number of experts.
const expertsIn = (m, layer) => MODELS[m].experts[layer].length;

// null: not measured, or of an expert that the layer does not have. As a number it would be 0.
const known = (value) => value ?? NaN;
const isKnown = Number.isFinite;
// Of what is known; null where nothing is.
function mean(values) {
  const found = values.filter(isKnown);
  return found.length ? found.reduce((a, b) => a + b, 0) / found.length : null;
}
