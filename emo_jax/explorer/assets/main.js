// Puts the page together: tabs, filters, theme, help, keys, and the drawing of the current view.

const VIEWS = [overviewView, clustersView, expertsView, documentsView, keepView, domainsView];
const panels = new Map();
const byId = (id) => document.getElementById(id);

function notice(problems) {
  const box = byId('notice');
  box.hidden = problems.length === 0;
  if (problems.length) {
    const text = `${problems.slice(0, 4).join('; ')}${problems.length > 4 ? `; and ${problems.length - 4} more` : ''}.`;
    fill(
      box,
      h('span', {}, text[0].toUpperCase() + text.slice(1) + ' The default is shown.'),
      button('Dismiss', () => notice([])),
    );
  }
}

function mountFrame() {
  fill(byId('title'), safe(HEADER.title)); // the template's copy may hold odd characters
  const tabs = byId('tabs');
  const main = byId('main');
  for (const view of VIEWS) {
    const tab = h(
      'button',
      {
        type: 'button',
        role: 'tab',
        id: `tab-${view.id}`,
        'aria-controls': `panel-${view.id}`,
        on: { click: () => go({ view: view.id }) },
      },
      view.title,
    );
    tabs.append(tab);
    const panel = h('div', {
      role: 'tabpanel',
      id: `panel-${view.id}`,
      'aria-labelledby': `tab-${view.id}`,
      tabindex: -1,
      hidden: true,
    });
    main.append(panel);
    panels.set(view.id, { view, tab, panel, mounted: false });
  }
  tabs.addEventListener('keydown', (event) => {
    const at = VIEWS.findIndex((view) => view.id === state.view);
    const to = { ArrowRight: at + 1, ArrowLeft: at - 1, Home: 0, End: VIEWS.length - 1 }[event.key];
    if (to === undefined) return;
    event.preventDefault();
    go({ view: VIEWS.at(to % VIEWS.length).id });
    panels.get(state.view).tab.focus();
  });
  // A plain link to #main would be taken for a state.
  byId('skip').addEventListener('click', (event) => {
    event.preventDefault();
    byId('main').focus();
  });
  fill(
    byId('foot'),
    `emo_jax ${plain(HEADER.emo_jax, 20)} · made ${plain(HEADER.made, 20)} · `,
    `${many(HEADER.data.documents, 'document')}, ${many(HEADER.data.tokens, 'token')} · `,
    'this file holds everything it shows and loads nothing',
  );
  byId('theme').addEventListener('click', () =>
    go({ theme: currentTheme() === 'dark' ? 'light' : 'dark' }, { replace: true }),
  );
  byId('help').addEventListener('click', showHelp);
}

