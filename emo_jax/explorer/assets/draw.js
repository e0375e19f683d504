// Colours and the small figures: heat maps on canvas with a keyboard cursor, lines and bars.

// Sequential scale as a few stops, blended in between; "more" is further from the paper in both
// themes. Dark follows viridis; light goes from near-white through green to dark blue. Both
// differ in lightness all along, so they read without colour vision too.
const STOPS = {
  dark: ['#1f2430', '#443a83', '#31688e', '#21908c', '#35b779', '#8fd744', '#fde725'],
  light: ['#f4f6ef', '#d5ebc4', '#93d0b5', '#4bb0bf', '#2a80b4', '#274f9b', '#17215f'],
};
const RAMP_SIZE = 256;
const ramps = {};

function channels(hex) {
  return [1, 3, 5].map((at) => parseInt(hex.slice(at, at + 2), 16));
}

function ramp() {
  const theme = currentTheme();
  ramps[theme] ??= Array.from({ length: RAMP_SIZE }, (_, j) => {
    const stops = STOPS[theme];
    const at = (j / (RAMP_SIZE - 1)) * (stops.length - 1);
    const low = Math.min(Math.floor(at), stops.length - 2);
    const [a, b] = [channels(stops[low]), channels(stops[low + 1])];
    return a.map((x, c) => Math.round(x + (b[c] - x) * (at - low)));
  });
  return ramps[theme];
}
const rampIndex = (x) => Math.round(Math.min(1, Math.max(0, x)) * (RAMP_SIZE - 1));
const css = (rgb) => `rgb(${rgb.join(' ')})`;
// Relative luminance, to choose ink for a number printed on a cell.
function luminance(rgb) {
  const [r, g, b] = rgb.map((v) => {
    const x = v / 255;
    return x <= 0.04045 ? x / 12.92 : ((x + 0.055) / 1.055) ** 2.4;
  });
  return 0.2126 * r + 0.7152 * g + 0.0722 * b;
}
const inkOn = (rgb) => (luminance(rgb) > 0.18 ? '#10151c' : '#ffffff');

const currentTheme = () => (document.documentElement.dataset.theme === 'dark' ? 'dark' : 'light');
const cssVar = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();

// Categories: eleven colours (--c0 … --c10 in the style sheet) and grey for the others.
const CATEGORIES = 11;

// Colour places for the ids that count most. An id keeps the place of its number where that is
// free, so that most colours stay the same from one document to the next. Returns id → place.
function colorPlaces(idsByWeight) {
  const places = new Map();
  const free = new Set(Array.from({ length: CATEGORIES }, (_, j) => j));
  const top = idsByWeight.slice(0, CATEGORIES);
  for (const id of top) {
    if (free.delete(id % CATEGORIES)) places.set(id, id % CATEGORIES);
  }
  for (const id of top) {
    if (places.has(id)) continue;
    const place = free.values().next().value;
    free.delete(place);
    places.set(id, place);
  }
  return places;
}
const placeClass = (place) => (place === undefined ? 'k-other' : `k${place}`);
const domainClass = (d) => (d < CATEGORIES ? `k${d}` : 'k-other');

// One bar of shares. `parts`: [[name, share, class], ...]; the rest of the width stays empty.
function stackedBar(parts, label) {
  return h(
    'span',
    { class: 'stack', role: 'img', 'aria-label': label, title: label },
    ...parts
      .filter(([, share]) => share > 0.004)
      .map(([, share, cls]) => h('span', { class: cls, style: { width: `${100 * share}%` } })),
  );
}

// A value as a bar in a table cell, with its number beside it.
function bar(share, text, cls = '') {
  return h(
    'span',
    { class: `bar ${cls}` },
    h(
      'span',
      { class: 'bar-track', 'aria-hidden': 'true' },
      h('span', { style: { width: `${100 * Math.min(1, Math.max(0, share || 0))}%` } }),
    ),
    h('span', { class: 'bar-text' }, text),
  );
}

