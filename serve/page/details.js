// Where an answer comes from: its method, its timing, for those who ask.

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

/** What a person should know of a method before choosing it. */
export function methodNote({ discriminative, slow, source }) {
  const words = [source];
  if (!discriminative) words.push('Shows what stands out to the model as a whole: the same for every class.');
  if (slow) words.push('Runs the model many times, so it takes a while.');
  return words.filter(Boolean).join(' · ');
}

const short = (value) => (Number.isFinite(value) ? String(Number(value.toPrecision(3))) : '–');
