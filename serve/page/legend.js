// What the colours mean.

import { DIVERGING, SEQUENTIAL, drawLegend } from './colours.js';
import { scaleOf } from './heatmap.js';
import { make } from './notice.js';

const WORDS = {
  evidence: ['little', '', 'most evidence'],
  signed: ['speaks against', 'neither', 'speaks for it'],
  contrast: ['marked one way', 'neither', 'the other way'], // signed, but of no class: for and against would be untrue
};

/** Which legend a result needs. */
export function kindOf(result, method) {
  if (!scaleOf(result.heatmap).signed) return 'evidence';
  return method.discriminative ? 'signed' : 'contrast';
}

/** Shows one bar for each kind of map on the page. */
export function showLegends(element, kinds) {
  element.replaceChildren(...[...kinds].sort().map(legend));
}

function legend(kind) {
  const bar = make('canvas', 'legend-bar');
  bar.width = 256;
  bar.height = 1;
  bar.setAttribute('aria-hidden', 'true');
  drawLegend(bar, kind === 'evidence' ? SEQUENTIAL : DIVERGING);
  const words = WORDS[kind].map((word) => make('span', '', word));
  return make('div', 'legend', bar, make('div', 'legend-ends', ...words));
}
