// Small helpers that make elements. Strings become text nodes, never markup.

function h(tag, props = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(props)) {
    if (value === null || value === undefined || value === false) continue;
    if (name === 'on') {
      for (const [event, handler] of Object.entries(value)) node.addEventListener(event, handler);
    } else if (name === 'style') {
      for (const [key, text] of Object.entries(value)) node.style.setProperty(key, text);
    } else if (name === 'text') {
      addText(node, String(value));
    } else {
      node.setAttribute(name, value === true ? '' : value);
    }
  }
  node.append(...children.flat().filter((c) => c !== null && c !== undefined && c !== false));
  return node;
}

// Text of the data inside a sentence: isolated, so that it cannot reorder its surroundings.
const safe = (text, limit = 0) => {
  const cut = limit && [...text].length > limit;
  const node = h('bdi', { title: cut ? plain(text) : null });
  return addText(node, cut ? [...text].slice(0, limit - 1).join('') + '…' : text);
};

// A link to the state after `patch`; opening it in another tab works as well.
const link = (patch, ...children) =>
  h('a', { href: hashFor(patch), 'data-key': JSON.stringify(patch) }, ...children);

const button = (label, click, props = {}) =>
  h('button', { type: 'button', on: { click }, ...props }, label);

const badge = (m) => h('span', { class: `badge m${m}`, 'aria-hidden': 'true' }, MODEL_LETTERS[m]);
const modelName = (m) =>
  h('span', { class: 'model-name' }, MODELS.length > 1 ? badge(m) : null, safe(MODELS[m].name, 40));
const modelTitle = (m) =>
  MODELS.length > 1
    ? `${MODEL_LETTERS[m]} ${plain(MODELS[m].name, 40)}`
    : plain(MODELS[m].name, 40);

// Replaces what a node holds; focus stays on the control that has the same data-key. Nodes that
// are already there stay untouched, since taking one out and in again would blur what is in it.
function fill(node, ...children) {
  const kept = children.flat().filter((c) => c !== null && c !== undefined && c !== false);
  if (kept.length === node.childNodes.length && kept.every((c, j) => c === node.childNodes[j]))
    return node;
  const active = document.activeElement;
  const key = node.contains(active) ? active.getAttribute('data-key') : null;
  node.replaceChildren(...kept);
  if (key) {
    const again = [...node.querySelectorAll('[data-key]')].find(
      (other) => other.getAttribute('data-key') === key,
    );
    again?.focus({ preventScroll: true });
  }
  return node;
}

// Says something to screen readers without moving the focus.
function announce(text) {
  document.getElementById('live').textContent = text;
}

// A labelled choice among a few: radio buttons that look like one control.
function segmented(label, name, options, field) {
  const group = h('fieldset', { class: 'segmented' }, h('legend', {}, label));
  for (const [value, text] of options) {
    const input = h('input', {
      type: 'radio',
      name,
      value,
      on: { change: () => go({ [field]: value }) },
    });
    group.append(h('label', {}, input, h('span', {}, text)));
  }
  return {
    node: group,
    set(value, enabled = true) {
      group.disabled = !enabled;
      for (const input of group.querySelectorAll('input')) input.checked = input.value === value;
    },
  };
}

function dropdown(label, options, field) {
  const select = h(
    'select',
    { on: { change: () => go({ [field]: select.value }) } },
    ...options.map(([value, text]) => h('option', { value }, text)),
  );
  return {
    node: h('label', { class: 'control' }, h('span', {}, label), select),
    set(value, enabled = true) {
      select.value = value;
      select.disabled = !enabled;
    },
  };
}

// A slider over the given whole numbers. Dragging replaces the history entry.
function slider(label, values, change, describe = String) {
  const input = h('input', { type: 'range', min: 0, max: values.length - 1, step: 1 });
  const shown = h('output', {});
  const say = () => {
    const text = describe(values[input.valueAsNumber]);
    shown.textContent = text;
    input.setAttribute('aria-valuetext', text);
  };
  input.addEventListener('input', () => {
    say();
    change(values[input.valueAsNumber]);
  });
  return {
    node: h('label', { class: 'control' }, h('span', {}, label), input, shown),
    input,
    set(value) {
      let best = 0;
      values.forEach((v, j) => {
        if (Math.abs(v - value) < Math.abs(values[best] - value)) best = j;
      });
      input.value = best;
      input.disabled = values.length < 2;
      say();
    },
  };
}

// A table of the given heads and rows (cells are nodes or strings); the first cell of a row
// names it. Long tables scroll in a box that the keyboard can reach.
function table(caption, heads, rows, { numeric = true, cls = '' } = {}) {
  return h(
    'div',
    { class: `scroll ${cls}`, tabindex: 0, role: 'region', 'aria-label': caption },
    h(
      'table',
      { class: numeric ? 'numbers' : '' },
      h('caption', { class: 'vh' }, caption),
      h('thead', {}, h('tr', {}, ...heads.map((head) => h('th', { scope: 'col' }, head)))),
      h(
        'tbody',
        {},
        ...rows.map(([first, ...cells]) =>
          h('tr', {}, h('th', { scope: 'row' }, first), ...cells.map((c) => h('td', {}, c))),
        ),
      ),
    ),
  );
}

const loadingNote = () =>
  h(
    'p',
    { class: 'empty loading', role: 'status' },
    store.state === 'failed'
      ? `The tokens of this page cannot be read: ${plain(store.error)}. ` +
          'The overview and the figures by domain still work.'
      : `Loading tokens: ${store.done} of ${store.total} parts …`,
  );
