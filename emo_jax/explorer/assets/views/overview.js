// Overview: what the models are, how modular they are in numbers, the notes, the keep-k curve.

const offDiagonal = (matrix) => {
  const values = matrix.flatMap((row, a) => row.filter((_, b) => b !== a));
  return mean(values);
};
const overLayers = (rows) => mean(rows.map(mean));
// 'low–high' of whole numbers, or the one that all are.
function span(numbers) {
  const [low, high] = [Math.min(...numbers), Math.max(...numbers)];
  return low === high ? count(low) : `${count(low)}–${count(high)}`;
}

// [head, what it says, value of a model, text of a value]; heads without a value part the table.
function overviewRows() {
  const facts = [
    ['Model'],
    ['Training step', '', (x) => x.step, count],
    [
      'Document pool',
      'experts that the tokens of one document may use',
      (x) => plain(x.pool),
      String,
    ],
    ['Layers', '', (x) => x.layers, count],
    [
      'Experts a layer',
      'routed + shared',
      (x) => `${span(x.experts.map((cards) => cards.length))} + ${x.shared}`,
      String,
    ],
    ['Routed picks a token', '', (x) => x.top_k, count],
    ['Layers with token picks in this page', '', (x) => x.layers_here.join(', '), String],
    ['Domains, mean over layers'],
    [
      'Similarity of two domains',
      'cosine of their expert use; lower: more apart',
      (x) => mean(x.similarity.map(offDiagonal)),
      fixed,
    ],
    [
      'Entropy of expert use',
      'bits; lower: a domain uses fewer experts',
      (x) => overLayers(x.domain_entropy),
      fixed,
    ],
    [
      'Experts a domain uses',
      'with more than 1/R of its use',
      (x) => overLayers(x.domain_experts),
      (v) => fixed(v, 1),
    ],
  ];
  for (const [kind, name] of [
    ['token_clusters', 'Token clusters'],
    ['document_clusters', 'Document clusters'],
  ]) {
    facts.push(
      [name],
      ['Clusters', '', (x) => x[kind].count, count],
      ['Silhouette', 'higher: better separated', (x) => x[kind].metrics.silhouette, fixed],
      ['Purity', 'share in the main domain of their cluster', (x) => x[kind].metrics.purity, fixed],
      ['NMI', 'agreement of clusters and domains, 0 to 1', (x) => x[kind].metrics.nmi, fixed],
      [
        'Token entropy',
        'bits of token types; higher: less about single words',
        (x) => x[kind].metrics.token_entropy,
        fixed,
      ],
    );
  }
  return facts;
}

// A domain's loss at each keep, or its rise over all experts; NaN where it was not measured.
function keepLine(m, rise, domain) {
  const row = MODELS[m].keep.loss[domain].map(known);
  return row.map((loss) => loss - (rise ? row[0] : 0));
}
// Domains that every model measured at every keep: means over others would not be of one set.
const completeDomains = (models) =>
  DOMAINS.map((_, d) => d).filter((d) => models.every((m) => keepLine(m, false, d).every(isKnown)));
const meanRise = (m, domains) => {
  const lines = domains.map((d) => keepLine(m, true, d));
  return MODELS[m].keep.keeps.map((_, j) => mean(lines.map((line) => line[j])));
};
const keepModels = () => MODELS.map((_, m) => m).filter((m) => MODELS[m].keep);
// The keeps of all models together, largest first; a model without a value there has a gap.
function allKeeps(models) {
  return [...new Set(models.flatMap((m) => MODELS[m].keep.keeps))].sort((a, b) => b - a);
}
const onKeeps = (m, keeps, values) =>
  keeps.map((k) => values[MODELS[m].keep.keeps.indexOf(k)] ?? NaN);

function modelLegend(models = MODELS.map((_, m) => m)) {
  return h(
    'p',
    { class: 'legend' },
    ...models.map((m) =>
      h(
        'span',
        {},
        svg(
          'svg',
          { viewBox: '0 0 26 10', class: 'legend-line', 'aria-hidden': 'true' },
          svg('line', { class: `line m${m}`, x1: 1, x2: 25, y1: 5, y2: 5 }),
          m === 0
            ? svg('circle', { class: 'dot m0', cx: 13, cy: 5, r: 3 })
            : svg('rect', { class: 'dot m1', x: 10.4, y: 2.4, width: 5.2, height: 5.2 }),
        ),
        modelName(m),
      ),
    ),
  );
}

