// Domains: how alike they use the experts of a layer, and over how many experts each one spreads.

const domainsView = {
  id: 'domains',
  title: 'Domains',
  mount(panel) {
    panel.append(h('h2', {}, 'Domains'));
    this.layer = slider(
      'Layer',
      Array.from({ length: MAX_LAYERS }, (_, l) => l),
      (layer) => go({ layer }, { replace: true }),
      (l) => `${l} of 0–${MAX_LAYERS - 1}`,
    );
    this.pair = h('div', { class: 'pair' });
    this.slots = MODELS.map((_, m) => {
      const map = newHeatMap();
      const says = h('p', { class: 'muted' });
      const spread = h('div');
      return {
        m,
        map,
        says,
        spread,
        node: h(
          'section',
          { class: 'model' },
          h('h3', {}, modelName(m)),
          manyDomains ? [says, map.node] : null,
          spread,
        ),
      };
    });
    panel.append(
      h('div', { class: 'controls' }, this.layer.node),
      h(
        'p',
        { class: 'muted' },
        manyDomains
          ? 'Similarity: cosine of the mean router probabilities of two domains in the layer; 1 means the ' +
              'same use of experts. Choose a cell to filter by the domain of its row.'
          : 'This page has one domain, and so none to compare it with.',
      ),
      this.pair,
    );
  },
  update() {
    this.layer.set(state.layer);
    const shown = shownModels();
    fill(this.pair, ...shown.map((m) => this.slots[m].node));
    for (const m of shown) drawDomains(this.slots[m]);
  },
};

function drawDomains({ m, map, says, spread }) {
  const layer = Math.min(state.layer, MODELS[m].layers - 1);
  if (manyDomains) drawSimilarity(m, layer, map, says);
  drawSpread(m, layer, spread);
}

function drawSimilarity(m, layer, map, says) {
  const matrix = MODELS[m].similarity[layer];
  says.textContent = `Layer ${layer}: mean similarity of two domains ${fixed(offDiagonal(matrix))}`;
  map.draw({
    label: `${modelTitle(m)}, layer ${layer}: similarity of domains`,
    rows: DOMAINS,
    cols: DOMAINS,
    colNames: true,
    numbers: true,
    cell: 28,
    widest: 38,
    rowHeight: 25,
    values: Float64Array.from(matrix.flat(), known),
    max: 1,
    format: fixed,
    unit: 'cosine',
    colWord: 'Domain',
    markedRow: state.domain ?? -1,
    describe: (r, c) =>
      `${plain(DOMAINS[r], 30)} and ${plain(DOMAINS[c], 30)}: ${fixed(matrix[r][c])}`,
    pick: (r) => go({ domain: state.domain === r ? null : r }),
    pickWord: 'filters by the domain of the row',
  });
}

function drawSpread(m, layer, spread) {
  const model = MODELS[m];
  const size = expertsIn(m, layer);
  const most = Math.log2(size);
  const layers = Array.from({ length: model.layers }, (_, l) => l);
  const rows = DOMAINS.map((name, d) =>
    h(
      'tr',
      { class: d === state.domain ? 'chosen' : '' },
      h('th', { scope: 'row' }, safe(name, 22)),
      h(
        'td',
        {},
        bar(
          model.domain_entropy[layer][d] / most,
          fixed(model.domain_entropy[layer][d]),
          `fill-m${m}`,
        ),
      ),
      h(
        'td',
        {},
        bar(
          model.domain_experts[layer][d] / size,
          count(model.domain_experts[layer][d]),
          `fill-m${m}`,
        ),
      ),
      layers.length > 1
        ? h(
            'td',
            {},
            lineChart({
              label: `Entropy by layer: ${layers.map((l) => fixed(model.domain_entropy[l][d], 1)).join(', ')}`,
              xs: layers,
              lines: [{ m, values: layers.map((l) => known(model.domain_entropy[l][d])) }],
              low: 0,
              high: Math.log2(model.routed),
              rule: layer,
              width: 84,
              height: 20,
              axis: false,
            }),
          )
        : null,
    ),
  );
  const head = (text, small) => h('th', { scope: 'col' }, text, h('small', {}, small));
  fill(
    spread,
    h('h4', {}, 'Spread over the experts'),
    h(
      'div',
      { class: 'scroll', tabindex: 0, role: 'region', 'aria-label': `Spread, ${modelTitle(m)}` },
      h(
        'table',
        { class: 'plain domain-table' },
        h(
          'thead',
          {},
          h(
            'tr',
            {},
            head('Domain', ' '),
            head('Entropy', `bits, at most ${fixed(most, 1)}`),
            head('Experts used', `of ${size}; use over 1/R`),
            layers.length > 1 ? head('By layer', 'entropy') : null,
          ),
        ),
        h('tbody', {}, ...rows),
      ),
    ),
  );
}
