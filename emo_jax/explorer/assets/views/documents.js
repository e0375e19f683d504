// Documents: the list that the filters leave, and a reader that colours the tokens of one
// document for each model. Only the open document (at most CHUNK tokens of it) is in the page.

const LIST_PAGE = 30;
const CHUNK = 600;
// Upper ends of the probability steps; the last step is open.
const PROB_STEPS = [0.05, 0.1, 0.15, 0.2, 0.3, 0.45, 0.65];
const probStep = (p) => {
  const at = PROB_STEPS.findIndex((end) => p < end);
  return at < 0 ? PROB_STEPS.length : at;
};

const documentsView = {
  id: 'documents',
  title: 'Documents',
  readerKey: '',
  hover: null, // place in the document of the token under the pointer
  mount(panel) {
    this.color = segmented(
      'Colour tokens by',
      'color',
      [
        ['cluster', 'cluster'],
        ['expert', 'expert'],
        ['probability', 'probability'],
      ],
      'color',
    );
    const here = [...new Set(MODELS.flatMap((model) => model.layers_here))].sort((a, b) => a - b);
    this.layer = slider('Layer', here, (layer) => go({ layer }, { replace: true }));
    const box = h('input', {
      type: 'checkbox',
      on: { change: () => go({ labels: box.checked ? 'on' : 'off' }) },
    });
    this.labels = box;
    this.note = h('p', { class: 'muted' });
    this.list = h('nav', { class: 'doc-list', 'aria-label': 'Documents' });
    this.head = h('div', { class: 'doc-head' });
    this.readers = h('div', { class: 'pair' });
    this.details = h('section', {
      class: 'token-details',
      'aria-label': 'Token',
      style: { '--rows': Math.max(...MODELS.map((model) => model.layers_here.length)) },
    });
    panel.append(
      h('h2', {}, 'Documents'),
      h(
        'div',
        { class: 'controls' },
        this.color.node,
        this.layer.node,
        h('label', { class: 'control' }, box, h('span', {}, 'Numbers on the tokens')),
      ),
      this.note,
      h(
        'div',
        { class: 'doc-layout' },
        this.list,
        h('div', { class: 'doc-main' }, this.head, this.readers, this.details),
      ),
    );
  },
  update() {
    this.color.set(state.color);
    this.layer.set(state.layer);
    this.layer.node.hidden = state.color === 'cluster';
    this.labels.checked = state.labels === 'on';
    if (!ready()) {
      fill(this.list, loadingNote());
      fill(this.head);
      fill(this.readers);
      fill(this.details);
      this.readerKey = '';
      return;
    }
    const chosen = selection();
    this.updateList(chosen);
    const d = state.doc ?? chosen.docs[0] ?? null;
    this.d = d;
    if (d === null) {
      fill(this.head, h('p', { class: 'empty' }, 'No document passes the filters.'));
      fill(this.readers);
      fill(this.details);
      this.readerKey = '';
      return;
    }
    this.updateHead(d, chosen);
    this.updateReaders(d, chosen);
    this.mark();
  },

  updateList({ docs, hits, mask }) {
    const pages = Math.max(1, Math.ceil(docs.length / LIST_PAGE));
    const page = Math.min(state.page, pages - 1);
    const from = page * LIST_PAGE;
    const rows = docs.slice(from, from + LIST_PAGE).map((d, j) => {
      const row = link(
        { doc: d },
        h(
          'span',
          { class: 'doc-meta' },
          `${d}`,
          manyDomains ? [' · ', safe(domainName(d), 18)] : '',
          h(
            'span',
            { class: 'num' },
            mask ? `${count(hits[from + j])} of ${docLength(d)}` : many(docLength(d), 'token'),
          ),
        ),
        h('span', { class: 'opening', dir: 'auto' }, docOpening(d, 100)),
      );
      // The key says the document only, so that the focus survives a change of filter.
      row.setAttribute('data-key', `doc ${d}`);
      if (d === (state.doc ?? docs[0])) row.setAttribute('aria-current', 'true');
      return h('li', {}, row);
    });
    const turn = (by, text, label) =>
      button(text, () => go({ page: page + by }, { replace: true }), {
        'aria-label': label,
        'data-key': label,
        disabled: page + by < 0 || page + by >= pages,
      });
    fill(
      this.list,
      h(
        'p',
        { class: 'muted' },
        docs.length
          ? `${count(from + 1)}–${count(Math.min(docs.length, from + LIST_PAGE))} of ` +
              `${many(docs.length, 'document')}${mask ? ', most matching tokens first' : ''}`
          : 'No documents',
      ),
      h('ul', {}, ...rows),
      pages > 1
        ? h(
            'p',
            { class: 'pager' },
            turn(-1, '‹', 'Previous page of documents'),
            h('span', {}, `page ${count(page + 1)} of ${count(pages)}`),
            turn(1, '›', 'Next page of documents'),
          )
        : null,
    );
  },

  updateHead(d, { docs }) {
    const outside = docs.length > 0 && !docs.includes(d);
    const at = docs.indexOf(d);
    const step = (by, text, label) => {
      const to = docs[at < 0 ? 0 : at + by];
      return button(text, () => go({ doc: to }), {
        disabled: to === undefined,
        'data-key': label,
        class: 'quiet',
        title: label,
      });
    };
    fill(
      this.head,
      h(
        'h3',
        {},
        `Document ${d}`,
        manyDomains ? [' · ', safe(domainName(d), 40)] : '',
        ` · ${many(docLength(d), 'token')}`,
      ),
      h(
        'p',
        {},
        ...shownModels().map((m) => {
          const c = docClusters(m)[d];
          const cluster = MODELS[m].document_clusters.clusters[c];
          return h(
            'span',
            { class: 'in-cluster' },
            modelName(m),
            ' in ',
            link(
              { view: 'clusters', kind: 'document', doccluster: `${m}.${c}` },
              `document cluster ${c}`,
            ),
            ' ',
            safe(cluster?.label ?? '', 40),
          );
        }),
        h(
          'span',
          { class: 'step' },
          step(-1, '‹ Previous', 'Previous document (p)'),
          step(1, 'Next ›', 'Next document (n)'),
        ),
      ),
      outside ? h('p', { class: 'warn' }, 'This document is outside the filters.') : null,
    );
    // A link may name a token that the document does not have.
    if (state.token !== null && state.token >= docLength(d)) {
      notice([
        `the link asks for token ${state.token}, but document ${d} has ${many(docLength(d), 'token')}`,
      ]);
      go({ token: null }, { replace: true });
    }
  },

  // The spans are made again only when what they show changes; moving the cursor only marks.
  updateReaders(d, { mask }) {
    const size = docLength(d);
    const chunks = Math.ceil(size / CHUNK);
    const wanted =
      state.token === null
        ? this.chunkOf === d
          ? this.chunk
          : 0
        : Math.floor(state.token / CHUNK);
    this.chunk = Math.min(chunks - 1, wanted ?? 0);
    this.chunkOf = d;
    const shown = shownModels();
    const off = shown.filter((m) => layerSlot(m, state.layer) < 0);
    this.note.textContent =
      state.color !== 'cluster' && off.length
        ? `The picks of layer ${state.layer} are not in the page; the nearest layer is shown.`
        : '';
    const key = [
      d,
      this.chunk,
      state.color,
      state.layer,
      state.labels,
      state.models,
      ...FILTER_FIELDS.map((f) => state[f]),
    ].join('|');
    if (key === this.readerKey) return;
    this.readerKey = key;
    fill(
      this.readers,
      ...shown.map((m) => this.reader(m, d, mask)),
      chunks > 1
        ? h(
            'p',
            { class: 'pager' },
            button('‹', () => this.turn(-1), {
              'aria-label': 'Earlier tokens',
              disabled: this.chunk === 0,
            }),
            h('span', {}, `part ${this.chunk + 1} of ${chunks}`),
            button('›', () => this.turn(1), {
              'aria-label': 'Later tokens',
              disabled: this.chunk === chunks - 1,
            }),
          )
        : null,
    );
  },
  turn(by) {
    const chunk = this.chunk + by;
    go({ token: chunk * CHUNK }, { replace: true });
  },

  reader(m, d, mask) {
    const start = store.docStarts[d];
    const from = this.chunk * CHUNK;
    const end = Math.min(docLength(d), from + CHUNK);
    const layer = nearestLayer(m, state.layer);
    const slot = layerSlot(m, layer);
    const group = tokenGroups(m, slot);
    const counts = new Map();
    for (let j = 0; j < docLength(d); j++)
      counts.set(group(start + j), (counts.get(group(start + j)) ?? 0) + 1);
    const byWeight = [...counts].sort((a, b) => b[1] - a[1] || a[0] - b[0]).map(([id]) => id);
    const byProbability = state.color === 'probability';
    const places = byProbability ? null : colorPlaces(byWeight);
    const found = foundTokens(d);
    const box = h('div', {
      class: `reader${state.labels === 'on' ? ' labelled' : ''}`,
      tabindex: 0,
      role: 'listbox',
      'aria-label': `Tokens of document ${d}, ${modelTitle(m)}`,
      'data-m': m,
      'data-key': `reader ${m}`,
    });
    let text = '';
    for (let j = from; j < end; j++) {
      const i = start + j;
      const id = group(i);
      const raw = tokenText(i);
      if (text.length < 4000) text += raw;
      const tone = byProbability ? `p${id}` : placeClass(places.get(id));
      const span = h('span', {
        class:
          `t ${tone}${mask && !mask[i] ? ' out' : ''}${mask?.[i] ? ' hit' : ''}` +
          `${found?.has(j) ? ' found' : ''}${raw === '' ? ' part' : ''}`,
        role: 'option',
        'aria-selected': 'false',
        id: `t${m}-${j}`,
        'data-j': j,
        'data-g': id,
        'data-label': byProbability ? Math.round(100 * topProb(m, slot, i)) : id,
      });
      if (raw === '') span.append('▯');
      else addText(span, raw, { breaks: true });
      if (raw !== '' && !raw.trim()) span.setAttribute('aria-label', tokenName(raw));
      box.append(span);
    }
    // The direction is the document's own; the box isolates it from the page.
    box.dir = mostlyRightToLeft(text) ? 'rtl' : 'ltr';
    this.listen(box, m);
    return h(
      'section',
      { class: 'model' },
      h(
        'h4',
        {},
        modelName(m),
        state.color === 'cluster'
          ? ' token clusters'
          : ` layer ${layer}, ${byProbability ? 'probability of the top pick' : 'top pick'}`,
      ),
      byProbability ? probabilityLegend() : groupLegend(m, layer, byWeight, counts, places, box),
      box,
    );
  },

  listen(box, m) {
    const at = (event) => {
      const span = event.target.closest?.('.t');
      return span ? Number(span.dataset.j) : null;
    };
    box.addEventListener('pointerover', (event) => {
      this.hover = at(event) ?? this.hover;
      this.mark();
    });
    box.addEventListener('pointerleave', () => {
      this.hover = null;
      this.mark();
    });
    box.addEventListener('click', (event) => {
      const j = at(event);
      if (j !== null) this.filterBy(m, j);
    });
    box.addEventListener('keydown', (event) => this.key(event, m));
    box.addEventListener('focus', () => {
      if (state.token === null) this.move(this.chunk * CHUNK);
    });
  },

  key(event, m) {
    const j = state.token ?? this.chunk * CHUNK;
    const line = { ArrowUp: -1, ArrowDown: 1 }[event.key];
    const left = event.currentTarget.dir === 'rtl' ? 1 : -1;
    const step = {
      ArrowLeft: left,
      ArrowRight: -left,
      PageUp: -50,
      PageDown: 50,
      Home: -1e9,
      End: 1e9,
    }[event.key];
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    if (event.key === 'Enter' || event.key === ' ') this.filterBy(m, j);
    else if (line !== undefined) this.move(this.nextLine(event.currentTarget, j, line));
    else if (step !== undefined) this.move(j + step);
    else return;
    event.preventDefault();
  },

  // The token above or below: the nearest one on the next line of text.
  nextLine(box, j, by) {
    const spans = box.children;
    const first = Number(spans[0].dataset.j);
    const rect = (k) => spans[k - first]?.getClientRects()[0];
    const from = rect(j);
    if (!from) return j;
    let best = j;
    let top = null;
    for (let k = j + by; rect(k); k += by) {
      const now = rect(k);
      if (Math.abs(now.top - from.top) < 6) continue;
      top ??= now.top;
      if (Math.abs(now.top - top) >= 6) break;
      if (best === j || Math.abs(now.left - from.left) < Math.abs(rect(best).left - from.left))
        best = k;
    }
    return best === j ? j + by : best;
  },

  move(j) {
    const to = Math.min(docLength(this.d) - 1, Math.max(0, j));
    this.hover = null;
    go({ doc: this.d, token: to }, { replace: true });
    document.querySelector('.reader:focus .now')?.scrollIntoView({ block: 'nearest' });
    announce(tokenInWords(this.d, to));
  },

  // Filters by the token's cluster, or by the expert that it picked first; again: removes it.
  filterBy(m, j) {
    const i = store.docStarts[this.d] + j;
    const layer = nearestLayer(m, state.layer);
    const field = state.color === 'cluster' ? 'tokencluster' : 'picks';
    const place =
      state.color === 'cluster'
        ? `${m}.${tokenClusters(m)[i]}`
        : `${m}.${layer}.${topPick(m, layerSlot(m, layer), i)}`;
    go({ [field]: state[field] === place ? null : place, doc: this.d, token: j });
  },

  mark() {
    for (const old of this.readers.querySelectorAll('.now')) {
      old.classList.remove('now');
      old.setAttribute('aria-selected', 'false');
    }
    const j = this.hover ?? state.token;
    for (const box of this.readers.querySelectorAll('.reader')) {
      const span = j === null ? null : box.querySelector(`[data-j="${j}"]`);
      if (span) {
        span.classList.add('now');
        span.setAttribute('aria-selected', 'true');
        box.setAttribute('aria-activedescendant', span.id);
      } else {
        box.removeAttribute('aria-activedescendant');
      }
    }
    fill(this.details, ...tokenDetails(this.d, j));
  },
};