// A change as a bar to the left (less) or right (more) of a middle line.
function changeBar(value, most, text) {
  const width = most > 0 ? Math.min(1, Math.abs(value) / most) * 50 : 0;
  return h(
    'span',
    { class: 'bar change' },
    h(
      'span',
      { class: 'bar-track', 'aria-hidden': 'true' },
      h('span', {
        class: value < 0 ? 'less' : 'more',
        style: {
          width: `${width}%`,
          'margin-left': `${value < 0 ? 50 - width : 50}%`,
        },
      }),
    ),
    h('span', { class: 'bar-text' }, text),
  );
}

function svg(tag, attributes = {}, ...children) {
  const node = document.createElementNS('http://www.w3.org/2000/svg', tag);
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  node.append(...children);
  return node;
}

// The next round number, so that the marks of an axis read well.
function roundUp(value) {
  const unit = 10 ** Math.floor(Math.log10(value));
  return unit * [1, 1.5, 2, 3, 4, 5, 6, 8, 10].find((step) => step * unit >= value * 0.999);
}

// The ends of an axis for changes, 0 one of its three marks: [low, high], so wide that noise looks
// flat. A little on the other side of 0 needs no room of its own.
function changeEnds(values) {
  const known = values.filter(isKnown);
  const above = Math.max(0.01, ...known);
  const below = Math.max(0.01, ...known.map((v) => -v));
  if (-Math.min(0, ...known) <= above / 20) return [0, roundUp(above)];
  if (Math.max(0, ...known) <= below / 20) return [-roundUp(below), 0];
  const step = roundUp(Math.max(above, below));
  return [-step, step];
}

// Lines over the same x values (drawn at even steps). `lines`: [{m, values}]; each model has its
// own mark (A circle, B square) and dash, so that the lines differ without colour.
function lineChart({
  label,
  xs,
  lines,
  low,
  high,
  rule = null,
  width = 210,
  height = 104,
  axis = true,
}) {
  const span = high - low || 1;
  const marks = axis ? [low, low + span / 2, low + span] : [];
  const texts = tickTexts(marks);
  const room = Math.max(36, 6.5 * Math.max(0, ...texts.map((text) => text.length)) + 6);
  const [left, right, top, bottom] = axis ? [room, 8, 8, 20] : [2, 4, 3, 3];
  const x = (j) => left + ((width - left - right) * j) / Math.max(1, xs.length - 1);
  const y = (v) => height - bottom - ((height - top - bottom) * (v - low)) / span;
  const root = svg('svg', {
    viewBox: `0 0 ${width} ${height}`,
    class: `line-chart${axis ? '' : ' spark'}`,
    role: 'img',
    'aria-label': label,
  });
  if (axis) {
    marks.forEach((v, j) => {
      root.append(
        svg('line', { class: 'grid', x1: left, x2: width - right, y1: y(v), y2: y(v) }),
        svg('text', { x: left - 4, y: y(v) + 3.5, 'text-anchor': 'end' }, texts[j]),
      );
    });
    let last = -99;
    xs.forEach((name, j) => {
      if (x(j) - last < 17 && j !== 0) return;
      last = x(j);
      root.append(svg('text', { x: x(j), y: height - 5, 'text-anchor': 'middle' }, String(name)));
    });
  }
  if (rule !== null) {
    root.append(
      svg('line', { class: 'rule', x1: x(rule), x2: x(rule), y1: top, y2: height - bottom }),
    );
  }
  for (const { m, values } of lines) {
    const points = values.map((v, j) => [x(j), y(v)]).filter(([, py]) => Number.isFinite(py));
    root.append(
      svg('polyline', {
        class: `line m${m}`,
        points: points.map((p) => p.map((v) => v.toFixed(1)).join(',')).join(' '),
      }),
    );
    if (!axis) continue;
    for (const [px, py] of points) {
      root.append(
        m === 0
          ? svg('circle', { class: `dot m${m}`, cx: px, cy: py, r: 2.6 })
          : svg('rect', { class: `dot m${m}`, x: px - 2.4, y: py - 2.4, width: 4.8, height: 4.8 }),
      );
    }
  }
  return root;
}

