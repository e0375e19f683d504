// Clusters: what the picks of the experts group together, by token or by document.

const CLUSTER_FIELD = { token: 'tokencluster', document: 'doccluster' };
const mainDomain = (cluster) => cluster.domains.indexOf(Math.max(...cluster.domains));
const clusterSum = (cluster) => cluster.domains.reduce((a, b) => a + b, 0);

function domainParts(cluster) {
  const sum = clusterSum(cluster) || 1;
  return cluster.domains
    .map((n, d) => [DOMAINS[d], n / sum, domainClass(d)])
    .sort((a, b) => b[1] - a[1]);
}
function domainMix(cluster, most = 4) {
  const parts = domainParts(cluster);
  const text = parts
    .slice(0, most)
    .filter((p) => p[1] >= 0.005)
    .map(([name, share]) => `${plain(name, 24)} ${percent(share, 0)}`)
    .join(', ');
  return stackedBar(parts, text);
}

function orderedClusters(m, kind) {
  const { clusters } = MODELS[m][`${kind}_clusters`];
  const ids = clusters.map((_, c) => c);
  const by = {
    size: (a, b) => clusters[b].size - clusters[a].size,
    number: () => 0,
    entropy: (a, b) => clusters[a].entropy - clusters[b].entropy,
    domain: (a, b) =>
      mainDomain(clusters[a]) - mainDomain(clusters[b]) || clusters[b].size - clusters[a].size,
  };
  return ids.sort((a, b) => by[state.order](a, b) || a - b);
}

function domainLegend() {
  if (!manyDomains) return null;
  return h(
    'ul',
    { class: 'swatches', 'aria-label': 'Colours of the domains' },
    ...DOMAINS.slice(0, CATEGORIES).map((name, d) =>
      h(
        'li',
        {},
        h('span', { class: `swatch ${domainClass(d)}`, 'aria-hidden': 'true' }),
        safe(name, 24),
      ),
    ),
    DOMAINS.length > CATEGORIES
      ? h(
          'li',
          {},
          h('span', { class: 'swatch k-other', 'aria-hidden': 'true' }),
          DOMAINS.length === CATEGORIES + 1 ? safe(DOMAINS.at(-1), 24) : 'other domains',
        )
      : null,
  );
}

// Token types with their lift, as a list of small boxes.
function tokenChips(pairs) {
  if (!pairs.length) return h('p', { class: 'muted' }, 'None stands out.');
  return h(
    'ul',
    { class: 'chips' },
    ...pairs.map(([index, lift]) => {
      const text = TEXTS[index] ?? '';
      return h(
        'li',
        { title: `${plain(text)}: ${fixed(lift, 1)} times as often as in the whole sample` },
        h('bdi', {}, tokenName(text)),
        h('small', {}, `×${fixed(lift, 1)}`),
      );
    }),
  );
}

// [[document, value], ...]; `what` says what the values are.
function documentLinks(pairs, what, extra = {}, show = percent) {
  if (!pairs.length) return h('p', { class: 'muted' }, 'None.');
  return h(
    'ol',
    { class: 'doc-links' },
    ...pairs.map(([d, value]) =>
      h(
        'li',
        {},
        link({ view: 'documents', doc: d, ...extra }, `Document ${d}`),
        h('span', { class: 'muted' }, manyDomains && ready() ? [' ', safe(domainName(d), 20)] : ''),
        h('span', { class: 'num', title: what }, show(value)),
        ready() ? h('span', { class: 'opening' }, h('bdi', {}, docOpening(d, 90))) : null,
      ),
    ),
  );
}

const clustersView = {
  id: 'clusters',
  title: 'Clusters',
  mount(panel) {
    this.kind = segmented(
      'Clusters of',
      'kind',
      [
        ['token', 'tokens'],
        ['document', 'documents'],
      ],
      'kind',
    );
    this.order = dropdown(
      'Order',
      [
        ['size', 'size'],
        ['number', 'number'],
        ...(manyDomains ? [['domain', 'main domain']] : []),
        ['entropy', 'token entropy'],
      ],
      'order',
    );
    this.legend = h('div');
    this.lists = h('div', { class: 'pair' });
    this.card = h('div');
    panel.append(
      h('h2', {}, 'Clusters'),
      h('div', { class: 'controls' }, this.kind.node, this.order.node),
      h(
        'p',
        { class: 'muted', id: 'cluster-help' },
        'A cluster groups tokens (or documents) that use the ' +
          'same experts over all layers. Choose one to open it and to filter every view by it.',
      ),
      this.legend,
      this.lists,
      this.card,
    );
  },
  update() {
    this.kind.set(state.kind);
    this.order.set(state.order);
    fill(this.legend, domainLegend());
    fill(this.lists, ...shownModels().map((m) => clusterList(m)));
    const open = splitPlace(state[CLUSTER_FIELD[state.kind]]);
    fill(this.card, open ? clusterCard(open[0], state.kind, open[1]) : null);
  },
};

