// Experts: a heat map of experts × domains (or clusters) for a layer, and the card of an expert.

const ROW_KINDS = { domains: 'domain', tokenclusters: 'token', docclusters: 'document' };

// What the map of a model shows: rows, values by expert number, or a note why there is none.
function expertTable(m, layer) {
  const model = MODELS[m];
  const kind = ROW_KINDS[state.rows];
  if (kind === 'domain') {
    const table = (state.measure === 'use' ? model.use : model.picked)[layer];
    return { names: DOMAINS, at: (r, e) => known(table[r][e]) };
  }
  if (!ready()) return { note: loadingNote() };
  const values = clusterPicks(m, layer, kind);
  if (!values) {
    return {
      note: h(
        'p',
        { class: 'empty' },
        `The picks of layer ${layer} are not in the page, so they ` +
          `cannot be counted by cluster. Layers here: ${model.layers_here.join(', ')}.`,
      ),
    };
  }
  const { clusters } = model[`${kind}_clusters`];
  return {
    names: clusters.map((c, j) => `${j} ${c.label}`),
    at: (r, e) => values[r * model.routed + e],
  };
}

// The row where an expert has its largest value.
function strongestRow(source, e) {
  let best = 0;
  for (let r = 1; r < source.names.length; r++)
    if ((source.at(r, e) || 0) > (source.at(best, e) || 0)) best = r;
  return best;
}

function expertOrder(m, layer, source) {
  const { load, routed } = MODELS[m];
  const ids = Array.from({ length: expertsIn(m, layer) }, (_, e) => e);
  if (state.sort === 'load') return ids.sort((a, b) => load[layer][b] - load[layer][a]);
  if (state.sort === 'number') return ids;
  let by = source;
  if (state.sort === 'domain') {
    const table = MODELS[m].use[layer];
    by = { names: DOMAINS, at: (r, e) => known(table[r][e]) };
    if (state.domain !== null)
      return ids.sort((a, b) => by.at(state.domain, b) - by.at(state.domain, a));
  } else if (state.sort === 'cluster') {
    const values = ready() ? clusterPicks(m, layer, 'token') : null;
    if (!values) return ids.sort((a, b) => load[layer][b] - load[layer][a]);
    const names = MODELS[m].token_clusters.clusters;
    by = { names, at: (r, e) => values[r * routed + e] };
  }
  const best = ids.map((e) => strongestRow(by, e));
  return ids.sort((a, b) => best[a] - best[b] || by.at(best[b], b) - by.at(best[a], a));
}

const expertsView = {
  id: 'experts',
  title: 'Experts',
  mount(panel) {
    this.layer = slider(
      'Layer',
      Array.from({ length: MAX_LAYERS }, (_, l) => l),
      (layer) => go({ layer }, { replace: true }),
      (l) => `${l} of 0–${MAX_LAYERS - 1}`,
    );
    this.rows = dropdown(
      'Rows',
      [
        ['domains', 'domains'],
        ['tokenclusters', 'token clusters'],
        ['docclusters', 'document clusters'],
      ],
      'rows',
    );
    this.measure = segmented(
      'Measure',
      'measure',
      [
        ['use', 'use'],
        ['picked', 'picked'],
      ],
      'measure',
    );
    this.sort = dropdown(
      'Order of experts',
      [
        ['number', 'number'],
        ['load', 'load'],
        ...(manyDomains ? [['domain', 'domain']] : []),
        ['cluster', 'token cluster'],
      ],
      'sort',
    );
    this.scale = segmented(
      'Scale',
      'scale',
      [
        ['linear', 'linear'],
        ['root', 'square root'],
      ],
      'scale',
    );
    this.says = h('p', { class: 'muted' });
    this.pair = h('div', { class: 'pair' });
    this.card = h('div');
    this.slots = MODELS.map((_, m) => {
      const map = newHeatMap();
      const note = h('div');
      const says = h('span', { class: 'muted' });
      const node = h(
        'section',
        { class: 'model' },
        h('h3', {}, modelName(m), ' ', says),
        note,
        map.node,
      );
      return { map, note, says, node };
    });
    panel.append(
      h('h2', {}, 'Experts'),
      h(
        'div',
        { class: 'controls' },
        this.layer.node,
        this.rows.node,
        this.measure.node,
        this.sort.node,
        this.scale.node,
      ),
      this.says,
      this.pair,
      this.card,
    );
  },
  update() {
    const byDomain = state.rows === 'domains';
    this.layer.set(state.layer);
    this.rows.set(state.rows);
    this.measure.set(byDomain ? state.measure : 'picked', byDomain);
    this.sort.set(state.sort);
    this.scale.set(state.scale);
    const measure = byDomain ? state.measure : 'picked';
    this.says.textContent =
      (measure === 'use'
        ? 'Mean router probability of an expert over the tokens of a row; a row sums to 1. '
        : 'Share of a row’s tokens that picked the expert; a row sums to the picks of a token. ') +
      'The bars above are the share of all picks (load). Choose a cell to open the expert.';
    const shown = shownModels();
    fill(this.pair, ...shown.map((m) => this.slots[m].node));
    const drawn = shown
      .map((m) => [m, Math.min(state.layer, MODELS[m].layers - 1)])
      .map(([m, layer]) => ({ m, layer, source: expertTable(m, layer) }));
    // One scale for both models, so that the same colour is the same value.
    let max = 0;
    for (const { m, layer, source } of drawn) {
      for (let r = 0; r < (source.names?.length ?? 0); r++) {
        for (let e = 0; e < expertsIn(m, layer); e++) max = Math.max(max, source.at(r, e) || 0);
      }
    }
    for (const one of drawn) drawExperts(this.slots[one.m], { ...one, max, measure });
    const open = splitPlace(state.expert);
    fill(this.card, open ? expertCard(...open) : null);
  },
};

