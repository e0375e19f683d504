// Keep: the loss of every domain when only some experts of each layer stay, and which ones stay.

const nearestKeep = (keeps, k) =>
  keeps.reduce(
    (best, v) => (Math.abs(Math.log(v / k)) < Math.abs(Math.log(best / k)) ? v : best),
    keeps[0],
  );

// Small charts keep their letters readable where two of them share a narrow page.
const narrowPage = matchMedia('(max-width: 560px)');

const keepView = {
  id: 'keep',
  title: 'Keep',
  mount(panel) {
    this.models = keepModels();
    panel.append(h('h2', {}, 'Keep'));
    if (!this.models.length) {
      panel.append(h('p', { class: 'empty' }, 'No keep-k curve was measured for these models.'));
      return;
    }
    this.keeps = allKeeps(this.models);
    const most = Math.max(...this.models.map((m) => MODELS[m].routed + MODELS[m].shared));
    this.keep = slider(
      'Experts that stay in each layer',
      Array.from({ length: most }, (_, k) => k + 1),
      (keep) => go({ keep }, { replace: true }),
    );
    this.curve = segmented(
      'Curve',
      'curve',
      [
        ['rise', 'rise of the loss'],
        ['loss', 'loss'],
      ],
      'curve',
    );
    this.says = h('p', { class: 'muted' });
    this.charts = h('div', { class: 'multiples' });
    this.stripHead = h('h3');
    this.stripSays = h('p', { class: 'muted' });
    this.strips = h('div', { class: 'pair' });
    this.slots = this.models.map((m) => {
      const map = newHeatMap();
      const sum = h('p', { class: 'muted' });
      const shared = h('div');
      return {
        m,
        map,
        sum,
        shared,
        node: h('section', { class: 'model' }, h('h4', {}, modelName(m)), sum, map.node, shared),
      };
    });
    this.tableBox = h('details', {}, h('summary', {}, 'All curves as a table'), h('div'));
    panel.append(
      h('div', { class: 'controls' }, this.keep.node, this.curve.node),
      modelLegend(this.models),
      this.says,
      this.charts,
      this.tableBox,
      this.stripHead,
      this.stripSays,
      this.strips,
    );
  },
  update() {
    if (!this.models.length) return;
    const shown = this.models.filter((m) => shownModels().includes(m));
    const keep = state.keep ?? this.keeps[Math.floor(this.keeps.length / 2)];
    const domain = state.domain ?? 0;
    this.keep.set(keep);
    this.curve.set(state.curve);
    const near = nearestKeep(this.keeps, keep);
    this.says.textContent =
      `${state.curve === 'rise' ? 'Rise of the loss over all experts' : 'Loss'} in nats a token; ` +
      `across: experts kept in each layer, shared ones counted. Figures for ${near} experts` +
      `${near === keep ? '' : `, the nearest that was measured to ${keep}`}.` +
      (manyDomains ? ' Choose a domain to see which experts stay for it.' : '');
    this.drawCharts(shown, near, domain);
    this.drawTable(shown);
    fill(this.stripHead, 'Experts that stay for ', safe(DOMAINS[domain], 40));
    const ranked = shown.filter((m) => isRanked(m, domain));
    this.stripSays.textContent = ranked.length
      ? `The first ${keep} of each layer by the order of this domain (${[
          ...new Set(ranked.map((m) => plain(MODELS[m].keep.method, 20))),
        ].join(', ')}). Filled: stays; small dot: goes.`
      : '';
    fill(this.strips, ...this.slots.filter(({ m }) => shown.includes(m)).map(({ node }) => node));
    for (const slot of this.slots) if (shown.includes(slot.m)) drawStrip(slot, keep, domain);
  },

  drawCharts(shown, near, domain) {
    const rise = state.curve === 'rise';
    const lines = DOMAINS.map((_, d) =>
      shown.map((m) => ({ m, values: onKeeps(m, this.keeps, keepLine(m, rise, d)) })),
    );
    const all = lines.flat().flatMap((l) => l.values.filter(isKnown));
    const least = Math.floor(Math.min(...(all.length ? all : [0])));
    const [low, high] = rise
      ? changeEnds(all)
      : [least, least + roundUp(Math.max(0.01, ...all.map((v) => v - least)))];
    const at = this.keeps.indexOf(near);
    fill(
      this.charts,
      ...DOMAINS.map((name, d) => {
        const figures = lines[d].map(
          ({ m, values }) => `${modelTitle(m)} ${rise ? signed(values[at]) : fixed(values[at], 3)}`,
        );
        return h(
          'figure',
          { class: manyDomains && d === domain ? 'chosen' : '' },
          h(
            'figcaption',
            {},
            manyDomains
              ? h(
                  'button',
                  {
                    type: 'button',
                    class: 'row-button',
                    'aria-pressed': String(state.domain === d),
                    'data-key': `keep ${d}`,
                    on: { click: () => go({ domain: state.domain === d ? null : d }) },
                  },
                  safe(name, 24),
                )
              : safe(name, 24),
          ),
          lineChart({
            label: `${plain(name, 40)}, ${near} experts kept: ${figures.join('; ')}`,
            xs: this.keeps,
            lines: lines[d],
            low,
            high,
            rule: at,
            width: narrowPage.matches ? 150 : 210,
          }),
          h(
            'p',
            { class: 'figures' },
            ...lines[d].map(({ m, values }) =>
              h(
                'span',
                {},
                MODELS.length > 1 ? badge(m) : null,
                rise ? signed(values[at]) : fixed(values[at], 3),
              ),
            ),
          ),
        );
      }),
    );
  },

  drawTable(shown) {
    const rise = state.curve === 'rise';
    const heads = [
      'Domain',
      ...shown.flatMap((m) =>
        MODELS[m].keep.keeps.map((k) => `${MODELS.length > 1 ? MODEL_LETTERS[m] : ''} ${k}`),
      ),
    ];
    fill(
      this.tableBox.lastChild,
      table(
        'Loss by domain, model and experts kept',
        heads,
        DOMAINS.map((name, d) => [
          safe(name, 40),
          ...shown.flatMap((m) =>
            keepLine(m, rise, d).map((v) => (rise ? signed(v) : fixed(v, 3))),
          ),
        ]),
      ),
    );
  },
};