// Filters: a domain, and what the other views set; the line says what they leave.
const filterBar = {
  mount() {
    const options = [
      ['', 'all domains'],
      ...DOMAINS.map((name, d) => [String(d), plain(name, 40)]),
    ];
    this.domain = h(
      'select',
      {
        on: {
          change: () =>
            go({ domain: this.domain.value === '' ? null : Number(this.domain.value), doc: null }),
        },
      },
      ...options.map(([value, text]) => h('option', { value }, text)),
    );
    this.chips = h('span', { class: 'filter-chips' });
    this.says = h('span', { class: 'filter-says', role: 'status' });
    byId('filters').append(
      manyDomains ? h('label', { class: 'control' }, h('span', {}, 'Domain'), this.domain) : '',
      this.chips,
      this.says,
    );
    if (MODELS.length > 1) {
      this.models = dropdown(
        'Show',
        [
          ['both', 'both models'],
          ...MODELS.map((model, m) => [
            MODEL_LETTERS[m].toLowerCase(),
            `${MODEL_LETTERS[m]} ${plain(model.name, 24)}`,
          ]),
        ],
        'models',
      );
      byId('show-models').append(this.models.node);
    }
  },
  update() {
    this.models?.set(state.models);
    this.domain.value = state.domain === null ? '' : String(state.domain);
    const chips = [];
    const chip = (field, ...text) =>
      chips.push(
        h(
          'span',
          { class: 'filter-chip' },
          h('span', {}, ...text),
          button('×', () => go({ [field]: null, ...(field === 'q' ? { q: '' } : {}) }), {
            'aria-label': `Remove the filter ${plain(chips.length + 1)}: ${field}`,
            'data-key': `chip ${field}`,
            title: 'Remove the filter',
          }),
        ),
      );
    // A link may filter by the only domain, for which there is no dropdown.
    if (state.domain !== null && !manyDomains) chip('domain', safe(DOMAINS[state.domain], 24));
    if (state.q) chip('q', 'text has “', safe(state.q, 30), '”');
    for (const [field, kind] of [
      ['tokencluster', 'token'],
      ['doccluster', 'document'],
    ]) {
      const at = splitPlace(state[field]);
      if (at)
        chip(
          field,
          MODELS.length > 1 ? badge(at[0]) : '',
          ` ${kind} cluster ${at[1]} `,
          safe(MODELS[at[0]][`${kind}_clusters`].clusters[at[1]].label, 24),
        );
    }
    const picks = splitPlace(state.picks);
    if (picks)
      chip(
        'picks',
        MODELS.length > 1 ? badge(picks[0]) : '',
        ` layer ${picks[1]}, expert ${picks[2]}`,
      );
    if (chips.length + (state.domain !== null && manyDomains) > 1) {
      chips.push(
        button(
          'Clear all',
          () => go(Object.fromEntries(FILTER_FIELDS.map((f) => [f, FIELDS[f].base]))),
          { class: 'quiet' },
        ),
      );
    }
    fill(this.chips, ...chips);
    this.say();
  },
  say() {
    if (!ready()) {
      this.says.textContent =
        store.state === 'failed'
          ? 'tokens could not be read'
          : `loading tokens: ${store.done} of ${store.total} parts`;
      return;
    }
    if (!hasFilter()) {
      this.says.textContent = 'no filter';
      return;
    }
    const { docs, tokens, ms, note } = selection();
    this.says.dataset.ms = ms.toFixed(2);
    this.says.textContent =
      `${count(docs.length)} of ${many(documentCount(), 'document')}, ` +
      `${count(tokens)} of ${many(HEADER.data.tokens, 'token')}${note ? `; ${note}` : ''}`;
  },
};

const prefersDark = matchMedia('(prefers-color-scheme: dark)');
function applyTheme(forced = null) {
  const theme =
    forced ?? (state.theme !== 'auto' ? state.theme : prefersDark.matches ? 'dark' : 'light');
  document.documentElement.dataset.theme = theme;
  const to = theme === 'dark' ? 'Light' : 'Dark';
  byId('theme').textContent = to;
  byId('theme').setAttribute('aria-label', `${to} theme`);
}

// How long a reader waited: from the change of the state until the browser has drawn a frame of it.
function timeDrawing(began) {
  delete filterBar.says.dataset.drawnMs;
  const { port1, port2 } = new MessageChannel(); // its message comes after the frame's layout
  port1.onmessage = () => {
    filterBar.says.dataset.drawnMs = (performance.now() - began).toFixed(2);
  };
  requestAnimationFrame(() => port2.postMessage(null));
}

function render(began = performance.now()) {
  timeDrawing(began);
  applyTheme();
  document.title = `${panels.get(state.view).view.title} · ${plain(HEADER.title, 120)}`;
  for (const [id, one] of panels) {
    const here = id === state.view;
    one.tab.setAttribute('aria-selected', String(here));
    one.tab.tabIndex = here ? 0 : -1;
    one.panel.hidden = !here;
  }
  const one = panels.get(state.view);
  if (!one.mounted) {
    one.mounted = true;
    one.view.mount(one.panel);
  }
  filterBar.update();
  searchBox.update();
  one.view.update();
}

// A link that leads to another view leaves the focus in a hidden panel; bring it along.
function followHash({ first = false } = {}) {
  const began = performance.now();
  const before = state.view;
  const active = document.activeElement;
  const [next, problems] = readHash(location.hash);
  state = next;
  notice(problems);
  render(began);
  if (
    !first &&
    state.view !== before &&
    (active === document.body || !active?.isConnected || active?.closest('[hidden]'))
  ) {
    panels.get(state.view).panel.focus();
    scrollTo(0, 0);
  }
}