const overviewView = {
  id: 'overview',
  title: 'Overview',
  mount(panel) {
    const { data } = HEADER;
    const models = MODELS.map((_, m) => m);
    const rows = overviewRows().map(([name, help, value, text]) =>
      value
        ? h(
            'tr',
            {},
            h('th', { scope: 'row' }, name, help ? h('small', {}, help) : null),
            ...models.map((m) => h('td', {}, overviewCell(value, text, m))),
          )
        : h(
            'tr',
            { class: 'part' },
            h('th', { scope: 'colgroup', colspan: models.length + 1 }, name),
          ),
    );
    const facts = h(
      'div',
      { class: 'scroll', tabindex: 0, role: 'region', 'aria-label': 'Models' },
      h(
        'table',
        { class: 'numbers facts' },
        h('caption', { class: 'vh' }, 'Facts and figures of the models'),
        h(
          'thead',
          {},
          h(
            'tr',
            {},
            h('th', { scope: 'col' }, h('span', { class: 'vh' }, 'Figure')),
            ...models.map((m) =>
              h('th', { scope: 'col' }, modelName(m), h('small', {}, safe(MODELS[m].path, 60))),
            ),
          ),
        ),
        h('tbody', {}, ...rows),
      ),
    );
    this.side = h('div', { class: 'side' });
    panel.append(
      h('h2', {}, 'Overview'),
      h(
        'p',
        { class: 'lead' },
        `${many(data.documents, 'document')}, ${many(data.tokens, 'token')} of the `,
        safe(data.split, 40),
        ' split of ',
        safe(data.store, 60),
        manyDomains ? `, in ${many(DOMAINS.length, 'domain')}` : '',
        `. At most ${many(data.max_document_tokens, 'token')} of a document; seed ${data.seed}.`,
      ),
      h(
        'div',
        { class: 'with-side' },
        h('section', {}, h('h3', {}, models.length > 1 ? 'The two models' : 'The model'), facts),
        this.side,
      ),
    );
  },
  update() {
    const models = keepModels();
    const keeps = allKeeps(models);
    const domains = completeDomains(models);
    const measured = models.length > 0 && domains.length > 0;
    const lines = models.map((m) => ({ m, values: onKeeps(m, keeps, meanRise(m, domains)) }));
    const over =
      domains.length < DOMAINS.length
        ? `mean over the ${domains.length} of ${DOMAINS.length} domains measured at every number of experts`
        : 'mean over domains';
    const [low, high] = changeEnds(lines.flatMap((l) => l.values));
    fill(
      this.side,
      HEADER.notes.length
        ? h(
            'section',
            {},
            h('h3', {}, 'Notes'),
            h('ul', { class: 'notes' }, ...HEADER.notes.map((note) => h('li', {}, safe(note)))),
          )
        : null,
      h(
        'section',
        {},
        h('h3', {}, 'Loss when few experts stay'),
        measured
          ? [
              lineChart({
                label: `Rise of the loss, ${over}, by experts kept. ${lines
                  .map(
                    ({ m, values }) =>
                      `${modelTitle(m)}: ${values.map((v, j) => `${keeps[j]} experts ${signed(v)}`).join(', ')}`,
                  )
                  .join('. ')}`,
                xs: keeps,
                lines,
                low,
                high,
                width: 360,
                height: 150,
              }),
              modelLegend(models),
              h(
                'p',
                { class: 'muted' },
                `Rise in nats a token${manyDomains ? `, ${over}` : ''}; across: experts kept in each layer. `,
                link({ view: 'keep' }, manyDomains ? 'By domain' : 'Which experts stay'),
              ),
            ]
          : h(
              'p',
              { class: 'muted' },
              models.length
                ? 'No domain was measured at every number of experts.'
                : 'Not measured for these models.',
            ),
      ),
      h(
        'section',
        {},
        h('h3', {}, 'Where to start'),
        h(
          'ul',
          {},
          h('li', {}, link({ view: 'clusters' }, 'Clusters'), ': what the experts group together'),
          h('li', {}, link({ view: 'experts' }, 'Experts'), ': which experts serve which texts'),
          h('li', {}, link({ view: 'documents' }, 'Documents'), ': read a document with its picks'),
          manyDomains
            ? h('li', {}, link({ view: 'domains' }, 'Domains'), ': which domains share experts')
            : null,
        ),
      ),
    );
  },
};

function overviewCell(value, text, m) {
  const got = value(MODELS[m]);
  return got === null || got === undefined ? '–' : text(got);
}
