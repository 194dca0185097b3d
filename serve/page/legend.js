// What the colours mean.

import { DIVERGING, SEQUENTIAL, drawLegend } from './colours.js';
import { make } from './notice.js';

const WORDS = { one: ['little', '', 'most evidence'], signed: ['speaks against', 'neither', 'speaks for it'] };

/** Shows one bar for each kind of map on the page: `kinds` holds true for signed maps, false for one-sided ones. */
export function showLegends(element, kinds) {
  element.replaceChildren(...[...kinds].sort().map(legend));
}

function legend(signed) {
  const bar = make('canvas', 'legend-bar');
  bar.width = 256;
  bar.height = 1;
  bar.setAttribute('aria-hidden', 'true');
  drawLegend(bar, signed ? DIVERGING : SEQUENTIAL);
  const words = WORDS[signed ? 'signed' : 'one'].map((word) => make('span', '', word));
  return make('div', 'legend', bar, make('div', 'legend-ends', ...words));
}