// Domains without tokens to rank by have no order of experts.
const isRanked = (m, d) => MODELS[m].keep.rank.every((ofLayer) => ofLayer[d] !== null);

function drawStrip({ m, map, sum, shared }, keep, domain) {
  map.node.hidden = !isRanked(m, domain);
  if (map.node.hidden) {
    sum.textContent = 'No experts were ranked for this domain.';
    fill(shared);
    return;
  }
  const model = MODELS[m];
  const { rank } = model.keep;
  const layers = Array.from({ length: model.layers }, (_, l) => l);
  const sizes = layers.map((l) => expertsIn(m, l));
  const stay = sizes.map((size) => Math.max(0, Math.min(size, keep - model.shared)));
  const stays = (l, e, d = domain) => e < sizes[l] && rank[l][d][e] < stay[l];
  const totals = sizes.map((size) => size + model.shared);
  sum.textContent =
    `${span(totals.map((total) => Math.min(keep, total)))} of ${span(totals)} experts of a layer stay: ` +
    `${span(stay)} routed${model.shared ? ` and ${model.shared} shared` : ''}.`;
  const colors = { on: cssVar(`--m${m}`), off: cssVar('--muted'), back: cssVar('--soft') };
  map.draw({
    label: `${modelTitle(m)}: experts that stay for ${plain(DOMAINS[domain], 40)}`,
    rows: layers.map((l) => `L${l}`),
    cols: Array.from({ length: model.routed }, (_, e) => e),
    colWord: 'Expert',
    rowHeight: layers.length > 8 ? 12 : 18,
    paint: (pen, l, e, x, y, w, tall) => {
      if (e >= sizes[l]) return;
      pen.fillStyle = stays(l, e) ? colors.on : colors.back;
      pen.fillRect(x, y, w, tall);
      if (stays(l, e)) return;
      pen.fillStyle = colors.off;
      pen.fillRect(x + w / 2 - 0.75, y + tall / 2 - 0.75, 1.5, 1.5);
    },
    legend: [
      h('span', { class: `swatch solid-m${m}`, 'aria-hidden': 'true' }),
      'stays',
      h('span', { class: 'swatch goes', 'aria-hidden': 'true' }),
      'goes',
    ],
    describe: (l, e) =>
      e < sizes[l]
        ? `Layer ${l}, expert ${e}: place ${rank[l][domain][e] + 1} of ${sizes[l]}, ` +
          (stays(l, e) ? 'stays' : 'goes')
        : `Layer ${l} has no expert ${e}`,
    tableCell: (l, e) =>
      e < sizes[l] ? `${rank[l][domain][e] + 1}${stays(l, e) ? ' stays' : ''}` : '–',
    pick: (l, e) => {
      if (e < sizes[l]) go({ view: 'experts', layer: l, expert: `${m}.${l}.${e}` });
    },
    pickWord: 'opens the expert',
  });
  fill(shared, manyDomains ? overlapTable(m, domain, sizes, stay, stays) : null);
}

// How much of this domain's set each other domain would keep as well.
function overlapTable(m, domain, sizes, stay, stays) {
  const common = (d) =>
    mean(
      sizes.map((size, l) => {
        const both = Array.from({ length: size }, (_, e) => stays(l, e) && stays(l, e, d));
        return both.filter(Boolean).length / Math.max(1, stay[l]);
      }),
    );
  const others = DOMAINS.map((_, d) => d)
    .filter((d) => d !== domain && isRanked(m, d))
    .map((d) => [d, common(d)])
    .sort((a, b) => b[1] - a[1]);
  return h(
    'details',
    { open: true, class: 'overlap' },
    h('summary', {}, 'Share of these experts that other domains keep too'),
    Math.max(...stay) === 0
      ? h('p', { class: 'muted' }, 'No routed expert stays.')
      : h(
          'table',
          { class: 'plain' },
          h(
            'tbody',
            {},
            ...others.map(([d, share]) =>
              h(
                'tr',
                {},
                h('th', { scope: 'row' }, safe(DOMAINS[d], 22)),
                h('td', {}, bar(share, percent(share, 0), `fill-m${m}`)),
              ),
            ),
          ),
        ),
  );
}