// What a token's colour stands for: token → cluster, top expert or step of probability.
function tokenGroups(m, slot) {
  if (state.color === 'cluster') {
    const clusters = tokenClusters(m);
    return (i) => clusters[i];
  }
  if (state.color === 'expert') return (i) => topPick(m, slot, i);
  return (i) => probStep(topProb(m, slot, i));
}

// Places in the document of the tokens that touch a hit of the search, or null.
function foundTokens(d) {
  const wanted = state.q.toLowerCase();
  if (!wanted) return null;
  const found = new Set();
  const text = store.docText[d];
  const { tokens } = store.sections;
  const start = store.docStarts[d];
  let hit = text.indexOf(wanted);
  let at = 0; // where token j begins in the text
  for (let j = 0; j < docLength(d) && hit >= 0; j++) {
    const end = at + (store.lowerTexts[tokens[start + j]] ?? '').length;
    while (hit >= 0 && hit + wanted.length <= at) hit = text.indexOf(wanted, hit + 1);
    if (hit >= 0 && hit < end && hit + wanted.length > at && end > at) found.add(j);
    at = end;
  }
  return found;
}

function probabilityLegend() {
  return h(
    'ul',
    { class: 'swatches', 'aria-label': 'Colours' },
    ...[...PROB_STEPS, 1].map((end, j) =>
      h(
        'li',
        {},
        h('span', { class: `swatch p${j}`, 'aria-hidden': 'true' }),
        `${Math.round(100 * (PROB_STEPS[j - 1] ?? 0))}–${100 * end} %`,
      ),
    ),
  );
}

