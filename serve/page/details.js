// Timing and origin of an answer, for those who ask.

import { make } from './notice.js';

/** Fills a `details` element: the summary says how long it took. */
export function showDetails(element, { timing_ms: timing, ...result }) {
  const stages = Object.entries(timing).filter(([name]) => name !== 'total');
  const facts = {
    Stages: stages.map(([name, value]) => `${name} ${value < 10 ? value.toFixed(1) : Math.round(value)} ms`).join(', '),
    Model: result.model,
    Method: result.method,
    Layer: result.layer,
    Map: `${result.heatmap.shape.join(' × ')}, ${short(result.heatmap.min)} to ${short(result.heatmap.max)}`,
    Graph: result.graph_digest,
    Request: result.request_id,
  };
  const rows = Object.entries(facts).flatMap(([name, value]) => [make('dt', '', name), make('dd', '', String(value ?? '–'))]);
  const known = result.cached ? 'Known already, answered' : 'Explained';
  element.querySelector('summary').textContent = `${known} in ${Math.round(timing.total)} ms`;
  element.querySelector('dl').replaceChildren(...rows);
  element.hidden = false;
}

const short = (value) => (Number.isFinite(value) ? String(Number(value.toPrecision(3))) : '–');
