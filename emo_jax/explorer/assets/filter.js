// Which tokens and documents the filters leave. Plain loops over typed arrays: 200,000 tokens
// take a few milliseconds. The result of the last filter is kept.

const selectionCache = { key: null, value: null };

const hasFilter = () => FILTER_FIELDS.some((f) => state[f] !== FIELDS[f].base);
const hasTokenFilter = () => state.picks !== null || state.tokencluster !== null;

// {docs: ids, hits: tokens kept of each of them, tokens: their sum, mask: u1 (N) or null, ms,
//  note: text or ''}. mask is null where every token of a kept document counts.
function selection() {
  const key = FILTER_FIELDS.map((f) => `${f}=${state[f]}`).join('&');
  if (selectionCache.key === key) return selectionCache.value;
  const began = performance.now();
  const kept = keepDocuments();
  const [mask, note] = hasTokenFilter() ? maskTokens(kept) : [null, ''];
  const docs = [];
  const hits = [];
  let tokens = 0;
  for (let d = 0; d < kept.length; d++) {
    if (!kept[d]) continue;
    let n = docLength(d);
    if (mask) {
      n = 0;
      for (let i = store.docStarts[d], end = store.docStarts[d + 1]; i < end; i++) n += mask[i];
      if (n === 0) continue;
    }
    docs.push(d);
    hits.push(n);
    tokens += n;
  }
  if (mask) sortByHits(docs, hits);
  const value = { docs, hits, tokens, mask, note, ms: performance.now() - began };
  selectionCache.key = key;
  selectionCache.value = value;
  return value;
}

function keepDocuments() {
  const kept = new Uint8Array(documentCount()).fill(1);
  const { doc_domain: domains } = store.sections;
  const cluster = splitPlace(state.doccluster);
  const clusters = cluster && docClusters(cluster[0]);
  const wanted = state.q.toLowerCase();
  for (let d = 0; d < kept.length; d++) {
    if (state.domain !== null && domains[d] !== state.domain) kept[d] = 0;
    else if (clusters && clusters[d] !== cluster[1]) kept[d] = 0;
    else if (wanted && !store.docText[d].includes(wanted)) kept[d] = 0;
  }
  return kept;
}

// The tokens of kept documents that pass the token filters, and a note where a filter cannot
// be applied because its layer's picks are not in the page.
function maskTokens(kept) {
  const mask = new Uint8Array(HEADER.data.tokens);
  const [cm, c] = splitPlace(state.tokencluster) ?? [0, -1];
  const clusters = tokenClusters(cm);
  const [m, layer, e] = splitPlace(state.picks) ?? [0, -1, -1];
  const slot = layerSlot(m, layer);
  const note =
    e >= 0 && slot < 0
      ? `the picks of layer ${layer} are not in the page: the expert filter is off`
      : '';
  const { top_k: k, layers_here: here } = MODELS[m];
  const picks = picksOf(m);
  const step = here.length * k;
  for (let d = 0; d < kept.length; d++) {
    if (!kept[d]) continue;
    for (let i = store.docStarts[d], end = store.docStarts[d + 1]; i < end; i++) {
      if (c >= 0 && clusters[i] !== c) continue;
      let found = slot < 0 ? 1 : 0;
      for (let j = 0, from = i * step + slot * k; !found && j < k; j++) {
        if (picks[from + j] === e) found = 1;
      }
      mask[i] = found;
    }
  }
  return [mask, note];
}

// The documents with the most kept tokens first; both lists in the same order.
function sortByHits(docs, hits) {
  const order = docs.map((_, j) => j).sort((a, b) => hits[b] - hits[a] || docs[a] - docs[b]);
  const [oldDocs, oldHits] = [docs.slice(), hits.slice()];
  order.forEach((from, to) => {
    docs[to] = oldDocs[from];
    hits[to] = oldHits[from];
  });
}

// Calls `visit(i, d)` for every selected token.
function eachSelected(visit) {
  const { docs, mask } = selection();
  for (const d of docs) {
    for (let i = store.docStarts[d], end = store.docStarts[d + 1]; i < end; i++) {
      if (!mask || mask[i]) visit(i, d);
    }
  }
}

// How many selected tokens (or documents) each cluster has.
function clusterCounts(m, kind) {
  const counts = new Uint32Array(MODELS[m][`${kind}_clusters`].clusters.length);
  if (kind === 'document') {
    const clusters = docClusters(m);
    for (const d of selection().docs) counts[clusters[d]]++;
  } else {
    const clusters = tokenClusters(m);
    eachSelected((i) => {
      counts[clusters[i]]++;
    });
  }
  return counts;
}

// Share of the selected tokens that picked each expert of a layer, or null.
function selectedPicks(m, layer) {
  const slot = layerSlot(m, layer);
  if (slot < 0) return null;
  const { top_k: k, layers_here: here, routed } = MODELS[m];
  const picks = picksOf(m);
  const shares = new Float64Array(routed);
  let n = 0;
  eachSelected((i) => {
    n++;
    const from = (i * here.length + slot) * k;
    for (let j = 0; j < k; j++) shares[picks[from + j]]++;
  });
  if (n) for (let e = 0; e < routed; e++) shares[e] /= n;
  return shares;
}

// Share of each cluster's tokens that picked each expert of a layer: clusters × experts, or null.
const clusterPickCache = new Map();
function clusterPicks(m, layer, kind) {
  const slot = layerSlot(m, layer);
  if (slot < 0) return null;
  const key = `${m} ${layer} ${kind}`;
  if (clusterPickCache.has(key)) return clusterPickCache.get(key);
  const { top_k: k, layers_here: here, routed } = MODELS[m];
  const size = MODELS[m][`${kind}_clusters`].clusters.length;
  const picks = picksOf(m);
  const table = new Float64Array(size * routed);
  const totals = new Float64Array(size);
  for (let d = 0; d < documentCount(); d++) {
    for (let i = store.docStarts[d], end = store.docStarts[d + 1]; i < end; i++) {
      const c = kind === 'token' ? tokenClusters(m)[i] : docClusters(m)[d];
      totals[c]++;
      const from = (i * here.length + slot) * k;
      for (let j = 0; j < k; j++) table[c * routed + picks[from + j]]++;
    }
  }
  for (let j = 0; j < table.length; j++) table[j] /= totals[Math.floor(j / routed)] || 1;
  clusterPickCache.set(key, table);
  return table;
}