// The groups of the open document by number of tokens; pointing at one dims the others.
function groupLegend(m, layer, byWeight, counts, places, box) {
  const field = state.color === 'cluster' ? 'tokencluster' : 'picks';
  const name = (id) =>
    state.color === 'cluster'
      ? [`${id} `, safe(MODELS[m].token_clusters.clusters[id]?.label ?? '', 18)]
      : [`expert ${id}`];
  const light = (id) => {
    box.classList.toggle('lit', id !== null);
    for (const span of box.children) span.classList.toggle('on', span.dataset.g === String(id));
  };
  const items = byWeight.slice(0, CATEGORIES).map((id) => {
    const place = state.color === 'cluster' ? `${m}.${id}` : `${m}.${layer}.${id}`;
    const pressed = state[field] === place;
    return h(
      'li',
      {},
      h(
        'button',
        {
          type: 'button',
          class: 'legend-button',
          'aria-pressed': String(pressed),
          'data-key': `legend ${m}.${id}`,
          title: 'Filter by it',
          on: {
            click: () => go({ [field]: pressed ? null : place, doc: documentsView.d }),
            pointerenter: () => light(id),
            pointerleave: () => light(null),
            focus: () => light(id),
            blur: () => light(null),
          },
        },
        h('span', { class: `swatch ${placeClass(places.get(id))}`, 'aria-hidden': 'true' }),
        ...name(id),
        h('span', { class: 'num' }, count(counts.get(id))),
      ),
    );
  });
  const rest = byWeight.slice(CATEGORIES);
  if (rest.length) {
    items.push(
      h(
        'li',
        {},
        h('span', { class: 'swatch k-other', 'aria-hidden': 'true' }),
        `${rest.length} others`,
        h('span', { class: 'num' }, count(rest.reduce((sum, id) => sum + counts.get(id), 0))),
      ),
    );
  }
  return h('ul', { class: 'swatches', 'aria-label': 'Colours' }, ...items);
}