const KEYS = [
  ['1 – 6', 'open a view'],
  ['← →', 'on the tabs: next view'],
  ['/', 'search'],
  ['n  p', 'next and previous document'],
  ['t', 'light or dark'],
  ['?', 'this help'],
  ['Esc', 'close the search or this help'],
  ['Arrow keys, Home, End, Page Up, Page Down', 'in a heat map or a document: move the cursor'],
  ['Enter', 'in a heat map: open; in a document: filter by the token’s cluster or expert'],
];

function showHelp() {
  const dialog = byId('help-dialog');
  const symbols = [
    ['␣', 'space at the edge of a token'],
    ['↵ ⇥', 'line feed, tab'],
    [
      '⟨U+202E⟩',
      'a character that would be ' +
        'invisible or reorder the text; ␀ and the like: control characters',
    ],
    ['▯', 'a token that completes no character yet'],
  ];
  fill(
    dialog,
    h('h2', { id: 'help-title' }, 'Help'),
    h(
      'p',
      {},
      'Each layer has a set of experts and a router that picks some of them for every token. This page shows which ' +
        'experts which texts use. “Use” is the mean router probability, “picked” the share of tokens that picked an expert. ' +
        'Filters hold in every view and for both models. The address of the page always says what is open: copy it to share a view.',
    ),
    h('h3', {}, 'Keys'),
    h(
      'dl',
      {},
      ...KEYS.flatMap(([key, what]) => [h('dt', {}, h('kbd', {}, key)), h('dd', {}, what)]),
    ),
    h('h3', {}, 'Marks in texts'),
    h(
      'dl',
      {},
      ...symbols.flatMap(([key, what]) => [
        h('dt', {}, h('span', { class: 'mark' }, key)),
        h('dd', {}, what),
      ]),
    ),
    h(
      'p',
      {},
      button('Close', () => dialog.close(), { autofocus: true }),
    ),
  );
  if (!dialog.open) dialog.showModal();
}

function listenKeys() {
  document.addEventListener('keydown', (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || byId('help-dialog').open) return;
    if (
      event.target.closest?.(
        'input:not([type=range], [type=radio], [type=checkbox]), select, textarea',
      )
    )
      return;
    const number = Number(event.key);
    if (number >= 1 && number <= VIEWS.length) go({ view: VIEWS[number - 1].id });
    else if (event.key === '/') byId('q').focus();
    else if (event.key === '?') showHelp();
    else if (event.key === 't') byId('theme').click();
    else if ((event.key === 'n' || event.key === 'p') && state.view === 'documents' && ready())
      stepDocument(event.key === 'n' ? 1 : -1);
    else return;
    event.preventDefault();
  });
}

function stepDocument(by) {
  const { docs } = selection();
  const at = docs.indexOf(state.doc ?? docs[0]);
  const to = docs[at + by];
  if (to !== undefined) go({ doc: to });
}

// Paper is light whatever the screen is.
function listenPrint() {
  const themed = (theme) => () => {
    applyTheme(theme);
    for (const map of heatMaps) if (map.spec) map.draw(map.spec);
  };
  addEventListener('beforeprint', themed('light'));
  addEventListener('afterprint', themed(null));
}

async function start() {
  mountFrame();
  filterBar.mount();
  searchBox.mount();
  listenKeys();
  listenPrint();
  prefersDark.addEventListener('change', () => render());
  addEventListener('hashchange', () => followHash());
  followHash({ first: true });
  // Two frames: the overview is on the screen before the sections are decoded.
  await new Promise((resolve) => {
    requestAnimationFrame(() => requestAnimationFrame(resolve));
    setTimeout(resolve, 200);
  });
  document.documentElement.dataset.painted = performance.now().toFixed(0);
  await loadSections(() => {
    filterBar.say();
    for (const node of document.querySelectorAll('.loading'))
      node.textContent = loadingNote().textContent;
  });
  document.documentElement.dataset.ready = `${store.state} ${performance.now().toFixed(0)}`;
  render();
}

start();
