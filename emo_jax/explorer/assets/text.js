// Untrusted text on the page. Everything from the data goes through here: it becomes text nodes
// only, and characters that would be invisible or reorder their surroundings become marks.

// Controls, formats (zero-width, bidi), surrogates, private use, unassigned, line separators;
// then blanks that are letters or marks by category; then spaces that look like a plain one.
const ODD = new RegExp(
  '[\\p{Cc}\\p{Cf}\\p{Cs}\\p{Co}\\p{Cn}\\p{Zl}\\p{Zp}' +
    '\\u034F\\u115F\\u1160\\u17B4\\u17B5\\u180B-\\u180F\\u2800\\u3164\\uFFA0\\uFE00-\\uFE0D' +
    '\\u{E0100}-\\u{E01EF}\\u00A0\\u1680\\u2000-\\u200A\\u202F\\u205F\\u3000]',
  'gu',
);

const ODD_NAMES = {
  0x00: 'null',
  0x09: 'tab',
  0x0a: 'line feed',
  0x0d: 'carriage return',
  0xa0: 'no-break space',
  0xad: 'soft hyphen',
  0x61c: 'Arabic letter mark',
  0x200b: 'zero width space',
  0x200c: 'zero width non-joiner',
  0x200d: 'zero width joiner',
  0x200e: 'left-to-right mark',
  0x200f: 'right-to-left mark',
  0x2028: 'line separator',
  0x2029: 'paragraph separator',
  0x202a: 'left-to-right embedding',
  0x202b: 'right-to-left embedding',
  0x202c: 'pop directional formatting',
  0x202d: 'left-to-right override',
  0x202e: 'right-to-left override',
  0x2060: 'word joiner',
  0x2066: 'left-to-right isolate',
  0x2067: 'right-to-left isolate',
  0x2068: 'first strong isolate',
  0x2069: 'pop directional isolate',
  0xfeff: 'byte order mark',
};

function codeName(code) {
  const hex = 'U+' + code.toString(16).toUpperCase().padStart(4, '0');
  return ODD_NAMES[code] ? `${hex} ${ODD_NAMES[code]}` : hex;
}

// The visible stand-in of one odd character.
function markOf(char) {
  const code = char.codePointAt(0);
  if (code === 0x0a) return '↵';
  if (code === 0x09) return '⇥';
  if (code === 0xa0) return '⍽';
  if (code < 0x20) return String.fromCharCode(0x2400 + code);
  if (code === 0x7f) return '␡';
  return `⟨U+${code.toString(16).toUpperCase().padStart(4, '0')}⟩`;
}

// Text as one safe string, for attributes, options and the canvas.
function plain(text, limit = 0) {
  let out = String(text ?? '').replace(ODD, markOf);
  if (limit && out.length > limit) out = [...out].slice(0, limit - 1).join('') + '…';
  return out;
}

// Appends text to a node; marks are small spans that say their name on hover. In the reader a
// line feed also breaks the line (`breaks`).
function addText(node, text, { breaks = false } = {}) {
  let from = 0;
  for (const match of text.matchAll(ODD)) {
    if (match.index > from) node.append(text.slice(from, match.index));
    const mark = document.createElement('span');
    mark.className = 'mark';
    mark.title = codeName(match[0].codePointAt(0));
    mark.textContent = markOf(match[0]);
    node.append(mark);
    if (breaks && match[0] === '\n') node.append('\n');
    from = match.index + match[0].length;
  }
  if (from < text.length) node.append(text.slice(from));
  return node;
}

// A token as a name: its leading space shown, cut when long, isolated from the text around it.
function tokenName(text, limit = 28) {
  if (text === '') return '(part of a character)';
  const shown = text.replace(/^ +| +$/g, (blanks) => '␣'.repeat(Math.min(blanks.length, 8)));
  return plain(shown, limit);
}

// Whether a text is mostly written right to left; neutral characters do not vote.
function mostlyRightToLeft(text) {
  const right = text.match(
    /[\p{Script=Arabic}\p{Script=Hebrew}\p{Script=Syriac}\p{Script=Thaana}]/gu,
  );
  if (!right) return false;
  const letters = text.match(/\p{L}/gu);
  return letters !== null && right.length * 2 > letters.length;
}

// Names as `plain` cuts them, of which no two look alike: those that begin alike by their ends too.
function plainNames(names, most) {
  const cut = names.map((name) => plain(name, most));
  return cut.map((text, j) => {
    if (cut.indexOf(text) === cut.lastIndexOf(text)) return text;
    const whole = Array.from(plain(names[j]));
    const end = Math.floor(most / 2);
    return whole.length > most
      ? `${whole.slice(0, most - end - 1).join('')}…${whole.slice(-end).join('')}`
      : text;
  });
}

const NUMBER = new Intl.NumberFormat('en');
const count = (n) => (Number.isFinite(n) ? NUMBER.format(n) : '–');
// A number with a real minus sign; what rounds to zero has no sign.
function fixed(x, digits = 2) {
  if (typeof x !== 'number' || !Number.isFinite(x)) return '–';
  const text = x.toFixed(digits);
  return Number(text) === 0 ? text.replace('-', '') : text.replace('-', '−');
}
function signed(x, digits = 3) {
  const text = fixed(x, digits);
  return x > 0 && Number(text) !== 0 ? `+${text}` : text;
}
function percent(x, digits) {
  if (typeof x !== 'number' || !Number.isFinite(x)) return '–';
  const value = 100 * x;
  return `${value.toFixed(digits ?? (value !== 0 && value < 9.95 ? 1 : 0))} %`;
}
// Texts of the marks of an axis, at even steps: as many digits as show each to a fiftieth of a
// step, so that no two are alike; as powers of ten where that is shorter.
function tickTexts(values) {
  const steps = values.slice(1).map((v, j) => Math.abs(v - values[j]));
  const least = Math.min(...steps.filter((step) => step > 0));
  const close = Number.isFinite(least) ? least / 50 : Math.abs(values[0]) / 50;
  const written = (write) => {
    for (let digits = 0; digits <= 20; digits++) {
      const texts = values.map((v) => write(v, digits));
      if (texts.every((text, j) => Math.abs(Number(text) - values[j]) <= close)) return texts;
    }
    return values.map(String);
  };
  const length = (texts) => Math.max(...texts.map((text) => text.length));
  const plainly = written((v, digits) => v.toFixed(digits));
  const powers = written((v, digits) => v.toExponential(digits).replace('e+', 'e'));
  const texts = length(plainly) <= Math.max(6, length(powers)) ? plainly : powers;
  return texts.map((text) => (Number(text) === 0 ? '0' : text.replaceAll('-', '−')));
}
// The same for the ends of a scale: `format(v, digits)` with more digits where two are alike.
function scaleTexts(values, format) {
  let texts = values.map((v) => format(v));
  for (let digits = 1; digits <= 9 && new Set(texts).size < values.length; digits++)
    texts = values.map((v) => format(v, digits));
  return texts;
}
const many = (n, one, more = one + 's') => `${count(n)} ${n === 1 ? one : more}`;