function clusterList(m) {
  const { kind } = state;
  const field = CLUSTER_FIELD[kind];
  const block = MODELS[m][`${kind}_clusters`];
  const total = block.clusters.reduce((sum, c) => sum + c.size, 0) || 1;
  const most = Math.max(1, ...block.clusters.map((c) => c.size));
  const chosen = ready() && hasFilter() ? clusterCounts(m, kind) : null;
  const rows = orderedClusters(m, kind).map((c) => {
    const cluster = block.clusters[c];
    const pressed = state[field] === `${m}.${c}`;
    const name = h(
      'button',
      {
        type: 'button',
        class: 'row-button',
        'aria-pressed': String(pressed),
        'data-key': `cluster ${m}.${c}`,
        on: { click: () => go({ [field]: pressed ? null : `${m}.${c}` }) },
      },
      h('span', { class: 'id' }, String(c)),
      safe(cluster.label, 60),
    );
    const main = mainDomain(cluster);
    return h(
      'tr',
      { class: pressed ? 'chosen' : '' },
      h('th', { scope: 'row' }, name),
      h('td', {}, bar(cluster.size / most, percent(cluster.size / total))),
      chosen ? h('td', { class: 'num' }, count(chosen[c])) : null,
      manyDomains
        ? h(
            'td',
            { class: 'mix' },
            domainMix(cluster),
            h(
              'small',
              {},
              safe(DOMAINS[main], 16),
              ` ${percent(cluster.domains[main] / (clusterSum(cluster) || 1), 0)}`,
            ),
          )
        : null,
      h('td', { class: 'num' }, fixed(cluster.entropy, 1)),
    );
  });
  const head = (text, title) => h('th', { scope: 'col', title: title ?? null }, text);
  const { metrics } = block;
  return h(
    'section',
    { class: 'model' },
    h('h3', {}, modelName(m)),
    h(
      'p',
      { class: 'muted' },
      `${many(block.count, 'cluster')}; silhouette ${fixed(metrics.silhouette)}` +
        (metrics.purity === null
          ? ''
          : `, purity ${fixed(metrics.purity)}, NMI ${fixed(metrics.nmi)}`) +
        `, token entropy ${fixed(metrics.token_entropy, 1)} bits`,
    ),
    h(
      'div',
      {
        class: 'scroll',
        tabindex: 0,
        role: 'region',
        'aria-label': `Clusters of ${modelTitle(m)}`,
      },
      h(
        'table',
        { class: 'clusters' },
        h('caption', { class: 'vh' }, `Clusters of ${modelTitle(m)}`),
        h(
          'thead',
          {},
          h(
            'tr',
            {},
            head('Cluster'),
            head('Size', `share of all ${kind}s`),
            chosen ? head('Selected', `${kind}s of the cluster that the filters leave`) : null,
            manyDomains ? head('Domains') : null,
            head('Bits', 'entropy of token types in the cluster'),
          ),
        ),
        h('tbody', {}, ...rows),
      ),
    ),
  );
}

function clusterCard(m, kind, c) {
  const cluster = MODELS[m][`${kind}_clusters`].clusters[c];
  const domains = manyDomains
    ? domainParts(cluster)
        .filter((p) => p[1] >= 0.005)
        .slice(0, 8)
    : [];
  const extra = kind === 'token' ? { color: 'cluster' } : {};
  return h(
    'section',
    { class: 'card', 'aria-label': 'Open cluster' },
    h('h3', {}, modelName(m), ` ${kind} cluster ${c}: `, safe(cluster.label, 80)),
    h(
      'p',
      {},
      `${many(cluster.size, kind)}, token entropy ${fixed(cluster.entropy, 1)} bits. `,
      link({ view: 'documents', doc: null, ...extra }, 'Read its documents'),
      ' ',
      button('Close and remove the filter', () => go({ [CLUSTER_FIELD[kind]]: null }), {
        class: 'quiet',
      }),
    ),
    h(
      'div',
      { class: 'columns' },
      h('section', {}, h('h4', {}, 'Top texts'), tokenChips(cluster.texts)),
      domains.length
        ? h(
            'section',
            {},
            h('h4', {}, 'Domains'),
            h(
              'table',
              { class: 'plain' },
              h(
                'tbody',
                {},
                ...domains.map(([name, share, cls]) =>
                  h(
                    'tr',
                    {},
                    h('th', { scope: 'row' }, safe(name, 22)),
                    h('td', {}, bar(share, percent(share), cls)),
                  ),
                ),
              ),
            ),
          )
        : null,
      h('section', {}, h('h4', {}, 'Experts'), expertLinks(m, cluster.experts)),
      h(
        'section',
        { class: 'full' },
        h('h4', {}, 'Typical documents'),
        kind === 'token'
          ? documentLinks(cluster.documents, 'share of its tokens in this cluster', extra)
          : documentLinks(
              cluster.documents,
              'cosine of its expert use to the centre of the cluster',
              extra,
              (v) => fixed(v),
            ),
      ),
    ),
  );
}

// [[layer, expert, mean probability], ...] as links to the experts.
function expertLinks(m, rows) {
  const most = Math.max(0.001, ...rows.map((r) => r[2]));
  return h(
    'table',
    { class: 'plain' },
    h(
      'tbody',
      {},
      ...rows.map(([layer, e, p]) =>
        h(
          'tr',
          {},
          h(
            'th',
            { scope: 'row' },
            link({ view: 'experts', layer, expert: `${m}.${layer}.${e}` }, `L${layer} expert ${e}`),
          ),
          h('td', {}, bar(p / most, fixed(p, 3), `fill-m${m}`)),
        ),
      ),
    ),
  );
}