function tokenInWords(d, j) {
  const i = store.docStarts[d] + j;
  return (
    `Token ${j}: ${tokenName(tokenText(i))}. ` +
    shownModels()
      .map((m) => {
        const layer = nearestLayer(m, state.layer);
        const picks = picksAt(m, layerSlot(m, layer), i)
          .map(([e, p]) => `${e} ${percent(p, 0)}`)
          .join(', ');
        return `${modelTitle(m)}: cluster ${tokenClusters(m)[i]}, layer ${layer} experts ${picks}`;
      })
      .join('. ')
  );
}

// The picks of a token in every layer of the page, for each model.
function tokenDetails(d, j) {
  if (j === null || j >= docLength(d)) {
    return [
      h(
        'p',
        { class: 'muted' },
        'Point at a token, or focus the text and use the arrow keys, to see its ' +
          'picks in every layer. Click or Enter filters by its ' +
          (state.color === 'cluster' ? 'cluster.' : 'expert.'),
      ),
    ];
  }
  const i = store.docStarts[d] + j;
  return [
    h(
      'p',
      {},
      h('strong', {}, h('bdi', {}, tokenName(tokenText(i), 40))),
      h('span', { class: 'muted' }, ` token ${j} of ${docLength(d)}`),
    ),
    h(
      'div',
      { class: 'pair' },
      ...shownModels().map((m) => {
        const c = tokenClusters(m)[i];
        return h(
          'section',
          { class: 'model' },
          h(
            'p',
            {},
            modelName(m),
            ` cluster ${c} `,
            safe(MODELS[m].token_clusters.clusters[c]?.label ?? '', 30),
          ),
          h(
            'table',
            { class: 'picks' },
            h('caption', { class: 'vh' }, `Picks of the token, ${modelTitle(m)}`),
            h(
              'tbody',
              {},
              ...MODELS[m].layers_here.map((layer, slot) =>
                h(
                  'tr',
                  {
                    class:
                      state.color !== 'cluster' && layer === nearestLayer(m, state.layer)
                        ? 'chosen'
                        : '',
                  },
                  h('th', { scope: 'row' }, `L${layer}`),
                  ...picksAt(m, slot, i).map(([e, p]) =>
                    h(
                      'td',
                      {},
                      h(
                        'span',
                        { class: 'pick' },
                        link({ view: 'experts', layer, expert: `${m}.${layer}.${e}` }, `${e}`),
                        h('span', {}, `${Math.round(100 * p)}%`),
                        h('span', {
                          class: `pick-bar solid-m${m}`,
                          style: { width: `${100 * p}%` },
                        }),
                      ),
                    ),
                  ),
                ),
              ),
            ),
          ),
        );
      }),
    ),
  ];
}