function drawExperts({ map, note, says }, { m, layer, source, max, measure }) {
  const model = MODELS[m];
  says.textContent = `layer ${layer}`;
  map.node.hidden = Boolean(source.note);
  fill(note, source.note ?? null);
  if (source.note) return;
  const order = expertOrder(m, layer, source);
  const rows = [...source.names];
  const chosen = measure === 'picked' && ready() && hasFilter() ? selectedPicks(m, layer) : null;
  const values = new Float64Array((rows.length + (chosen ? 1 : 0)) * order.length);
  rows.forEach((_, r) =>
    order.forEach((e, c) => {
      values[r * order.length + c] = source.at(r, e);
    }),
  );
  if (chosen) {
    order.forEach((e, c) => {
      values[rows.length * order.length + c] = chosen[e];
    });
    rows.push('▸ selected');
  }
  const open = splitPlace(state.expert);
  const marked = open && open[0] === m && open[1] === layer ? order.indexOf(open[2]) : -1;
  map.draw({
    label: `${modelTitle(m)}, layer ${layer}: experts by ${ROW_KINDS[state.rows]}`,
    rows,
    cols: order,
    values,
    max: max || 1,
    root: state.scale === 'root',
    marked,
    markedRow: state.rows === 'domains' ? (state.domain ?? -1) : -1,
    bars: order.map((e) => model.load[layer][e]),
    barsLabel: 'load',
    colWord: 'Expert',
    format: percent,
    unit: measure === 'use' ? 'mean probability' : 'share of tokens',
    describe: (r, c) =>
      `Expert ${order[c]}, ${plain(rows[r], 40)}: ${measure === 'use' ? 'mean probability ' : 'picked by '}` +
      `${percent(values[r * order.length + c])}${measure === 'use' ? '' : ' of tokens'}; load ${percent(model.load[layer][order[c]])}`,
    pick: (r, c) => {
      const place = `${m}.${layer}.${order[c]}`;
      go({ expert: state.expert === place ? null : place });
      if (state.expert) announce(`Opened the card of expert ${order[c]}, below the maps.`);
    },
    pickWord: 'opens the expert',
  });
}

