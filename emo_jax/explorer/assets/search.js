// The search box: documents whose text has the string, clusters, and experts' top tokens.

const SEARCH_MOST = 8;

function searchClusters(wanted, matches) {
  const found = [];
  MODELS.forEach((model, m) => {
    for (const kind of ['token', 'document']) {
      model[`${kind}_clusters`].clusters.forEach((cluster, c) => {
        const hits = cluster.texts.filter(([t]) => matches[t]).length;
        if (cluster.label.toLowerCase().includes(wanted) || hits)
          found.push({ m, kind, c, cluster, hits });
      });
    }
  });
  return found.sort((a, b) => b.hits - a.hits);
}

function searchExperts(matches) {
  const found = [];
  MODELS.forEach((model, m) =>
    model.experts.forEach((layer, l) =>
      layer.forEach((card, e) => {
        const best = card.tokens.find(([t]) => matches[t]);
        if (best) found.push({ m, l, e, text: best[0], lift: best[1] });
      }),
    ),
  );
  return found.sort((a, b) => b.lift - a.lift);
}

function searchDocuments(wanted) {
  const found = [];
  for (let d = 0; d < store.docText.length; d++)
    if (store.docText[d].includes(wanted)) found.push(d);
  return found;
}

// The text around the first hit; the lower-case text is enough to recognise it.
function snippet(d, wanted) {
  const text = store.docText[d];
  const at = text.indexOf(wanted);
  const from = Math.max(0, at - 30);
  const piece = (start, end) => plain(text.slice(start, end).replace(/\s+/g, ' '));
  return h(
    'bdi',
    { class: 'opening' },
    from ? '…' : '',
    piece(from, at),
    h('mark', {}, piece(at, at + wanted.length)),
    piece(at + wanted.length, at + wanted.length + 50),
    '…',
  );
}

const searchBox = {
  mount() {
    this.input = document.getElementById('q');
    this.results = document.getElementById('results');
    const form = document.getElementById('search-form');
    let timer = 0;
    this.input.addEventListener('input', () => {
      clearTimeout(timer);
      timer = setTimeout(() => this.show(), 120);
    });
    form.addEventListener('submit', (event) => {
      event.preventDefault();
      clearTimeout(timer);
      this.hide();
      go({ q: this.input.value, view: this.input.value ? 'documents' : state.view, doc: null });
    });
    const closer = (event) => {
      if (event.key !== 'Escape' || this.results.hidden) return;
      event.preventDefault(); // the browser would empty the box
      this.hide();
      this.input.focus();
    };
    this.input.addEventListener('keydown', closer);
    this.results.addEventListener('keydown', closer);
    this.results.addEventListener('click', (event) => {
      if (event.target.closest('a')) this.hide();
    });
    document.addEventListener('pointerdown', (event) => {
      if (!event.target.closest('.search')) this.hide();
    });
  },
  hide() {
    this.results.hidden = true;
  },
  update() {
    if (document.activeElement !== this.input) this.input.value = state.q;
  },
  show() {
    const wanted = this.input.value.trim().toLowerCase();
    this.results.hidden = wanted === '';
    if (!wanted) return;
    const began = performance.now();
    const matches = new Uint8Array(TEXTS.length);
    TEXTS.forEach((text, t) => {
      if (text.toLowerCase().includes(wanted)) matches[t] = 1;
    });
    const clusters = searchClusters(wanted, matches);
    const experts = searchExperts(matches);
    const docs = ready() ? searchDocuments(this.input.value.toLowerCase()) : null;
    this.results.dataset.ms = (performance.now() - began).toFixed(1);
    const group = (title, all, row) =>
      all.length
        ? [
            h('h2', {}, `${title}: ${count(all.length)}`),
            h('ul', {}, ...all.slice(0, SEARCH_MOST).map((one) => h('li', {}, row(one)))),
          ]
        : h('h2', {}, `${title}: none`);
    fill(
      this.results,
      docs === null
        ? loadingNote()
        : group('Documents', docs, (d) => [
            link({ view: 'documents', doc: d, q: this.input.value }, `Document ${d}`),
            ' ',
            snippet(d, this.input.value.toLowerCase()),
          ]),
      docs?.length > SEARCH_MOST
        ? h(
            'p',
            {},
            link(
              { view: 'documents', doc: null, q: this.input.value },
              `All ${count(docs.length)} documents`,
            ),
          )
        : null,
      group('Clusters', clusters, ({ m, kind, c, cluster }) => [
        modelName(m),
        ' ',
        link(
          { view: 'clusters', kind, [CLUSTER_FIELD[kind]]: `${m}.${c}` },
          `${kind} cluster ${c}`,
        ),
        ' ',
        safe(cluster.label, 50),
      ]),
      group('Experts by top token', experts, ({ m, l, e, text, lift }) => [
        modelName(m),
        ' ',
        link({ view: 'experts', layer: l, expert: `${m}.${l}.${e}` }, `layer ${l} expert ${e}`),
        ' ',
        h('bdi', {}, tokenName(TEXTS[text])),
        h('small', {}, ` ×${fixed(lift, 1)}`),
      ]),
    );
    announce(
      `${docs ? many(docs.length, 'document') : 'documents still loading'}, ${many(clusters.length, 'cluster')}, ` +
        `${many(experts.length, 'expert')}`,
    );
  },
};