// A heat map: a canvas one can walk with the arrow keys, the cell in words below it, its scale,
// and the same numbers as a table. `draw(spec)` shows new values:
//   label, rows [names], cols [names], values (rows × cols; NaN: empty), max, format(v),
//   describe(r, c), pick(r, c), pickWord, bars (cols) and barsLabel, marked (column or -1), root (scale),
//   numbers (print values), cell and widest (limits of a cell's width), colNames (all, turned),
//   rowHeight, unit, colWord, tableCell(r, c) → text in the table, markedRow,
//   paint(r, c) → [css colour, text] instead of the scale, legend: nodes instead of the scale
class HeatMap {
  constructor() {
    this.row = 0;
    this.col = 0;
    this.spec = null;
    this.asTable = false;
    this.labels = h('div', { class: 'heat-rows', 'aria-hidden': 'true' });
    this.canvas = h('canvas', {
      tabindex: 0,
      role: 'application',
      'aria-roledescription': 'heat map',
    });
    this.scroller = h('div', { class: 'heat-scroll' }, this.canvas);
    this.grid = h('div', { class: 'heat-grid' }, this.labels, this.scroller);
    this.says = h('p', { class: 'heat-says', 'aria-live': 'polite' });
    this.legend = h('div', { class: 'heat-legend' });
    this.toggle = button('Show as table', () => this.switchTable(), { 'aria-pressed': 'false' });
    this.tableBox = h('div', { hidden: true });
    this.node = h(
      'div',
      { class: 'heat' },
      this.grid,
      this.says,
      h('div', { class: 'heat-foot' }, this.legend, this.toggle),
      this.tableBox,
    );
    this.listen();
  }

  listen() {
    const { canvas } = this;
    canvas.addEventListener('pointermove', (event) => {
      const cell = this.cellAt(event);
      if (cell) this.say(...cell);
    });
    canvas.addEventListener('pointerleave', () => this.rest());
    canvas.addEventListener('click', (event) => {
      const cell = this.cellAt(event);
      if (!cell) return;
      [this.row, this.col] = cell;
      this.paint();
      this.spec.pick?.(...cell);
    });
    canvas.addEventListener('keydown', (event) => this.key(event));
    canvas.addEventListener('focus', () => {
      this.say(this.row, this.col);
      this.paint();
    });
    canvas.addEventListener('blur', () => {
      this.rest();
      this.paint();
    });
    new ResizeObserver(() => this.spec && this.paint()).observe(this.scroller);
  }

  key(event) {
    const { rows, cols } = this.spec;
    const moves = {
      ArrowLeft: [0, -1],
      ArrowRight: [0, 1],
      ArrowUp: [-1, 0],
      ArrowDown: [1, 0],
      PageUp: [0, -10],
      PageDown: [0, 10],
      Home: [0, -cols.length],
      End: [0, cols.length],
    };
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    if (event.key === 'Enter' || event.key === ' ') {
      event.preventDefault();
      this.spec.pick?.(this.row, this.col);
    } else if (event.key in moves) {
      event.preventDefault();
      const [down, right] = moves[event.key];
      this.row = Math.min(rows.length - 1, Math.max(0, this.row + down));
      this.col = Math.min(cols.length - 1, Math.max(0, this.col + right));
      this.say(this.row, this.col);
      this.paint();
      this.showCursor();
    }
  }

  showCursor() {
    const left = this.col * this.cellWidth;
    const { scroller } = this;
    if (left < scroller.scrollLeft) scroller.scrollLeft = left;
    const right = left + this.cellWidth - scroller.clientWidth;
    if (right > scroller.scrollLeft) scroller.scrollLeft = right;
  }

  cellAt(event) {
    if (!this.spec) return null;
    const row = Math.floor((event.offsetY - this.headHeight) / this.rowHeight);
    const col = Math.floor(event.offsetX / this.cellWidth);
    if (col < 0 || col >= this.spec.cols.length) return null;
    // The bars above the cells belong to the first row's expert.
    if (row < 0 && this.spec.bars) return [0, col];
    return row >= 0 && row < this.spec.rows.length ? [row, col] : null;
  }

  say(row, col) {
    if (this.spec.rows.length && this.spec.cols.length) {
      this.says.textContent = this.spec.describe(row, col);
    }
  }

  rest() {
    this.says.textContent = 'Point at a cell, or focus the map and use the arrow keys.';
  }

  switchTable(on = !this.asTable) {
    this.asTable = on;
    this.toggle.setAttribute('aria-pressed', String(on));
    this.toggle.textContent = on ? 'Show as map' : 'Show as table';
    this.grid.hidden = on;
    this.says.hidden = on;
    this.tableBox.hidden = !on;
    if (on) this.fillTable();
    else this.paint();
  }