function expertCard(m, layer, e) {
  const model = MODELS[m];
  const card = model.experts[layer][e];
  const place = `${m}.${layer}.${e}`;
  const size = expertsIn(m, layer);
  const fair = 1 / size;
  const here = layerSlot(m, layer) >= 0;
  const filtered = state.picks === place;
  const extra = { color: 'expert', layer };
  const step = (by) => `${m}.${layer}.${(e + by + size) % size}`;
  return h(
    'section',
    { class: 'card', 'aria-label': 'Open expert' },
    h('h3', {}, modelName(m), ` layer ${layer}, expert ${e}`),
    h(
      'p',
      {},
      `Load ${percent(model.load[layer][e])} of all picks, ${fixed(model.load[layer][e] / fair, 1)} times an even share. `,
      here
        ? button(
            filtered ? 'Remove the filter' : 'Filter tokens by this expert',
            () => go({ picks: filtered ? null : place }),
            { 'aria-pressed': String(filtered), 'data-key': 'filter-expert' },
          )
        : h(
            'span',
            { class: 'muted' },
            'Its picks are not in the page, so no view can filter by it. ',
          ),
      ' ',
      button('‹ Expert', () => go({ expert: step(-1) }, { replace: true }), {
        class: 'quiet',
        'data-key': 'prev',
        'aria-label': 'Previous expert',
      }),
      button('Expert ›', () => go({ expert: step(1) }, { replace: true }), {
        class: 'quiet',
        'data-key': 'next',
        'aria-label': 'Next expert',
      }),
      button('Close', () => go({ expert: null }), { class: 'quiet' }),
    ),
    h(
      'div',
      { class: 'columns' },
      h(
        'section',
        { class: 'wide' },
        h(
          'h4',
          {},
          manyDomains
            ? 'Domains it serves, and what they lose without it'
            : 'Its use, and what is lost without it',
        ),
        expertDomains(m, layer, e, card),
      ),
      h(
        'section',
        { class: 'wide' },
        h('h4', {}, 'Documents that use it most'),
        documentLinks(
          card.documents,
          'share of its tokens that pick this expert',
          here ? extra : {},
        ),
      ),
      h('section', {}, h('h4', {}, 'Tokens that stand out'), tokenChips(card.tokens)),
      h('section', {}, h('h4', {}, 'Picked together with'), companions(m, layer, card)),
    ),
  );
}

function expertDomains(m, layer, e, card) {
  const model = MODELS[m];
  const order = DOMAINS.map((_, d) => d).sort(
    (a, b) => model.use[layer][b][e] - model.use[layer][a][e],
  );
  const most = (name) => Math.max(0.001, ...DOMAINS.map((_, d) => model[name][layer][d][e]));
  const [mostUse, mostPicked] = [most('use'), most('picked')];
  // By name, and a name may be that of a property that every object has.
  const rises = card.without
    ? DOMAINS.map((name) => (Object.hasOwn(card.without, name) ? card.without[name] : null))
    : [];
  const mostRise = Math.max(0.001, ...rises.map((rise) => Math.abs(rise ?? 0)));
  return [
    h(
      'div',
      { class: 'scroll tall', tabindex: 0, role: 'region', 'aria-label': 'Domains of the expert' },
      h(
        'table',
        { class: 'plain domain-table' },
        h(
          'thead',
          {},
          h(
            'tr',
            {},
            h('th', { scope: 'col' }, 'Domain'),
            h('th', { scope: 'col' }, 'Use'),
            h('th', { scope: 'col' }, 'Picked'),
            card.without ? h('th', { scope: 'col' }, 'Loss without it') : null,
          ),
        ),
        h(
          'tbody',
          {},
          ...order.map((d) =>
            h(
              'tr',
              { class: d === state.domain ? 'chosen' : '' },
              h('th', { scope: 'row' }, safe(DOMAINS[d], 22)),
              h(
                'td',
                {},
                bar(
                  model.use[layer][d][e] / mostUse,
                  percent(model.use[layer][d][e]),
                  `fill-m${m}`,
                ),
              ),
              h(
                'td',
                {},
                bar(
                  model.picked[layer][d][e] / mostPicked,
                  percent(model.picked[layer][d][e]),
                  `fill-m${m}`,
                ),
              ),
              card.without
                ? h('td', {}, changeBar(rises[d] ?? 0, mostRise, signed(rises[d])))
                : null,
            ),
          ),
        ),
      ),
    ),
    h(
      'p',
      { class: 'muted' },
      card.without
        ? 'Loss without it: rise in nats a token.'
        : 'What the domains lose without it was not measured.',
    ),
  ];
}

function companions(m, layer, card) {
  if (!card.companions.length) return h('p', { class: 'muted' }, 'None stands out.');
  const most = Math.max(...card.companions.map((c) => c[1]));
  return h(
    'table',
    { class: 'plain' },
    h(
      'tbody',
      {},
      ...card.companions.map(([other, lift]) =>
        h(
          'tr',
          {},
          h('th', { scope: 'row' }, link({ expert: `${m}.${layer}.${other}` }, `Expert ${other}`)),
          h('td', {}, bar(lift / most, `×${fixed(lift, 1)}`, `fill-m${m}`)),
        ),
      ),
    ),
  );
}