  fillTable() {
    const { label, rows, cols, values, format, bars, barsLabel, tableCell } = this.spec;
    // Experts go down and domains across: that way the table is as wide as the page.
    const body = cols.map((name, c) => [
      name,
      ...(bars ? [percent(bars[c])] : []),
      ...rows.map((_, r) => (tableCell ? tableCell(r, c) : format(values[r * cols.length + c]))),
    ]);
    fill(
      this.tableBox,
      table(label, [this.spec.colWord ?? '', ...(bars ? [barsLabel] : []), ...rows], body, {
        cls: 'tall',
      }),
    );
  }

  draw(spec) {
    this.spec = spec;
    this.row = Math.min(this.row, Math.max(0, spec.rows.length - 1));
    this.col = Math.min(this.col, Math.max(0, spec.cols.length - 1));
    this.canvas.setAttribute(
      'aria-label',
      `${spec.label}. ${spec.rows.length} rows, ` +
        `${spec.cols.length} columns. Arrow keys move` +
        (spec.pick ? `, Enter ${spec.pickWord ?? 'opens'}.` : '.'),
    );
    if (document.activeElement !== this.canvas) this.rest();
    else this.say(this.row, this.col);
    fill(this.legend, spec.legend ?? this.scaleLegend(spec));
    if (this.asTable) this.fillTable();
    this.paint();
  }

  scaleLegend({ max, format, root, unit }) {
    const stops = Array.from({ length: 9 }, (_, j) => css(ramp()[rampIndex(j / 8)])).join(', ');
    const ends = max > 0 ? [0, root ? max / 4 : max / 2, max] : [0];
    return [
      h(
        'span',
        { class: 'scale', 'aria-hidden': 'true' },
        h('span', {
          class: 'scale-bar',
          style: { background: `linear-gradient(90deg, ${stops})` },
        }),
        h(
          'span',
          { class: 'scale-ends' },
          ...scaleTexts(ends, format).map((text) => h('span', {}, text)),
        ),
      ),
      unit ? h('span', { class: 'muted' }, unit) : null,
    ];
  }

  paint() {
    const { spec, canvas } = this;
    const room = this.scroller.clientWidth;
    if (!spec || !room || this.asTable) return;
    const { rows, cols } = spec;
    const least = spec.cell ?? 4;
    this.cellWidth = Math.max(least, Math.min(spec.widest ?? 40, room / Math.max(1, cols.length)));
    this.rowHeight = spec.rowHeight ?? 20;
    this.headHeight = spec.bars ? 34 : spec.colNames ? 78 : 4;
    const footHeight = spec.colNames ? 0 : 16;
    const width = Math.floor(this.cellWidth * cols.length) + (spec.colNames ? 46 : 1);
    const height = this.headHeight + rows.length * this.rowHeight + footHeight;
    const dense = window.devicePixelRatio || 1;
    canvas.width = Math.round(width * dense);
    canvas.height = Math.round(height * dense);
    canvas.style.width = `${width}px`;
    canvas.style.height = `${height}px`;
    const pen = canvas.getContext('2d');
    pen.setTransform(dense, 0, 0, dense, 0, 0);
    pen.font = `11px ${getComputedStyle(document.body).fontFamily}`;
    const colors = {
      ink: cssVar('--ink'),
      muted: cssVar('--muted'),
      accent: cssVar('--accent'),
      line: cssVar('--line'),
      paper: cssVar('--paper'),
    };
    this.paintCells(pen);
    if (spec.bars) this.paintBars(pen, colors);
    this.paintNames(pen, colors);
    this.paintCursor(pen, colors);
    this.paintRowLabels();
  }

  paintCells(pen) {
    const { rows, cols, values, max, root, numbers, format, paint } = this.spec;
    const scale = ramp();
    const gap = this.cellWidth >= 7 ? 1 : 0;
    for (let r = 0; r < rows.length; r++) {
      const y = this.headHeight + r * this.rowHeight;
      for (let c = 0; c < cols.length; c++) {
        // Edges on whole pixels, so that cells do not blur into each other.
        const x = Math.round(c * this.cellWidth);
        const w = Math.round((c + 1) * this.cellWidth) - x;
        if (paint) {
          paint(pen, r, c, x, y, w - gap, this.rowHeight - 1);
          continue;
        }
        const value = values[r * cols.length + c];
        if (!isKnown(value)) continue;
        const part = max > 0 ? value / max : 0;
        const rgb = scale[rampIndex(root ? Math.sqrt(Math.max(0, part)) : part)];
        pen.fillStyle = css(rgb);
        pen.fillRect(x, y, w - gap, this.rowHeight - 1);
        if (numbers && this.cellWidth >= 24) {
          pen.fillStyle = inkOn(rgb);
          pen.textAlign = 'center';
          pen.fillText(format(value), x + w / 2, y + this.rowHeight / 2 + 3.5);
        }
      }
    }
  }

  paintBars(pen, { muted, line }) {
    const { bars } = this.spec;
    const most = Math.max(...bars);
    const room = this.headHeight - 6;
    const gap = this.cellWidth >= 7 ? 1 : 0;
    pen.fillStyle = muted;
    bars.forEach((value, c) => {
      const tall = most > 0 ? Math.max(1, (room * value) / most) : 0;
      const x = Math.round(c * this.cellWidth);
      pen.fillRect(x, room - tall + 2, Math.round((c + 1) * this.cellWidth) - x - gap, tall);
    });
    pen.fillStyle = line;
    pen.fillRect(0, room + 2, Math.round(bars.length * this.cellWidth), 1);
  }

  paintNames(pen, { muted }) {
    const { rows, cols, colNames } = this.spec;
    pen.fillStyle = muted;
    if (colNames) {
      pen.textAlign = 'left';
      plainNames(cols, 15).forEach((name, c) => {
        pen.save();
        pen.translate((c + 0.5) * this.cellWidth + 3, this.headHeight - 6);
        pen.rotate(-Math.PI / 4);
        pen.fillText(name, 0, 0);
        pen.restore();
      });
      return;
    }
    const y = this.headHeight + rows.length * this.rowHeight + 12;
    const step = Math.max(1, Math.ceil(26 / this.cellWidth));
    pen.textAlign = 'left';
    for (let c = 0; c < cols.length; c += step) {
      const text = String(cols[c]);
      const x = c * this.cellWidth;
      if (x + pen.measureText(text).width <= cols.length * this.cellWidth + 1)
        pen.fillText(text, x, y);
    }
  }

  paintCursor(pen, { accent, paper }) {
    const { rows, cols, marked = -1 } = this.spec;
    const box = (x, y, w, t, color, line) => {
      pen.strokeStyle = color;
      pen.lineWidth = line;
      pen.strokeRect(x, y, w, t);
    };
    if (marked >= 0) {
      const x = Math.round(marked * this.cellWidth);
      const tall = rows.length * this.rowHeight;
      box(x - 1.5, this.headHeight - 1, this.cellWidth + 2, tall, paper, 4);
      box(x - 1.5, this.headHeight - 1, this.cellWidth + 2, tall, accent, 2);
    }
    if (document.activeElement === this.canvas && cols.length && rows.length) {
      const x = this.col * this.cellWidth;
      const y = this.headHeight + this.row * this.rowHeight;
      box(x - 1, y - 1, this.cellWidth + 1, this.rowHeight + 1, paper, 4);
      box(x - 1, y - 1, this.cellWidth + 1, this.rowHeight + 1, accent, 2);
    }
  }

  paintRowLabels() {
    const { rows, bars, barsLabel, markedRow = -1 } = this.spec;
    fill(
      this.labels,
      h(
        'div',
        { class: 'heat-head', style: { height: `${this.headHeight}px` } },
        bars ? barsLabel : '',
      ),
      ...rows.map((name, r) =>
        h(
          'div',
          {
            class: r === markedRow ? 'here' : '',
            title: plain(name),
            style: { height: `${this.rowHeight}px`, 'line-height': `${this.rowHeight}px` },
          },
          safe(name),
        ),
      ),
    );
  }
}

// Redraws every map when the theme changes or before printing.
const heatMaps = new Set();
function newHeatMap() {
  const map = new HeatMap();
  heatMaps.add(map);
  return map;
}
